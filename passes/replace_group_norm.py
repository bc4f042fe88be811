"""Group normalization spelled out by reshapes: one operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from fxexport.ops import RESHAPES, is_reshape, same_sizes
from fxexport.program import Program
from fxexport.rewrite import NodePass, arguments

aten = torch.ops.aten


@dataclass(frozen=True)
class ReplaceGroupNorm(NodePass):
    """``reshape(norm(reshape(x, [batch, groups, ...])), shape of x) -> group_norm(x, groups)``: exact.

    Wu & He 2018, arXiv:1803.08494. ``x`` is [batch, channels, ...], ``norm`` an instance or layer normalization over all
    that is in a group, without weights; ``[batch * groups, ...]`` is the same. With a group for each channel it is
    ``instance_norm``. The number of channels is fixed, other sizes may be dynamic.
    """

    name: ClassVar[str] = "replace-group-norm"
    default: ClassVar[bool] = True
    after: ClassVar[tuple[str, ...]] = ("replace-instance-norm", "replace-layer-norm")
    targets: ClassVar = (*RESHAPES, aten.view_as.default, aten.reshape_as.default)

    def rewrite(self, program: Program, node: fx.Node) -> fx.Node | str | None:
        """The normalization of what was reshaped."""
        norm: Any = node.args[0]
        if norm.target not in (aten.instance_norm.default, aten.layer_norm.default) or not is_reshape(norm.args[0]):
            return None
        grouped, call = norm.args[0], arguments(norm)
        x = grouped.args[0]
        shape, inner = x.meta["val"].shape, grouped.meta["val"].shape
        first = 2 if norm.target is aten.instance_norm.default else len(inner) - len(call["normalized_shape"])
        groups = _groups(shape, inner, first) if same_sizes(shape, node.meta["val"].shape) else None
        if groups is None:
            return None
        if call["weight"] is not None or call["bias"] is not None or not call.get("use_input_stats", True):
            return "the normalization of its groups has weights or fixed statistics"
        if len(norm.users) > 1:
            return f"{norm.name} is read elsewhere as well"
        if groups == shape[1] and len(shape) > 2:
            options = (None, None, None, None, True, 0.1, call["eps"], False)
            return program.insert(aten.instance_norm.default, (x, *options), before=node)
        return program.insert(aten.group_norm.default, (x, groups, None, None, call["eps"], False), before=node)


def _groups(shape: Any, inner: Any, first: int) -> int | None:
    """Into how many groups of channels ``shape`` is taken apart as ``inner``, whose axes from ``first`` on are one group."""
    channels = shape[1] if len(shape) > 1 else None
    if not isinstance(channels, int) or first not in (1, 2):
        return None
    divisors = [each for each in range(1, channels + 1) if channels % each == 0]
    if first == 2:
        return next((each for each in divisors if same_sizes([shape[0], each], inner[:2])), None)
    return next((each for each in divisors if same_sizes([shape[0] * each], inner[:1])), None)
