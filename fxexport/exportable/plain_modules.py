"""Fused modules of Apex and Megatron as plain PyTorch with the same parameters, found by class name: nothing is imported."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fxexport.errors import InputError
from fxexport.exportable.replacing import Factory


def plain_layer_norm(module: nn.Module) -> nn.LayerNorm:
    """``nn.LayerNorm`` with the parameters of ``module`` (not copies): Apex's FusedLayerNorm, MixedFusedLayerNorm and
    FastLayerNorm, Megatron's FusedLayerNorm.

    Where Megatron keeps ``weight - 1`` (``zero_centered_gamma``), the new layer has a weight of its own.
    """
    weight, bias = _affine(module), _optional(module, "bias")
    plain = nn.LayerNorm(_normalized_shape(module, weight), _eps(module), elementwise_affine=False)
    plain.elementwise_affine = weight is not None
    plain.weight, plain.bias = cast(nn.Parameter, _parameter(weight)), cast(nn.Parameter, _parameter(bias))
    return plain


def plain_rms_norm(module: nn.Module) -> nn.RMSNorm:
    """``nn.RMSNorm`` with the parameters of ``module`` (not copies): Apex's FusedRMSNorm, MixedFusedRMSNorm and
    FastRMSNorm, Liger's LigerRMSNorm.

    Where ``offset`` is added to the weight (Liger's, for Gemma), the new layer has a weight of its own.
    """
    weight = _affine(module)
    plain = nn.RMSNorm(_normalized_shape(module, weight), _eps(module), elementwise_affine=False)
    plain.elementwise_affine = weight is not None
    plain.weight = cast(nn.Parameter, _parameter(weight))
    return plain


def without_fusion(module: nn.Module) -> None:
    """Makes a FusedScaleMaskSoftmax (MatchedScaleMaskSoftmax) take its own way through plain operators, in place."""
    _required(module, "forward_torch_softmax")
    _required(module, "scaled_masked_softmax_fusion")
    setattr(module, "scaled_masked_softmax_fusion", False)  # noqa: B010 - what mypy has no type for


class UnsplitLinear(nn.Module):
    """A Megatron ColumnParallelLinear or RowParallelLinear of one process.

    ``forward(x: [..., in], weight=None)`` gives ``(x @ weight.T + bias, None)``, or ``(x @ weight.T, bias)`` where the
    caller adds the bias itself (``skip_bias_add``).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, skip_bias_add: bool) -> None:
        super().__init__()
        self.weight, self.bias, self.skip_bias_add = weight, bias, skip_bias_add

    def forward(self, x: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        used = self.weight if weight is None else weight
        if self.skip_bias_add:
            return functional.linear(x, used), self.bias
        return functional.linear(x, used, self.bias), None


def plain_parallel_linear(module: nn.Module) -> UnsplitLinear:
    """The linear layer that ``module`` is in one process. Raises InputError where it holds a part of a larger one."""
    weight: Tensor = _required(module, "weight")
    for axis, name in enumerate(("output_size", "input_size")):
        size = getattr(module, name, weight.shape[axis])
        if size != weight.shape[axis]:
            raise InputError(
                f"{_kind(module)} holds {weight.shape[axis]} of {size} rows or columns ({name}): its weight is split over "
                "several processes; load the model with a tensor parallel size of 1"
            )
    return UnsplitLinear(weight, _optional(module, "bias"), bool(_required(module, "skip_bias_add")))


PLAIN: dict[str, Factory] = {
    "ColumnParallelLinear": plain_parallel_linear,
    "FastLayerNorm": plain_layer_norm,
    "FastRMSNorm": plain_rms_norm,
    "FusedLayerNorm": plain_layer_norm,
    "FusedRMSNorm": plain_rms_norm,
    "LigerLayerNorm": plain_layer_norm,
    "LigerRMSNorm": plain_rms_norm,
    "MCoreFusedLayerNorm": plain_layer_norm,
    "MixedFusedLayerNorm": plain_layer_norm,
    "MixedFusedRMSNorm": plain_rms_norm,
    "RowParallelLinear": plain_parallel_linear,
}
"""Class name -> what makes the plain module of one of that class."""

FUSED_SOFTMAX = ("FusedScaleMaskSoftmax", "MatchedScaleMaskSoftmax")


# -------------------------------------------------------------------- reading attributes


def _kind(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _required(module: nn.Module, *names: str) -> Any:
    """The first of ``names`` that ``module`` has. Raises InputError where it has none."""
    for name in names:
        if hasattr(module, name):
            return getattr(module, name)
    raise InputError(
        f"{_kind(module)} cannot be replaced by a plain module: it has no attribute {' or '.join(names)}; give "
        f"replacements={{{type(module).__name__!r}: a function that makes the plain module of one}}"
    )


def _optional(module: nn.Module, name: str) -> Tensor | None:
    value = getattr(module, name, None)
    return value if isinstance(value, Tensor) else None


def _affine(module: nn.Module) -> Tensor | None:
    """The factor on the normalized values, None where there is none."""
    if not getattr(module, "elementwise_affine", True):
        return None
    weight: Tensor = _required(module, "weight")
    offset = float(getattr(module, "offset", 0.0)) + bool(getattr(module, "zero_centered_gamma", False))
    return weight.detach() + offset if offset else weight


def _parameter(tensor: Tensor | None) -> nn.Parameter | None:
    if tensor is None or isinstance(tensor, nn.Parameter):
        return tensor
    return nn.Parameter(tensor.detach(), requires_grad=False)


def _normalized_shape(module: nn.Module, weight: Tensor | None) -> tuple[int, ...]:
    given = getattr(module, "normalized_shape", None)
    if given is None and weight is not None:
        given = weight.shape
    shape = _required(module, "normalized_shape") if given is None else given
    return (shape,) if isinstance(shape, int) else tuple(shape)


def _eps(module: nn.Module) -> float:
    eps = _required(module, "eps", "epsilon", "variance_epsilon")
    return float(eps.item() if isinstance(eps, torch.Tensor) else eps)
