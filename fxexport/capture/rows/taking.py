"""Where rows are taken out of a tensor (``x[i]``, ``for row in x``), and tensors that hold one number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from fxexport.capture.rows.building import Builder
from fxexport.capture.rows.rules import RowCall
from fxexport.capture.rows.values import Filled, Lone, Mixed, Number, Pieces, Rows, formula

aten = torch.ops.aten
_LAST = 2**63 - 1


def lone_of(rows: Rows, turn: int, build: Builder) -> Lone:
    """Row ``turn`` of ``rows``, which has one element each, without their axis."""
    node, axis = rows.node, rows.axis
    rank = node.meta["val"].dim()
    order = [axis, *(i for i in range(rank) if i != axis)]
    return Lone(build.call(aten.permute.default, (node, order)) if axis else node, turn)


def _select(call: RowCall, build: Builder) -> Any:
    """``x[i]``."""
    value = call.args["self"]
    dim = call.args["dim"] % call.rank("self")
    if isinstance(call.args["index"], Number):
        return _by_number(call, build, dim, call.args["index"])
    if isinstance(value, Lone | Filled | fx.Node) or not isinstance(call.args["index"], int) or value.axis != dim:
        return None
    size = formula(call.shape("self")[dim])
    if isinstance(value, Pieces):
        return _piece(value, call.args["index"] % call.count, build)
    if not isinstance(value, Rows) or size != (call.count if value.turn is None else 1):
        return None
    return lone_of(value, call.args["index"] % call.count if value.turn is None else value.turn, build)


def _by_number(call: RowCall, build: Builder, dim: int, number: Number) -> Lone:
    """``row[n]``, where every row has its own ``n``."""
    value = call.args["self"]
    if isinstance(value, Rows) and value.turn is not None:
        value = build.alone(value)
    if isinstance(value, Rows | Pieces) or getattr(value, "turn", number.turn) != number.turn:
        raise Mixed(f"{call.node.target} takes one row by the value of another")
    node, place = build.shared(value), dim + isinstance(value, Lone)
    size = build.call(aten.sym_size.int, (node, place))
    behind = build.call(aten.add.Tensor, (number.lone.node, size))
    negative = build.call(aten.lt.Scalar, (number.lone.node, 0))
    index = build.call(aten.where.self, (negative, behind, number.lone.node))
    order = [*range(isinstance(value, Lone)), place]
    order += [i for i in range(node.meta["val"].dim()) if i not in order]
    node = build.call(aten.permute.default, (node, order)) if order != sorted(order) else node
    rows = [build.call(aten.arange.default, (build.rows_node,))] if isinstance(value, Lone) else []
    return Lone(build.call(aten.index.Tensor, (node, [*rows, index])), number.turn)


def _item(call: RowCall, build: Builder) -> Any:
    """``row.item()``, which is what it is taken from."""
    value = call.args["self"]
    if isinstance(value, Rows) and value.turn is not None:
        value = build.alone(value)
    if not isinstance(value, Lone):
        raise Mixed(f"{call.node.target} takes one number out of all rows")
    if call.rank("self"):
        value = Lone(build.call(aten.view.default, (value.node, [-1])), value.turn)
    return Number(value)


def _piece(pieces: Pieces, index: int, build: Builder) -> Any:
    written = dict(pieces.written)
    if index in written:
        return written[index]
    base = pieces.base
    if isinstance(base, Rows):
        return lone_of(base, index, build)
    if isinstance(base, Filled):
        shape = (*base.shape[: pieces.axis], *base.shape[pieces.axis + 1 :])
        return Filled(shape, base.number, base.dtype, base.device)
    return build.call(aten.select.int, (base, pieces.axis, index))


def _slice(call: RowCall, build: Builder) -> Any:
    """``x[i : i + 1]``, ``x[:]``."""
    value = call.args["self"]
    dim = call.args["dim"] % call.rank("self")
    if isinstance(value, Lone) or value.axis != dim:
        return None
    size = call.shape("self")[dim]
    start, end = call.args["start"] or 0, _LAST if call.args["end"] is None else call.args["end"]
    if not all(isinstance(bound, int) for bound in (size, start, end)) or call.args["step"] != 1 or call.before != 1:
        raise Mixed(f"{call.node.target} takes some of the rows")
    if getattr(value, "turn", None) is None and (start < -size or size < end < _LAST):
        return _some(call)  # as x[:8] does where there are more rows
    first, last, _ = slice(start, end).indices(int(size))
    if (first, last) == (0, size) and not isinstance(value, Pieces):
        return value
    if isinstance(value, Pieces):
        piece = _piece(value, first, build) if last == first + 1 else None
        return build.placed(piece, dim) if isinstance(piece, Lone) else _some(call)
    each, rest = divmod(int(size), call.count if value.turn is None else 1)
    if value.turn is not None or rest or last - first != each or first % each:
        return _some(call)
    return Rows(value.node, dim, first // each)


def _some(call: RowCall) -> Any:
    raise Mixed(f"{call.node.target} takes some of the rows")


def _parts(call: RowCall, build: Builder) -> Any:
    """``unbind``, ``split``, ``chunk``: a tuple with an entry for each row."""
    value = call.args["self"]
    if not isinstance(value, Rows) or value.turn is not None or value.axis != call.args["dim"] % call.rank("self"):
        return None
    if call.before != 1:
        return call.refuse()
    results = call.node.meta["val"]
    size = formula(call.shape("self")[value.axis])
    if call.args.get("chunks", call.count) != call.count:
        return _some(call)  # more rows than chunks would be several in each
    if len(results) != call.count or any(formula(r.numel()) != formula(results[0].numel()) for r in results):
        return _some(call)
    if call.node.target is aten.unbind.int:
        return tuple(lone_of(value, turn, build) for turn in range(call.count)) if size == call.count else _some(call)
    return tuple(Rows(value.node, value.axis, turn) for turn in range(call.count))


def _squeeze(call: RowCall, build: Builder) -> Any:
    """``x[i : i + 1].squeeze(0)``."""
    value = call.args["self"]
    if not isinstance(value, Rows) or value.turn is None or not isinstance(call.args["dim"], int):
        return None
    if call.args["dim"] % call.rank("self") != value.axis or call.shape("self")[value.axis] != 1:
        return None
    return lone_of(value, value.turn, build)


def _unsqueeze(call: RowCall, build: Builder) -> Any:
    """``x[i].unsqueeze(0)``."""
    value = call.args["self"]
    if not isinstance(value, Lone):
        return None
    dim = call.args["dim"] % (call.rank("self") + 1)
    if dim == 0:
        return build.placed(value, 0)
    return Lone(build.call(aten.unsqueeze.default, (value.node, dim + 1)), value.turn)


def _size(call: RowCall, build: Builder) -> Any:
    value, dim = call.args["self"], call.args["dim"] % call.rank("self")
    if isinstance(value, Lone):
        return build.call(aten.sym_size.int, (value.node, dim + 1))
    if isinstance(value, Rows) and value.axis != dim:
        return build.call(aten.sym_size.int, (value.node, dim))
    raise Mixed("the number of rows is used as a number")


def _like(call: RowCall, build: Builder) -> Any:
    """``x.new_zeros(...)``: nothing of ``x`` but dtype and device."""
    return made(call.node, call.args.get("size"), call.args)


TAKEN: dict[Any, Callable[[RowCall, Builder], Any]] = {
    aten.select.int: _select,
    aten.slice.Tensor: _slice,
    aten.unbind.int: _parts,
    aten.split.Tensor: _parts,
    aten.split_with_sizes.default: _parts,
    aten.chunk.default: _parts,
    aten.tensor_split.sections: _parts,
    aten.squeeze.dim: _squeeze,
    aten.unsqueeze.default: _unsqueeze,
    aten.sym_size.int: _size,
    aten.item.default: _item,
    aten.new_zeros.default: _like,
    aten.new_ones.default: _like,
    aten.new_full.default: _like,
    aten.new_empty.default: _like,
}

_NUMBERS: dict[Any, int] = {
    aten.zeros.default: 0,
    aten.new_zeros.default: 0,
    aten.empty.memory_format: 0,  # what is not written holds zeros in the artifact
    aten.new_empty.default: 0,
    aten.ones.default: 1,
    aten.new_ones.default: 1,
}
_KEEPS_NUMBERS = {
    *(aten.select.int, aten.slice.Tensor, aten.view.default, aten.reshape.default, aten.expand.default),
    *(aten.permute.default, aten.transpose.int, aten.unsqueeze.default, aten.squeeze.dim, aten.clone.default),
    *(aten.detach.default, aten.alias.default, aten.contiguous.default, aten._to_copy.default, aten.to.dtype),
}


def filled(node: fx.Node, args: Any) -> Filled | None:
    """What ``node`` makes if that is one number everywhere, None for anything else. ``args`` are no rows."""
    if node.target in (aten.zeros.default, aten.ones.default, aten.full.default, aten.empty.memory_format):
        named = {"fill_value": args[1]} if node.target is aten.full.default else {}
        return made(node, args[0], named)
    if node.target in TAKEN and TAKEN[node.target] is _like:
        return made(node, args[1], {"fill_value": args[2]} if len(args) > 2 else {})
    if node.target in _KEEPS_NUMBERS and isinstance(args[0], Filled):
        shape = tuple(node.meta["val"].shape)
        if all(isinstance(size, int) for size in shape):
            value = node.meta["val"]
            return Filled(shape, args[0].number, value.dtype, value.device)
    return None


def made(node: fx.Node, size: Any, args: Any) -> Filled | None:
    """The tensor that a factory makes."""
    number = _NUMBERS.get(node.target, args.get("fill_value"))
    if not isinstance(number, bool | int | float | complex):
        return None
    value = node.meta["val"]
    return Filled(tuple(size), number, value.dtype, value.device)
