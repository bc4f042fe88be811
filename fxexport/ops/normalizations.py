"""Normalizations spelled out in arithmetic, found whichever way they are spelled."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import fx

from fxexport.ops.means import centered, factored, keeps_axes
from fxexport.ops.moments import Moment, MomentReader
from fxexport.ops.products import Product, base, calls_between, product, same_shape, same_value
from fxexport.program import Program

_WIDE = (torch.float32, torch.float64)


@dataclass(frozen=True)
class Normalization:
    """``factor * x / sqrt(mean(x ** 2) + eps)`` over ``dims``, times ``others``; of ``x - mean(x)`` where ``centered``.

    With a ``floor`` it is ``factor * x / max(sqrt(mean(x ** 2)), floor)`` instead.

    Attributes:
        x: a value of the shape and dtype of the result, or one of a narrower dtype that is to be widened first.
        dims: from the front, in order.
        others: what else is a factor of the result.
    """

    x: fx.Node
    dims: tuple[int, ...]
    centered: bool
    factor: float
    eps: float
    floor: float | None = None
    others: tuple[fx.Node, ...] = ()


def read_normalization(program: Program, node: fx.Node) -> Normalization | str | None:
    """What the product ``node`` normalizes; why that is no normalization, where it nearly is; None for other products.

    Only what is computed in float32 or float64 counts: a normalization operator squares float16 in float32, which
    gives other numbers and no overflow. Its eps is that of the mean: ``x / sqrt(sum(x ** 2) + e)`` has ``e / n``.
    """
    value = node.meta["val"]
    whole = product(node, value.dtype)
    if len(whole.powers) < 2 or not value.is_floating_point() or not all(exponent for _, exponent in whole.powers):
        return None
    reader = MomentReader(program, value.dtype)
    for place, (leaf, exponent) in enumerate(whole.powers):
        power = factored(leaf, value.dtype).power(-2 * exponent)
        moment = None if power is None else reader.of_power(power)
        if moment is not None:
            rest = Product(whole.factor, (*whole.powers[:place], *whole.powers[place + 1 :]))
            return _normalization(node, rest, moment, leaf)
    return reader.reasons[0] if reader.reasons else None


def _normalization(node: fx.Node, rest: Product, moment: Moment, statistic: fx.Node) -> Normalization | str | None:
    """``rest`` divided by the root of ``moment``, which is the value ``statistic`` to some power."""
    value = node.meta["val"]
    found = _numerator(rest, moment, value.dtype)
    if isinstance(found, str | None):
        return found
    x, factor, others = found
    if any(exponent != 1 or not isinstance(each.meta.get("val"), torch.Tensor) for each, exponent in others):
        return None
    if not same_shape(x.meta["val"].shape, value.shape):
        return "the result has another shape than what is normalized"
    if not keeps_axes(statistic, node, moment.dims):
        return "it is divided by the size of other axes than those it is broadcast along"
    if value.dtype not in _WIDE:
        return f"it squares in {value.dtype}, a normalization operator in float32"
    leaves = [x, *(each for each, _ in others)]
    inner = [call for call in calls_between(node, leaves) if isinstance(call.meta.get("val"), torch.Tensor)]
    read = next((each for each in inner if not set(each.users) <= {*inner, node}), None)
    if read is not None:
        return f"{read.name}, computed within it, is read elsewhere as well"
    factor /= math.sqrt(moment.scale)
    floor = None if moment.floor is None else math.sqrt(moment.floor / moment.scale)
    if moment.floor is not None and moment.eps:
        return "it is clamped and has an eps"
    names = tuple(each for each, _ in others)
    return Normalization(x, moment.dims, moment.centered, factor, moment.eps / moment.scale, floor, names)


Powers = list[tuple[fx.Node, float]]


def _numerator(rest: Product, moment: Moment, dtype: torch.dtype) -> tuple[fx.Node, float, Powers] | str | None:
    """What is normalized, the number it is multiplied by, and the other factors."""
    for place, (leaf, exponent) in enumerate(rest.powers):
        x = _normalized(leaf, moment, dtype) if exponent == 1 else None
        if x is not None:
            return x, rest.factor, [*rest.powers[:place], *rest.powers[place + 1 :]]
    inner = product(moment.x, dtype)
    if not moment.centered and inner.factor and any(node is not moment.x for node, _ in inner.powers):
        left = rest.times(Product(1 / inner.factor, tuple((node, -exponent) for node, exponent in inner.powers)))
        if all(exponent in (0, 1) for _, exponent in left.powers):
            return moment.x, left.factor, [(node, exponent) for node, exponent in left.powers if exponent]
    if moment.centered and any(same_value(leaf, moment.x) for leaf, _ in rest.powers):
        return "it is divided by a standard deviation, but not centered"
    return "it is divided by the size of another value" if rest.powers else None


def _normalized(leaf: fx.Node, moment: Moment, dtype: torch.dtype) -> fx.Node | None:
    source = centered(leaf, moment.dims, dtype)
    if not moment.centered:
        return leaf if same_value(leaf, moment.x) else None
    if source is None:
        return None
    return source if same_value(source, moment.x) or same_value(leaf, moment.x) else None


def widened(program: Program, x: fx.Node, dtype: torch.dtype, before: fx.Node) -> fx.Node:
    """``x`` in ``dtype``: itself, a cast of it that there is, or a new one."""
    if x.meta["val"].dtype == dtype:
        return x
    casts = [user for user in x.users if user.meta["val"] is not None and base(user) is x and user < before]
    known = [user for user in casts if user.meta["val"].dtype == dtype]
    return known[0] if known else program.insert(torch.ops.aten.to.dtype, (x, dtype), before=before)


def fixed_sizes(x: fx.Node, dims: tuple[int, ...]) -> list[int] | None:
    """The sizes of ``x`` along ``dims``; None where one is dynamic."""
    sizes = [x.meta["val"].shape[dim] for dim in dims]
    known = [size for size in sizes if isinstance(size, int)]
    return known if len(known) == len(sizes) else None


def multiplied(program: Program, x: fx.Node, factors: tuple[fx.Node | float, ...], before: fx.Node) -> fx.Node:
    """``x`` times each of ``factors``, one after the other; 1 up to rounding in double precision is left out."""
    for factor in factors:
        if isinstance(factor, fx.Node) or not math.isclose(factor, 1.0, rel_tol=1e-9):
            x = program.insert(torch.ops.aten.mul.Tensor, (x, factor), before=before)
    return x
