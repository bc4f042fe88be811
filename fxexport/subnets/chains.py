"""Operators that only look at a tensor another way, as steps of a wire; and wires as operators again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxexport.pipeline.ports import View
from fxexport.signature import dtype_name
from fxexport.subnets.tape import Operator, Ref, Tape

_LAST = (1 << 63) - 1  # torch's "to the end"
_COPIES = {"clone", "contiguous", "alias", "detach", "lift_fresh", "lift_fresh_copy", "lift"}
_NUMBERS = {"slice": (1, 2), "select": (1,)}  # which arguments a loop may change from call to call


@dataclass(frozen=True)
class Hop:
    """One view; ``idle``: here it left the tensor as it was."""

    view: View
    idle: bool = False


def looks_at(tape: Tape, operator: Operator, value: int) -> tuple[int, tuple[Hop, ...]] | None:
    """The value that ``operator`` only looks at (or copies) to give ``value``, and how; None where it computes."""
    name = operator.func._schema.name.removeprefix("aten::")
    if not operator.args or not isinstance(operator.args[0], Ref) or operator.written:
        return None
    source = operator.args[0].value
    before, after = tape.values[source], tape.values[value]
    if name in _COPIES:
        return source, ()
    if name == "_to_copy":
        cast = View("cast", (dtype_name(after.dtype),))
        return source, () if before.dtype == after.dtype else (Hop(cast),)
    if name in ("view", "_unsafe_view", "reshape", "expand") and before.shape == after.shape:
        return source, ()
    read = _READERS.get(name)
    views = None if read is None else read(before.shape, _arguments(operator), operator.outputs.index(value))
    if views is None:
        return None
    return source, tuple(Hop(view, idle=view.op == "slice" and before.shape == after.shape) for view in views)


def _arguments(operator: Operator) -> dict[str, Any]:
    """Every argument by its name in the schema, defaults included."""
    schema = operator.func._schema.arguments
    given = {argument.name: argument.default_value for argument in schema}
    given |= {argument.name: value for argument, value in zip(schema, operator.args, strict=False)}
    return given | operator.kwargs


def _slice(shape: Sequence[int], a: dict[str, Any], _: int) -> list[View]:
    end = None if a["end"] == _LAST else a["end"]
    return [View("slice", (a["dim"] % len(shape), a["start"] or 0, end, a["step"]))]


def _select(shape: Sequence[int], a: dict[str, Any], _: int) -> list[View]:
    return [View("select", (a["dim"] % len(shape), a["index"]))]


def _unbind(shape: Sequence[int], a: dict[str, Any], place: int) -> list[View]:
    return [View("select", (a["dim"] % len(shape), place))]


def _split(shape: Sequence[int], a: dict[str, Any], place: int) -> list[View]:
    dim = a["dim"] % len(shape)
    sizes = list(a["split_sizes"]) if "split_sizes" in a else [a["split_size"]] * (place + 1)
    start = sum(sizes[:place])
    return [View("slice", (dim, start, min(start + sizes[place], shape[dim]), 1))]


def _permute(shape: Sequence[int], a: dict[str, Any], _: int) -> list[View]:
    return [View("permute", tuple(dim % len(shape) for dim in a["dims"]))]


def _transpose(shape: Sequence[int], a: dict[str, Any], _: int) -> list[View]:
    dims = list(range(len(shape)))
    if not dims:
        return []
    first, second = (a[key] % len(shape) for key in ("dim0", "dim1"))
    dims[first], dims[second] = second, first
    return [View("permute", tuple(dims))]


def _t(shape: Sequence[int], a: dict[str, Any], _: int) -> list[View]:
    return [View("permute", (1, 0))] if len(shape) == 2 else []


def _unsqueeze(shape: Sequence[int], a: dict[str, Any], _: int) -> list[View]:
    return [View("unsqueeze", (a["dim"] % (len(shape) + 1),))]


def _squeeze(shape: Sequence[int], a: dict[str, Any], _: int) -> list[View]:
    given = a.get("dim")
    dims = range(len(shape)) if given is None else [given] if isinstance(given, int) else given
    gone = {dim % len(shape) for dim in dims if shape[dim] == 1} if shape else set()
    return [View("squeeze", (dim,)) for dim in sorted(gone, reverse=True)]


def _flip(shape: Sequence[int], a: dict[str, Any], _: int) -> list[View]:
    return [View("flip", tuple(dim % len(shape) for dim in a["dims"]))]


_READERS: dict[str, Any] = {
    "slice": _slice, "select": _select, "unbind": _unbind, "split": _split, "split_with_sizes": _split,
    "permute": _permute, "transpose": _transpose, "t": _t, "unsqueeze": _unsqueeze, "squeeze": _squeeze, "flip": _flip,
}  # fmt: skip


def merge(chains: Sequence[tuple[Hop, ...]]) -> tuple[tuple[View, ...], bool] | None:
    """The views that all ``chains`` share, and whether their numbers differ from call to call; None for different views.

    A slice of everything is left out where it is one in every chain. Numbers that differ are those of the first chain.
    """
    if len({tuple(hop.view.op for hop in chain) for chain in chains}) > 1:
        chains = [tuple(hop for hop in chain if not hop.idle) for chain in chains]
    if len({tuple(hop.view.op for hop in chain) for chain in chains}) > 1:
        return None
    through, chosen = [], False
    for column in zip(*chains, strict=True):
        if all(hop.idle for hop in column):
            continue
        views = [hop.view for hop in column]
        if len({_fixed(view) for view in views}) > 1:
            return None
        chosen |= len(set(views)) > 1
        through.append(views[0])
    return tuple(through), chosen


def _fixed(view: View) -> tuple[Any, ...]:
    """What must be the same in every call: the view without the numbers that a loop may count with."""
    loose = _NUMBERS.get(view.op, ())
    return (view.op, *(argument for i, argument in enumerate(view.arguments) if i not in loose))


def look(tensor: Tensor, views: Sequence[View]) -> Tensor:
    """``tensor`` through ``views``. Raises IndexError or RuntimeError where a view does not fit."""
    for view in views:
        a: Any = view.arguments
        match view.op:
            case "slice":
                tensor = torch.ops.aten.slice.Tensor(tensor, *a)
            case "cast":
                tensor = tensor.to(getattr(torch, a[0]))
            case "permute" | "flip":
                tensor = getattr(tensor, view.op)(a)
            case _:
                tensor = getattr(tensor, view.op)(*a)
    return tensor
