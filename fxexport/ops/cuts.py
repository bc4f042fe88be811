"""Cuts along one axis (``slice`` of step 1): where they begin and end, and which of them are neighbours."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from fxexport.program import Program
from fxexport.rewrite.base import arguments

aten = torch.ops.aten


class Cut(NamedTuple):
    """``source[..., start:end, ...]`` along ``axis``; the bounds are numbers or nodes, as the graph has them."""

    source: fx.Node
    axis: int
    start: Any
    end: Any


def cut_of(node: Any) -> Cut | None:
    """A slice of step 1 as a Cut; None for anything else."""
    if not isinstance(node, fx.Node) or node.target is not aten.slice.Tensor:
        return None
    call = arguments(node)
    end = sys.maxsize if call["end"] is None else call["end"]
    axis = call["dim"] % node.meta["val"].dim()
    return Cut(call["self"], axis, call["start"] or 0, end) if call["step"] == 1 else None


def bound_size(bound: Any) -> Any:
    """A bound as a number or symbolic size, where the graph has a node for it."""
    return bound.meta["val"] if isinstance(bound, fx.Node) else bound


def surely_equal(a: Any, b: Any) -> bool:
    """Whether two sizes are equal for every input, by what is known of the dynamic sizes."""
    return a is b or statically_known_true(a == b)


def is_empty(piece: fx.Node, whole: Tensor, axis: int) -> bool:
    """Whether ``piece`` adds nothing to ``whole``, of which it is a part along ``axis``."""
    value: Tensor = piece.meta["val"]
    return value.dim() == whole.dim() and value.dtype == whole.dtype and surely_equal(value.shape[axis], 0)


def joined_cut(first: Cut | None, second: Cut | None, axis: int) -> Cut | None:
    """Two cuts as one where the second begins where the first ends: ``x[a:b], x[b:c] -> x[a:c]``."""
    if first is None or second is None or first.source is not second.source or not first.axis == second.axis == axis:
        return None
    border, start, end = first.end, bound_size(first.start), bound_size(second.end)
    same = border is second.start or (type(border) is int and border == second.start)
    # x[a:b], x[b:c] is x[a:c] for a <= b <= c, seen from the same side.
    ascending = _ascends(start, bound_size(border)) and _ascends(bound_size(border), end)
    return Cut(first.source, axis, first.start, second.end) if same and ascending else None


def _ascends(a: Any, b: Any) -> bool:
    """Whether, as bounds of a slice, ``a`` never lies behind ``b``."""
    whole = (isinstance(a, int) and a == 0) or (isinstance(b, int) and b == sys.maxsize)
    return whole or any(map(statically_known_true, ((a >= 0) & (a <= b), (b < 0) & (a <= b))))


def uncut(program: Program, node: fx.Node, cut: Cut) -> fx.Node:
    """A cut that was made of two, as a call; all of its source where that is what it is."""
    if type(cut.start) is int and type(cut.end) is int and (cut.start, cut.end) == (0, sys.maxsize):
        return cut.source
    return program.insert(aten.slice.Tensor, (cut.source, cut.axis, cut.start, cut.end), before=node)
