"""Convolutions and linear layers with constant weights: what their channels are, and how to give them other weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from fxexport.ops.layouts import is_reshape, order_of, same_sizes
from fxexport.program import Program
from fxexport.rewrite import arguments

aten = torch.ops.aten
TRANSPOSED = (aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d)
LAYERS = (aten.linear, aten.conv1d, aten.conv2d, aten.conv3d, aten.convolution, *TRANSPOSED)
_SAME = (aten.contiguous, aten.clone, aten.alias, aten.detach)

MakeConstant = Callable[[str, Tensor], fx.Node]
"""(name, value) -> a constant of the program with that value."""


class Layer(NamedTuple):
    """A call of a convolution or linear layer whose weight and bias are constants.

    ``bias`` is float64 of [channels], or a single 0 where there is none.
    """

    node: fx.Node
    call: dict[str, Any]
    weight: Tensor
    bias: Tensor
    transposed: bool

    @property
    def axis(self) -> int:
        """The axis of the output that the channels are."""
        return int(self.node.meta["val"].dim()) - self.weight.dim() + 1

    @property
    def channels(self) -> int:
        """How many channels the output has."""
        groups: int = self.call.get("groups", 1) if self.transposed else 1
        return groups * self.weight.shape[1 if self.transposed else 0]

    def times(self, factor: Tensor, axis: int) -> Tensor:
        """``W * factor`` along axis 1 or 2 of [groups, rows / group, columns, kernel], in float64 of that shape."""
        groups, rows = self.call.get("groups", 1), in_double(self.weight)[..., None].flatten(2)
        matrix = rows.reshape(groups, len(rows) // groups, *rows.shape[1:])
        return matrix * factor.reshape((groups, -1, 1, 1) if axis == 1 else (groups, 1, -1, 1))

    def scaled(self, program: Program, scale: Tensor, shift: Tensor, constant: MakeConstant) -> fx.Node | None:
        """A layer that gives ``scale * output + shift`` per channel, before this one; None where rounding loses it."""
        return self.rebuilt(
            program, self.call["input"], scale, 2 if self.transposed else 1, shift + scale * self.bias, constant
        )

    def rebuilt(
        self, program: Program, source: fx.Node, scale: Tensor, axis: int, bias: Tensor, constant: MakeConstant
    ) -> fx.Node | None:
        """This layer on ``source``, its weight times ``scale`` along ``axis`` of ``times``, with another bias."""
        path = program.constant_name(self.call["weight"]).removesuffix("_folded")
        prefix, _, last = path.rpartition(".")
        named = f"{prefix}.bias" if last == "weight" else "bias" if path == "weight" else f"{path}_bias"
        wanted = [Wanted(f"{named}_folded", bias.expand(self.channels), (0,), (self.channels,))]
        if not bool((scale == 1).all()):
            wanted.append(Wanted(f"{path}_folded", self.times(scale, axis), (3 - axis, 3), self.weight.shape))
        if (new := rounded(self.weight, wanted, constant)) is None:
            return None
        call = {**self.call, "input": source, "bias": new[0], "weight": (*new, self.call["weight"])[1]}
        return program.insert(self.node.target, tuple(call.values()), before=self.node)  # type: ignore[arg-type]


class Wanted(NamedTuple):
    """A constant to be made: its name, float64 value, the axes to sum over within a channel, the shape it shall have."""

    name: str
    exact: Tensor
    dims: tuple[int, ...]
    shape: Sequence[int]


def rounded(like: Tensor, wanted: Sequence[Wanted], constant: MakeConstant) -> list[fx.Node] | None:
    """Constants of the dtype and device of ``like``; None, and nothing made, where rounding to it would lose one."""
    values = []
    for each in wanted:
        value = each.exact.to(like.dtype)
        error, size = (t.abs().sum(each.dims) for t in (value.double() - each.exact, each.exact))
        if not bool((error <= torch.finfo(like.dtype).eps * size).all()):
            return None
        values.append(value.to(like.device).reshape(*each.shape))
    return [constant(each.name, value) for each, value in zip(wanted, values, strict=True)]


def read_layer(program: Program, node: fx.Node) -> Layer | None:
    """``node`` as a layer; None where it is none, or a weight or bias of it is computed."""
    kind = getattr(node.target, "overloadpacket", None)
    call = arguments(node) if kind in LAYERS else {}
    weight, bias = program.constant_value(call.get("weight")), program.constant_value(call.get("bias"))
    if weight is None or weight.dim() < 2 or not weight.is_floating_point():
        return None
    if call["bias"] is not None and bias is None:
        return None
    return Layer(node, call, weight, in_double(bias), kind in TRANSPOSED or call.get("transposed", False))


def layer_behind(program: Program, node: fx.Node, axis: int | None) -> Layer | None:
    """The layer whose output channels are ``axis`` of ``node`` (None: any), behind transposes and reshapes.

    Nothing else reads the output of the layer, nor what lies between.
    """
    while len(node.users) == 1:
        layer = read_layer(program, node)
        if layer is not None:
            return layer if axis in (None, layer.axis) else None
        source, axis, known = _step_back(node, axis)
        if not known:
            return None
        node = source
    return None


def in_double(value: Tensor | None, default: float = 0.0) -> Tensor:
    """A constant in float64 on the CPU; ``default`` where there is none."""
    return torch.tensor(default, dtype=torch.float64) if value is None else value.to("cpu", torch.float64)


def _step_back(node: fx.Node, axis: int | None) -> tuple[fx.Node, int | None, bool]:
    """What a call that only moves values reads, the axis there that becomes ``axis``, and whether it is such a call."""
    order, same = order_of(node), getattr(node.target, "overloadpacket", None) in _SAME
    if order is None and not same and not is_reshape(node):
        return node, axis, False
    source: Any = node.args[0]
    if axis is None or same:
        return source, axis, True
    if order is not None:
        return source, order[axis], True
    before = _axis_before_reshape(source.meta["val"].shape, node.meta["val"].shape, axis)
    return source, before, before is not None


def _axis_before_reshape(before: Sequence[Any], after: Sequence[Any], axis: int) -> int | None:
    """The axis of ``before`` that is whole in ``after`` as ``axis``: all sizes up to it, or all from it on, are the same."""
    if same_sizes(before[: axis + 1], after[: axis + 1]):
        return axis
    start = len(before) - (len(after) - axis)
    return start if start >= 0 and same_sizes(before[start:], after[axis:]) else None
