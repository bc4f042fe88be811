"""The factor and the shift after a normalization are its weight and bias."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from fxexport.ops import order_of
from fxexport.program import Program
from fxexport.rewrite import NodePass, arguments

aten = torch.ops.aten
_NORMS = (aten.rms_norm.default, aten.layer_norm.default, aten.group_norm.default, aten.instance_norm.default)


@dataclass(frozen=True)
class FoldNormAffine(NodePass):
    """``norm(x) * w + b -> norm(x, w, b)`` for ``rms_norm`` (which has no ``b``), ``layer_norm``, ``group_norm`` and
    ``instance_norm``, also where the result is permuted in between: exact up to rounding.

    ``w`` and ``b`` have one number for each normalized element, or each channel of a group or instance normalization;
    they may be computed (``1 + w``). A layer normalization of all axes after the channels, with one number a channel, is
    an instance or group normalization. A norm that has a weight gets the product of both. What is rounded to half
    precision before it is multiplied stays so.
    """

    name: ClassVar[str] = "fold-norm-affine"
    default: ClassVar[bool] = True
    after: ClassVar[tuple[str, ...]] = ("replace-rms-norm", "replace-layer-norm", "replace-group-norm")
    targets: ClassVar = (aten.mul.Tensor, aten.add.Tensor)

    def rewrite(self, program: Program, node: fx.Node) -> fx.Node | str | None:
        """The normalization with a weight or bias more."""
        call = arguments(node)
        for source, other in ((call["self"], call["other"]), (call["other"], call["self"])):
            norm, order = _norm_behind(source)
            if norm is None or not isinstance(other, fx.Node) or other is source or call.get("alpha", 1) != 1:
                continue
            if not isinstance(other.meta["val"], torch.Tensor):
                return None
            kind = "weight" if node.target is aten.mul.Tensor else "bias"
            return _folded(program, node, norm, order, other, kind)
        return None


def _norm_behind(node: Any) -> tuple[fx.Node | None, list[int]]:
    """The normalization that ``node`` is, or a permutation of; for each axis of ``node`` that of the normalization."""
    order = order_of(node)
    norm = node if order is None else node.args[0]
    if not isinstance(norm, fx.Node) or norm.target not in _NORMS:
        return None, []
    return norm, list(range(norm.meta["val"].dim())) if order is None else order


def _folded(
    program: Program, node: fx.Node, norm: fx.Node, order: list[int], other: fx.Node, kind: str
) -> fx.Node | str | None:
    call, value = arguments(norm), norm.meta["val"]
    shape = _aligned(other.meta["val"].shape, order)
    found = None if shape is None else _with_shape(norm, call, shape, kind)
    dtype = other.meta["val"].dtype
    if found is None or torch.promote_types(dtype, value.dtype) != value.dtype:
        return None
    target, arguments_, size = found
    if any(len(each.users) > 1 for each in (norm, *(user for user in norm.users if user is not node))):
        return f"{norm.name} is read elsewhere as well"
    if list(other.meta["val"].shape) != size:
        other = program.insert(aten.reshape.default, (other, size), before=node)
    if dtype != value.dtype:
        other = program.insert(aten.to.dtype, (other, value.dtype), before=node)
    known = arguments_[kind]
    if known is not None:
        operator = aten.mul.Tensor if kind == "weight" else aten.add.Tensor
        other = program.insert(operator, (known, other), before=node)
    new = program.insert(target, tuple({**arguments_, kind: other}.values()), before=node)
    return new if order == sorted(order) else program.insert(aten.permute.default, (new, order), before=node)


def _aligned(shape: Sequence[Any], order: list[int]) -> list[int] | None:
    """A fixed shape as the normalization has its axes, those of size 1 in front included; None where others change order."""
    if len(shape) > len(order) or not all(isinstance(size, int) for size in shape):
        return None
    full = [1] * (len(order) - len(shape)) + list(shape)
    places = [order[axis] for axis, size in enumerate(full) if size != 1]
    if places != sorted(places):
        return None
    return [full[order.index(axis)] for axis in range(len(order))]


def _with_shape(
    norm: fx.Node, call: dict[str, Any], shape: list[int], kind: str
) -> tuple[Any, dict[str, Any], list[int]] | None:
    """The operator, its arguments and the shape of the weight, where a factor or shift of ``shape`` can be one."""
    sizes, plain = list(norm.meta["val"].shape), call["weight"] is None and call.get("bias") is None
    channel = [1, *sizes[1:2], *[1] * (len(sizes) - 2)]
    if (kind == "weight" and call.get("bias") is not None) or (kind == "bias" and "bias" not in call):
        return None
    if "normalized_shape" not in call:
        allowed = shape == channel and call.get("use_input_stats", True)
        return (norm.target, call, shape[1:2]) if allowed else None
    normalized = list(call["normalized_shape"])
    if shape == [1] * (len(sizes) - len(normalized)) + normalized:
        return norm.target, call, normalized
    if norm.target is not aten.layer_norm.default or shape != channel or not plain or len(sizes) < 3:
        return None
    x, eps = {"input": call["input"]}, call["eps"]
    if len(normalized) == len(sizes) - 2:
        options = {"running_mean": None, "running_var": None, "use_input_stats": True, "momentum": 0.1, "eps": eps}
        return (
            aten.instance_norm.default,
            {**x, "weight": None, "bias": None, **options, "cudnn": False},
            shape[1:2],
        )
    if len(normalized) == len(sizes) - 1:
        options = {"num_groups": 1, "weight": None, "bias": None, "eps": eps, "cudnn": False}
        return aten.group_norm.default, {**x, **options}, shape[1:2]
    return None
