"""Where rows are put together (``torch.stack``, ``torch.cat``, ``out[i] = ...``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from fxexport.capture.rows.building import Builder
from fxexport.capture.rows.rules import RowCall
from fxexport.capture.rows.taking import lone_of
from fxexport.capture.rows.values import Filled, Lone, Mixed, Pieces, Rows, Run, formula

aten = torch.ops.aten


def _cat(call: RowCall, build: Builder) -> Any:
    """``torch.cat``: of all rows along another axis, of one row, or of one row after the other."""
    parts = list(call.args["tensors"])
    dim = call.args["dim"] % len(call.result())
    turns = {part.turn for part in parts if isinstance(part, Rows | Lone)}
    if turns == {None}:
        if call.before != 1:
            return call.refuse()
        return _side_by_side(call, build, parts, dim)
    if len(turns) == 1 and len(parts) > 1 and not any(isinstance(part, Run | Filled) for part in parts):
        return _of_one_row(call, build, parts, dim)
    parts = [part for part in parts if not (isinstance(part, Filled) and part.shape[dim : dim + 1] in ((0,), ()))]
    pieces = [piece for part in parts for piece in (part.turns if isinstance(part, Run) else [part])]
    if any(isinstance(part, Run) and part.axis != dim for part in parts):
        raise Mixed(f"{call.node.target} goes along two axes")
    return in_order(call, [_along(piece, dim, build) for piece in pieces], dim)


def _side_by_side(call: RowCall, build: Builder, parts: list[Any], dim: int) -> Any:
    axes = {part.axis for part in parts if isinstance(part, Rows)}
    axis = axes.pop() if len(axes) == 1 else None
    if axis is None or axis == dim or not all(isinstance(part, Rows | Filled) for part in parts):
        return call.refuse()
    for i, part in enumerate(parts):
        if isinstance(part, Filled):
            if part.shape[axis] != call.count:
                return call.refuse()
            shape = (*part.shape[:axis], build.times(1), *part.shape[axis + 1 :])
            parts[i] = Filled(shape, part.number, part.dtype, part.device)
    return Rows(build.call(aten.cat.default, (parts, dim)), axis)


def _of_one_row(call: RowCall, build: Builder, parts: list[Any], dim: int) -> Any:
    axes = {part.axis if isinstance(part, Rows) else None for part in parts}
    axis = axes.pop() if len(axes) == 1 else None
    if axis is None or axis == dim:
        return None  # as any operator on one row
    return Rows(build.call(aten.cat.default, (parts, dim)), axis, parts[0].turn)


def _along(piece: Any, dim: int, build: Builder) -> Any:
    """One row, whatever it looks like, as rows along ``dim``."""
    if isinstance(piece, Rows) and piece.turn is not None and piece.axis == dim:
        return piece
    if isinstance(piece, Rows) and piece.turn is not None:
        piece = build.alone(piece)
    if not isinstance(piece, Lone):
        raise Mixed("rows are joined with something that is no row")
    placed = build.placed(piece, dim)
    return Rows(build.call(aten.flatten.using_ints, (placed.node, dim, dim + 1)), dim, placed.turn)


def _stack(call: RowCall, build: Builder) -> Any:
    """``torch.stack``: like ``cat``, along a new axis."""
    parts = list(call.args["tensors"])
    dim = call.args["dim"] % len(call.result())
    turns = {part.turn for part in parts if isinstance(part, Rows | Lone)}
    if turns == {None}:
        rows = [part for part in parts if isinstance(part, Rows)]
        if len(rows) < len(parts) or len({part.axis for part in rows}) > 1 or call.before != 1:
            return call.refuse()
        return Rows(build.call(call.node.target, (parts, dim)), rows[0].axis + (dim <= rows[0].axis))
    if len(turns) == 1 and len(parts) > 1:
        return None
    return in_order(call, [_new_axis(part, dim, build) for part in parts], dim)


def _new_axis(part: Any, dim: int, build: Builder) -> Rows:
    if isinstance(part, Rows) and part.turn is not None:
        part = build.alone(part)
    if not isinstance(part, Lone):
        raise Mixed("rows are joined with something that is no row")
    return build.placed(part, dim)


def _stacked(call: RowCall, build: Builder) -> Any:
    """``torch.vstack`` and ``hstack``: ``cat``, or of vectors one above the other ``stack``."""
    rank, upright = len(call.result()), call.node.target is aten.vstack.default
    vectors = any(part.meta["val"].dim() < rank for part in call.given["tensors"])
    call.args["dim"] = 0 if upright or rank == 1 else 1
    return _stack(call, build) if vectors else _cat(call, build)


def _padded(call: RowCall, build: Builder) -> Any:
    """``pad_sequence`` of rows, which are of one length where they are one computation."""
    dim = 0 if call.args["batch_first"] else 1
    return in_order(call, [_new_axis(part, dim, build) for part in call.args["sequences"]], dim)


def in_order(call: RowCall, parts: Sequence[Rows], dim: int) -> Any:
    """Rows 0, 1, 2, ... one after the other: all rows if they are complete. Raises Mixed where they differ."""
    if [part.turn for part in parts] != list(range(len(parts))):
        raise Mixed(f"{call.node.target} has the rows in another order, or some of them twice")
    if any(part.node is not parts[0].node for part in parts):
        raise Mixed(f"{call.node.target} collects rows that were not computed alike")
    if len(parts) == 1 and call.count > 1:
        return parts[0]
    return Rows(parts[0].node, dim) if len(parts) == call.count else Run(dim, tuple(parts))


def _select_scatter(call: RowCall, build: Builder) -> Any:
    """``out[i] = row``."""
    return _write(call, build, call.args["src"], call.args["index"])


def _slice_scatter(call: RowCall, build: Builder) -> Any:
    """``out[i : i + 1] = row``."""
    source, start, end = call.args["src"], call.args["start"] or 0, call.args["end"]
    dim = call.args["dim"] % call.rank("self")
    size = call.shape("self")[dim]
    if not all(isinstance(bound, int) for bound in (size, start)) or call.args["step"] != 1:
        return None
    if end is not None and size < end < 2**63 - 1:
        return None  # where there are more rows, some of them
    first, last, _ = slice(start, end).indices(int(size))
    if isinstance(source, Rows) and source.turn is not None and source.axis == dim and last == first + 1:
        return _write(call, build, lone_of(source, source.turn, build), first)
    if isinstance(source, Rows) and source.turn is None and source.axis == dim and (first, last) == (0, size):
        return source
    return None


def _write(call: RowCall, build: Builder, source: Any, index: Any) -> Any:
    base, dim = call.args["self"], call.args["dim"] % call.rank("self")
    its_axis = getattr(base, "axis", dim) == dim and not isinstance(base, Lone | Run)
    whole = not isinstance(base, Rows) or base.turn is None
    if not its_axis or not whole or formula(call.shape("self")[dim]) != call.count or not isinstance(index, int):
        return None
    index %= call.count
    if isinstance(source, fx.Node | Filled):
        source = _for_each(source, index, build)
    if not isinstance(source, Lone):
        return None
    if source.turn != index:
        raise Mixed(f"row {source.turn} is written to the place of row {index}")
    known = base if isinstance(base, Pieces) else Pieces(base, dim, ())
    written = {**dict(known.written), index: source}
    return Pieces(known.base, dim, tuple(written.items()))


def settled(value: Any, count: int, build: Builder) -> Any:
    """All rows, where ``value`` has all of them written. Raises Mixed where they differ or are not complete."""
    if not isinstance(value, Pieces):
        return value
    rows = [row for _, row in value.written]
    if len(rows) < count:
        raise Mixed("rows are read before all of them are written")
    if any(row.node is not rows[0].node for row in rows):
        raise Mixed("rows are written that were not computed alike")
    return Rows(build.placed(rows[0], value.axis).node, value.axis)


def _for_each(value: Any, turn: int, build: Builder) -> Lone:
    """What is the same for all rows, as each of them."""
    node = build.call(aten.unsqueeze.default, (build.shared(value), 0))
    rank = node.meta["val"].dim()
    return Lone(build.call(aten.expand.default, (node, [build.rows_node, *[-1] * (rank - 1)])), turn)


def _copy(call: RowCall, build: Builder) -> Any:
    """``out[i].copy_(row)``: what is copied, in dtype and shape of what it is copied to."""
    source, old = call.args["src"], call.node.meta["val"]
    if not isinstance(source, Rows | Lone):
        return None
    given = call.given["src"].meta["val"]
    if source.turn is None and isinstance(call.args["self"], Lone | Pieces | Run):
        return None
    if tuple(map(formula, given.shape)) != tuple(map(formula, old.shape)):
        source = _widened(call, build, source, tuple(old.shape))
    if given.dtype == old.dtype:
        return source
    node = build.call(aten._to_copy.default, (source.node,), {"dtype": old.dtype})
    return Lone(node, source.turn) if isinstance(source, Lone) else Rows(node, source.axis, source.turn)


def _widened(call: RowCall, build: Builder, source: Any, shape: tuple[Any, ...]) -> Lone:
    if isinstance(source, Rows) and source.turn is not None:
        source = build.alone(source)
    if not isinstance(source, Lone) or not all(isinstance(size, int) for size in shape):
        return call.refuse()  # type: ignore[no-any-return]
    return Lone(build.one_row(aten.expand.default, (source, list(shape)), {}), source.turn)


COLLECTED: dict[Any, Callable[[RowCall, Builder], Any]] = {
    aten.cat.default: _cat,
    aten.stack.default: _stack,
    aten.vstack.default: _stacked,
    aten.hstack.default: _stacked,
    aten.pad_sequence.default: _padded,
    aten.select_scatter.default: _select_scatter,
    aten.slice_scatter.default: _slice_scatter,
    aten.copy.default: _copy,
}
