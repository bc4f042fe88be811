"""Cutting and joining along one axis: what gives the whole back, or a piece that there was before."""

from __future__ import annotations

import operator
import sys
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from fxexport.ops import Cut, bound_size, cut_of, is_empty, joined_cut, looks_at_memory, same_sizes, surely_equal, uncut
from fxexport.program import Program
from fxexport.rewrite import NodePass, arguments

aten = torch.ops.aten
PARTS = (aten.split.Tensor, aten.split_with_sizes.default, aten.split.sizes, aten.chunk.default)
JOINS = (aten.cat.default, aten.concat.default)
ARANGES = (aten.arange.default, aten.arange.start, aten.arange.start_step)


@dataclass(frozen=True)
class SimplifySlices(NodePass):
    """``cat(x[:n], x[n:]) -> x``, ``cat(a, b)[:len(a)] -> a``, ``x[2:][3:] -> x[5:]``, ``cat(split(x)) -> x``.

    Also ``stack(unbind(x)) -> x``, ``index_select(x, arange(a, b)) -> x[a:b]``, and ``cat`` without its empty pieces.

    Exact: sizes and bounds are numbers, one and the same node, or proved equal by what is known of the dynamic sizes;
    steps are 1. Programs that look at strides or memory are left alone.
    """

    name: ClassVar[str] = "simplify-slices"
    default: ClassVar[bool] = True
    repeats: ClassVar[bool] = True
    targets: ClassVar = (aten.slice.Tensor, *JOINS, aten.stack.default, aten.index_select.default)

    def rewrite(self, program: Program, node: fx.Node) -> fx.Node | str | None:
        """What there was before it was cut and joined, or one cut for two."""
        if "memory" not in self.memo:
            self.memo["memory"] = looks_at_memory(program)
        if self.memo["memory"]:
            return "the program looks at strides or memory" if node.target in JOINS else None
        found = _found(program, node)
        if isinstance(found, fx.Node) and not _same_form(found.meta["val"], node.meta["val"]):
            return "it is not known to have the same size for every input"
        return found


def _found(program: Program, node: fx.Node) -> fx.Node | str | None:
    if node.target is aten.slice.Tensor:
        return _slice_of_slice(program, node) or _slice_of_cat(program, node)
    if node.target is aten.index_select.default:
        return _select_range(program, node)
    return _whole(node) or (_join(program, node) if node.target in JOINS else None)


def _same_form(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and same_sizes(a.shape, b.shape)


def _slice_of_slice(program: Program, node: fx.Node) -> fx.Node | str | None:
    outer, inner = cut_of(node), cut_of(node.args[0])
    if outer is None or inner is None or outer.axis != inner.axis:
        return None
    bounds = (outer.start, outer.end, inner.start, inner.end)
    if not all(isinstance(bound, int) and bound >= 0 for bound in bounds):
        return "its bounds are computed, or counted from the end"
    if len(outer.source.users) > 1:
        return f"{outer.source.name} is read elsewhere, so nothing would be saved"
    end = min(inner.end, sys.maxsize if outer.end == sys.maxsize else inner.start + outer.end)
    return program.insert(aten.slice.Tensor, (inner.source, inner.axis, inner.start + outer.start, end), before=node)


def _slice_of_cat(program: Program, node: fx.Node) -> fx.Node | str | None:
    cut = cut_of(node)
    if cut is None or cut.source.target not in JOINS:
        return None
    call = arguments(cut.source)
    pieces: list[fx.Node] = call["tensors"]
    rank = node.meta["val"].dim()
    if call["dim"] % rank != cut.axis or any(piece.meta["val"].dim() != rank for piece in pieces):
        return None
    start, end = (bound_size(bound) for bound in (cut.start, cut.end))
    border: Any = 0
    borders = [border := border + piece.meta["val"].shape[cut.axis] for piece in pieces]
    first = next((i for i, at in enumerate([0, *borders]) if surely_equal(start, at)), None)
    whole = isinstance(cut.end, int) and cut.end == sys.maxsize
    last = len(pieces) if whole else next((i + 1 for i, at in enumerate(borders) if surely_equal(end, at)), None)
    if first is None or last is None or first >= last:
        return "its bounds are not known to be borders of the pieces"
    if last - first == 1:
        return pieces[first]
    return program.insert(aten.cat.default, (pieces[first:last], cut.axis), before=node)


def _select_range(program: Program, node: fx.Node) -> fx.Node | str | None:
    source, axis, index = node.args
    if not isinstance(index, fx.Node) or index.target not in ARANGES or not isinstance(source, fx.Node):
        return None
    call = arguments(index)
    start, step, end = call.get("start", 0), call.get("step", 1), call["end"]
    whole = all(type(n) is int and n >= 0 for n in (start, step)) and isinstance(end, (int, fx.Node))
    if not whole or step != 1 or source.meta["val"].dim() == 0:
        return "the indices are no range of step 1 from a fixed number on"
    return program.insert(aten.slice.Tensor, (source, axis, start, call["end"]), before=node)


def _whole(node: fx.Node) -> fx.Node | None:
    """What was split into the pieces that are joined again, in order and all of them."""
    pieces: Any = node.args[0]
    if not all(p.target is operator.getitem and p.args[0] is pieces[0].args[0] for p in pieces):
        return None
    parts: fx.Node = pieces[0].args[0]
    wanted = (aten.unbind.int,) if node.target is aten.stack.default else PARTS
    order = [piece.args[1] for piece in pieces]
    if parts.target not in wanted or order != list(range(len(parts.meta["val"]))):
        return None
    source: fx.Node = arguments(parts)["self"]
    rank = source.meta["val"].dim()
    return source if (arguments(parts)["dim"] - arguments(node)["dim"]) % rank == 0 else None


def _join(program: Program, node: fx.Node) -> fx.Node | str | None:
    """``cat`` with neighbours that were neighbours before as one piece, and without empty pieces."""
    call = arguments(node)
    axis, pieces = call["dim"] % node.meta["val"].dim(), list(call["tensors"])
    kept = [piece for piece in pieces if not is_empty(piece, node.meta["val"], axis)] or pieces[:1]
    joined: list[fx.Node | Cut] = []
    for piece in kept:
        cut, last = cut_of(piece), joined[-1] if joined else None
        together = joined_cut(last if isinstance(last, Cut) else cut_of(last), cut, axis)
        if together is not None:
            joined[-1] = together
        else:
            joined.append(piece)
    if len(joined) == len(pieces):
        return None
    made = [uncut(program, node, each) if isinstance(each, Cut) else each for each in joined]
    return made[0] if len(made) == 1 else program.insert(aten.cat.default, (made, axis), before=node)
