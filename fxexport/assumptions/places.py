"""Operators that move elements: which element of the operand each element of the result is."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import sympy
import torch
from sympy import Expr, Integer
from torch import fx

from fxexport.assumptions.form import EVERYWHERE, Algebra, Case, Form, canonical
from fxexport.assumptions.sizes import INDICES, Prover, floor
from fxexport.rewrite.calls import _PERMUTATIONS, _RESHAPES, call_arguments

aten = torch.ops.aten
Shape = tuple[Expr, ...]
Size = Callable[[Any], Expr | None]
"""The formula of a size among the arguments: a number, a SymInt or a node that computes one."""


def reshaped(algebra: Algebra, form: Form, shape: Shape) -> Form | None:
    """The form with the elements in the same order under another ``shape``."""
    places: list[Expr | None] = [None] * len(form.shape)
    old = [k for k, size in enumerate(form.shape) if size != 1]
    new = [k for k, size in enumerate(shape) if size != 1]
    while old or new:
        group = _group(algebra, form.shape, shape, old, new)
        if group is None:
            break
        for axis, place in _within(algebra, form.shape, shape, *group).items():
            places[axis] = place
        old, new = old[len(group[0]) :], new[len(group[1]) :]
    used = {s for where, value in form.cases for e in (value, *(a[1] for a, _ in where)) for s in e.free_symbols}
    if any(INDICES[axis] in used and places[axis] is None for axis in range(len(places))):
        return None
    return algebra.at(form, [Integer(0) if place is None else place for place in places], shape)


def _group(
    algebra: Algebra, before: Shape, after: Shape, old: list[int], new: list[int]
) -> tuple[list[int], list[int]] | None:
    """The first axes before and after that hold the same number of elements together."""
    for total in range(2, len(old) + len(new) + 1):
        for count in range(1, total):
            left, right = old[:count], new[: total - count]
            if len(left) + len(right) == total and algebra.same(_size(before, left), _size(after, right)):
                return left, right
    return None


def _size(shape: Shape, axes: list[int]) -> Expr:
    return sympy.Mul(*(shape[axis] for axis in axes))


def _within(algebra: Algebra, before: Shape, after: Shape, old: list[int], new: list[int]) -> dict[int, Expr]:
    """Old axis -> its index, from the index into all elements of the group."""
    flat: Expr = Integer(0)
    for axis in new:
        flat = flat * after[axis] + INDICES[axis]
    if len(old) == 1:
        return {old[0]: sympy.expand(flat)}
    if len(new) > 1:
        return {}
    found, rest = {}, flat
    for axis in reversed(old[1:]):
        found[axis] = sympy.expand(rest - before[axis] * floor(rest / before[axis]))
        rest = floor(rest / before[axis])
    return {**found, old[0]: rest}


def moved(algebra: Algebra, node: fx.Node, form: Form, shape: Shape, size: Size) -> Form | None:
    """The result of one of :data:`MOVES` on a tensor with ``form``; ``shape`` is that of the result."""
    if node.target in _RESHAPES:
        return reshaped(algebra, form, shape)
    if node.target in _PERMUTATIONS:
        order = call_arguments(node)[1]
        places = {axis: INDICES[position] for position, axis in enumerate(order)}
        return algebra.at(form, [places[axis] for axis in range(len(order))], shape)
    return MOVES[node.target](algebra, form, call_arguments(node), shape, size)


def _broadcast(algebra: Algebra, form: Form, args: tuple[Any, ...], shape: Shape, size: Size) -> Form | None:
    return algebra.broadcast(form, shape)


def _repeated(algebra: Algebra, form: Form, args: tuple[Any, ...], shape: Shape, size: Size) -> Form | None:
    offset = len(shape) - len(form.shape)
    places = []
    for axis, old in enumerate(form.shape):
        index = INDICES[axis + offset]
        same = algebra.same(shape[axis + offset], old)
        places.append(Integer(0) if old == 1 else index if same else sympy.expand(index - old * floor(index / old)))
    return algebra.at(form, places, shape)


def _each_repeated(algebra: Algebra, form: Form, args: tuple[Any, ...], shape: Shape, size: Size) -> Form | None:
    times, axis = size(args[1]), args[2]
    if times is None or axis is None:
        return None
    places: list[Expr] = list(INDICES[: len(form.shape)])
    places[axis] = floor(places[axis] / times)
    return algebra.at(form, places, shape)


def _sliced(algebra: Algebra, form: Form, args: tuple[Any, ...], shape: Shape, size: Size) -> Form | None:
    _, axis, start, end, step = args
    begin, step = size(0 if start is None else start), size(step)
    axis %= len(form.shape)
    prover = algebra.prover()
    if begin is None or step is None or not _reaches(prover, size(end), form.shape[axis]):
        return None
    if not prover.nonnegative(begin):
        if not prover.positive(-begin) or not prover.nonnegative(sympy.expand(form.shape[axis] + begin)):
            return None
        begin = sympy.expand(form.shape[axis] + begin)
    places: list[Expr] = list(INDICES[: len(form.shape)])
    places[axis] = sympy.expand(begin + step * places[axis])
    return algebra.at(form, places, shape)


def _reaches(prover: Prover, end: Expr | None, whole: Expr) -> bool:
    """Whether a slice has the size that its graph was captured with: ``x[:5]`` of a shorter tensor is shorter.

    A table of fixed size is taken to be long enough: past its end eager has nothing to compare with.
    """
    if end is None or (end.is_Number and end >= sys.maxsize) or whole.is_Number:
        return True
    return prover.nonnegative(sympy.expand(whole - end)) or prover.positive(-end)


def _selected(algebra: Algebra, form: Form, args: tuple[Any, ...], shape: Shape, size: Size) -> Form | None:
    _, axis, index = args
    axis, place = axis % len(form.shape), size(index)
    if place is None:
        return None
    if algebra.prover().positive(-place):
        place = sympy.expand(form.shape[axis] + place)
    elif not algebra.prover().nonnegative(place):
        return None
    places: list[Expr] = [INDICES[k if k < axis else k - 1] for k in range(len(form.shape))]
    places[axis] = place
    return algebra.at(form, places, shape)


def _flipped(algebra: Algebra, form: Form, args: tuple[Any, ...], shape: Shape, size: Size) -> Form | None:
    places: list[Expr] = list(INDICES[: len(form.shape)])
    for axis in args[1]:
        axis %= len(places)
        places[axis] = sympy.expand(form.shape[axis] - 1 - places[axis])
    return algebra.at(form, places, shape)


def _triangle(lower: bool) -> Callable[..., Form | None]:
    def rule(algebra: Algebra, form: Form, args: tuple[Any, ...], shape: Shape, size: Size) -> Form | None:
        offset = size(args[1])
        if offset is None:
            return None
        row, column = INDICES[len(shape) - 2], INDICES[len(shape) - 1]
        inside = row - column + offset if lower else column - row - offset
        here, there = canonical(("ge", inside)), canonical(("ge", inside), False)
        cases: list[Case] = [(where | {here}, value) for where, value in form.cases]
        return algebra.made([*cases, (frozenset([there]), Integer(0))], shape)

    return rule


def _padded(algebra: Algebra, form: Form, args: tuple[Any, ...], shape: Shape, size: Size) -> Form | None:
    _, pads, value = args
    begins = [size(pad) for pad in pads[::2]]
    fill = sympy.Rational(value or 0) if abs(value or 0) <= sys.float_info.max else None
    if fill is None or any(begin is None for begin in begins):
        return None
    places: list[Expr] = list(INDICES[: len(shape)])
    inside = set()
    for number, begin in enumerate(begins):
        axis = len(shape) - 1 - number
        assert begin is not None
        places[axis] = sympy.expand(INDICES[axis] - begin)
        inside |= {("ge", places[axis]), ("ge", sympy.expand(form.shape[axis] - 1 - places[axis]))}
    shifted = algebra.at(form, places, shape)
    outside: list[Case] = []
    known = EVERYWHERE
    for atom in sorted(inside, key=str):
        outside.append((known | {canonical(atom, False)}, fill))
        known |= {canonical(atom)}
    return shifted and algebra.made([*((w | known, v) for w, v in shifted.cases), *outside], shape)


MOVES: dict[Any, Callable[[Algebra, Form, tuple[Any, ...], Shape, Size], Form | None]] = {
    **dict.fromkeys((*_RESHAPES, *_PERMUTATIONS), _broadcast),  # moved() sees to them
    **dict.fromkeys((aten.expand.default, aten.broadcast_to.default, aten.expand_as.default), _broadcast),
    **dict.fromkeys((aten.repeat.default, aten.tile.default), _repeated),
    aten.repeat_interleave.self_int: _each_repeated,
    aten.slice.Tensor: _sliced,
    aten.select.int: _selected,
    aten.flip.default: _flipped,
    aten.tril.default: _triangle(lower=True),
    aten.triu.default: _triangle(lower=False),
    aten.constant_pad_nd.default: _padded,
}
