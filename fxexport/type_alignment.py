"""The declared types of inputs and outputs against one real call: final names, dynamic axes, contradictions."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from fxexport.errors import InputError
from fxexport.signature import unique_names
from fxexport.tensor_types import TypedMap
from fxexport.type_naming import (
    Items,
    Naming,
    Pairs,
    describe,
    distribute,
    dynamic_axes,
    is_optional,
    own_label,
    read_path,
    unequal,
)


class AxisPlan(NamedTuple):
    """A dynamic axis: its label, and whether it was declared (else it may come out fixed without an error).

    ``claimed``: a toolbox's type says what the axis means, "time", which is not always that it may have other sizes.
    """

    label: str
    declared: bool
    claimed: bool = False


@dataclass(frozen=True)
class InputPlan:
    """For each tensor of the call, in order: its name, and its dynamic axes by position."""

    names: list[str]
    axes: list[dict[int, AxisPlan]]
    notes: list[str]


@dataclass(frozen=True)
class OutputPlan:
    """For each leaf of the result, in order: its name (None: left out), and the labels of its declared dynamic axes by
    position (None: nothing is known of its axes)."""

    names: list[str | None]
    axes: list[dict[int, str] | None]
    notes: list[str]


def plan_inputs(types: TypedMap, leaves: Sequence[tuple[str, torch.Tensor]], *, owner: str) -> InputPlan:
    """Names and dynamic axes for the tensors of a call of ``owner``, from the ``types`` that it declares.

    ``leaves``: path (``"audio"``, ``"states[0]"``, ``"batch['image']"``) and tensor, in order. Types belong to
    parameters by name, else by position. Raises InputError where dtype, rank, a fixed size, or the sizes of a shared
    dimension contradict the tensors.
    """
    naming = Naming("input", owner, types, [read_path(path) for path, _ in leaves], [value for _, value in leaves])
    places = _parameters(naming.paths, types)
    named: Pairs = [(name, places[name]) for name in types if name in places]
    moved = _inputs_by_position(naming, places)
    for name, place in [*named, *moved]:
        naming.assign(name, place)
    for name, place in moved:
        shown = [naming.show(leaf) for leaf in place]
        naming.notes.append(f"{naming.hook} does not name {', '.join(shown)}: by position that is {name!r}")
    naming.note_absent({name for name, _ in [*named, *moved]})
    naming.make_unique()
    for leaf, typed in enumerate(naming.typed):
        problem = typed.contradiction(naming.values[leaf]) if typed else None
        if problem:
            raise InputError(
                f"{naming.hook} declares {naming.names[leaf]!r} as {typed}, but the example has "
                f"{describe(naming.values[leaf])} at {naming.show(leaf)}: {problem}.\n"
                f"  Correct the type in {naming.hook}, or the example."
            )
        if typed is None:
            naming.notes.append(f"{naming.hook} has no type for {naming.show(leaf)}: none of its axes is declared")
    return InputPlan([str(name) for name in naming.names], _input_axes(naming), naming.notes)


def _parameters(paths: Sequence[Sequence[str | int]], types: TypedMap) -> dict[str, list[int]]:
    """The leaves of each parameter; the entries of a dict parameter stand for themselves where the types name them."""
    heads = {path[0] for path in paths}
    claimed: dict[str, str] = {}
    places: dict[str, list[int]] = {}
    for leaf, (head, *rest) in enumerate(paths):
        key, inner = str(head), rest[0] if rest else None
        if isinstance(inner, str) and key not in types and inner in types and inner not in heads:
            key = inner if claimed.setdefault(inner, key) == key else key
        places.setdefault(key, []).append(leaf)
    return places


def _inputs_by_position(naming: Naming, places: Mapping[str, list[int]]) -> Pairs:
    """Types without a parameter for parameters without a type: where counts agree, else where the place in the call
    agrees. An optional type is rather passed over than contradicted."""
    left = [place for key, place in places.items() if key not in naming.types]
    free = [(name, declared) for name, declared in naming.types.items() if name not in places]
    if not left or not free:
        return []
    required = [(name, declared) for name, declared in free if not is_optional(declared)]
    for items in (required, free):
        pairs = distribute(left, items)
        if pairs is not None and naming.fits(pairs, optional_only=True):
            return pairs
    in_order = [pair for pair in zip(naming.types, places.values(), strict=False) if pair[1] in left]
    return [(name, place) for name, place in in_order if name not in places and naming.fits([(name, place)])]


def _input_axes(naming: Naming) -> list[dict[int, AxisPlan]]:
    """The labels of all dynamic axes: one label is one size."""
    axes = list(dynamic_axes(naming))
    problems = unequal(naming, axes)
    if problems:
        raise InputError(
            f"{problems[0]}; equal names mean equal sizes.\n  Give the two axes different names, or correct the example."
        )
    plain = {a.axis.kind for a in axes if a.axis.shared}
    own = []
    for axis in axes:
        if axis.axis.shared:
            continue
        alike = [a for a in axes if a.axis.kind == axis.axis.kind]
        # At size 1, equal sizes say nothing.
        one_size = len(alike) == 1 or (axis.size != 1 and {a.size for a in alike} == {axis.size})
        if axis.axis.dynamic == "allowed" or not one_size:
            own.append(axis)
        elif axis.axis.kind not in plain:
            plain.add(axis.axis.kind)
            names = list(dict.fromkeys(naming.names[a.leaf] for a in alike))
            if len(names) > 1:
                what = f"the {axis.axis.kind} axes of {names} have one size in the example"
                naming.notes.append(f"{naming.hook}: {what}; they are one dimension, {axis.axis.kind!r}")
    labels = dict(zip(own, unique_names([own_label(naming, axis) for axis in own], plain), strict=True))
    result: list[dict[int, AxisPlan]] = [{} for _ in naming.names]
    for axis in axes:
        declared = axis.axis.dynamic == "declared"
        plan = AxisPlan(labels.get(axis, axis.axis.kind), declared, declared and not axis.axis.shared)
        result[axis.leaf][axis.position] = plan
    return result


def plan_outputs(
    types: TypedMap, leaves: Sequence[tuple[str, object]], *, disabled: Collection[str], owner: str
) -> OutputPlan:
    """Names and declared axes for the leaves of a result of ``owner``, from the ``types`` that it declares.

    ``leaves``: path (``"output"``, ``"output[1]"``, ``"output['logits']"``) and tensor, number or None, in order.
    Types belong to results by key, else by position; None and ``disabled`` results are left out. What contradicts the
    types, or cannot be aligned with them, is a note. Leaves that are no part of the result (``"state['h']"``) keep a
    name from their path.
    """
    naming = Naming("output", owner, types, [read_path(path) for path, _ in leaves], [value for _, value in leaves])
    places: dict[str | int, list[int]] = {}
    for leaf, (head, *keys) in enumerate(naming.paths):
        if head == "output":
            places.setdefault(keys[0] if keys else 0, []).append(leaf)
    known = {*types, *disabled}
    pairs: Pairs | None = [(str(key), place) for key, place in places.items() if key in known]
    if not pairs:
        pairs = _outputs_by_position(naming, list(places.values()), disabled)
    for name, place in pairs or []:
        if name in types:
            naming.assign(name, place)
        if name in disabled:
            for leaf in place:
                naming.names[leaf] = None
    for leaf, value in enumerate(naming.values):
        naming.names[leaf] = None if value is None else naming.names[leaf]
    if pairs is None:
        came = "; ".join(f"{naming.show(leaf)}: {describe(value)}" for leaf, value in enumerate(naming.values))
        less = f" (disabled: {sorted(disabled)})" if disabled else ""
        what = f"{naming.hook} declares {list(types)}{less}, which fits no reading of the result ({came})"
        naming.notes.append(f"{what}: named by its structure, nothing left out")
    else:
        naming.note_absent({*disabled, *(name for name, _ in pairs)})
    naming.make_unique()
    return OutputPlan(naming.names, _output_axes(naming), naming.notes)


def _outputs_by_position(naming: Naming, places: list[list[int]], disabled: Collection[str]) -> Pairs | None:
    """The first reading of the result that agrees in count and in what is declared, else one that agrees in count.

    Read are all places, those that are not None, and the whole result as one state; against all types, those that are
    not disabled, and these less optional ones at the end or anywhere.
    """
    every = list(naming.types.items())
    enabled = [item for item in every if item[0] not in disabled]
    present = [place for place in places if any(naming.values[leaf] is not None for leaf in place)]
    exact = [pairs for seen in (places, present) for items in (every, enabled) if (pairs := distribute(seen, items))]
    whole = [leaf for place in places for leaf in place]
    if len(enabled) == 1 and isinstance(enabled[0][1], tuple) and len(places) > 1:
        exact.append([(enabled[0][0], whole)])
    fewer = [
        pairs
        for seen in (places, present)
        for items in (every, enabled)
        for part in _without_optional(items)
        if (pairs := distribute(seen, part))
    ]
    return next((pairs for pairs in [*exact, *fewer] if naming.fits(pairs)), exact[0] if exact else None)


def _without_optional(items: Items) -> Iterator[Items]:
    """``items`` less one, two... optional ones at the end, then less all optional ones."""
    rest = list(items)
    while rest and is_optional(rest[-1][1]):
        rest.pop()
        yield list(rest)
    yield [item for item in items if not is_optional(item[1])]


def _output_axes(naming: Naming) -> list[dict[int, str] | None]:
    """The labels of the declared axes. What shares no size with anything is labelled after its output."""
    result: list[dict[int, str] | None] = []
    for leaf, (typed, value, name) in enumerate(zip(naming.typed, naming.values, naming.names, strict=True)):
        problem = typed.contradiction(value) if typed and name is not None else None
        if problem:
            naming.notes.append(
                f"{naming.hook} declares {name!r} as {typed}, but {describe(value)} came at {naming.show(leaf)}: {problem}"
            )
        unknown = problem or name is None or typed is None or typed.axes is None
        result.append(None if unknown else {})
    axes = [a for a in dynamic_axes(naming) if a.axis.dynamic == "declared" and naming.names[a.leaf] is not None]
    naming.notes += unequal(naming, axes)
    for axis in axes:
        found = result[axis.leaf]
        if found is not None:
            found[axis.position] = axis.axis.kind if axis.axis.shared else own_label(naming, axis)
    return result
