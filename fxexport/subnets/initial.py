"""The value of a state before its first step, in terms that hold at other sizes: a constant, an array, an output."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from fxexport.pipeline.ports import Axis, Initial, Port
from fxexport.pipeline.sizes import axis_size
from fxexport.signature import TensorSpec, dtype_name
from fxexport.subnets.chains import merge
from fxexport.subnets.flow import Flow, Source, Use
from fxexport.subnets.origins import ancestors

LARGEST_ARRAY = 4096  # elements that pipeline.json may hold for one state
Sizes = Mapping[str, int]


def initial_value(
    flow: Flow, spec: TensorSpec, sizes: Sequence[Sizes], port_of: Callable[[Source], Port | None]
) -> Initial | str:
    """The initial value of the state at ``flow``, or why there is none that can be written down.

    ``sizes``: for the first use in each run, the sizes of the axes that the part's other inputs name.
    """
    firsts = flow.firsts
    sources = {use.origin.source for use in firsts}
    dtype = dtype_name(spec.dtype)
    if len(sources) == 1 and (source := next(iter(sources))) is not None:
        port, merged = port_of(source), merge([use.origin.through for use in firsts])
        if port is not None and merged is not None and not merged[1]:
            return Initial(spec.axes, dtype, source=port, through=merged[0])
        return f"its first value is made from {'.'.join(source)} in a way that differs between runs"
    tensors = [use.leaf.tensor for use in firsts]
    axes = _axes(spec, tensors, sizes)
    if axes is None:
        return f"the sizes of its first value, {_shapes(tensors)}, follow from no other input of {flow.port.part}"
    constants = {_constant(tensor) for tensor in tensors} - {None}
    same = all(_constant(tensor) is not None or not tensor.numel() for tensor in tensors)
    if same and len(constants) <= 1:
        fill = next(iter(constants), 0)
        return Initial(axes, dtype, fill=fill)
    if any(_depends_on_parts(use) for use in firsts):
        return f"its first value is computed by {firsts[0].origin.operator}"
    return _array(axes, dtype, tensors)


def _array(axes: tuple[Axis, ...], dtype: str, tensors: Sequence[Tensor]) -> Initial | str:
    if any(tensor.is_complex() for tensor in tensors):
        return "its first value is complex, which is not written down"
    shrunk = [small for tensor in tensors if (small := _shrink(tensor, axes)) is not None]
    if len(shrunk) < len(tensors) or not all(torch.equal(tensor, shrunk[0]) for tensor in shrunk):
        return "its first value is no constant and differs between runs or along named axes"
    if shrunk[0].numel() > LARGEST_ARRAY:
        return f"its first value has {shrunk[0].numel()} different numbers; at most {LARGEST_ARRAY} are written down"
    return Initial(axes, dtype, values=shrunk[0].tolist())


def _axes(spec: TensorSpec, tensors: Sequence[Tensor], sizes: Sequence[Sizes]) -> tuple[Axis, ...] | None:
    """Each axis by its name where the part's other inputs give that size, else the size it had in every run."""
    if any(tensor.ndim != len(spec.axes) for tensor in tensors):
        return None
    axes: list[Axis] = []
    for place, axis in enumerate(spec.axes):
        found = [tensor.shape[place] for tensor in tensors]
        named = [axis_size(axis, known) for known in sizes]
        if isinstance(axis, str) and named == found:
            axes.append(axis)
        elif len(set(found)) == 1:
            axes.append(found[0])
        else:
            return None
    return tuple(axes)


def _constant(tensor: Tensor) -> float | int | bool | None:
    if tensor.is_floating_point() and tensor.numel() and bool(tensor.isnan().all()):
        return math.nan  # one object, which a set finds equal to itself
    if not tensor.numel() or not torch.equal(tensor, first := tensor.flatten()[0].expand_as(tensor)):
        return None
    number: float | int | bool | complex = first.flatten()[0].item()
    if isinstance(number, complex):  # JSON has real numbers only
        return None if number.imag else number.real
    return number


def _shrink(tensor: Tensor, axes: Sequence[Axis]) -> Tensor | None:
    """``tensor`` with size 1 along its named axes; None where it varies along one."""
    for place, axis in enumerate(axes):
        if isinstance(axis, str):
            one = tensor.narrow(place, 0, 1)
            if not torch.equal(tensor, one.expand_as(tensor)):
                return None
            tensor = one
    return tensor


def _depends_on_parts(use: Use) -> bool:
    return next(ancestors(use.tape, use.origin), None) is not None


def _shapes(tensors: Sequence[Tensor]) -> str:
    return " and ".join(dict.fromkeys(str(list(tensor.shape)) for tensor in tensors))
