"""A constant factor or summand per channel after a convolution or linear layer belongs into its weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from fxexport.ops import Layer, in_double, layer_behind, same_sizes
from fxexport.program import Program
from fxexport.rewrite import NodePass, arguments

aten = torch.ops.aten
MIB = 2**20


@dataclass(frozen=True)
class FoldAffine(NodePass):
    """``layer . mul(c) -> layer'``, and the same for ``add``, ``sub``, ``div`` and ``neg``: what is left of a batchnorm that
    is spelled out, a LayerScale, a scaled projection.

    A layer is a convolution, a transposed convolution or a linear layer with constant weights; ``c`` is a number or a
    constant that changes along the channels only. With ``y = scale * layer(x) + shift`` the layer gets
    ``W' = scale * W``, ``b' = scale * b + shift``, in float64 and rounded once to the dtype of the weight.

    Exact where nothing else reads the output of the layer, nor the transposes and reshapes between the two, where ``c``
    changes neither dtype nor shape, and where that rounding loses nothing (overflow, subnormals). A factor stays where
    the weight is larger than ``max_weight_mib``, which costs more than it saves, or where others read it too: it would
    be stored twice.
    """

    name: ClassVar[str] = "fold-affine"
    default: ClassVar[bool] = True
    repeats: ClassVar[bool] = True  # others fold the constants
    after: ClassVar[tuple[str, ...]] = ("fold-constants", "fold-batchnorm")
    targets: ClassVar = (aten.mul, aten.div, aten.add, aten.sub, aten.rsub, aten.neg)
    max_weight_mib: int = 64

    def rewrite(self, program: Program, node: fx.Node) -> fx.Node | str | None:
        """What stands for ``node``: the layer before with new weights, or what lies behind that."""
        found = _read(program, node)
        if found is None:
            return None
        source, scale, shift = found
        constant = _wider(scale, shift)
        axes = [axis - constant.dim() for axis, size in enumerate(constant.shape) if size != 1]
        if len(axes) > 1:
            return None
        rank = source.meta["val"].dim()
        layer = layer_behind(program, source, rank + axes[0] if axes else None)
        if layer is None:
            return None
        if not _same_form(source, node) or source.meta["val"].dtype != layer.weight.dtype:
            return "the constant changes shape or dtype"
        if constant.numel() not in (1, layer.channels):
            return "the constant has another number of channels"
        if reason := self._stays(layer, scale):
            return reason
        factor, summand = (part.flatten().expand(layer.channels) for part in (scale, shift))
        new = layer.scaled(program, factor, summand, partial(self.constant, program))
        if new is None:
            return "the weights times the constant are not finite, or too small for their dtype"
        if source is layer.node:
            return new
        program.replace(layer.node, new)
        return source

    def _stays(self, layer: Layer, scale: Tensor) -> str:
        """Why the weight is not multiplied; '' where nothing speaks against it, or it is not changed."""
        if bool((scale == 1).all()):
            return ""
        if layer.weight.nbytes > self.max_weight_mib * MIB:
            return f"its weight is larger than {self.max_weight_mib} MiB"
        shared = len(layer.call["weight"].users) > 1 and layer.weight.nbytes > MIB
        return "its weight is shared, and would be stored twice" if shared else ""


def _read(program: Program, node: fx.Node) -> tuple[fx.Node, Tensor, Tensor] | None:
    """``x``, ``scale`` and ``shift`` of ``node = x * scale + shift``, the last two in float64; None where it is not so."""
    call, kind = arguments(node), getattr(node.target, "overloadpacket", None)
    if not node.meta["val"].is_floating_point() or call.get("rounding_mode") is not None:
        return None
    one, alpha = torch.ones((), dtype=torch.float64), call.get("alpha", 1)
    a, b = call["self"], call.get("other", -1)
    if kind is aten.rsub:
        kind, a, b = aten.sub, b, a
    left, right = (_number(program, operand) for operand in (a, b))
    if (left is None) == (right is None) or not isinstance(alpha, int | float):
        return None
    if right is not None:
        c, x = right, a
        if kind in (aten.mul, aten.neg):
            return x, c, 0 * one
        if kind is aten.div:
            return x, 1 / c, 0 * one
        return x, one, (alpha * c if kind is aten.add else -alpha * c)
    assert left is not None
    if kind in (aten.mul, aten.div):
        return None if kind is aten.div else (b, left, 0 * one)
    return b, (alpha if kind is aten.add else -alpha) * one, left


def _number(program: Program, operand: Any) -> Tensor | None:
    """A number or a real constant, in float64."""
    if isinstance(operand, int | float):
        return torch.tensor(operand, dtype=torch.float64)
    value = program.constant_value(operand)
    return None if value is None or value.is_complex() or value.dtype == torch.bool else in_double(value)


def _wider(scale: Tensor, shift: Tensor) -> Tensor:
    return scale if scale.dim() >= shift.dim() else shift


def _same_form(source: fx.Node, node: fx.Node) -> bool:
    before, after = source.meta["val"], node.meta["val"]
    return before.dtype == after.dtype and same_sizes(before.shape, after.shape)
