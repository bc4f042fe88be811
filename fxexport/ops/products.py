"""Arithmetic read as products of powers, so that every spelling of one product is the same.

x / sqrt(v)  =  x * rsqrt(v)  =  x * v ** -0.5  =  x * (1 / v.sqrt())  =  {x: 1, v: -1/2}
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxexport.program import Program, same_size
from fxexport.rewrite.base import arguments
from fxexport.rewrite.calls import normal_target, seen_through

aten = torch.ops.aten
_CASTS = (aten.to.dtype, aten.to.dtype_layout, aten.to.other, aten._to_copy.default, aten.type_as.default)
_EXPANSIONS = (aten.expand.default, aten.expand_as.default, aten.broadcast_to.default)


@dataclass(frozen=True)
class Product:
    """``factor`` times the product of all ``powers``: pairs of a value and its exponent, each value once."""

    factor: float
    powers: tuple[tuple[fx.Node, float], ...] = ()

    @property
    def single(self) -> tuple[fx.Node, float] | None:
        """The value and exponent of a product of one power."""
        return self.powers[0] if len(self.powers) == 1 else None

    def times(self, other: Product) -> Product:
        """The product of both; equal values are one, with the sum of their exponents."""
        powers = list(self.powers)
        for node, exponent in other.powers:
            place = next((i for i, (known, _) in enumerate(powers) if same_value(known, node)), None)
            if place is None:
                powers.append((node, exponent))
            else:
                powers[place] = (powers[place][0], powers[place][1] + exponent)
        return Product(self.factor * other.factor, tuple(powers))

    def power(self, exponent: float) -> Product | None:
        """All of it to a power; None where that is no product of powers: the root of ``x ** 2`` is ``abs(x)``."""
        whole = float(exponent).is_integer()
        roots = all(0 < abs(e) < 1 or e == 1 for _, e in self.powers)
        if not whole and (len(self.powers) > 1 or self.factor <= 0 or not roots):
            return None
        if exponent < 0 and self.factor == 0:
            return None
        return Product(self.factor**exponent, tuple((node, e * exponent) for node, e in self.powers))


def base(node: Any) -> Any:
    """What a value is made from without rounding: what copies and casts to wider floating-point types start from."""
    node = seen_through(node)
    while isinstance(node, fx.Node) and node.target in _CASTS:
        source: Any = node.args[0]
        if not _widens(source.meta["val"].dtype, node.meta["val"].dtype):
            break
        node = seen_through(source)
    return node


def _widens(old: torch.dtype, new: torch.dtype) -> bool:
    both = old.is_floating_point and new.is_floating_point
    return both and torch.promote_types(old, new) == new


def same_value(a: Any, b: Any, depth: int = 4) -> bool:
    """Whether two values are equal by construction: one node, or the same call of the same values."""
    a, b = base(a), base(b)
    if a is b:
        return True
    if not isinstance(a, fx.Node) or not isinstance(b, fx.Node):
        return _same_literal(a, b, depth)
    if depth == 0 or a.op != "call_function" or b.op != "call_function" or a.target is not b.target:
        return False
    if a.is_impure() or "nondeterministic_seeded" in {str(tag) for tag in getattr(a.target, "tags", ())}:
        return False
    pairs = zip([*a.args, *a.kwargs.values()], [*b.args, *b.kwargs.values()], strict=False)
    alike = len(a.args) == len(b.args) and list(a.kwargs) == list(b.kwargs)
    return alike and all(same_value(x, y, depth - 1) for x, y in pairs)


def _same_literal(a: Any, b: Any, depth: int) -> bool:
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(same_value(x, y, depth - 1) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and bool(a == b)


def number(value: Any) -> float | None:
    """A Python number as a float; None for anything else, infinities among them."""
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if plain and math.isfinite(value) else None


def scalar(program: Program, value: Any) -> float | None:
    """A number, or a constant of one element without axes: what an ``eps`` may be."""
    known = number(value)
    tensor = program.constant_value(base(value)) if known is None else None
    if tensor is None or tensor.dim() or tensor.is_complex():
        return known
    return number(tensor.item())


def product(value: Any, dtype: torch.dtype) -> Product:
    """``value`` as a product of powers, as far as it is computed in ``dtype``: of narrower values only widened ones.

    What is no product is a power of its own, to 1.
    """
    known = number(value)
    if known is not None:
        return Product(known)
    node = seen_through(value)
    while node.target in _EXPANSIONS:  # factors are broadcast against one another anyway
        node = seen_through(node.args[0])
    read = _READERS.get(normal_target(node.target))
    if read is not None and isinstance(node.meta["val"], Tensor) and node.meta["val"].dtype == dtype:
        found = read(node, arguments(node), dtype)
        if found is not None:
            return found
    return Product(1.0, ((base(node), 1.0),))


Reader = Callable[[fx.Node, dict[str, Any], torch.dtype], Product | None]


def _of_two(sign: int) -> Reader:
    def read(node: fx.Node, call: dict[str, Any], dtype: torch.dtype) -> Product | None:
        if not all(map(_is_factor, (call["self"], call["other"]))):
            return None
        right = product(call["other"], dtype).power(sign)
        return None if right is None else product(call["self"], dtype).times(right)

    return read


def _is_factor(value: Any) -> bool:
    return number(value) is not None or (isinstance(value, fx.Node) and isinstance(value.meta.get("val"), Tensor))


def _to_the(exponent: float | None) -> Reader:
    def read(node: fx.Node, call: dict[str, Any], dtype: torch.dtype) -> Product | None:
        wanted = number(call["exponent"]) if exponent is None else exponent
        inner = product(call["self"], dtype)
        if wanted is None or wanted == 0:
            return None
        found = inner.power(wanted)
        source = base(call["self"])
        return Product(1.0, ((source, wanted),)) if found is None and isinstance(source, fx.Node) else found

    return read


def _negated(node: fx.Node, call: dict[str, Any], dtype: torch.dtype) -> Product:
    return product(call["self"], dtype).times(Product(-1.0))


_READERS: dict[Any, Reader] = {
    **dict.fromkeys((aten.mul.Tensor, aten.mul.Scalar), _of_two(1)),
    **dict.fromkeys((aten.div.Tensor, aten.div.Scalar), _of_two(-1)),
    aten.reciprocal.default: _to_the(-1.0),
    aten.sqrt.default: _to_the(0.5),
    aten.rsqrt.default: _to_the(-0.5),
    aten.square.default: _to_the(2.0),
    aten.pow.Tensor_Scalar: _to_the(None),
    aten.neg.default: _negated,
}


def calls_between(root: fx.Node, leaves: Sequence[fx.Node]) -> list[fx.Node]:
    """The calls that ``root`` is computed by from the ``leaves``, without it; those that read no leaf are left out."""
    reads: dict[fx.Node, bool] = {leaf: True for leaf in leaves}
    sources = [base(leaf) for leaf in leaves]

    def visit(node: fx.Node) -> bool:
        if node not in reads:
            reads[node] = base(node) in sources or any([visit(each) for each in node.all_input_nodes])
        return reads[node]

    visit(root)
    kept = [node for node, found in reads.items() if found and node is not root]
    return [node for node in kept if base(node) not in sources]


def same_shape(a: Sequence[Any], b: Sequence[Any]) -> bool:
    """Whether two shapes are known to be equal, symbolic sizes included."""
    return len(a) == len(b) and all(map(same_size, a, b))
