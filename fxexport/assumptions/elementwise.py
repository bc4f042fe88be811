"""Operators that work on each element alone, as rules on formulas."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import sympy
import torch
from sympy import Expr, Integer, Rational

from fxexport.assumptions.form import EVERYWHERE, Case, canonical
from fxexport.assumptions.sizes import Prover, ceiling, denominator_of, floor

aten = torch.ops.aten
Rule = Callable[..., Sequence[Case] | None]
_ONE, _ZERO = Integer(1), Integer(0)


def one(value: Expr | None) -> Sequence[Case] | None:
    """The same formula everywhere; None where it is not known or no number."""
    return None if value is None or value is sympy.nan or value is sympy.zoo else [(EVERYWHERE, value)]


def number(value: Any) -> Expr | None:
    """A Python number as an exact formula; None for NaN."""
    if isinstance(value, bool | int):
        return Integer(value)
    if value != value:
        return None
    if value in (float("inf"), -float("inf")):
        return sympy.oo if value > 0 else -sympy.oo
    return Rational(value)


def _choice(kind: str, difference: Expr, when: bool = True) -> Sequence[Case] | None:
    """1 where ``difference`` is ``kind`` (or, unless ``when``, where it is not), 0 elsewhere."""
    if difference is sympy.nan:
        return None
    atom, holds = canonical((kind, difference))
    return [(frozenset([(atom, holds == when)]), _ONE), (frozenset([(atom, holds != when)]), _ZERO)]


def _compare(kind: str, when: bool, *, swapped: bool = False) -> Rule:
    def rule(a: Expr, b: Expr) -> Sequence[Case] | None:
        if a == b:  # also of two infinities
            return one(Integer(when))
        return _choice(kind, sympy.expand(b - a if swapped else a - b), when)

    return rule


def truth(value: Expr) -> Sequence[Case] | None:
    """Whether a number is not zero."""
    return one(_ONE) if value.is_infinite else _choice("eq", value, False)


def _logical(table: Callable[[bool, bool], bool]) -> Rule:
    def rule(a: Expr, b: Expr) -> Sequence[Case] | None:
        if a not in (_ZERO, _ONE) or b not in (_ZERO, _ONE):
            return None
        return one(Integer(table(bool(a), bool(b))))

    return rule


def _not(a: Expr) -> Sequence[Case] | None:
    return one(1 - a) if a in (_ZERO, _ONE) else None


def product(a: Expr, b: Expr) -> Expr:
    """``a * b``; NaN for zero times infinity, as in floating point."""
    return a * b if a.is_infinite or b.is_infinite else sympy.expand(a * b)


def quotient(a: Expr, b: Expr) -> Expr | None:
    """``a / b``; None where ``b`` is zero or infinite."""
    if b == 0 or b.is_infinite:
        return None
    return a / b if a.is_infinite else sympy.expand(sympy.cancel(a / b)) if a.free_symbols else a / b


def _larger(a: Expr, b: Expr, sign: int) -> Sequence[Case] | None:
    if a.is_infinite or b.is_infinite:
        return one(sympy.Max(a, b) if sign > 0 else sympy.Min(a, b))
    difference = sympy.expand(sign * (a - b))
    atom, holds = canonical(("ge", difference))
    return [(frozenset([(atom, holds)]), a), (frozenset([(atom, not holds)]), b)]


def _where(condition: Expr, a: Expr, b: Expr) -> Sequence[Case] | None:
    return one(a if condition == 1 else b) if condition in (_ZERO, _ONE) else None


def _absolute(a: Expr) -> Sequence[Case] | None:
    return _larger(a, -a, 1)


RULES: dict[Any, Rule] = {
    aten.add.Tensor: lambda a, b: one(a + b if a.is_infinite or b.is_infinite else sympy.expand(a + b)),
    aten.sub.Tensor: lambda a, b: one(a - b if a.is_infinite or b.is_infinite else sympy.expand(a - b)),
    aten.mul.Tensor: lambda a, b: one(product(a, b)),
    aten.div.Tensor: lambda a, b: one(quotient(a, b)),
    aten.neg.default: lambda a: one(-a),
    aten.abs.default: _absolute,
    aten.maximum.default: lambda a, b: _larger(a, b, 1),
    aten.minimum.default: lambda a, b: _larger(a, b, -1),
    aten.eq.Tensor: _compare("eq", True),
    aten.ne.Tensor: _compare("eq", False),
    aten.ge.Tensor: _compare("ge", True),
    aten.lt.Tensor: _compare("ge", False),
    aten.le.Tensor: _compare("ge", True, swapped=True),
    aten.gt.Tensor: _compare("ge", False, swapped=True),
    aten.logical_and.default: _logical(lambda a, b: a and b),
    aten.logical_or.default: _logical(lambda a, b: a or b),
    aten.logical_xor.default: _logical(lambda a, b: a != b),
    aten.logical_not.default: _not,
    aten.where.self: _where,
    aten.masked_fill.Tensor: lambda x, mask, value: _where(mask, value, x),
    aten.floor.default: lambda a: one(a if a.is_infinite else floor(a)),
    aten.ceil.default: lambda a: one(a if a.is_infinite else ceiling(a)),
    aten.floor_divide.default: lambda a, b: _floored(a, b),
    aten.remainder.Tensor: lambda a, b: _remainder(a, b),
}


def _floored(a: Expr, b: Expr) -> Sequence[Case] | None:
    ratio = quotient(a, b)
    return None if ratio is None or ratio.is_infinite else one(floor(ratio))


def _remainder(a: Expr, b: Expr) -> Sequence[Case] | None:
    ratio = quotient(a, b)
    return None if ratio is None or ratio.is_infinite else one(sympy.expand(a - b * floor(ratio)))


_OVERLOADS = ("Tensor", "Scalar", "default", "self", "ScalarOther", "ScalarSelf", "Scalar_Tensor", "Tensor_Scalar")
_OTHER_NAMES: dict[Any, Any] = {
    aten.bitwise_and: aten.logical_and.default,
    aten.bitwise_or: aten.logical_or.default,
    aten.bitwise_xor: aten.logical_xor.default,
    aten.bitwise_not: aten.logical_not.default,
    aten.__and__: aten.logical_and.default,
    aten.__or__: aten.logical_or.default,
    aten.__xor__: aten.logical_xor.default,
    aten.multiply: aten.mul.Tensor,
    aten.subtract: aten.sub.Tensor,
    aten.rsub: aten.sub.Tensor,
    aten.divide: aten.div.Tensor,
    aten.true_divide: aten.div.Tensor,
    aten.negative: aten.neg.default,
    aten.absolute: aten.abs.default,
    aten.greater_equal: aten.ge.Tensor,
    aten.greater: aten.gt.Tensor,
    aten.less_equal: aten.le.Tensor,
    aten.less: aten.lt.Tensor,
    aten.not_equal: aten.ne.Tensor,
}


def rule_key(target: Any) -> Any:
    """The key in :data:`RULES` of an operator, whichever overload or spelling it is; None where there is none."""
    if target in RULES:
        return target
    packet = getattr(target, "overloadpacket", None)
    if packet in _OTHER_NAMES:
        return _OTHER_NAMES[packet]
    if target in (aten.max.other, aten.min.other):
        return aten.maximum.default if target is aten.max.other else aten.minimum.default
    for key in RULES:
        if key.overloadpacket is packet and target._overloadname in _OVERLOADS:
            return key
    return None


def cast(value: Expr, old: torch.dtype, new: torch.dtype, prover: Prover) -> Sequence[Case] | None:
    """``value`` as a tensor of dtype ``new`` holds it: whole parts toward zero, 0 and 1 of booleans.

    Sizes are taken to be below 2**24, which 32 bits hold exactly; half precision and small integers hold numbers only,
    and only those that they hold exactly.
    """
    if new == torch.bool:
        return truth(value) if old != torch.bool else one(value)
    if new.is_floating_point:
        return one(value) if new.itemsize >= 4 or _fits(value, new) else None
    if value.is_infinite or new.is_complex:
        return None
    if old.is_floating_point and denominator_of(value) != 1:
        if not prover.nonnegative(value):
            value = -value
            return one(-floor(value)) if prover.nonnegative(value) else None
        value = floor(value)
    if new.itemsize < 4 and not value.is_Number:
        return None
    info = torch.iinfo(new)
    return one(value) if not value.is_Number or info.min <= value <= info.max else None


def _fits(value: Expr, dtype: torch.dtype) -> bool:
    if not value.is_Number:
        return False
    if value.is_infinite:
        return True
    held = torch.tensor(float(value), dtype=torch.float64).to(dtype).item()
    return bool(Rational(held) == value) if abs(held) < sys.float_info.max else False
