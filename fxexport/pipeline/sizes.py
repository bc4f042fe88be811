"""Sizes of named axes: learned from shapes, checked against each other, and put into formulas such as ``2*time``."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from fxexport.errors import InputError
from fxexport.pipeline.ports import Axis

_LIMIT = 1 << 62  # no axis is longer; stops a formula from growing numbers without end
_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "max": max,
    "min": min,
    "floor": math.floor,
    "ceiling": math.ceil,
    "ceil": math.ceil,
    "floordiv": operator.floordiv,
    "mod": operator.mod,
}


def axis_size(axis: Axis, sizes: Mapping[str, int]) -> int | None:
    """The size of ``axis`` where ``sizes`` knows every name in it, else None; formulas are computed exactly."""
    if isinstance(axis, int) or axis in sizes:
        return axis if isinstance(axis, int) else sizes[axis]
    if axis.isidentifier():
        return None  # a name, and unknown
    try:
        value = _value(ast.parse(axis, mode="eval").body, sizes)
    except (SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, RecursionError):
        return None  # no formula of known names
    return int(value) if value.denominator == 1 and 0 <= value < _LIMIT else None


def _value(node: ast.expr, sizes: Mapping[str, int]) -> Fraction:
    """The value of a formula; LookupError for an unknown name and for what no formula holds."""
    match node:
        case ast.Constant(value=int() as number) if not isinstance(number, bool):
            value = Fraction(number)
        case ast.Name(id=name):
            value = Fraction(sizes[name])
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            value = -_value(operand, sizes)
        case ast.BinOp(left=left, op=op, right=right):
            value = Fraction(_BINARY[type(op)](_value(left, sizes), _value(right, sizes)))
        case ast.Call(func=ast.Name(id=name), args=[_, *_] as args, keywords=[]):
            value = Fraction(_FUNCTIONS[name.lower()](*(_value(arg, sizes) for arg in args)))
        case _:
            raise LookupError(ast.dump(node))
    if abs(value) > _LIMIT:
        raise OverflowError
    return value


class Sizes:
    """Sizes of named axes within one scope, and which tensor each was learned from."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}
        self._origin: dict[str, str] = {}

    def learn(self, tensors: Iterable[tuple[str, Sequence[Axis], Sequence[int]]]) -> None:
        """Takes only those names from (what, axes, shape) of each tensor that are new; checks nothing."""
        for what, axes, shape in tensors:
            for axis, size in zip(axes, shape, strict=False):
                if isinstance(axis, str) and axis_size(axis, self.known) is None:
                    self.known[axis], self._origin[axis] = size, what

    def bind(self, tensors: Iterable[tuple[str, Sequence[Axis], Sequence[int]]]) -> None:
        """Learns the names in (what, axes, shape) of each tensor.

        Raises:
            InputError: a rank or fixed size that differs, one name with two sizes, a formula with another value.
        """
        pairs: list[tuple[str, str, int]] = []
        for what, axes, shape in tensors:
            if len(axes) != len(shape):
                raise InputError(f"{what} has {len(axes)} axes {_shown(axes)}, got shape {list(shape)}")
            for axis, size in zip(axes, shape, strict=True):
                if isinstance(axis, str):
                    pairs.append((f"{what} has axes {_shown(axes)}, got shape {list(shape)}", axis, size))
                elif axis != size:
                    raise InputError(f"{what} has axes {_shown(axes)}, got shape {list(shape)}: {size} is not {axis}")
        for told, axis, size in sorted(pairs, key=lambda pair: not pair[1].isidentifier()):  # formulas last
            wanted = axis_size(axis, self.known)
            if wanted is None:
                self.known[axis], self._origin[axis] = size, told.split(" has axes")[0]
            elif wanted != size:
                origin = f" in {self._origin[axis]}" if axis in self._origin else ""
                raise InputError(f"{told}: {axis!r} is {wanted}{origin}, here {size}")


def _shown(axes: Sequence[Axis]) -> str:
    return f"[{', '.join(map(str, axes))}]"
