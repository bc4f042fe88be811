"""Batch normalization by fixed statistics is a multiply and an add per channel: move it into the weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, fx

from fxexport.program import Program
from fxexport.rewrite import NodePass, arguments, first_result

aten = torch.ops.aten
TRANSPOSED = (aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d)
LAYERS = (aten.linear, aten.conv1d, aten.conv2d, aten.conv3d, aten.convolution, *TRANSPOSED)


@dataclass(frozen=True)
class FoldBatchnorm(NodePass):
    """``layer . batch_norm -> layer'``, ``batch_norm . layer -> layer'``, or ``batch_norm -> mul . add``.

    A layer is a convolution, a transposed convolution (only before the batchnorm) or a linear layer. With fixed
    statistics ``scale = gamma / sqrt(var + eps)`` and ``shift = beta - mean * scale`` per channel (Ioffe & Szegedy
    2015, arXiv:1502.03167, algorithm 2, line 11), so

    - the layer before gets ``W' = scale * W``, ``b' = scale * b + shift``: exact where nothing else reads its output;
    - the layer after (``into_next``) gets ``W' = W * scale``, ``b' = b + sum(W * shift)``: exact where nothing else
      reads the normalized value, and the layer pads with no zeros (a padded zero is not shifted) or ``shift`` is 0.

    Constants are computed in float64 and rounded once, to the dtype of the weight, unless that would lose them (overflow
    or subnormals in float16). No tensor of the model is written to: each call of a shared layer gets constants of its
    own. Batchnorm that uses the statistics of the batch, or computed ones, stays.
    """

    name: ClassVar[str] = "fold-batchnorm"
    default: ClassVar[bool] = True
    targets: ClassVar = (aten.batch_norm.default, aten._native_batch_norm_legit_no_training.default)
    into_next: bool = True

    def rewrite(self, program: Program, node: fx.Node) -> fx.Node | str:
        """What stands for a batchnorm: the layer before with new weights, its own input, or a multiply-add."""
        call, result = arguments(node), first_result(node)
        inputs = [call[key] for key in ("weight", "bias", "running_mean", "running_var")]
        values = [program.constant_value(n) for n in inputs]
        if any(n is not None and value is None for n, value in zip(inputs, values, strict=True)):
            return "its statistics or weights are computed"
        if call.get("training") or None in (call["running_mean"], call["running_var"]):
            return "it normalizes by the statistics of the batch"
        if result is None:
            return "its saved statistics are read"
        gamma, beta, mean, var = (_double(value, default) for value, default in zip(values, (1, 0, 0, 1), strict=True))
        scale = gamma / torch.sqrt(var + call["eps"])
        norm = _Norm(program, call["input"], result, scale, beta - mean * scale)
        path = program.constant_name(call["running_mean"]).rpartition(".")[0] or "batchnorm"
        new = self._into_previous(norm) or self._into_next(norm) or self._multiply_add(norm, path)
        return new or "its scale is not finite, or too small for its dtype"

    def _into_previous(self, norm: _Norm) -> fx.Node | None:
        layer = _read_layer(norm.program, norm.source) if len(norm.source.users) == 1 else None
        if layer is None:
            return None
        bias = norm.shift + norm.scale * layer.bias
        return self._rebuild(norm, layer, layer.call["input"], 2 if layer.transposed else 1, bias)

    def _into_next(self, norm: _Norm) -> fx.Node | None:
        readers = list(norm.result.users)
        layer = _read_layer(norm.program, readers[0]) if self.into_next and len(readers) == 1 else None
        # The borders of a transposed convolution sum fewer taps: a constant input gives no constant.
        if layer is None or layer.transposed:
            return None
        padding, kernel = layer.call.get("padding", "valid"), layer.weight.shape[2:]
        pads = any(size != 1 for size in kernel) if padding == "same" else padding != "valid" and any(padding)
        if pads and bool(norm.shift.any()):
            return None
        bias = layer.times(norm.shift, 2).sum((2, 3)).flatten() + layer.bias
        if (new := self._rebuild(norm, layer, norm.source, 2, bias)) is not None:
            norm.program.replace(layer.node, new)
        return new and norm.source

    def _rebuild(self, norm: _Norm, layer: _Layer, source: fx.Node, axis: int, bias: Tensor) -> fx.Node | None:
        """``layer`` on ``source``, its weight times the scale along ``axis``; None where rounding loses a constant."""
        path = norm.program.constant_name(layer.call["weight"]).removesuffix("_folded")
        weight = (f"{path}_folded", layer.times(norm.scale, axis), (3 - axis, 3), layer.weight.shape)
        named_bias = (f"{path.removesuffix('weight')}bias_folded", bias, (0,), bias.shape)
        if (new := self._constants(norm.program, layer.weight, weight, named_bias)) is None:
            return None
        call = {**layer.call, "input": source, "weight": new[0], "bias": new[1]}
        return norm.program.insert(layer.node.target, tuple(call.values()), before=layer.node)  # type: ignore[arg-type]

    def _multiply_add(self, norm: _Norm, path: str) -> fx.Node | None:
        """float16 and bfloat16 are computed in float32, as batchnorm itself does."""
        x, value, insert = norm.source, norm.result.meta["val"], partial(norm.program.insert, before=norm.result)
        like = torch.empty(0, dtype=torch.promote_types(value.dtype, torch.float32), device=value.device)
        shape = (norm.scale.numel(), *(1 for _ in value.shape[2:]))
        scale = (f"{path}.scale", norm.scale[:, None], (1,), shape)
        if (new := self._constants(norm.program, like, scale, (f"{path}.shift", norm.shift, (0,), shape))) is None:
            return None
        if like.dtype != value.dtype:
            x = insert(aten._to_copy.default, (x,), {"dtype": like.dtype})
        x = insert(aten.add.Tensor, (insert(aten.mul.Tensor, (x, new[0])), new[1]))
        return x if like.dtype == value.dtype else insert(aten._to_copy.default, (x,), {"dtype": value.dtype})

    def _constants(self, program: Program, like: Tensor, *wanted: tuple[str, Tensor, Any, Any]) -> list[fx.Node] | None:
        """Constants (name, value, axes within a channel, shape) rounded to the dtype of ``like``; None where one is lost."""
        nodes = []
        for name, exact, dims, shape in wanted:
            rounded = exact.to(like.dtype)
            error, size = (t.abs().sum(dims) for t in (rounded.double() - exact, exact))
            if not bool((error <= torch.finfo(like.dtype).eps * size).all()):
                return None
            nodes.append(self.constant(program, name, rounded.to(like.device).reshape(*shape)))
        return nodes


class _Norm(NamedTuple):
    program: Program
    source: fx.Node
    result: fx.Node  # source * scale + shift along axis 1
    scale: Tensor  # float64 of [channels]
    shift: Tensor


class _Layer(NamedTuple):
    node: fx.Node  # a call with constant weights, the channels of whose output are axis 1
    call: dict[str, Any]
    weight: Tensor
    bias: Tensor  # float64
    transposed: bool

    def times(self, factor: Tensor, axis: int) -> Tensor:
        """``W * factor`` along axis 1 or 2 of [groups, rows / group, columns, kernel], in float64 of that shape."""
        groups, rows = self.call.get("groups", 1), _double(self.weight)[..., None].flatten(2)
        matrix = rows.reshape(groups, len(rows) // groups, *rows.shape[1:])
        return matrix * factor.reshape((groups, -1, 1, 1) if axis == 1 else (groups, 1, -1, 1))


def _read_layer(program: Program, node: fx.Node) -> _Layer | None:
    kind = getattr(node.target, "overloadpacket", None)
    call = arguments(node) if kind in LAYERS else {}
    weight, bias = program.constant_value(call.get("weight")), program.constant_value(call.get("bias"))
    # Without a batch axis, or for a linear layer on [batch, time, channels], axis 1 is not the channels.
    if weight is None or node.meta["val"].dim() != weight.dim() or (call["bias"] is not None and bias is None):
        return None
    return _Layer(node, call, weight, _double(bias), kind in TRANSPOSED or call.get("transposed", False))


def _double(value: Tensor | None, default: float = 0.0) -> Tensor:
    return torch.tensor(default, dtype=torch.float64) if value is None else value.to("cpu", torch.float64)
