"""The proof: the artifact against the user's eager model, at every point, output by output."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from fxexport.capture.reference import Reference, Tensors
from fxexport.errors import ValidationError
from fxexport.signature import Signature
from fxexport.validation.compare import OutputComparison
from fxexport.validation.numbers import Scales
from fxexport.validation.runner import ArtifactProcess
from fxexport.validation.sweep import FRESH, Point, example_sizes, points
from fxexport.validation.working_range import WorkingRange, describe, working_ranges

_RANGE_TIMEOUT = 20.0  # seconds for one run at a size that nobody asked for


@dataclass(frozen=True)
class PointResult:
    """What happened at one point: a comparison for each output, or why it was skipped or failed."""

    label: str
    sizes: dict[str, int]
    outputs: tuple[OutputComparison, ...] = ()
    skipped: str = ""
    error: str = ""

    @property
    def passed(self) -> bool:
        """Whether the artifact agreed; a skipped point neither passes nor fails."""
        return not self.error and all(output.passed for output in self.outputs)

    @property
    def reason(self) -> str:
        """Why it failed, or ''."""
        failed = [f"{o.name!r}: {o.reason}" for o in self.outputs if not o.passed]
        return self.error or "; ".join(failed)

    def to_json(self) -> dict[str, Any]:
        """A JSON object with the fields of this result."""
        return {
            "label": self.label,
            "sizes": self.sizes,
            "passed": self.passed,
            "skipped": self.skipped,
            "error": self.error,
            "outputs": [output.to_json() for output in self.outputs],
        }


@dataclass
class ValidationReport:
    """All points, the runtime that ran the artifact, the limits that were found, and the working range of each dynamic
    dimension (of a passing artifact; empty where other sizes were not asked for)."""

    points: list[PointResult] = field(default_factory=list)
    runtime: dict[str, str] = field(default_factory=dict)
    providers: tuple[str, ...] = ()
    limits: list[str] = field(default_factory=list)
    ranges: list[WorkingRange] = field(default_factory=list)
    failing_inputs: tuple[torch.Tensor, ...] | None = None

    @property
    def failures(self) -> list[PointResult]:
        """The points at which the artifact disagreed."""
        return [point for point in self.points if not point.passed]

    @property
    def passed(self) -> bool:
        """Whether at least the example was compared and no point failed."""
        return not self.failures and any(point.outputs for point in self.points)

    def to_json(self) -> dict[str, Any]:
        """A JSON object with the verdict, every point and the runtime's versions."""
        return {
            "passed": self.passed,
            "points": [point.to_json() for point in self.points],
            "runtime": self.runtime,
            "providers": list(self.providers),
            "limits": self.limits,
            "ranges": [found.to_json() for found in self.ranges],
        }


def validate(
    process: ArtifactProcess,
    path: Any,
    reference: Reference,
    signature: Signature,
    examples: Sequence[torch.Tensor],
    *,
    expected: Tensors | None = None,
    unstable: Collection[str] = (),
    rtol: float | None = None,
    atol: float | None = None,
    sizes: bool = True,
    further: Sequence[Point] = (),
    progress: Callable[[str], None] = lambda _: None,
) -> ValidationReport:
    """Runs the artifact at ``path`` at every point of :func:`points`, and at ``further`` ones, and compares with eager.

    ``examples`` hold a tensor for every input of the captured call, also for those that the artifact does not have
    (``signature.unread``).

    ``expected`` are the eager outputs of the example where they are known already. Nothing is raised for a wrong
    artifact: the report says so, and the caller gates on it. A failing dimension of size 1 that the user did not
    declare by name is reported as a limit.
    """
    report = ValidationReport()
    try:
        loaded = process.load(path)
    except ValidationError as error:
        report.points.append(PointResult("load", {}, error=str(error)))
        return report
    report.runtime, report.providers = loaded.versions, loaded.providers
    fed = {spec.name for spec in signature.inputs}
    signature = signature.whole_call(reference.call.paths) if signature.unread else signature
    judge = _Judge(process, reference, signature, Scales(rtol, atol, frozenset(unstable)), fed)
    declared = {d.name for d in signature.dimensions if d.declared}
    own = example_sizes(signature, examples)
    for point in [*points(signature, examples, sizes=sizes), *further]:
        if point.label == FRESH and sum(1 for result in report.points if result.outputs) > 1:
            continue  # other sizes had fresh values too: a baked value would have shown
        progress(point.label)
        result = judge.check(point, expected if point.label == "example" else None)
        changed = {name for name, size in point.sizes.items() if size != own.get(name)}
        if not result.passed and point.edge and not changed & declared:
            report.limits.append(f"does not work at {point.label}: {result.reason}")
            result = PointResult(point.label, dict(point.sizes), skipped=f"outside the working range: {result.reason}")
        report.points.append(result)
        if not result.passed:
            report.failing_inputs = report.failing_inputs or point.inputs
            if result.error:
                break
    if sizes and report.passed:
        _find_ranges(report, judge, path, examples)
    return report


def _find_ranges(report: ValidationReport, judge: _Judge, path: Any, examples: Sequence[torch.Tensor]) -> None:
    """Larger sizes: a limit is reported. One below the bound that the signature promises is a failed point."""
    process, signature, timeout = judge.process, judge.signature, judge.process.timeout

    def check(point: Point) -> PointResult:
        result = judge.check(point)
        if process.pid is None:  # it died of this size: others may still work
            process.restart()
            process.load(path)
        return result

    process.timeout = min(timeout, _RANGE_TIMEOUT)
    try:
        seen = {result.label: result for result in report.points}
        report.ranges = working_ranges(signature, examples, judge.reference.model, check, seen, judge.seconds)
    finally:
        process.timeout = timeout
    promised = {dimension.name: dimension.maximum for dimension in signature.dimensions}
    for found in report.ranges:
        bound = promised[found.dimension]
        if found.by in ("eager", "artifact"):
            report.limits.append(describe(found))
        if found.by == "artifact" and found.maximum is not None and bound is not None and found.maximum < bound:
            size = found.maximum + 1
            report.points.append(PointResult(f"{found.dimension}={size}", {found.dimension: size}, error=found.reason))


@dataclass
class _Judge:
    process: ArtifactProcess
    reference: Reference
    signature: Signature
    scales: Scales
    fed: Collection[str]
    seconds: float = 0.0  # of the slowest check

    def check(self, point: Point, expected: Tensors | None = None) -> PointResult:
        """Eager and artifact on one point."""
        started = time.monotonic()
        result = self._check(point, expected)
        self.seconds = max(self.seconds, time.monotonic() - started)
        return result

    def _check(self, point: Point, expected: Tensors | None) -> PointResult:
        sizes = dict(point.sizes)
        if expected is None:
            try:
                expected = self.reference.run(point.inputs)
            except Exception as error:  # noqa: BLE001 - eager may refuse a size in any way it likes; that is reported
                reason = f"eager refuses it: {type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
                return PointResult(point.label, sizes, skipped=reason)
        try:
            got = self._run(point)
        except ValidationError as error:
            return PointResult(point.label, sizes, error=str(error))
        names = [spec.name for spec in self.signature.outputs]
        results = self.scales.compare(names, expected, got, lambda: self.reference.run(point.inputs, double=True))
        return PointResult(point.label, sizes, tuple(results))

    def _run(self, point: Point) -> list[torch.Tensor]:
        names = [spec.name for spec in self.signature.inputs]
        given = dict(zip(names, point.inputs, strict=True))
        outputs = self.process.run({name: value for name, value in given.items() if name in self.fed})
        wanted = [spec.name for spec in self.signature.outputs]
        if self.process.format != "onnx":
            return list(outputs.values())
        if set(outputs) != set(wanted):
            raise ValidationError(f"the artifact's outputs are {list(outputs)}, expected {wanted}")
        return [outputs[name] for name in wanted]
