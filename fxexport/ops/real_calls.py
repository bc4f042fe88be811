"""Real tensors of a program with arithmetic: ``a * c - b * d`` inserts the calls that compute it.

Plain numbers take part as they are. A zero that is known stays a number, and what it makes trivial is not computed:
``x * 0`` is 0 and ``x + 0`` is x. That loses the sign of zeros and the NaN of ``inf * 0``; ``Site.exact`` computes them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate

from fxexport.program import Program

aten = torch.ops.aten


class Site:
    """Where new calls go: before the node ``before`` of a program.

    Attributes:
        exact: compute the signs of zeros and the NaN of ``inf * 0`` as complex arithmetic does.
    """

    def __init__(self, program: Program, *, exact: bool = False) -> None:
        self.program = program
        self.exact = exact
        self.before: fx.Node = program.graph.output_node()
        self._known: dict[Hashable, fx.Node] = {}

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Real:
        """A new call of an operator or a packet of overloads; ``Real`` arguments stand for their nodes."""
        plain, named = map_aggregate((args, kwargs), _node_of)
        return Real(self.program.insert(target, tuple(plain), dict(named), before=self.before), self)

    def constant(self, key: Hashable, name: str, make: Callable[[], Tensor]) -> Real:
        """The constant stored under ``key``; the first time ``make()`` computes it."""
        return self.once(key, lambda: Real(self.program.add_constant(name, make()), self))

    def once(self, key: Hashable, make: Callable[[], Real]) -> Real:
        """What ``make()`` computed of the graph the first time it was asked for ``key``: it comes before all that follow."""
        if key not in self._known:
            self._known[key] = make().node
        return Real(self._known[key], self)

    def where(self, condition: Real, yes: Number, no: Number) -> Real:
        """``yes`` where ``condition`` holds, else ``no``."""
        return self.call(aten.where, condition, yes, no)


@dataclass(frozen=True, eq=False)
class Real:
    """A real tensor (or a symbolic number) of a program."""

    node: fx.Node
    site: Site

    @property
    def value(self) -> Tensor:
        """Its shape and dtype, as a fake tensor."""
        value: Tensor = self.node.meta["val"]
        return value

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Real:
        """``target(self, *args)``."""
        return self.site.call(target, self, *args, **kwargs)

    def full_like(self, number: float) -> Real:
        """A tensor of this shape and dtype that is ``number`` everywhere."""
        return self.call(aten.full_like.default, number)

    def to(self, dtype: torch.dtype) -> Real:
        """Cast; itself where it has that dtype."""
        return self if self.value.dtype == dtype else self.call(aten.to.dtype, dtype)

    def times(self, other: Number) -> Real:
        """The product, computed also where it is known."""
        return self.call(aten.mul.Tensor, other)

    def __add__(self, other: Number) -> Real:
        if is_zero(other) and not self.site.exact:
            return self
        return self.call(aten.add.Tensor, other)

    __radd__ = __add__

    def __sub__(self, other: Number) -> Real:
        return self if is_zero(other) else self.call(aten.sub.Tensor, other)

    def __rsub__(self, other: float) -> Real:
        if is_zero(other) and not self.site.exact:
            return -self
        return self.call(aten.rsub.Scalar, other)

    def __mul__(self, other: Number) -> Number:
        if not isinstance(other, Real) and other == 1:
            return self
        if is_zero(other) and not self.site.exact:
            return 0.0
        return self.times(other)

    __rmul__ = __mul__

    def __truediv__(self, other: Number) -> Real:
        return self.call(aten.div.Tensor, other)

    def __rtruediv__(self, other: float) -> Number:
        if is_zero(other) and not self.site.exact:
            return 0.0
        inverse: Number = self.call(aten.reciprocal.default)
        return inverse * other

    def __neg__(self) -> Real:
        return self.call(aten.neg.default)


Number = Real | float


def is_zero(number: Any) -> bool:
    """Whether it is the plain number zero."""
    return not isinstance(number, Real) and number == 0


def divided(a: float, b: float) -> float:
    """``a / b`` as floating point numbers have it: infinite or NaN where ``b`` is zero."""
    return a / b if b else math.copysign(math.inf, b) * a if a else math.nan


def _node_of(value: Any) -> Any:
    return value.node if isinstance(value, Real) else value
