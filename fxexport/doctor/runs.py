"""The eager runs that a diagnosis rests on: the example, other values, other seeds, other sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from fxexport.capture import Reference
from fxexport.capture.dynamic import AxisRequests
from fxexport.capture.resize import resize_axis, vary
from fxexport.doctor.observed import Observed
from fxexport.doctor.observing import observe

Places = list[tuple[int, int]]
"""Positions of inputs, each with one of its axes."""


@dataclass(frozen=True)
class SizeRun:
    """One dimension at another size: ``label`` is its name, ``places`` the axes that have it.

    ``also``: a size that eager accepts where it raised at ``after``.
    """

    label: str
    declared: bool
    places: Places
    before: int
    after: int
    seen: Observed
    also: int | None = None


@dataclass
class Runs:
    """What was seen. ``fresh``: with other values; ``reseeded``, ``refilled``: with other seeds, other empty memory."""

    reference: Reference
    example: Observed
    fresh: list[Observed] = field(default_factory=list)
    sizes: list[SizeRun] = field(default_factory=list)
    reseeded: Observed | None = None
    refilled: Observed | None = None
    watched_nan: Observed | None = None

    @property
    def all(self) -> list[Observed]:
        """The example first, and every run with other values that reached its end."""
        return [self.example, *(each for each in self.fresh if each.ended)]


def run_briefly(reference: Reference, requests: AxisRequests) -> Runs:
    """The example, fresh values, and one other size of each dynamic dimension."""
    inputs = reference.call.tensors
    example = observe(reference, inputs, count_turns=any(requests))
    runs = Runs(reference, example)
    runs.fresh.append(observe(reference, _fresh(inputs)))
    if example.ended:
        runs.sizes = list(_at_other_sizes(reference, requests))
    return runs


def run_thoroughly(reference: Reference, requests: AxisRequests) -> Runs:
    """As :func:`run_briefly`, and with other signs, with ones, other seeds, and other memory behind ``torch.empty``."""
    runs = run_briefly(reference, requests)
    inputs, example = reference.call.tensors, runs.example
    if not example.ended:
        return runs
    runs.fresh.append(observe(reference, [_like(t, lambda t: -t) for t in inputs]))
    runs.fresh.append(observe(reference, [_like(t, torch.ones_like) for t in inputs]))
    runs.reseeded = observe(reference, inputs, seed=1)
    if len(example.empties):
        runs.refilled = observe(reference, inputs, fill=7)
    if any(t.is_floating_point() and bool(t.isnan().any()) for t in example.outputs):
        runs.watched_nan = observe(reference, inputs, find_nan=True)
    return runs


def _fresh(inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [vary(tensor, generator) for tensor in inputs]


def _like(tensor: torch.Tensor, change: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """``tensor`` changed, but for whole numbers: which others are legal is known to the model alone."""
    return change(tensor) if tensor.is_floating_point() or tensor.is_complex() else tensor


def _at_other_sizes(reference: Reference, requests: AxisRequests) -> Iterator[SizeRun]:
    inputs = reference.call.tensors
    for label, (declared, places) in _dimensions(requests, reference.call.names).items():
        before = inputs[places[0][0]].shape[places[0][1]]
        limits = [request.maximum for i, axis in places if (request := requests[i][axis]).maximum is not None]
        after = min([2 * before + 1, *filter(None, limits)])
        if after == before:
            continue
        seen = observe(reference, _resized(inputs, places, after), count_turns=True)
        also = None
        if not seen.ended:
            tried = (2 * before, before + 8)
            also = next((n for n in tried if observe(reference, _resized(inputs, places, n)).ended), None)
        yield SizeRun(label, declared, places, before, after, seen, also)


def _dimensions(requests: AxisRequests, names: Sequence[str]) -> dict[str, tuple[bool, Places]]:
    """Axes that change together: of one name; first axes without a name are one batch; else each by itself."""
    found: dict[str, tuple[bool, Places]] = {}
    for i, axes in enumerate(requests):
        for axis, request in axes.items():
            label = request.label or ("batch" if axis == 0 else f"dimension {axis} of {names[i]}")
            declared, places = found.get(label, (False, []))
            found[label] = (declared or request.declared, [*places, (i, axis)])
    return found


def _resized(inputs: Sequence[torch.Tensor], places: Places, size: int) -> list[torch.Tensor]:
    result = list(inputs)
    for i, axis in places:
        result[i] = resize_axis(result[i], axis, size)
    return result
