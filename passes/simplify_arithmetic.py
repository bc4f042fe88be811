"""Arithmetic that gives one of its operands back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from fxexport.ops import looks_at_memory, same_sizes
from fxexport.program import Program
from fxexport.rewrite import NodePass, arguments

aten = torch.ops.aten
Rule = Callable[[Program, fx.Node, dict[str, Any]], Any]
"""(program, call, its arguments) -> the operand that the call gives back, or None."""


def _number(program: Program, value: Any) -> Any:
    """A number among the operands, also as a constant of one element."""
    constant = program.constant_value(value)
    if constant is not None and constant.numel() == 1 and not constant.is_complex():
        return constant.item()
    return value if isinstance(value, (int, float, bool)) else None


def _neutral(number: int, *, commutes: bool, whole: bool = False) -> Rule:
    def rule(program: Program, node: fx.Node, call: dict[str, Any]) -> Any:
        a, b = call["self"], call["other"]
        if call.get("rounding_mode") is not None or (whole and node.meta["val"].is_floating_point()):
            return None
        scale = call.get("alpha", 1)
        if _number(program, b) == number and (scale == 1 or number == 0):
            return a
        return b if commutes and scale == 1 and _number(program, a) == number else None

    return rule


def _minus_nothing(program: Program, node: fx.Node, call: dict[str, Any]) -> Any:
    # -0.0 - 0.0 is -0.0; -0.0 - -0.0 is 0.0.
    number = _number(program, call["other"])
    plus = number == 0 and call["alpha"] == 1 and str(number) in ("0", "0.0", "False")
    return call["self"] if plus else None


def _first_power(program: Program, node: fx.Node, call: dict[str, Any]) -> Any:
    return call["self"] if call["exponent"] == 1 else None


def _twice(program: Program, node: fx.Node, call: dict[str, Any]) -> Any:
    inner: Any = node.args[0]
    return inner.args[0] if isinstance(inner, fx.Node) and inner.target is node.target else None


def _again(program: Program, node: fx.Node, call: dict[str, Any]) -> Any:
    inner: Any = node.args[0]
    return inner if isinstance(inner, fx.Node) and inner.target is node.target else None


def _either(program: Program, node: fx.Node, call: dict[str, Any]) -> Any:
    return call["self"] if call["self"] is call["other"] else None


def _truth(neutral: bool) -> Rule:
    def rule(program: Program, node: fx.Node, call: dict[str, Any]) -> Any:
        a, b = call["self"], call["other"]
        if a is b:
            return a
        for one, other in ((a, b), (b, a)):
            number = _number(program, one)
            if isinstance(number, bool) and number is neutral:
                return other
        return None

    return rule


RULES: dict[Any, Rule] = {
    **dict.fromkeys((aten.mul.Tensor, aten.mul.Scalar), _neutral(1, commutes=True)),
    **dict.fromkeys((aten.div.Tensor, aten.div.Scalar), _neutral(1, commutes=False)),
    **dict.fromkeys((aten.add.Tensor, aten.add.Scalar), _neutral(0, commutes=True, whole=True)),
    **dict.fromkeys((aten.sub.Tensor, aten.sub.Scalar), _minus_nothing),
    aten.pow.Tensor_Scalar: _first_power,
    **dict.fromkeys((aten.neg.default, aten.logical_not.default, aten.bitwise_not.default), _twice),
    **dict.fromkeys((aten.relu.default, aten.abs.default, aten.floor.default, aten.ceil.default), _again),
    aten.where.self: _either,
    **dict.fromkeys((aten.logical_and.default, aten.bitwise_and.Tensor, aten.__and__.Tensor), _truth(True)),
    **dict.fromkeys((aten.logical_or.default, aten.bitwise_or.Tensor, aten.__or__.Tensor), _truth(False)),
}


@dataclass(frozen=True)
class SimplifyArithmetic(NodePass):
    """``x * 1 -> x``, ``x / 1 -> x``, ``x - 0 -> x``, ``x ** 1 -> x``, ``where(c, x, x) -> x``, ``m & True -> m``...

    Also ``x + 0 -> x`` of integers, ``-(-x) -> x``, ``not not m -> m``, ``m | False -> m``, ``relu(relu(x)) -> relu(x)``.

    Exact, to the sign of zero and the place of NaN: ``x + 0`` of real numbers stays (it makes 0.0 of -0.0), and so does
    whatever changes the shape or the dtype of the operand. A number may also be a constant of one element.
    """

    name: ClassVar[str] = "simplify-arithmetic"
    default: ClassVar[bool] = True
    repeats: ClassVar[bool] = True
    targets: ClassVar = tuple(RULES)

    def rewrite(self, program: Program, node: fx.Node) -> fx.Node | str | None:
        """The operand that a call gives back."""
        found = RULES[node.target](program, node, arguments(node))
        if not isinstance(found, fx.Node) or not isinstance(found.meta["val"], Tensor):
            return None
        old, new = found.meta["val"], node.meta["val"]
        if old.dtype != new.dtype or not same_sizes(old.shape, new.shape):
            return "it changes the dtype or the shape of its operand"
        if "memory" not in self.memo:
            self.memo["memory"] = looks_at_memory(program)
        return "the program looks at strides or memory" if self.memo["memory"] else found
