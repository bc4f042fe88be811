"""The example that is captured: no dynamic axis has size 0 or 1 in it, which torch.export would fix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from fxexport.capture.dynamic import AxisRequests
from fxexport.capture.resize import resize_axis

Place = tuple[int, int]
"""Position of an input, and one of its axes."""


def enlarged(
    tensors: list[torch.Tensor], requests: AxisRequests, accepts: Callable[[list[torch.Tensor]], bool]
) -> list[torch.Tensor]:
    """``tensors`` with the dynamic axes of size 0 or 1 at size 2; ``accepts`` says whether eager runs on some inputs.

    Axes that merely may be dynamic (``dynamic=True``) are enlarged where eager accepts it, and else are no longer in
    ``requests``. Axes that a toolbox's types claim to be dynamic keep their size where eager accepts no other, and
    count as not declared.
    """
    small = [(i, axis) for i, axes in enumerate(requests) for axis in axes if tensors[i].shape[axis] < 2]
    declared = [(i, axis) for i, axis in small if requests[i][axis].declared]
    claimed = [(i, axis) for i, axis in declared if requests[i][axis].claimed]
    candidate = _resized(tensors, declared)
    tensors = candidate if not claimed or accepts(candidate) else _claims(tensors, declared, claimed, requests, accepts)
    optional = [place for place in small if place not in declared]
    groups = [[place for place in optional if place[1] == 0], *([place] for place in optional if place[1] != 0)]
    for group in filter(None, groups):
        candidate = _resized(tensors, group)
        if accepts(candidate):
            tensors = candidate
        else:
            for i, axis in group:
                requests[i].pop(axis)
    return tensors


def _claims(
    tensors: list[torch.Tensor],
    declared: list[Place],
    claimed: list[Place],
    requests: AxisRequests,
    accepts: Callable[[list[torch.Tensor]], bool],
) -> list[torch.Tensor]:
    """The declared axes enlarged, but only those of the ``claimed`` ones that eager accepts, name by name."""
    tensors = _resized(tensors, [place for place in declared if place not in claimed])
    for label in {requests[i][axis].label: None for i, axis in claimed}:
        same = [(i, axis) for i, axis in claimed if requests[i][axis].label == label]
        candidate = _resized(tensors, same)
        if accepts(candidate):
            tensors = candidate
            continue
        for i, axis in same:
            requests[i][axis] = replace(requests[i][axis], declared=False)
    return tensors


def _resized(tensors: list[torch.Tensor], places: list[Place]) -> list[torch.Tensor]:
    result = list(tensors)
    for i, axis in places:
        result[i] = resize_axis(result[i], axis, 2)
    return result
