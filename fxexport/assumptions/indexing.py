"""Operators that put tensors together, and those that read or write elements at places given by tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import sympy
import torch
from sympy import Expr, Integer
from torch import fx

from fxexport.assumptions.form import EVERYWHERE, Form, canonical
from fxexport.assumptions.sizes import INDICES
from fxexport.rewrite import arguments

if TYPE_CHECKING:
    from fxexport.assumptions.interpreter import Forms

aten = torch.ops.aten
Shape = tuple[Expr, ...]


def _cat(forms: Forms, node: fx.Node, shape: Shape) -> Form | None:
    call = arguments(node)
    axis = call["dim"] % len(shape)
    found: list[Any] = []
    begin, known = Integer(0), EVERYWHERE
    for tensor in call["tensors"]:
        form = forms.of(tensor)
        if form is None:
            return None
        places: list[Expr] = list(INDICES[: len(shape)])
        places[axis] = sympy.expand(places[axis] - begin)
        begin = sympy.expand(begin + form.shape[axis])
        shifted = forms.algebra.at(form, places, shape)
        if shifted is None:
            return None
        atom = ("ge", sympy.expand(INDICES[axis] - begin))
        found += [(where | known | {canonical(atom, False)}, value) for where, value in shifted.cases]
        known |= {canonical(atom)}
    return forms.algebra.made(found, shape)


def _indexed(forms: Forms, node: fx.Node, shape: Shape) -> Form | None:
    """Advanced indexing with index tensors side by side."""
    call = arguments(node)
    form, given = forms.of(call["self"]), list(call["indices"])
    if form is None:
        return None
    axes = [axis for axis, index in enumerate(given) if index is not None]
    if any(index.meta["val"].dtype == torch.bool for index in given if index is not None):
        return None
    if form.constant is not None:
        return forms.algebra.form(form.constant, shape)
    if axes != list(range(axes[0], axes[-1] + 1)):
        return None
    rank = len(shape) - (len(form.shape) - len(axes))
    inner = shape[axes[0] : axes[0] + rank]
    places: list[Expr] = []
    for axis in range(len(form.shape)):
        if axis not in axes:
            places.append(INDICES[axis if axis < axes[0] else axis - len(axes) + rank])
            continue
        index = forms.seen(given[axis], inner)
        place = _place(forms, index, inner, form.shape[axis])
        if place is None:
            return None
        ahead = dict(zip(INDICES, INDICES[axes[0] :], strict=False))
        places.append(place.xreplace(ahead))
    return forms.algebra.at(form, places, shape)


def _place(forms: Forms, index: Form | None, shape: Shape, size: Expr) -> Expr | None:
    """The formula of an index along an axis of ``size``, counted from the front; an axis of size 0 has none."""
    if index is None or index.value is None:
        return None
    prover = forms.algebra.prover((*shape, size))
    if prover.nonnegative(index.value):
        return index.value
    return sympy.expand(index.value + size) if prover.positive(sympy.expand(-index.value)) else None


def _gathered(forms: Forms, node: fx.Node, shape: Shape) -> Form | None:
    call = arguments(node)
    form, index, axis = forms.of(call["self"]), forms.of(call["index"]), call["dim"]
    if form is None:
        return None
    if form.constant is not None:
        return forms.algebra.form(form.constant, shape)
    axis %= len(form.shape)
    if node.target is aten.index_select.default and index is not None:
        index = forms.algebra.at(index, [INDICES[axis]], shape)
    place = _place(forms, index, shape, form.shape[axis])
    if place is None:
        return None
    places: list[Expr] = list(INDICES[: len(shape)])
    places[axis] = place
    return forms.algebra.at(form, places, shape)


def _written(forms: Forms, node: fx.Node, shape: Shape) -> Form | None:
    """``x[rows, places] = value`` where one index counts the rows: one place in each of them."""
    call = arguments(node)
    form, value, given = forms.of(call["self"]), forms.of(call["values"]), list(call["indices"])
    if form is None or value is None or value.constant is None or call["accumulate"]:
        return None
    if len(given) != len(shape) or any(index is None for index in given):
        return None
    inner = max((forms.shape(index) or () for index in given), key=len)
    indices = [forms.seen(index, inner) for index in given]
    rows = [axis for axis, index in enumerate(indices) if index is not None and index.value == INDICES[0]]
    if len(inner) != 1 or not rows or not forms.algebra.same(inner[0], shape[rows[0]]):
        return None
    atoms = set()
    for axis, index in enumerate(indices):
        place = _place(forms, index, inner, shape[axis])
        if place is None:
            return None
        place = place.xreplace({INDICES[0]: INDICES[rows[0]]})
        if axis != rows[0]:
            atoms.add(("eq", sympy.expand(INDICES[axis] - place)))
    if len(atoms) != 1:
        return None
    (atom,) = atoms
    here, elsewhere = canonical(atom), canonical(atom, False)
    old = [(where | {elsewhere}, v) for where, v in form.cases]
    return forms.algebra.made([(frozenset([here]), value.constant), *old], shape)


INDEXING: dict[Any, Callable[[Forms, fx.Node, Shape], Form | None]] = {
    aten.cat.default: _cat,
    aten.index.Tensor: _indexed,
    aten.index_put.default: _written,
    **dict.fromkeys((aten.gather.default, aten.index_select.default), _gathered),
}
