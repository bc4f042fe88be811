"""Sums, means, any, all and the like over axes along which a tensor does not change, and running sums."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sympy
import torch
from sympy import Expr, Integer
from torch import fx

from fxexport.assumptions.elementwise import cast, product
from fxexport.assumptions.form import Form, canonical
from fxexport.assumptions.sizes import INDICES
from fxexport.rewrite import arguments

if TYPE_CHECKING:
    from fxexport.assumptions.interpreter import Forms

aten = torch.ops.aten
_SUMS = {aten.sum.default, aten.sum.dim_IntList}
_KEEPING = {
    *(aten.mean.default, aten.mean.dim, aten.amax.default, aten.amin.default, aten.max.default, aten.min.default),
    *(aten.any.default, aten.any.dim, aten.any.dims, aten.all.default, aten.all.dim, aten.all.dims),
}
REDUCTIONS = {*_SUMS, *_KEEPING, aten.cumsum.default}


def reduced(forms: Forms, node: fx.Node, shape: tuple[Expr, ...]) -> Form | None:
    """The result of a reduction of equal elements: ``n`` times, or as they are."""
    source: Any = node.args[0]
    form, call = forms.of(source), arguments(node)
    if form is None:
        return None
    if node.target is aten.cumsum.default:
        return _running(forms, form, call["dim"])
    axes = _axes(call.get("dim"), len(form.shape))
    if any(INDICES[axis] in used_indices(form) for axis in axes):
        return None
    rest = [axis for axis in range(len(form.shape)) if axis not in axes]
    kept = rest if not call.get("keepdim", False) else range(len(form.shape))
    places: list[Expr] = [Integer(0)] * len(form.shape)
    for position, axis in enumerate(kept):
        places[axis] = INDICES[position] if axis in rest else Integer(0)
    count = sympy.expand(sympy.Mul(*(form.shape[axis] for axis in axes)))
    found = forms.algebra.at(form, places, shape)
    if found is None or node.target not in _SUMS:
        return found and _as(forms, found, source.meta["val"].dtype, node.meta["val"].dtype)
    summed = forms.algebra.map(lambda value: [(frozenset(), product(value, count))], shape, found)
    return summed and _as(forms, summed, node.meta["val"].dtype, node.meta["val"].dtype)


def _as(forms: Forms, form: Form, old: torch.dtype, new: torch.dtype) -> Form | None:
    prover = forms.algebra.prover(form.shape)
    return forms.algebra.map(lambda value: cast(value, old, new, prover), form.shape, form)


def _axes(dims: Any, rank: int) -> list[int]:
    if dims is None or dims == []:
        return list(range(rank))
    return [dim % rank if rank else 0 for dim in (dims if isinstance(dims, list | tuple) else [dims])][: rank or 0]


def _running(forms: Forms, form: Form, axis: int) -> Form | None:
    """Of equal elements: their number so far; of zeros but for one place: its value from there on."""
    index = INDICES[axis % len(form.shape)] if form.shape else None
    if index is None:
        return None
    if index in used_indices(form):
        return _from_one_place(forms, form, index)
    cases = [(where, sympy.expand(value * (index + 1))) for where, value in form.cases]
    return forms.algebra.made(cases, form.shape)


def _from_one_place(forms: Forms, form: Form, index: Any) -> Form | None:
    if len(form.cases) != 2 or any(len(where) != 1 for where, _ in form.cases):
        return None
    (atom,) = {literal[0] for where, _ in form.cases for literal in where}
    kind, formula = atom
    values = {holds: value for where, value in form.cases for _, holds in where}
    slope = sympy.diff(formula, index)
    if kind != "eq" or values.get(False) != 0 or abs(slope) != 1 or index in values[True].free_symbols:
        return None
    place = sympy.expand(index - formula / slope)
    if index in place.free_symbols or not forms.algebra.prover(form.shape).nonnegative(place):
        return None
    begun = ("ge", sympy.expand(index - place))
    cases = [(frozenset([canonical(begun)]), values[True]), (frozenset([canonical(begun, False)]), Integer(0))]
    return forms.algebra.made(cases, form.shape)


def used_indices(form: Form) -> set[Any]:
    """The indices on which the elements depend."""
    formulas = [e for where, value in form.cases for e in (value, *(atom[1] for atom, _ in where))]
    return {symbol for formula in formulas for symbol in formula.free_symbols if symbol in INDICES}
