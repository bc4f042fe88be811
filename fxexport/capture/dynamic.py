"""Which dimensions may change: every accepted spelling, read into one form."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.export import Dim

from fxexport.capture.binding import ExampleCall
from fxexport.errors import InputError

_HINT_TYPE = type(Dim.AUTO)


@dataclass(frozen=True)
class AxisRequest:
    """One dimension of one input that should stay dynamic.

    ``label`` is the user's name for it (None: name it after capture), ``declared`` is False for ``dynamic=True``;
    ``claimed``: a toolbox's type declares it, and it may be fixed after all where eager takes no other size either.
    """

    label: str | None
    minimum: int | None = None
    maximum: int | None = None
    declared: bool = True
    claimed: bool = False


AxisRequests = list[dict[int, AxisRequest]]
"""For each flat tensor input: position -> request."""


def read_dynamic(
    call: ExampleCall, dynamic_shapes: Any, dynamic: Any, input_names: Sequence[str] | None = None
) -> AxisRequests:
    """The requests in ``dynamic_shapes`` and ``dynamic``, each of which may be: True; a dict from argument, flat input
    or given input name to axes; a tuple parallel to the arguments. Axes of a tensor are ``{dim: name}``, ``{dim: Dim}``,
    ``[dim, ...]`` (torch's ``dynamic_axes``) or a name or None for each dimension.

    Raises InputError for unknown names, dimensions out of range, and one name given to different sizes.
    """
    requests: AxisRequests = [{} for _ in call.tensors]
    if isinstance(dynamic_shapes, bool):
        dynamic, dynamic_shapes = dynamic or dynamic_shapes, None
    if dynamic is True:
        automatic = AxisRequest(None, declared=False)
        requests = [dict.fromkeys(range(t.dim()), automatic) for t in call.tensors]
    elif dynamic not in (None, False):
        _read(dynamic, call, input_names, requests)
    if dynamic_shapes is not None:
        _read(dynamic_shapes, call, input_names, requests)
    _check_sizes(call, requests)
    return requests


def _read(spec: Any, call: ExampleCall, input_names: Sequence[str] | None, requests: AxisRequests) -> None:
    slots = _slots(call)
    if isinstance(spec, Mapping):
        _read_named(spec, slots, call, input_names, requests)
    elif isinstance(spec, tuple | list):
        if len(spec) > len(slots):
            raise InputError(f"dynamic_shapes has {len(spec)} entries for {len(slots)} arguments {list(slots)}")
        for entry, slot in zip(spec, slots.values(), strict=False):
            _read_nested(entry, slot, call, requests, "dynamic_shapes")
    else:
        raise InputError(f"dynamic shapes must be True, a dict or a tuple, got {type(spec).__name__}")


_Slots = dict[str | int, Any]
"""Nested like the arguments: the number of a tensor among the flat inputs, None for a Python value."""


def _slots(call: ExampleCall) -> _Slots:
    kinds = dict(call.parameters)
    numbers = itertools.count()
    slots: _Slots = {name: {} for name in call.arguments}
    for leaf in call.leaves[: len(call.leaves) - len(call.state)]:
        path = leaf.path
        if kinds.get(str(path[0]), "VAR_KEYWORD") == "VAR_KEYWORD":  # leaves of **options begin with their own key
            path = (next(name for name, kind in kinds.items() if kind == "VAR_KEYWORD"), *path)
        place = slots
        for key in path[:-1]:
            place = place.setdefault(key, {})
        place[path[-1]] = next(numbers) if leaf.is_tensor else None
    return slots


def _read_named(
    spec: Mapping[Any, Any],
    slots: _Slots,
    call: ExampleCall,
    input_names: Sequence[str] | None,
    requests: AxisRequests,
) -> None:
    flat = dict(zip(call.names, itertools.count())) | dict(zip(input_names or (), itertools.count()))
    for key, entry in spec.items():
        if key in slots:
            _read_nested(entry, slots[key], call, requests, str(key))
        elif key in flat:
            requests[flat[key]] |= _read_axes(entry, call.tensors[flat[key]], str(key))
        else:
            known = list(dict.fromkeys([*slots, *call.names, *(input_names or ())]))
            raise InputError(f"dynamic shapes name {key!r}, which is no input; the inputs are {known}")


def _read_nested(entry: Any, slot: Any, call: ExampleCall, requests: AxisRequests, place: str) -> None:
    if entry is None or slot is None:
        return
    if isinstance(slot, int):
        requests[slot] |= _read_axes(entry, call.tensors[slot], place)
        return
    if not isinstance(entry, Mapping | tuple | list):
        raise InputError(f"dynamic shapes of {place} are {entry!r}; it needs one entry for each of {list(slot)}")
    entries: Mapping[Any, Any] = entry if isinstance(entry, Mapping) else dict(enumerate(entry))
    # The fields of a named tuple have names and positions.
    keys = dict(enumerate(slot)) | {key: key for key in slot}
    unknown = [key for key in entries if key not in keys]
    if unknown:
        raise InputError(f"dynamic shapes of {place} name {unknown}; it has {list(slot)}")
    for key, part in entries.items():
        _read_nested(part, slot[keys[key]], call, requests, f"{place}[{key!r}]")


def _read_axes(entry: Any, tensor: torch.Tensor, place: str) -> dict[int, AxisRequest]:
    """The axes of one tensor."""
    if entry is None:
        return {}
    if isinstance(entry, str):
        raise InputError(f"dynamic shapes of {place}: give a list of names or a dict, not the single text {entry!r}")
    if isinstance(entry, Mapping):
        axes = dict(entry)
    elif entry and all(isinstance(axis, int) and not isinstance(axis, bool) for axis in entry):
        axes = dict.fromkeys(entry, Dim.AUTO)
    elif len(entry) == tensor.dim():
        axes = dict(enumerate(entry))
    else:
        raise InputError(f"dynamic shapes of {place} have {len(entry)} axes, the example has {tensor.dim()}")
    found = {}
    for position, axis in axes.items():
        if not isinstance(position, int) or not -tensor.dim() <= position < tensor.dim():
            raise InputError(f"dynamic shapes of {place}: {position!r} is no dimension of {list(tensor.shape)}")
        request = _read_axis(axis, f"{place}[{position}]")
        if request is not None:
            found[position % tensor.dim()] = request
    return found


def _read_axis(axis: Any, place: str) -> AxisRequest | None:
    if axis is None or isinstance(axis, int) or axis is Dim.STATIC:
        return None
    if isinstance(axis, str):
        if not re.fullmatch(r"[A-Za-z_]\w*", axis):
            raise InputError(f"the dimension name {axis!r} of {place} must be an identifier such as 'batch'")
        return AxisRequest(axis)
    if isinstance(axis, _HINT_TYPE):
        return None if axis == Dim.STATIC else AxisRequest(None, axis.min, axis.max)
    if isinstance(axis, Dim):
        label = axis.__name__ if axis.__name__.isidentifier() else None
        return AxisRequest(label, getattr(axis, "min", None), getattr(axis, "max", None))
    raise InputError(f"the dimension {place} is {axis!r}; give a name, a torch.export.Dim or None")


def _check_sizes(call: ExampleCall, requests: AxisRequests) -> None:
    sizes: dict[str, tuple[int, str]] = {}
    for tensor, axes, path in zip(call.tensors, requests, call.paths, strict=True):
        for position, request in axes.items():
            size, place = tensor.shape[position], f"{path}.shape[{position}]"
            if request.label is None:
                continue
            other_size, other = sizes.setdefault(request.label, (size, place))
            if size != other_size:
                raise InputError(
                    f"dimension {request.label!r} is {other_size} in {other} and {size} in {place}; "
                    "equal names mean equal sizes"
                )
