"""onnxscript's rewrite rules, with those that take ``x + 0`` and ``x * 1`` for ``x`` made exact.

Its own compare constants to within 1e-8, so that ``x / (y + 1e-9)`` lost its guard against zero. Its rule that makes one
``Split`` of two slices is left out: it tries every slice at every node, which for a few hundred slices takes longer than
all other rules together, and it looks for slices without steps, which the translation does not write.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
from onnxscript import rewriter
from onnxscript.rewriter import pattern
from onnxscript.rewriter.rules.common import _no_op, slice_split_rule

_NEUTRAL = {"Add": 0.0, "Sub": 0.0, "Mul": 1.0, "Div": 1.0}


def rewrite_rules() -> list[pattern.RewriteRule]:
    """The rules that ``rewriter.rewrite`` applies by default, in their order, without the inexact and the slow ones."""
    out = {id(rule) for rule in (*_no_op.rules, slice_split_rule)}
    kept = [rule for rule in rewriter._DEFAULT_REWRITE_RULES if id(rule) not in out]
    dropouts = (_no_op.dropout_zero_rule, _no_op.dropout_inference_rule)
    neutral = [rule for operator, number in _NEUTRAL.items() for rule in _neutral_rules(operator, number)]
    return [*neutral, *dropouts, *kept]


def _neutral_rules(operator: str, number: float) -> Sequence[pattern.RewriteRule]:
    """``operator(x, number)``, and the other way round where that is the same, is ``x``: for that very number alone."""

    def calculation(op: Any, x: Any, constant: Any) -> Any:
        return getattr(op, operator)(x, constant)

    def unchanged(op: Any, x: Any, **_: Any) -> Any:
        return op.Identity(x)

    def is_neutral(context: Any, constant: Any, **_: Any) -> bool:
        tensor = ir.convenience.get_const_tensor(constant)
        return tensor is not None and tensor.numpy().ndim == 0 and tensor.numpy().item() == number

    rule = pattern.RewriteRule(calculation, unchanged, is_neutral)
    return rule.commute() if operator in ("Add", "Mul") else [rule]
