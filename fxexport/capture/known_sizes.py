"""Small tensors of which sizes are among the elements: ``torch.tensor([x.shape[-1], 3])`` and what is computed from it.

Their elements are followed one by one as expressions, so that a decision on one of them is a condition on the sizes. An
element of a floating tensor is followed only where the number that PyTorch rounds to leads to the same decisions as the
exact one: it is a whole number over a power of two, or one quotient of two whole numbers, whose distance from every number
that it is compared with or rounded to is beyond the rounding (numbers below 2**24, as a float32 counts them).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sympy
import torch
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils import _pytree as pytree
from torch.utils._sympy.functions import FloatTrueDiv, IntTrueDiv, Max, Min, ToFloat

from fxexport.capture.known_running import for_real

LARGEST = 64
"""Elements of a tensor up to which they are followed one by one."""

_SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)
_INTEGERS = (torch.int64, torch.int32)
_FLOATS = (torch.float32, torch.float64)


@dataclass(frozen=True)
class Sizes:
    """The elements of a tensor of ``shape``, row by row; ``dtype`` is bool, a wide integer or a wide float type."""

    elements: tuple[Any, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype


class NotFollowed(Exception):
    """What an operation makes of sizes is not followed: its result is not known."""


def is_symbolic(value: Any) -> bool:
    """Whether ``value`` is a Python number that depends on sizes."""
    return isinstance(value, _SYMBOLIC)


def leaves_of(value: Any) -> list[Any]:
    """What arguments consist of, down to the ends of slices."""
    found: list[Any] = []
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, slice):
            found += [leaf.start, leaf.stop, leaf.step]
        else:
            found += list(leaf) if isinstance(leaf, torch.Size) else [leaf]
    return found


def depends_on_data(value: Any) -> bool:
    """Whether ``value`` is symbolic and comes from the values of an input, not only from sizes."""
    return is_symbolic(value) and bool(free_unbacked_symbols(value))


def sizes_of(value: Any) -> Sizes:
    """The elements of Sizes, of a small real tensor or of a Python number. Raises NotFollowed for anything else."""
    if isinstance(value, Sizes):
        return value
    if isinstance(value, torch.Tensor):
        if value.numel() > LARGEST or value.is_complex():
            raise NotFollowed
        return Sizes(tuple(listed(value.detach)), tuple(value.shape), value.dtype)
    if isinstance(value, bool | torch.SymBool):
        return Sizes((value,), (), torch.bool)
    if isinstance(value, int | torch.SymInt):
        return Sizes((value,), (), torch.int64)
    if isinstance(value, float | torch.SymFloat):
        return Sizes((value,), (), torch.float32)
    raise NotFollowed


def checked(elements: Sequence[Any], shape: tuple[int, ...], dtype: torch.dtype) -> Sizes:
    """``elements`` as a tensor of ``dtype`` holds them. Raises NotFollowed where it rounds them."""
    if len(elements) > LARGEST or math.prod(shape) != len(elements):
        raise NotFollowed
    if dtype == torch.bool:
        return Sizes(tuple(truth(element) for element in elements), shape, dtype)
    if dtype in _INTEGERS:
        return Sizes(tuple(whole(element) for element in elements), shape, dtype)
    if dtype not in _FLOATS:
        raise NotFollowed
    floats = tuple(_stored(number(element), dtype) for element in elements)
    if not all(precision(element) for element in floats):
        raise NotFollowed
    return Sizes(floats, shape, dtype)


def _stored(value: Any, dtype: torch.dtype) -> Any:
    """Whole numbers stay such in a float tensor: a quotient of two of them is a simpler expression."""
    if isinstance(value, float) and dtype == torch.float32:
        value = float(np.float32(value))
    return int(value) if isinstance(value, float) and value.is_integer() else value


def numbers_in(sizes: Sizes) -> list[Any]:
    """The elements as ``Tensor.tolist`` gives them to Python. Raises NotFollowed where PyTorch rounds one."""
    if not sizes.dtype.is_floating_point:
        return list(sizes.elements)
    if sizes.dtype != torch.float64 and not all(precision(element) == 2 for element in sizes.elements):
        raise NotFollowed
    return [torch.sym_float(element) for element in sizes.elements]  # type: ignore[no-untyped-call]


def precision(value: Any) -> int:
    """2 for a number that a float tensor holds as it is, 1 for a quotient that it rounds once, 0 for any other."""
    return _precision(value.node.expr) if isinstance(value, torch.SymFloat) else 2


def _precision(expression: Any) -> int:
    if expression.is_integer:
        return 2
    if isinstance(expression, ToFloat):
        return _precision(expression.args[0])
    if isinstance(expression, sympy.Float | sympy.Rational):
        return 2 if is_short(float(expression)) else 0
    if isinstance(expression, Max | Min | sympy.Max | sympy.Min):
        return min(_precision(argument) for argument in expression.args)
    if isinstance(expression, sympy.Add | sympy.Mul):
        return 2 if all(_precision(argument) == 2 for argument in expression.args) else 0
    if isinstance(expression, IntTrueDiv | FloatTrueDiv):
        if not all(_precision(argument) == 2 for argument in expression.args):
            return 0
        divisor = expression.args[1]
        return 2 if divisor.is_number and is_short(1 / float(divisor)) else 1
    return 0


def is_short(value: float) -> bool:
    """Whether few binary digits make up ``value``: products with a size are exact."""
    if not math.isfinite(value):
        return False
    above, below = value.as_integer_ratio()
    return abs(above) <= 2**8 and below <= 2**8


def truth(value: Any) -> Any:
    """``value`` as an element of a bool tensor."""
    return value if isinstance(value, bool | torch.SymBool) else value != 0


def number(value: Any) -> Any:
    """``value`` with numbers for truth values."""
    if isinstance(value, torch.SymBool):
        return torch.sym_ite(value, 1, 0)  # type: ignore[no-untyped-call]
    return int(value) if isinstance(value, bool) else value


def whole(value: Any) -> Any:
    """``value`` as an element of an integer tensor."""
    value = number(value)
    return math.trunc(value) if isinstance(value, float | torch.SymFloat) else value


def positions(sizes: Sizes, start: int = 0) -> torch.Tensor:
    """A real tensor of the same shape that holds ``start``, ``start + 1``, ... for the elements."""
    count = len(sizes.elements)
    with for_real():
        return torch.arange(start, start + count).reshape(sizes.shape)


def listed(make: Callable[..., torch.Tensor], *args: Any) -> list[int]:
    """The elements of ``make(*args)``, row by row."""
    with for_real():
        elements: list[int] = make(*args).reshape(-1).tolist()
    return elements
