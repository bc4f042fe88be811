"""Limits of sizes that the example does not show: a table of 2000 positions, a mask buffer of 8192.

After the ordinary points, each dynamic dimension grows alone, in a few steps as far as the model's own tables may reach.
Where a size does not work, the exact limit is found by bisection, and who set it: eager, or the export.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import nn

from fxexport.errors import InputError
from fxexport.signature import Dimension, Signature
from fxexport.validation.sweep import Point, draw, evaluate, example_sizes

_MOST_ELEMENTS = 2**22  # of all inputs of one run together
_SECONDS_A_RUN = 1.0  # larger sizes that would take longer, eager and artifact together, are not tried
_SECONDS = 3.0  # for all dimensions together
_STEP = 8
_EXHAUSTED = ("ran out of memory", "allocate memory", "MemoryError", "artifact process")


@dataclass(frozen=True)
class WorkingRange:
    """The sizes at which one dynamic dimension works while the others are as in the example.

    Attributes:
        minimum: the smallest size that works, as far as was looked.
        maximum: the largest size that works; None where no limit was found.
        tried: the largest size that was tried and works.
        by: who set the limit: eager refuses larger sizes; eager takes them and the artifact does not; or only the graph
            promises no more than this, by a declared or derived bound. ``""`` without a limit.
        reason: what happens at the next size, or why no larger one was tried.
    """

    dimension: str
    minimum: int
    maximum: int | None
    tried: int
    reason: str = ""
    by: Literal["", "eager", "artifact", "graph"] = ""

    def to_json(self) -> dict[str, Any]:
        """A JSON object with the fields of this range."""
        return asdict(self)


def describe(found: WorkingRange) -> str:
    """One sentence for a reader: ``dimension 'time' works up to 2000: eager refuses 2001: IndexError: ...``."""
    name = f"dimension {found.dimension!r}"
    lower = f" from {found.minimum}" if found.minimum > 1 else ""
    if found.maximum is None:
        stopped = f"; {found.reason}" if found.reason else ""
        return f"{name} works{lower}: no limit found, tried up to {found.tried}{stopped}"
    text = f"{name} works{lower} up to {found.maximum}: {found.reason}"
    if found.by == "artifact":
        text += f"; the export added this limit: give an example with a larger {found.dimension!r} to move it"
    return text


class Result(Protocol):
    """What the search wants to know of a point."""

    @property
    def passed(self) -> bool: ...
    @property
    def skipped(self) -> str: ...
    @property
    def reason(self) -> str: ...


Check = Callable[[Point], Result]


def working_ranges(
    signature: Signature,
    examples: Sequence[torch.Tensor],
    model: nn.Module,
    check: Check,
    seen: Mapping[str, Result],
    seconds: float,
) -> list[WorkingRange]:
    """The working range of every dynamic dimension, in a few seconds at most.

    ``check`` runs eager and artifact at a point, ``seen`` are the results so far by label, ``seconds`` what the slowest of
    them took. ``model`` tells how long its tables are. No input larger than four million elements is made.
    """
    search = _Search(signature, examples, check, time.monotonic() + _SECONDS)
    tables = sorted(set(table_sizes(model)))
    return [search.range_of(dimension, tables, seen, seconds) for dimension in signature.dimensions]


def table_sizes(model: nn.Module) -> Iterator[int]:
    """Sizes of what a model may index by position: buffers, tensor attributes, embeddings, parameters of its own."""
    for module in model.modules():
        held = [value for key, value in vars(module).items() if isinstance(value, torch.Tensor)]
        held += [buffer for buffer in module._buffers.values() if buffer is not None]
        if isinstance(module, nn.Embedding) or not type(module).__module__.startswith("torch.nn"):
            held += [parameter for parameter in module._parameters.values() if parameter is not None]
        for tensor in held:
            yield from tensor.shape


@dataclass
class _Search:
    signature: Signature
    examples: Sequence[torch.Tensor]
    check: Check
    deadline: float
    results: dict[tuple[str, int], Result] = field(default_factory=dict)

    def range_of(
        self, dimension: Dimension, tables: Iterable[int], seen: Mapping[str, Result], seconds: float
    ) -> WorkingRange:
        """Grows one dimension, and bisects where a size does not work."""
        own = example_sizes(self.signature, self.examples)[dimension.name]
        minimum = self._minimum(dimension, own, seen)
        goal, good = self._goal(dimension, own, tables), own
        if _SECONDS_A_RUN / 4 < seconds < _SECONDS_A_RUN / 2:  # the first runs are slower than the others
            seconds = self._timed(dimension.name, own)[1]
        while good < goal:
            size = self._next(dimension, own, good, goal, seconds)
            if size is None:
                slow = f"larger sizes not tried: one run takes {seconds:.1f} s" if seconds > 0.1 else ""
                return _open(dimension, minimum, good, slow)
            result, seconds = self._timed(dimension.name, size)
            if not _works(result):
                return self._limit(dimension, minimum, own, good, size)
            good = size
        if dimension.maximum is None:
            return _open(dimension, minimum, good, "")
        return self._beyond(dimension.name, minimum, good)

    def _minimum(self, dimension: Dimension, own: int, seen: Mapping[str, Result]) -> int:
        """The smallest size that works: what the graph says, or what the points at 1 and 2 showed."""
        if own == 1:
            return 1  # the example itself
        bad, known = 0, {n: seen.get(f"{dimension.name}={n}") for n in (1, 2)}
        for size, result in known.items():
            if result is not None and _works(result):
                return size
            bad = size if result is not None else bad
        good = max(own, 1)
        while bad and good - bad > 1 and time.monotonic() < self.deadline:
            middle = (good + bad) // 2
            good, bad = (middle, bad) if _works(self._at(dimension.name, middle)) else (good, middle)
        return good if bad else max(dimension.minimum, min(own, 1))

    def _goal(self, dimension: Dimension, own: int, tables: Iterable[int]) -> int:
        """The size to grow to: the bound, or past the longest table that inputs within the budget reach."""
        if dimension.maximum is not None:
            return dimension.maximum
        goals = [_STEP * own, *((table + 1) * self._ratio(dimension.name) for table in tables if table >= own)]
        return max(goal for goal in goals if goal == goals[0] or self._fits(dimension.name, goal))

    def _ratio(self, name: str) -> int:
        """How much longer ``name`` is than the shortest axis derived from it: 4 behind a stride of 4."""
        own, ratios = example_sizes(self.signature, self.examples), [1]
        for spec in (*self.signature.inputs, *self.signature.outputs):
            for axis in spec.dynamic_axes.values():
                try:
                    size = evaluate(axis, own)
                except InputError:  # an axis whose size only the run tells
                    continue
                if axis != name and name in axis and size:
                    ratios.append(math.ceil(own[name] / size))
        return max(ratios)

    def _next(self, dimension: Dimension, own: int, good: int, goal: int, seconds: float) -> int | None:
        """The next size: multiples of the example's as far as the bound allows, which models that split it need."""
        for factor in (_STEP, 2):
            size = min(good * factor, goal) if good else goal
            if own and size != dimension.maximum:
                size = math.ceil(size / own) * own
            size = size if dimension.maximum is None else min(size, dimension.maximum)
            expected = seconds * (size / max(good, 1)) ** 2  # attention
            in_time = expected <= _SECONDS_A_RUN and time.monotonic() + expected < self.deadline
            if in_time and self._fits(dimension.name, size):
                return size
        return None

    def _fits(self, name: str, size: int) -> bool:
        sizes = {**example_sizes(self.signature, self.examples), name: size}
        shapes = ([evaluate(axis, sizes) for axis in spec.axes] for spec in self.signature.inputs)
        return sum(map(math.prod, shapes)) <= _MOST_ELEMENTS

    def _at(self, name: str, size: int) -> Result:
        if (name, size) not in self.results:
            sizes = {**example_sizes(self.signature, self.examples), name: size}
            inputs = draw(self.signature, self.examples, sizes, seed=size)
            self.results[name, size] = self.check(Point(f"{name}={size}", sizes, inputs))
        return self.results[name, size]

    def _timed(self, name: str, size: int) -> tuple[Result, float]:
        started = time.monotonic()
        return self._at(name, size), time.monotonic() - started

    def _limit(self, dimension: Dimension, minimum: int, own: int, good: int, bad: int) -> WorkingRange:
        """Bisects between a size that works and one that does not: multiples of the example's size first."""
        name = dimension.name
        for unit in (own, 1):
            while bad - good > unit and time.monotonic() < self.deadline and not _exhausted(self._at(name, bad)):
                middle = good + max((bad - good) // 2 // unit, 1) * unit
                good, bad = (middle, bad) if _works(self._at(name, middle)) else (good, middle)
        result = self._at(name, bad)
        if _exhausted(result):
            return _open(dimension, minimum, good, f"{bad} could not be run: {_first(result)}")
        return self._limited(name, minimum, good, bad)

    def _limited(self, name: str, minimum: int, good: int, bad: int) -> WorkingRange:
        result = self._at(name, bad)
        if result.skipped:
            refusal = result.skipped.removeprefix("eager refuses it: ")
            return WorkingRange(name, minimum, good, good, f"eager refuses {bad}: {refusal}", "eager")
        reason = f"at {bad} eager works and the artifact does not: {_first(result)}"
        return WorkingRange(name, minimum, good, good, reason, "artifact")

    def _beyond(self, name: str, minimum: int, bound: int) -> WorkingRange:
        """Who says that sizes above the bound of the graph do not work."""
        following, promise = bound + 1, "the graph promises no more"
        if time.monotonic() > self.deadline or not self._fits(name, following):
            return WorkingRange(name, minimum, bound, bound, promise, "graph")
        result = self._at(name, following)
        if _works(result) or _exhausted(result):
            also = f", though {following} worked too" if _works(result) else ""
            return WorkingRange(name, minimum, bound, bound, f"{promise}{also}", "graph")
        return self._limited(name, minimum, bound, following)


def _open(dimension: Dimension, minimum: int, tried: int, reason: str) -> WorkingRange:
    """The range where nothing stopped the search but itself: only the graph may know a limit."""
    if dimension.maximum is None:
        return WorkingRange(dimension.name, minimum, None, tried, reason)
    text = f"the graph promises no more; tried up to {tried}" + (f", {reason}" if reason else "")
    return WorkingRange(dimension.name, minimum, dimension.maximum, tried, text, "graph")


def _works(result: Result) -> bool:
    return result.passed and not result.skipped


def _exhausted(result: Result) -> bool:
    """Whether the machine gave up and not the model: memory, time, or a runtime that died and can try no other size."""
    return any(word in result.skipped or word in result.reason for word in _EXHAUSTED)


def _first(result: Result) -> str:
    return ((result.reason or result.skipped).strip().splitlines() or [""])[0]
