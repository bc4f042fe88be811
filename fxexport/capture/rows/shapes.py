"""Rules of the operators that move axes or change their sizes, whose arguments may count the rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from fxexport.capture.rows.building import Builder
from fxexport.capture.rows.rules import RowCall
from fxexport.capture.rows.values import Filled, divided, product

aten = torch.ops.aten


def reshaped(call: RowCall, build: Builder) -> int:
    """``view``: the rows begin where there is as much before them as there was, at a multiple of their number."""
    sizes = "size" if "size" in call.args else "shape"
    place = _found(call)
    call.args[sizes] = _counted(call, build, list(call.args[sizes]), place, _count(call))
    return place


def _found(call: RowCall) -> int:
    """The axis of the rows in a reshaped result; what is merged in front of them becomes ``before``."""
    axis, old, new, count = call.axis("self"), call.shape("self"), call.result(), _count(call)
    before = product(old[:axis]) * call.before
    fits = {}
    for i in range(len(new)):
        outer = divided(before, product(new[:i]))
        if outer is not None and divided(new[i], outer * count) is not None:
            fits[i] = outer
    clear = [i for i, outer in fits.items() if outer == 1]
    if not fits or (count == 1 and not clear):
        return int(call.refuse())
    place = clear[-1 if count == 1 else 0] if clear else max(fits)
    call.before = fits[place]
    return place


def _count(call: RowCall) -> int:
    return call.count if next(iter(call.rows().values())).turn is None else 1


def _counted(call: RowCall, build: Builder, sizes: list[Any], place: int, count: int) -> list[Any]:
    """``sizes`` of a reshape with the one at ``place`` for any number of rows."""
    size = sizes[place]
    if size == -1:
        return sizes
    if isinstance(size, int):
        sizes[place] = build.times(size // count)
    elif -1 not in sizes:
        sizes[place] = -1
    else:
        return list(call.refuse())
    return sizes


def _expand(call: RowCall, build: Builder) -> int:
    axis = call.axis("self")
    place = len(call.result()) - call.rank("self") + axis
    sizes = list(call.args["size"])
    if sizes[place] != -1:
        if call.result()[place] != call.shape("self")[axis]:
            return int(call.refuse())
        sizes[place] = -1
    call.args["size"] = sizes
    return place


def _repeat(call: RowCall, build: Builder) -> int:
    place = len(call.result()) - call.rank("self") + call.axis("self")
    return place if call.args["repeats"][place] == 1 else int(call.refuse())


def _permute(call: RowCall, build: Builder) -> int:
    rank = call.rank("self")
    return [dim % rank for dim in call.args["dims"]].index(call.axis("self"))


def _transpose(call: RowCall, build: Builder) -> int:
    rank, axis = call.rank("self"), call.axis("self")
    one, two = (call.args[name] % rank for name in ("dim0", "dim1"))
    return int({one: two, two: one}.get(axis, axis))


def _turned(call: RowCall, build: Builder) -> int:
    rank, axis = call.rank("self"), call.axis("self")
    return {rank - 1: rank - 2, rank - 2: rank - 1}.get(axis, axis) if rank > 1 else axis


def _unsqueeze(call: RowCall, build: Builder) -> int:
    axis = call.axis("self")
    return axis + int(call.args["dim"] % (call.rank("self") + 1) <= axis)


def _squeeze(call: RowCall, build: Builder) -> int:
    axis, rank = call.axis("self"), call.rank("self")
    dims = [call.args["dim"]] if isinstance(call.args["dim"], int) else call.args["dim"]
    gone = {dim % rank for dim in dims if call.shape("self")[dim] == 1}
    return axis - sum(dim < axis for dim in gone) if axis not in {dim % rank for dim in dims} else int(call.refuse())


def _flatten(call: RowCall, build: Builder) -> int:
    axis, rank = call.axis("self"), call.rank("self")
    start, end = call.args["start_dim"] % rank, call.args["end_dim"] % rank
    if start < axis <= end:
        return _found(call)
    return axis if axis <= start else axis - (end - start)


def _unflatten(call: RowCall, build: Builder) -> int:
    axis, rank = call.axis("self"), call.rank("self")
    dim, sizes = call.args["dim"] % rank, list(call.args["sizes"])
    if dim != axis:
        return axis if dim > axis else axis + len(sizes) - 1
    count = _count(call)
    if divided(call.result()[axis], count) is None or call.before != 1:
        return int(call.refuse())
    call.args["sizes"] = _counted(call, build, sizes, 0, count)
    return axis


def _one_axis(call: RowCall, build: Builder) -> int:
    """``select``, ``slice``, ``narrow``, ``unbind``, ``split`` of another axis than that of the rows."""
    axis, rank = call.axis("self"), call.rank("self")
    dim = call.args["dim"] % rank
    if dim == axis:
        return int(call.refuse())
    return axis - (dim < axis) if len(call.result()) < rank else axis


def _scatter(call: RowCall, build: Builder) -> int:
    """``select_scatter``, ``slice_scatter`` along another axis; ``src`` is rows, or one and the same for all."""
    call.only("self", "src")
    rows, rank = call.rows(), call.rank("self")
    dim = call.args["dim"] % rank
    less = rank - call.rank("src")
    places = {v.axis + (1 if name == "src" and less and dim <= v.axis else 0) for name, v in rows.items()}
    axis = places.pop() if len(places) == 1 else int(call.refuse())
    return axis if axis != dim and set(rows) == {"self", "src"} else int(call.refuse())


def _rolled(call: RowCall, build: Builder) -> int:
    axis, rank = call.axis("self"), call.rank("self")
    dims = [dim % rank for dim in call.args["dims"]]
    return axis if dims and axis not in dims else int(call.refuse())


def _indexed(call: RowCall, build: Builder) -> int:
    """``x[:, index]`` with indices that all rows share, at neighbouring axes."""
    axis = call.axis("self")
    places = [i for i, index in enumerate(call.args["indices"]) if index is not None]
    nodes = [call.given["indices"][i] for i in places]
    plain = all(isinstance(n, fx.Node) and n.meta["val"].dtype != torch.bool for n in nodes)
    if not plain or axis in places or places != list(range(places[0], places[-1] + 1)):
        return int(call.refuse())
    if not all(isinstance(call.args["indices"][i], fx.Node) for i in places):
        return int(call.refuse())
    rank = max(n.meta["val"].dim() for n in nodes)
    return axis if axis < places[0] else axis - len(places) + rank


def _recurrent(call: RowCall, build: Builder) -> list[int]:
    """``lstm``, ``gru``, from states that hold one number."""
    axis = call.axis("input")
    if axis != (0 if call.args["batch_first"] else 1) or call.args["train"] is not False or call.rank("input") != 3:
        return list(call.refuse())
    states = call.args["hx"] if isinstance(call.args["hx"], list | tuple) else [call.args["hx"]]
    if not all(isinstance(state, Filled) and state.shape[1] == _count(call) for state in states):
        return list(call.refuse())
    counted = [replace(state, shape=(state.shape[0], build.times(1), state.shape[2])) for state in states]
    call.args["hx"] = counted if isinstance(call.args["hx"], list | tuple) else counted[0]
    return [axis, 1, 1][: len(call.node.meta["val"])]


_RULES: dict[Callable[[RowCall, Builder], Any], str] = {
    reshaped: "view.default reshape.default _unsafe_view.default view_copy.default _reshape_copy.default",
    _expand: "expand.default expand_copy.default",
    _repeat: "repeat.default",
    _permute: "permute.default permute_copy.default",
    _transpose: "transpose.int transpose_copy.int swapaxes.default",
    _turned: "t.default mT.default mH.default adjoint.default",
    _unsqueeze: "unsqueeze.default",
    _squeeze: "squeeze.dim squeeze.dims",
    _flatten: "flatten.using_ints",
    _unflatten: "unflatten.int",
    _one_axis: "select.int slice.Tensor narrow.default unbind.int split.Tensor split_with_sizes.default chunk.default "
    "tensor_split.sections split.sizes select_copy.int slice_copy.Tensor",
    _scatter: "select_scatter.default slice_scatter.default",
    _rolled: "roll.default flip.default",
    _indexed: "index.Tensor",
    _recurrent: "lstm.input gru.input rnn_tanh.input rnn_relu.input",
}
SHAPE_RULES: dict[Any, Callable[[RowCall, Builder], Any]] = {
    getattr(getattr(aten, name), overload): rule
    for rule, names in _RULES.items()
    for name, overload in (each.split(".") for each in names.split())
    if hasattr(aten, name) and overload in getattr(aten, name).overloads()
}
