"""Layers with weights, for random programs: products, convolutions, normalizations, dropout."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from fxexport.testing.draft import Draft, Refused, dtype_of, shape_of

aten = torch.ops.aten


def _fixed(x: fx.Node, axis: int) -> int:
    size = shape_of(x)[axis]
    if not isinstance(size, int) or size == 0:
        raise Refused("a layer needs a fixed number of channels")
    return size


def linear(d: Draft, x: fx.Node | None = None) -> fx.Node:
    """``x @ W.T + b`` along the last axis of ``x`` (default: drawn)."""
    x = d.tensor("float32", range(1, 5)) if x is None else x
    out = d.pick([4, 3, 1, 6])
    bias = [d.constant([out])] if d.pick([True, False]) else []
    return d.call(aten.linear.default, x, d.constant([out, _fixed(x, -1)]), *bias)


def _matmul(d: Draft) -> fx.Node:
    x = d.tensor("float", range(2, 5))
    y = d.pick([x, *(v for v in reversed(d.values) if dtype_of(v) == dtype_of(x))])
    return d.call(aten.matmul.default, x, d.call(aten.transpose.int, y, -1, -2) if d.pick([True, False]) else y)


def _grouped_mm(d: Draft) -> fx.Node:
    """Rows in order of their expert, in bfloat16 (the only dtype it has everywhere); the last expert ends last."""
    x = d.tensor("float32", [2])
    rows, experts = _fixed(x, 0), d.pick([2, 1, 3])
    # Rows of eight: the operator wants its matrices aligned in memory.
    x = d.call(aten.linear.default, x, d.constant([8, _fixed(x, 1)]))
    x = d.call(aten.to.dtype, x, torch.bfloat16)
    weight = d.constant([experts, 8, 8], torch.bfloat16)
    ends = torch.tensor([*(rows * (i + 1) // experts for i in range(experts))], dtype=torch.int32)
    product = d.call(aten._grouped_mm.default, x, weight, d.given("ends", ends))
    return d.call(aten.to.dtype, product, torch.float32)


def _embedding(d: Draft) -> fx.Node:
    """Only the inputs are known to be small whole numbers."""
    ids = d.pick([n for n in d.program.input_nodes if dtype_of(n) == torch.int64])
    return d.call(aten.embedding.default, d.constant([4, d.pick([4, 3])]), ids)


# ---------------------------------------------------------------- convolutions


def convolution(d: Draft, x: fx.Node | None = None) -> fx.Node:
    """One or two dimensions, grouped, strided, dilated, padded by numbers or by name; sometimes without a batch."""
    x = d.tensor("float32", [4, 3, 2]) if x is None else x
    rank = len(shape_of(x))
    dims = d.pick({2: [1], 3: [1, 1, 2], 4: [2]}.get(rank, []))
    channels = _fixed(x, rank - dims - 1)
    groups = d.pick([g for g in (1, 2, channels) if channels % g == 0])
    out = groups * d.pick([2, 1, 3])
    kernel, stride, dilation = d.pick([3, 1, 2]), d.pick([1, 1, 2]), d.pick([1, 1, 2])
    weight = d.constant([out, channels // groups, *[kernel] * dims])
    bias = d.constant([out]) if d.pick([True, False]) else None
    padding: Any = d.pick([0, 1, "same", "valid"])
    if isinstance(padding, str):
        target, step = (aten.conv1d.padding, aten.conv2d.padding)[dims - 1], 1 if padding == "same" else stride
        return d.call(target, x, weight, bias, [step] * dims, padding, [dilation] * dims, groups)
    options = [[stride] * dims, [padding] * dims, [dilation] * dims]
    if rank == dims + 2 and d.pick([False, False, True]):
        return d.call(aten.convolution.default, x, weight, bias, *options, False, [0] * dims, groups)
    return d.call((aten.conv1d.default, aten.conv2d.default)[dims - 1], x, weight, bias, *options, groups)


def transposed_convolution(d: Draft, x: fx.Node | None = None) -> fx.Node:
    """One or two dimensions, grouped, strided."""
    x = d.tensor("float32", [4, 3]) if x is None else x
    dims = len(shape_of(x)) - 2
    if dims not in (1, 2):
        raise Refused("one or two dimensions")
    channels = _fixed(x, 1)
    groups = d.pick([g for g in (1, 2) if channels % g == 0])
    per_group, kernel, stride = d.pick([2, 1, 3]), d.pick([2, 3, 1]), d.pick([1, 2])
    weight = d.constant([channels, per_group, *[kernel] * dims])
    bias = d.constant([groups * per_group]) if d.pick([True, False]) else None
    target = (aten.conv_transpose1d.default, aten.conv_transpose2d.input)[dims - 1]
    padding, extra = d.pick([0, 1]), d.pick([0, stride - 1])
    return d.call(target, x, weight, bias, [stride] * dims, [padding] * dims, [extra] * dims, groups)


def _pool(d: Draft) -> fx.Node:
    x = d.tensor("float32", [4])
    return d.call(d.pick([aten.avg_pool2d.default, aten.max_pool2d.default]), x, [2, 2])


# ---------------------------------------------------------------- normalizations


def _affine(d: Draft, channels: int) -> list[fx.Node | None]:
    if not d.pick([True, True, False]):
        return [None, None]
    return [d.constant([channels], positive=True), d.constant([channels])]


def batch_norm(d: Draft, x: fx.Node | None = None) -> fx.Node:
    """By fixed statistics, with or without weights; rarely by those of the batch, or with the saved statistics."""
    x = d.tensor("float32", range(2, 6)) if x is None else x
    channels = _fixed(x, 1) if len(shape_of(x)) > 1 else 0
    eps = d.pick([1e-5, 1e-3, 0.1])
    affine = _affine(d, channels)
    form = d.pick(["fixed"] * 6 + ["legit", "batch"])
    if form == "batch":
        return d.call(aten.batch_norm.default, x, *affine, None, None, True, 0.1, eps, True)
    statistics = [d.constant([channels]), d.constant([channels], positive=True)]
    if form == "legit":
        target = aten._native_batch_norm_legit_no_training.default
        return d.call(operator.getitem, d.call(target, x, *affine, *statistics, 0.1, eps), 0)
    return d.call(aten.batch_norm.default, x, *affine, *statistics, False, 0.1, eps, True)


def _layer_norm(d: Draft) -> fx.Node:
    x = d.tensor("float32", range(1, 5))
    size = [_fixed(x, -1)]
    affine = [d.constant(size), d.constant(size)] if d.pick([True, False]) else [None, None]
    return d.call(aten.layer_norm.default, x, size, *affine, d.pick([1e-5, 0.1]))


def _dropout(d: Draft) -> fx.Node:
    """Inactive: not in training, or with probability 0."""
    x = d.tensor("float", range(1, 6))
    p, train = d.pick([(0.5, False), (0.0, True), (0.1, False)])
    kinds = [aten.dropout.default, aten.alpha_dropout.default]
    kinds += [aten.feature_dropout.default] * (len(shape_of(x)) >= 2)
    if d.pick([False, False, True]):
        return d.call(operator.getitem, d.call(aten.native_dropout.default, x, p, train), 0)
    return d.call(d.pick(kinds), x, p, train)


def _pair(first: Callable[[Draft], fx.Node], second: Callable[[Draft, fx.Node], fx.Node]) -> Callable[[Draft], Any]:
    """Two layers in a row; both results can be read by what follows."""

    def make(d: Draft) -> Sequence[fx.Node]:
        x = first(d)
        result = second(d, x)
        # Not always: what is read elsewhere cannot be folded into.
        return [x, result] if d.pick([False, False, False, True]) else [result]

    return make


LAYERS: dict[str, Callable[[Draft], fx.Node | Sequence[fx.Node]]] = {
    **{"linear": linear, "matmul": _matmul, "embedding": _embedding, "grouped_mm": _grouped_mm},
    **{"conv": convolution, "conv_transpose": transposed_convolution, "pool": _pool},
    **{"batch_norm": batch_norm, "layer_norm": _layer_norm, "dropout": _dropout},
    **{"conv_batch_norm": _pair(convolution, batch_norm), "batch_norm_conv": _pair(batch_norm, convolution)},
    **{"linear_batch_norm": _pair(linear, batch_norm), "batch_norm_linear": _pair(batch_norm, linear)},
    "conv_transpose_batch_norm": _pair(transposed_convolution, batch_norm),
}
"""Name -> layer of random programs."""
