"""Mean squares and variances of a tensor along some axes, in every spelling.

x.pow(2).mean(-1)   (x * x).sum(-1) / n   x.norm(dim=-1) ** 2 / n   x.var(-1, correction=0)   ((x - mean) ** 2).mean(-1)
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from fxexport.ops.means import WITH_MEAN, centered, extent, factored
from fxexport.ops.products import Product, base, product, same_shape, same_value, scalar
from fxexport.program import Program
from fxexport.rewrite.base import arguments
from fxexport.rewrite.calls import normal_target, seen_through

aten = torch.ops.aten
_NORMS = (aten.linalg_vector_norm.default, aten.norm.ScalarOpt_dim, aten.linalg_norm.default)
_SPREADS = (aten.std.correction, aten.std.dim, aten.var.correction, aten.var.dim)
_CLAMPS = (aten.clamp_min.default, aten.clamp.default, aten.maximum.default, aten.clamp_min.Tensor, aten.clamp.Tensor)


@dataclass(frozen=True)
class Moment:
    """``max(scale * mean(x ** 2) + eps, floor)`` over ``dims``, of ``x - mean(x)`` where ``centered``.

    ``dims``: from the front, in order. ``floor`` is None where nothing is clamped.
    """

    x: fx.Node
    dims: tuple[int, ...]
    centered: bool
    scale: float = 1.0
    eps: float = 0.0
    floor: float | None = None


class MomentReader:
    """Reads moments that are computed in one ``dtype``.

    Attributes:
        reasons: why what looked like one is none.
    """

    def __init__(self, program: Program, dtype: torch.dtype) -> None:
        self.program = program
        self.dtype = dtype
        self.reasons: list[str] = []

    def read(self, value: Any) -> Moment | None:
        """``value`` as a moment. Axes of size 1 that its axes leave behind may be kept, or dropped and put back."""
        return self.of_power(factored(value, self.dtype))

    def root(self, value: Any) -> Moment | None:
        """What ``value`` is the square root of: a vector norm, a standard deviation, one of them clamped from below."""
        found = factored(value, self.dtype).power(2)
        return None if found is None else self.of_power(found)

    def of_power(self, found: Product) -> Moment | None:
        """The moment that a product is: of a moment to the power of 1, or its root to the power of 2."""
        if found.single is None or found.factor <= 0:
            return None
        node, exponent = found.single
        moment = self._mean(node) if exponent == 1 else self._root_of(node) if exponent == 2 else None
        if moment is None or found.factor == 1:
            return moment
        floor = None if moment.floor is None else moment.floor * found.factor
        return replace(moment, scale=moment.scale * found.factor, eps=moment.eps * found.factor, floor=floor)

    # ---------------------------------------------------------------- one call

    def _root_of(self, node: fx.Node) -> Moment | None:
        if not self._fits(node):
            return None
        target = normal_target(node.target)
        if target in _NORMS:
            return self._norm(node)
        if target is operator.getitem or target in _SPREADS:
            return self._spread(node, root=True)
        if target in _CLAMPS:
            return self._clamped(node, self.root, lambda low: low * low)
        if target in (aten.add.Tensor, aten.add.Scalar):
            inner, eps = self._plus_number(node)
            if eps is not None and self.root(inner) is not None:
                self.reasons.append(f"{eps:g} is added to the square root, not under it")
        return None

    def _mean(self, node: fx.Node) -> Moment | None:
        """A moment that is no product."""
        if not self._fits(node):
            return None
        target = normal_target(node.target)
        if target in (aten.add.Tensor, aten.add.Scalar):
            inner, eps = self._plus_number(node)
            moment = None if eps is None else self.read(inner)
            return moment if moment is None or eps is None or moment.floor is not None else _plus(moment, eps)
        if target in (aten.mean.dim, aten.sum.dim_IntList):
            return self._mean_of_squares(node)
        if target is operator.getitem or target in _SPREADS:
            return self._spread(node, root=False)
        if target in _CLAMPS:
            return self._clamped(node, self.read, lambda low: low)
        if target is aten.sub.Tensor and (moment := self.read(node.args[0])) is not None and not moment.centered:
            self.reasons.append("its variance is mean(x ** 2) - mean(x) ** 2, which rounds in another way")
        return None

    def _fits(self, node: Any) -> bool:
        value = node.meta.get("val") if isinstance(node, fx.Node) and node.op == "call_function" else None
        return isinstance(value, torch.Tensor) and value.dtype == self.dtype

    def _plus_number(self, node: fx.Node) -> tuple[Any, float | None]:
        call = arguments(node)
        if call["alpha"] != 1:
            return None, None
        left, right = call["self"], call["other"]
        numbers = scalar(self.program, left), scalar(self.program, right)
        return (right, numbers[0]) if numbers[0] is not None else (left, numbers[1])

    def _mean_of_squares(self, node: fx.Node) -> Moment | None:
        call = arguments(node)
        found = self._squared(call["self"])
        dims = self._dims(call["self"], call["dim"])
        if found is None or dims is None:
            return None
        (x, factor), size = found, extent(call["self"], dims)
        adds = normal_target(node.target) is aten.sum.dim_IntList
        if (adds and size is None) or not same_shape(x.meta["val"].shape, call["self"].meta["val"].shape):
            return None
        raw = centered(x, dims, self.dtype)
        return Moment(x if raw is None else raw, dims, raw is not None, factor * (size or 1 if adds else 1))

    def _squared(self, value: Any) -> tuple[fx.Node, float] | None:
        """What ``value`` is the square of, with the factor on the square."""
        node = seen_through(value)
        if not self._fits(node):
            return None
        call, target = arguments(node), normal_target(node.target)
        power = target is aten.square.default or (target is aten.pow.Tensor_Scalar and call["exponent"] == 2)
        twice = target is aten.mul.Tensor and same_value(call["self"], call["other"])
        source: Any = base(call["self"]) if power or twice else None
        factor, squares = 1.0, product(node, self.dtype)
        if source is None and squares.single is not None and squares.single[1] == 2 and squares.factor > 0:
            source, factor = squares.single[0], squares.factor
        if isinstance(source, fx.Node) and source.target is aten.abs.default:
            source = base(source.args[0])
        return (source, factor) if isinstance(source, fx.Node) else None

    def _norm(self, node: fx.Node) -> Moment | None:
        call = arguments(node)
        order = call.get("ord", call.get("p"))
        dims = self._dims(call["self"], call["dim"])
        euclidean = order == 2 or (order is None and dims is not None and len(dims) == 1)
        if normal_target(node.target) is aten.linalg_norm.default and (dims is None or len(dims) != 1):
            return None  # of matrices
        size = None if dims is None else extent(call["self"], dims)
        if not euclidean or dims is None or size is None or not self._in_dtype(call["self"]):
            return None
        return Moment(base(call["self"]), dims, False, float(size))

    def _spread(self, node: fx.Node, *, root: bool) -> Moment | None:
        """``var``, or with ``root`` ``std``, alone or as the first of a pair with the mean."""
        call_node: Any = node.args[0] if node.target is operator.getitem else node
        if node.target is operator.getitem and (node.args[1] != 0 or call_node.target not in WITH_MEAN):
            return None
        if call_node.target not in (*_SPREADS, *WITH_MEAN) or ("std" in call_node.target.__name__) != root:
            return None
        call = arguments(call_node)
        dims = self._dims(call["self"], call["dim"])
        unbiased = call["unbiased"] if "unbiased" in call else call["correction"] != 0
        if dims is None or not self._in_dtype(call["self"]):
            return None
        if unbiased:
            self.reasons.append("its variance is unbiased: it divides by n - 1")
            return None
        return Moment(base(call["self"]), dims, True)

    def _clamped(
        self, node: fx.Node, read: Callable[[Any], Moment | None], square: Callable[[float], float]
    ) -> Moment | None:
        call = arguments(node)
        low = scalar(self.program, call.get("min", call.get("other")))
        if low is None or low < 0 or call.get("max") is not None:
            return None
        moment = read(call["self"])
        return None if moment is None or moment.floor is not None else replace(moment, floor=square(low))

    def _in_dtype(self, value: Any) -> bool:
        """Whether the operator that reads ``value`` computes in the dtype: it rounds to what it is given."""
        return bool(value.meta["val"].dtype == self.dtype)

    def _dims(self, value: Any, dims: Any) -> tuple[int, ...] | None:
        """Dimensions from the front, in order; None for all."""
        if dims is None:
            return None
        rank = value.meta["val"].dim()
        given = [dims] if isinstance(dims, int) else list(dims)
        return tuple(sorted(dim % rank for dim in given)) if given and rank else None


def _plus(moment: Moment, eps: float) -> Moment:
    return replace(moment, eps=moment.eps + eps)
