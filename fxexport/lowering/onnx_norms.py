"""Normalizations in the ONNX operators that onnxruntime runs fastest, each in words of the opset that is written.

    rms_norm            ->  RMSNormalization                                                           (opset 23)
                            Pow, ReduceMean, Add, Sqrt, Div, Mul: onnxruntime makes one operator of it (before)
    layer_norm          ->  LayerNormalization
    instance_norm       ->  InstanceNormalization
    group_norm          ->  Reshape, InstanceNormalization, Reshape, BatchNormalization
    linalg_vector_norm  ->  Mul, ReduceSum, Sqrt                                                       (of order 2)

Medians of interleaved runs, onnxruntime 1.32 on one core of a CPU, float32, microseconds:

- rms_norm of [128, 768]: RMSNormalization, which has a kernel of its own, 29; the words above 30, since they become
  SimplifiedLayerNormalization; with ``x * x`` for ``Pow``, ``Reciprocal`` and ``Mul`` for ``Div``, or without a weight,
  they do not: 73 to 81. So the square is a ``Pow`` and there is always a weight.
- layer_norm of [128, 768]: LayerNormalization with a scale of the full size 52, with one of size 1 that is broadcast 224,
  spelled out 107.
- instance_norm of [1, 96, 56, 56]: InstanceNormalization 134, spelled out 377.
- group_norm of [1, 96, 56, 56] in 8 groups: as above 247; with Mul and Add for BatchNormalization 311; by
  LayerNormalization of the groups 412; GroupNormalization of opset 21, which is expanded into 29 operators, 568.
- vector norm of [128, 768] along the last axis, with a division: as above 54, ReduceL2 109, ReduceSumSquare 109,
  LpNormalization 108. Along axis 1 of [2, 256, 64, 64]: 1725, 14161 and more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnxscript import opset18, opset23
from onnxscript.function_libs.torch_lib.ops import linalg

aten = torch.ops.aten
op: Any = opset18
op23: Any = opset23
_TORCH_NORM: Any = linalg.aten_linalg_vector_norm
_HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)

Translations = dict[Any, Callable[..., Any]]


def norm_translations(opset: int) -> Translations:
    """Operator -> its translation for a file of ``opset``."""
    return {
        aten.rms_norm.default: _rms_norm_23 if opset >= 23 else _rms_norm if opset >= 18 else _rms_norm_17,
        aten.layer_norm.default: _layer_norm,
        aten.instance_norm.default: _instance_norm,
        aten.group_norm.default: _group_norm,
        aten.linalg_vector_norm.default: _vector_norm,
    }


def _filled(like: Any, shape: Sequence[Any], number: float) -> Any:
    """``number`` in the dtype of ``like``, in a ``shape`` that may be made of values."""
    if all(isinstance(size, int) for size in shape):
        return op.Constant(value=ir.tensor(np.full(list(shape), number, dtype=like.dtype.numpy())))
    return op.Expand(_filled(like, [], number), _sizes(shape))


def _sizes(shape: Sequence[Any]) -> Any:
    ones = op.Constant(value_ints=[-1])
    parts = [
        op.Constant(value_ints=[size]) if isinstance(size, int) else op.Reshape(op.Cast(size, to=7), ones)
        for size in shape
    ]
    return op.Concat(*parts, axis=0)


def _rms_norm_23(x: Any, normalized_shape: Sequence[int], weight: Any = None, eps: float | None = None) -> Any:
    weight = _filled(x, normalized_shape, 1.0) if weight is None else weight
    double = x.dtype == ir.DataType.DOUBLE
    options = {"axis": -len(normalized_shape), "epsilon": _eps(x, eps)}
    return op23.RMSNormalization(x, weight, **options, stash_type=x.dtype.value if double else 1)


def _rms_norm(x: Any, normalized_shape: Sequence[int], weight: Any = None, eps: float | None = None) -> Any:
    axes = op.Constant(value_ints=list(range(-len(normalized_shape), 0)))

    def mean_square(wide: Any) -> Any:
        two = op.Constant(value=ir.tensor(2.0, dtype=wide.dtype))
        return op.ReduceMean(op.Pow(wide, two), axes, keepdims=1)

    return _rms_spelled_out(x, normalized_shape, weight, eps, mean_square)


def _rms_norm_17(x: Any, normalized_shape: Sequence[int], weight: Any = None, eps: float | None = None) -> Any:
    """Its ReduceMean takes axes in another form than that of opset 18, in which translations are written."""
    axes = op.Constant(value_ints=list(range(-len(normalized_shape), 0)))

    def mean_square(wide: Any) -> Any:
        share = op.Constant(value=ir.tensor(1.0 / math.prod(normalized_shape), dtype=wide.dtype))
        return op.Mul(op.ReduceSum(op.Mul(wide, wide), axes, keepdims=1), share)

    return _rms_spelled_out(x, normalized_shape, weight, eps, mean_square)


def _rms_spelled_out(
    x: Any, normalized_shape: Sequence[int], weight: Any, eps: float | None, mean_square: Callable[[Any], Any]
) -> Any:
    """Half precision is computed in float32 and rounded once, as PyTorch does."""
    weight = _filled(x, normalized_shape, 1.0) if weight is None else weight
    half = x.dtype in _HALVES
    wide, weight = (op.Cast(value, to=ir.DataType.FLOAT) if half else value for value in (x, weight))
    least = op.Constant(value=ir.tensor(_eps(x, eps), dtype=ir.DataType.FLOAT if half else x.dtype))
    if half:
        wide.dtype = ir.DataType.FLOAT
    result = op.Mul(op.Div(wide, op.Sqrt(op.Add(mean_square(wide), least))), weight)
    return op.Cast(result, to=x.dtype) if half else result


def _eps(x: Any, eps: float | None) -> float:
    """PyTorch's default is the smallest step of the dtype it computes in."""
    dtype = torch.float64 if x.dtype == ir.DataType.DOUBLE else torch.float32
    return torch.finfo(dtype).eps if eps is None else eps


def _layer_norm(
    x: Any,
    normalized_shape: Sequence[int],
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-05,
    cudnn_enable: bool = True,
) -> Any:
    weight = _filled(x, normalized_shape, 1.0) if weight is None else weight
    result, *_ = op.LayerNormalization(x, weight, bias, axis=-len(normalized_shape), epsilon=eps)
    return result


def _instance_norm(
    x: Any,
    weight: Any = None,
    bias: Any = None,
    running_mean: Any = None,
    running_var: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-05,
    cudnn_enabled: bool = False,
) -> Any:
    """By fixed statistics, the same for every sample, it is a batch normalization."""
    channels = _channels(x)
    weight = _filled(x, channels, 1.0) if weight is None else weight
    bias = _filled(x, channels, 0.0) if bias is None else bias
    if use_input_stats and x.dtype == ir.DataType.DOUBLE:
        normal = _centered(x, list(range(2, len(x.shape))), eps)
        zeros, ones = (_filled(x, channels, number) for number in (0.0, 1.0))
        return op.BatchNormalization(normal, weight, bias, zeros, ones, epsilon=0.0)
    if use_input_stats:
        return op.InstanceNormalization(x, weight, bias, epsilon=eps)
    return op.BatchNormalization(x, weight, bias, running_mean, running_var, epsilon=eps)


def _channels(x: Any) -> list[Any]:
    size = x.shape[1]
    return [size] if isinstance(size, int) else [op.Shape(x, start=1, end=2)]


def _group_norm(
    x: Any,
    num_groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-05,
    cudnn_enabled: bool = True,
) -> Any:
    groups = [_filled(x, [num_groups], number) for number in (1.0, 0.0)]
    grouped = op.Reshape(x, op.Constant(value_ints=[0, num_groups, -1]))
    if x.dtype == ir.DataType.DOUBLE:
        grouped.dtype = x.dtype
        normal = _centered(grouped, [2], eps)
    else:
        normal = op.InstanceNormalization(grouped, *groups, epsilon=eps)
    normal = op.Reshape(normal, op.Shape(x))
    if weight is None and bias is None:
        return normal
    zeros, ones = (_filled(x, _channels(x), number) for number in (0.0, 1.0))
    weight, bias = ones if weight is None else weight, zeros if bias is None else bias
    return op.BatchNormalization(normal, weight, bias, zeros, ones, epsilon=0.0)


def _centered(x: Any, axes: Sequence[int], eps: float) -> Any:
    """``(x - mean) / sqrt(var + eps)`` in float64, for which onnxruntime has no InstanceNormalization."""
    dims = op.Constant(value_ints=list(axes))
    around = op.Sub(x, op.ReduceMean(x, dims, keepdims=1))
    variance = op.ReduceMean(op.Mul(around, around), dims, keepdims=1)
    return op.Div(around, op.Sqrt(op.Add(variance, op.Constant(value=ir.tensor(eps, dtype=x.dtype)))))


def _vector_norm(x: Any, ord: float = 2.0, dim: Any = None, keepdim: bool = False, dtype: int = -1) -> Any:
    """Of another order, or of all elements, it is torch's translation. Half precision is squared in float32."""
    dims = [dim] if isinstance(dim, int) else dim
    if ord != 2 or dims is None or not all(isinstance(each, int) for each in dims) or not len(x.shape):
        return _TORCH_NORM(x, ord, dim, keepdim, dtype)
    wide = op.Cast(x, to=dtype) if dtype != -1 else op.Cast(x, to=1) if x.dtype in _HALVES else x
    axes = op.Constant(value_ints=list(dims))
    length = op.Sqrt(op.ReduceSum(op.Mul(wide, wide), axes, keepdims=int(keepdim)))
    return op.CastLike(length, x) if dtype == -1 and x.dtype in _HALVES else length
