"""Means of a tensor along some axes, and what is left where they are subtracted."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from fxexport.ops.products import Product, base, product, same_value
from fxexport.rewrite.base import arguments
from fxexport.rewrite.calls import normal_target, seen_through

aten = torch.ops.aten
WITH_MEAN = (aten.var_mean.correction, aten.var_mean.dim, aten.std_mean.correction, aten.std_mean.dim)
"""What gives a variance or deviation, and the mean with it."""


def extent(value: Any, dims: Sequence[int]) -> int | None:
    """How many elements of ``value`` a reduction over ``dims`` takes together; None where that is dynamic."""
    sizes = [value.meta["val"].shape[dim] for dim in dims]
    known = [size for size in sizes if isinstance(size, int)]
    count = 1
    for size in known:
        count *= size
    return count if len(known) == len(sizes) else None


def factored(value: Any, dtype: torch.dtype) -> Product:
    """``value`` as a product, where that is a single power also of what is reshaped within."""
    found = product(without_reshape(value), dtype)
    while found.single is not None and (inner := without_reshape(found.single[0])) is not found.single[0]:
        deeper = product(inner, dtype).power(found.single[1])
        if deeper is None:
            break
        found = deeper.times(Product(found.factor))
    return found


def without_reshape(value: Any) -> Any:
    """``value``, or what it is a reshape of: what is computed element by element is the same before and after."""
    node = seen_through(value)
    while isinstance(node, fx.Node) and normal_target(node.target) is aten.reshape.default:
        node = seen_through(node.args[0])
    return node


def centered(node: Any, dims: Sequence[int], dtype: torch.dtype) -> fx.Node | None:
    """``x`` where ``node`` is ``x - mean(x)`` over ``dims``, computed in ``dtype``."""
    if not isinstance(node, fx.Node) or normal_target(node.target) is not aten.sub.Tensor:
        return None
    call = arguments(node)
    if node.meta["val"].dtype != dtype or call["alpha"] != 1 or not isinstance(call["other"], fx.Node):
        return None
    x = base(call["self"])
    mean = mean_of(call["other"], dims, dtype)
    return x if isinstance(x, fx.Node) and mean is not None and same_value(mean, x) else None


def mean_of(value: Any, dims: Sequence[int], dtype: torch.dtype) -> fx.Node | None:
    """What ``value`` is the mean of over ``dims``, computed in ``dtype``."""
    outer = seen_through(value)
    found = factored(outer, dtype)
    if found.single is None or found.single[1] != 1 or found.single[0].op != "call_function":
        return None
    node = found.single[0]
    if node.target is operator.getitem:
        pair: Any = node.args[0]
        if node.args[1] != 1 or pair.target not in WITH_MEAN or found.factor != 1:
            return None
        node = pair
    target = normal_target(node.target)
    if target not in (aten.mean.dim, aten.sum.dim_IntList, *WITH_MEAN):
        return None
    call = arguments(node)
    source = call["self"]
    rank, given = source.meta["val"].dim(), call["dim"]
    given = [given] if isinstance(given, int) else list(given or ())
    if sorted(dim % rank for dim in given) != list(dims):
        return None
    size = extent(source, dims)
    expected = 1.0 if target is not aten.sum.dim_IntList else size and 1 / size
    fits = expected and abs(found.factor - expected) <= 1e-9 * expected
    kept = keeps_axes(outer, source, dims)
    x = base(source)
    return x if fits and kept and isinstance(x, fx.Node) else None


def keeps_axes(statistic: fx.Node, source: fx.Node, dims: Sequence[int]) -> bool:
    """Whether ``statistic`` has the axes of ``source``, those of ``dims`` with size 1 (or expanded to its sizes)."""
    have, shape = statistic.meta["val"].shape, source.meta["val"].shape
    if len(have) != len(shape):
        return False
    return all(
        (dim in dims and isinstance(a, int) and a == 1) or str(a) == str(b)
        for dim, (a, b) in enumerate(zip(have, shape, strict=True))
    )
