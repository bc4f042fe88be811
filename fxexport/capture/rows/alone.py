"""Operators that take many rows along a new first axis as they are; for others ``torch.vmap`` knows how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from fxexport.capture.rows.building import Builder
from fxexport.capture.rows.rules import RowCall
from fxexport.capture.rows.tables import ALONG, MATRICES, SPATIAL
from fxexport.capture.rows.values import Filled, Lone

aten = torch.ops.aten


def many(call: RowCall, build: Builder) -> RowCall | None:
    """``call``, whose ``Lone`` arguments are one row each, on all rows at once; None where that is not known."""
    target: Any = call.node.target
    if torch.Tag.pointwise in getattr(target, "tags", ()):
        return _pointwise(call, build)
    if target in _RESHAPES:
        return _reshaped(call, build)
    known = _MANY.get(target)
    return known(call) if known is not None else None


def _pointwise(call: RowCall, build: Builder) -> RowCall:
    """Rows of fewer axes than the result get them after the first: those are broadcast, never the rows."""
    rank, args = len(call.result()), dict(call.args)
    for name, value in args.items():
        if isinstance(value, Lone):
            node = value.node
            for _ in range(rank - call.rank(name)):
                node = build.call(aten.unsqueeze.default, (node, 1))
            args[name] = Lone(node, value.turn)
    return replace(call, args=args)


def _first_only(call: RowCall) -> RowCall | None:
    first, *others = call.args.values()
    return call if isinstance(first, Lone) and not any(isinstance(other, Lone) for other in others) else None


def _matrix(call: RowCall) -> RowCall | None:
    return _first_only(call) if call.rank(next(iter(call.args))) >= 2 else None


def _unbatched(call: RowCall) -> RowCall | None:
    """A convolution or a pool without a batch, of which the rows are one."""
    rank = SPATIAL[call.node.target]
    return _first_only(call) if call.rank(next(iter(call.args))) == rank + 1 else None


def _vectors(call: RowCall) -> RowCall | None:
    return _first_only(call) if call.rank(next(iter(call.args))) >= 1 else None


def _shifted(call: RowCall) -> RowCall | None:
    """Axes ``dim`` of a row are one further back in many rows."""
    tensors = [value for value in call.args.values() if isinstance(value, Lone | Filled | fx.Node)]
    given, rank = call.args.get("dim"), call.rank("self" if "self" in call.args else next(iter(call.args)))
    if given is None or given == [] or not rank or not all(isinstance(value, Lone) for value in tensors):
        return None
    dims = given % rank + 1 if isinstance(given, int) else [dim % rank + 1 for dim in given]
    return replace(call, args={**call.args, "dim": dims})


def _permuted(call: RowCall) -> RowCall:
    return replace(call, args={**call.args, "dims": [0, *(dim % call.rank("self") + 1 for dim in call.args["dims"])]})


def _transposed(call: RowCall) -> RowCall | None:
    rank = call.rank("self")
    moved = {name: call.args[name] % rank + 1 for name in ("dim0", "dim1")} if rank else None
    return None if moved is None else replace(call, args={**call.args, **moved})


def _reshaped(call: RowCall, build: Builder) -> RowCall:
    name = "size" if "size" in call.args else "shape"
    return replace(call, args={**call.args, name: [build.rows_node, *call.args[name]]})


def _named(*names: str) -> list[Any]:
    pairs = (name.split(".") for name in names)
    return [getattr(getattr(aten, name), overload) for name, overload in pairs]


_RESHAPES = _named("view.default", "reshape.default", "_unsafe_view.default")
_MANY: dict[Any, Callable[[RowCall], RowCall | None]] = {
    **dict.fromkeys(MATRICES, _matrix),
    **dict.fromkeys(SPATIAL, _unbatched),
    **dict.fromkeys((aten.fill.Tensor, aten.fill.Scalar, aten.copy.default), _first_only),
    **dict.fromkeys(ALONG, _shifted),
    **dict.fromkeys(
        _named("select.int", "slice.Tensor", "unbind.int", "select_scatter.default", "slice_scatter.default"), _shifted
    ),
    aten.permute.default: _permuted,
    aten.transpose.int: _transposed,
    aten.linear.default: _vectors,
    aten.layer_norm.default: _vectors,
    aten.rms_norm.default: _vectors,
}
