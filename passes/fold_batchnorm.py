"""Batch normalization by fixed statistics is a multiply and an add per channel: move it into the weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, fx

from fxexport.ops import Layer, Wanted, in_double, layer_behind, read_layer, rounded
from fxexport.program import Program
from fxexport.rewrite import NodePass, arguments, first_result

aten = torch.ops.aten
MAX_COPIED = 8 * 2**20  # bytes: copies of shared weights may not take the growth that the manager allows a pass


@dataclass(frozen=True)
class FoldBatchnorm(NodePass):
    """``layer . batch_norm -> layer'``, ``batch_norm . layer -> layer'``, or ``batch_norm -> mul . add``.

    A layer is a convolution, a transposed convolution (only before the batchnorm) or a linear layer. With fixed
    statistics ``scale = gamma / sqrt(var + eps)`` and ``shift = beta - mean * scale`` per channel (Ioffe & Szegedy
    2015, arXiv:1502.03167, algorithm 2, line 11), so

    - the layer before, also behind transposes and reshapes that keep the channels whole, gets ``W' = scale * W``,
      ``b' = scale * b + shift``: exact where nothing else reads its output;
    - the layer after (``into_next``) gets ``W' = W * scale``, ``b' = b + sum(W * shift)``: exact where nothing else
      reads the normalized value, and the layer pads with no zeros (a padded zero is not shifted) or ``shift`` is 0.

    Constants are computed in float64 and rounded once, to the dtype of the weight, unless that would lose them (overflow
    or subnormals in float16). No tensor of the model is written to: each call of a shared layer gets constants of its
    own, as long as those copies are small. Batchnorm that uses the statistics of the batch, or computed ones, stays.
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
        gamma, beta, mean, var = (
            in_double(value, default) for value, default in zip(values, (1, 0, 0, 1), strict=True)
        )
        scale = gamma / torch.sqrt(var + call["eps"])
        norm = _Norm(program, node, call["input"], result, scale, beta - mean * scale)
        path = program.constant_name(call["running_mean"]).rpartition(".")[0] or "batchnorm"
        new = self._into_previous(norm) or self._into_next(norm) or self._multiply_add(norm, path)
        return new or "its scale is not finite, or too small for its dtype"

    def _into_previous(self, norm: _Norm) -> fx.Node | None:
        layer = layer_behind(norm.program, norm.source, 1)
        if layer is None or not self._may_copy(norm, layer):
            return None
        new = layer.scaled(norm.program, norm.scale, norm.shift, partial(self.constant, norm.program))
        if new is None or norm.source is layer.node:
            return new
        norm.program.replace(layer.node, new)
        return norm.source

    def _may_copy(self, norm: _Norm, layer: Layer) -> bool:
        """Whether the weight is the layer's own or, shared, small or normalized the same way everywhere."""
        others = [user for user in layer.call["weight"].users if user is not layer.node]
        mine = _constants(norm.program, norm.node)
        if all(len(user.users) == 1 and _constants(norm.program, next(iter(user.users))) == mine for user in others):
            return True
        self.memo["copied"] = self.memo.get("copied", 0) + layer.weight.nbytes
        return bool(self.memo["copied"] <= MAX_COPIED)

    def _into_next(self, norm: _Norm) -> fx.Node | None:
        readers = list(norm.result.users)
        layer = read_layer(norm.program, readers[0]) if self.into_next and len(readers) == 1 else None
        # The borders of a transposed convolution sum fewer taps: a constant input gives no constant.
        if layer is None or layer.transposed or layer.axis != 1 or layer.call["input"] is not norm.result:
            return None
        padding, kernel = layer.call.get("padding", "valid"), layer.weight.shape[2:]
        pads = any(size != 1 for size in kernel) if padding == "same" else padding != "valid" and any(padding)
        if (pads and bool(norm.shift.any())) or not self._may_copy(norm, layer):
            return None
        bias = layer.times(norm.shift, 2).sum((2, 3)).flatten() + layer.bias
        make = partial(self.constant, norm.program)
        if (new := layer.rebuilt(norm.program, norm.source, norm.scale, 2, bias, make)) is None:
            return None
        norm.program.replace(layer.node, new)
        return norm.source

    def _multiply_add(self, norm: _Norm, path: str) -> fx.Node | None:
        """float16 and bfloat16 are computed in float32, as batchnorm itself does."""
        x, value, insert = norm.source, norm.result.meta["val"], partial(norm.program.insert, before=norm.result)
        like = torch.empty(0, dtype=torch.promote_types(value.dtype, torch.float32), device=value.device)
        shape = (norm.scale.numel(), *(1 for _ in value.shape[2:]))
        wanted = (
            Wanted(f"{path}.scale", norm.scale[:, None], (1,), shape),
            Wanted(f"{path}.shift", norm.shift, (0,), shape),
        )
        if (new := rounded(like, wanted, partial(self.constant, norm.program))) is None:
            return None
        if like.dtype != value.dtype:
            x = insert(aten._to_copy.default, (x,), {"dtype": like.dtype})
        x = insert(aten.add.Tensor, (insert(aten.mul.Tensor, (x, new[0])), new[1]))
        return x if like.dtype == value.dtype else insert(aten._to_copy.default, (x,), {"dtype": value.dtype})


class _Norm(NamedTuple):
    program: Program
    node: fx.Node
    source: fx.Node
    result: fx.Node  # source * scale + shift along axis 1
    scale: Tensor  # float64 of [channels]
    shift: Tensor


def _constants(program: Program, node: fx.Node) -> list[object]:
    """The operator and all operands of a batchnorm that do not change from call to call."""
    return [node.target, *(each for each in node.args if not isinstance(each, fx.Node) or program.is_constant(each))]
