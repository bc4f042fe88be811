"""One call of an operator: the form of its result from those of its operands."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import sympy
import torch
from sympy import Expr, Integer
from torch import fx

from fxexport.assumptions.elementwise import RULES, cast, number, one, quotient, rule_key
from fxexport.assumptions.form import Form
from fxexport.assumptions.indexing import INDEXING
from fxexport.assumptions.places import MOVES, moved
from fxexport.assumptions.reducing import REDUCTIONS, reduced
from fxexport.assumptions.sizes import INDICES, floor
from fxexport.rewrite import arguments
from fxexport.rewrite.calls import normal_target

if TYPE_CHECKING:
    from fxexport.assumptions.interpreter import Forms

aten = torch.ops.aten
Shape = tuple[Expr, ...]
_TRANSPARENT = {
    *(aten.clone, aten.contiguous, aten.detach, aten.alias, aten.lift_fresh_copy, aten.lift_fresh, aten.to),
    *(aten._to_copy, aten.type_as, aten.dropout, aten.positive),
}
_FILLED = {
    **dict.fromkeys((aten.zeros, aten.zeros_like, aten.new_zeros), 0),
    **dict.fromkeys((aten.ones, aten.ones_like, aten.new_ones), 1),
}
_FULL = {aten.full: "fill_value", aten.full_like: "fill_value", aten.new_full: "fill_value", aten.scalar_tensor: "s"}


def evaluate(forms: Forms, node: fx.Node, shape: Shape) -> Form | None:
    """The form of ``node``, whose result is a tensor of ``shape``; None where it is not known."""
    target: Any = normal_target(node.target)
    packet = getattr(target, "overloadpacket", None)
    if packet in _FILLED:
        return forms.algebra.form(_FILLED[packet], shape)
    if packet in _FULL:
        value = forms.size(arguments(node)[_FULL[packet]])
        return None if value is None else forms.algebra.form(value, shape)
    if packet is aten.arange:
        return _arange(forms, node, shape)
    if packet is aten.dropout and arguments(node)["train"]:
        return None
    if packet in _TRANSPARENT:
        return _cast(forms, node, forms.of(node.args[0]))
    if target in REDUCTIONS:
        return reduced(forms, node, shape)
    if target in _SPECIAL:
        return _SPECIAL[target](forms, node, shape)
    if node.target in MOVES:
        form = forms.of(node.args[0])
        return None if form is None else moved(forms.algebra, node, form, shape, forms.size)
    key = rule_key(target)
    return None if key is None else _each(forms, node, key, shape)


def _each(forms: Forms, node: fx.Node, key: Any, shape: Shape) -> Form | None:
    call = arguments(node)
    alpha = call.pop("alpha", 1)
    values = list(call.values())
    if node.target in (aten.rsub.Scalar, aten.rsub.Tensor):
        values = values[::-1]
    operands = [forms.seen(value, shape) for value in values]
    known = [operand for operand in operands if operand is not None]
    if len(known) < len(operands):
        return _chosen(key, operands)
    if alpha != 1:
        factor = number(alpha)
        if factor is None:
            return None
        known[1] = Form(tuple((w, v * factor) for w, v in known[1].cases), known[1].shape)
    result = forms.algebra.map(RULES[key], shape, *known)
    return _fitting(forms, node, result, keeps=key not in (aten.add.Tensor, aten.mul.Tensor))


def _chosen(key: Any, operands: list[Form | None]) -> Form | None:
    """A choice is known where its condition and the side that it takes are."""
    if key not in (aten.where.self, aten.masked_fill.Tensor):
        return None
    condition = operands[0] if key is aten.where.self else operands[1]
    sides = (operands[1], operands[2]) if key is aten.where.self else (operands[2], operands[0])
    if condition is None or condition.constant not in (0, 1):
        return None
    return sides[0] if condition.constant == 1 else sides[1]


def _fitting(forms: Forms, node: fx.Node, form: Form | None, *, keeps: bool) -> Form | None:
    """``form`` as the dtype of ``node`` holds it; a sum or product of booleans is one."""
    dtype = node.meta["val"].dtype
    if form is None or (dtype == torch.bool and keeps):
        return form
    old = torch.int64 if dtype == torch.bool else dtype
    prover = forms.algebra.prover(form.shape)
    return forms.algebra.map(lambda value: cast(value, old, dtype, prover), form.shape, form)


def _cast(forms: Forms, node: fx.Node, form: Form | None) -> Form | None:
    source: Any = node.args[0]
    if form is None:
        return None
    old, new = source.meta["val"].dtype, node.meta["val"].dtype
    if old == new:
        return form
    prover = forms.algebra.prover(form.shape)
    return forms.algebra.map(lambda value: cast(value, old, new, prover), form.shape, form)


def _arange(forms: Forms, node: fx.Node, shape: Shape) -> Form | None:
    call = arguments(node)
    start, step = forms.size(call.get("start", 0)), forms.size(call.get("step", 1))
    if start is None or step is None:
        return None
    form = forms.algebra.form(sympy.expand(start + step * INDICES[0]), shape)
    return forms.algebra.at(form, [INDICES[0]], shape)


def _divided(forms: Forms, node: fx.Node, shape: Shape) -> Form | None:
    """Division that rounds: down, or toward zero."""
    call = arguments(node)
    operands = [forms.seen(call[name], shape) for name in ("self", "other")]
    mode, prover = call.get("rounding_mode"), forms.algebra.prover(shape)

    def rule(a: Expr, b: Expr) -> Any:
        ratio = quotient(a, b)
        if ratio is None or ratio.is_infinite or mode is None:
            return one(ratio)
        if mode == "floor" or prover.nonnegative(ratio):
            return one(floor(ratio))
        return one(-floor(-ratio)) if prover.nonnegative(-ratio) else None

    known = [operand for operand in operands if operand is not None]
    return forms.algebra.map(rule, shape, *known) if len(known) == 2 else None


def _clamped(forms: Forms, node: fx.Node, shape: Shape) -> Form | None:
    call, found = arguments(node), forms.of(node.args[0])
    bounds = {"min": aten.maximum.default, "max": aten.minimum.default}
    for name, key in bounds.items():
        limit = call.get(name)
        if limit is None or found is None:
            continue
        bound = forms.seen(limit, shape)
        found = None if bound is None else forms.algebra.map(RULES[key], shape, found, bound)
    return _fitting(forms, node, found, keeps=True)


def _reciprocal(forms: Forms, node: fx.Node, shape: Shape) -> Form | None:
    form = forms.of(node.args[0])
    return form and forms.algebra.map(lambda value: one(quotient(Integer(1), value)), shape, form)


_SPECIAL: dict[Any, Callable[[Forms, fx.Node, Shape], Form | None]] = {
    **dict.fromkeys((aten.div.Tensor_mode, aten.div.Scalar_mode), _divided),
    **dict.fromkeys((aten.clamp.default, aten.clamp_min.default, aten.clamp_max.default), _clamped),
    **dict.fromkeys((aten.clamp.Tensor, aten.clamp_min.Tensor, aten.clamp_max.Tensor), _clamped),
    aten.reciprocal.default: _reciprocal,
    **INDEXING,
}
