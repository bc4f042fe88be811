"""Edge values: masks that are full or empty, ragged lengths, other ids; zeros, ones, large and negated numbers.

A value that was baked at the example and that fresh values like the example's do not move is moved here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch

from fxexport.signature import Dimension, Signature
from fxexport.validation.sweep import Point, draw, example_sizes
from fxexport.validation.values import (
    Kind,
    Role,
    constant,
    other_ids,
    other_mask,
    other_side_of_zero,
    ragged,
    roles_of,
)

LARGE = 1000.0
OUT_OF_RANGE = "large"
"""How the labels of edges begin whose values are far larger than the example's."""
_MOST_ALONE = 3  # inputs that are changed one by one, where eager does not take them changed together
_FIRST_SEED = 100

Change = Callable[[torch.Tensor, torch.Generator, bool], torch.Tensor]
"""(drawn values, generator, whether they are complex pairs) -> the values to try."""

_LENGTHS: dict[str, Change] = {
    "ragged": lambda t, g, _: ragged(t, int(t.max()), g),
    "full": lambda t, g, _: torch.full_like(t, int(t.max())),
    "shortest": lambda t, g, _: torch.ones_like(t),
}
# In the order in which they find most; the first ones are run also where time is short.
_EDGES: Sequence[tuple[Mapping[Kind, str], Mapping[Kind, Change]]] = (
    (
        {"ids": "other ids", "mask": "other masks", "lengths": "ragged lengths"},
        {
            "ids": lambda t, g, _: other_ids(t, g),
            "mask": lambda t, g, _: other_mask(t, g),
            "lengths": _LENGTHS["ragged"],
        },
    ),
    ({"real": "negated"}, {"real": lambda t, g, _: other_side_of_zero(t, g)}),
    (
        {"mask": "masks of ones", "lengths": "full lengths"},
        {"mask": lambda t, g, _: torch.ones_like(t), "lengths": _LENGTHS["full"]},
    ),
    ({"real": "zeros"}, {"real": lambda t, g, _: torch.zeros_like(t)}),
    (
        {"mask": "masks of zeros", "lengths": "shortest lengths"},
        {"mask": lambda t, g, _: torch.zeros_like(t), "lengths": _LENGTHS["shortest"]},
    ),
    ({"real": OUT_OF_RANGE}, {"real": lambda t, g, _: t * LARGE}),
    ({"real": "ones"}, {"real": lambda t, g, pairs: constant(t, 1.0, pairs=pairs)}),
)


@dataclass(frozen=True)
class Edge:
    """One edge: the point with all inputs of its kind changed, and the same for one of them at a time.

    ``alone`` is for a model that does not take the change in all of them, such as zeros in what it divides by.
    """

    point: Point
    alone: tuple[Point, ...] = ()


def edges(signature: Signature, examples: Sequence[torch.Tensor], assumed: Collection[str] = ()) -> list[Edge]:
    """The edge values of the inputs, at the example's own sizes, the most telling first; the same on every call.

    Inputs that are ``assumed`` to hold certain values are no part of any. All that an edge does not concern gets fresh
    values. Edges at which the example already is are left out.
    """
    roles = roles_of(signature, examples)
    found = []
    for number, (labels, changes) in enumerate(_EDGES):
        concerned = [
            i for i, role in enumerate(roles) if role.kind in changes and signature.inputs[i].name not in assumed
        ]
        if not concerned:
            continue
        sizes = _sizes(signature, examples, roles) if "lengths" in changes else example_sizes(signature, examples)
        drawn = list(draw(signature, examples, sizes, _FIRST_SEED + number))
        generator = torch.Generator().manual_seed(_FIRST_SEED + number)
        changed = {i: changes[roles[i].kind](drawn[i], generator, signature.inputs[i].pairs) for i in concerned}
        changed = {i: value for i, value in changed.items() if not torch.equal(value, examples[i])}
        if not changed:
            continue
        label = ", ".join(dict.fromkeys(labels[roles[i].kind] for i in changed))
        alone = [
            _point(f"{labels[roles[i].kind]} in {signature.inputs[i].name}", sizes, drawn, {i: changed[i]})
            for i in changed
        ]
        found.append(Edge(_point(label, sizes, drawn, changed), tuple(alone[:_MOST_ALONE]) if len(alone) > 1 else ()))
    return found


def _point(
    label: str, sizes: Mapping[str, int], drawn: Sequence[torch.Tensor], changed: Mapping[int, torch.Tensor]
) -> Point:
    inputs = tuple(changed.get(i, tensor) for i, tensor in enumerate(drawn))
    return Point(label, sizes, inputs, lenient=True)


def _sizes(signature: Signature, examples: Sequence[torch.Tensor], roles: Sequence[Role]) -> dict[str, int]:
    """The example's sizes, with two rows where lengths come in one row and may come in more: one row is not ragged."""
    sizes = example_sizes(signature, examples)
    known: dict[str, Dimension] = {dimension.name: dimension for dimension in signature.dimensions}
    for spec, role in zip(signature.inputs, roles, strict=True):
        rows = known.get(str(spec.axes[0])) if role.kind == "lengths" else None
        if rows is not None and sizes[rows.name] == 1 and (rows.maximum is None or rows.maximum > 1):
            sizes[rows.name] = 2
    return sizes
