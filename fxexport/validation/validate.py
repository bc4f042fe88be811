"""The proof: the artifact against the user's eager model, at every point, output by output."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from fxexport.capture.reference import Reference, Tensors
from fxexport.decisions import Decision
from fxexport.errors import ValidationError
from fxexport.input_assumption import InputAssumption
from fxexport.signature import Signature
from fxexport.validation.beyond import beyond
from fxexport.validation.both_sides import both_sides
from fxexport.validation.compare import Tolerance
from fxexport.validation.edges import LARGE, OUT_OF_RANGE, Edge, edges
from fxexport.validation.judge import Judge, PointResult
from fxexport.validation.numbers import Scales
from fxexport.validation.runner import ArtifactProcess
from fxexport.validation.sweep import FRESH, Point, example_sizes, points
from fxexport.validation.working_range import WorkingRange, describe, working_ranges

_RANGE_TIMEOUT = 20.0  # seconds for one run at a size that nobody asked for
_EDGE_SECONDS = 3.0  # for edge values; where the other points took longer, as long as those


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
    usual: Tolerance | None = None,
    sizes: bool = True,
    further: Sequence[Point] = (),
    decisions: Sequence[Decision] = (),
    assumptions: Sequence[InputAssumption] = (),
    progress: Callable[[str], None] = lambda _: None,
) -> ValidationReport:
    """Runs the artifact at ``path`` at every point of :func:`points`, at ``further`` ones, at edge values and on both sides
    of ``decisions``, and compares with eager.

    ``examples`` hold a tensor for every input of the captured call, also for those that the artifact does not have
    (``signature.unread``).

    Every point meets the ``assumptions``; by how much the artifact differs where they do not hold is a limit.
    ``expected`` are the eager outputs of the example where they are known already. Nothing is raised for a wrong
    artifact: the report says so, and the caller gates on it. A failing dimension of size 1 that the user did not
    declare by name is reported as a limit. ``usual`` is the default tolerance of an artifact of lower precision; where that
    one fails at values far larger than the example's, it is a limit, too.
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
    expected = reference.run(examples) if expected is None else expected
    assumed = {d.site: d.value for d in decisions if d.form in ("assumed", "raises") and d.value is not None}
    scales = Scales(rtol, atol, frozenset(unstable), usual)
    judge = Judge(process, reference, signature, examples, expected, scales, fed, assumed, assumptions)
    proof = _Proof(report, judge, progress)
    plan = [*points(signature, examples, sizes=sizes), *further]
    proof.ordinary(plan)
    if report.passed:
        proof.edge_values()
    if report.passed and decisions:
        proof.decisions(decisions, plan)
    if sizes and report.passed:
        _find_ranges(report, judge, path, examples)
    if report.passed:
        report.limits += beyond(judge, assumptions)
    return report


@dataclass
class _Proof:
    """The points in their order, and what the report says of them."""

    report: ValidationReport
    judge: Judge
    progress: Callable[[str], None]

    def ordinary(self, plan: Sequence[Point]) -> None:
        """Every point of ``plan``; a runtime that fails ends it."""
        declared = {d.name for d in self.judge.signature.dimensions if d.declared}
        own = example_sizes(self.judge.signature, self.judge.examples)
        for point in plan:
            if point.label == FRESH and sum(1 for result in self.report.points if result.outputs) > 1:
                continue  # other sizes had fresh values too: a baked value would have shown
            result = self._checked(point)
            changed = {name for name, size in point.sizes.items() if size != own.get(name)}
            if not result.passed and point.edge and not changed & declared:
                self.report.limits.append(f"does not work at {point.label}: {result.reason}")
                reason = f"outside the working range: {result.reason}"
                result = PointResult(point.label, dict(point.sizes), skipped=reason)
            self._record(point, result)
            if result.error:
                break

    def edge_values(self) -> None:
        """Values unlike the example's, as long as the time for them lasts."""
        deadline = time.monotonic() + max(_EDGE_SECONDS, self.judge.spent)
        alone: list[Point] = []
        for edge in self._edges():
            result = self._in_time(edge.point, deadline)
            alone += edge.alone if result is not None and result.skipped else ()
        for point in alone:
            self._in_time(point, deadline)

    def _edges(self) -> list[Edge]:
        assumed = [each.input for each in self.judge.inputs_assumed]
        return edges(self.judge.signature, self.judge.examples, assumed)

    def _in_time(self, point: Point, deadline: float) -> PointResult | None:
        """The result at ``point``; None where the artifact is wrong already, or where time is over, which is recorded."""
        if not self.report.passed:
            return None
        if time.monotonic() > deadline:
            late = f"not tried for want of time: one run takes {self.judge.seconds:.1f} s"
            self._record(point, PointResult(point.label, dict(point.sizes), skipped=late))
            return None
        result = self._checked(point)
        if self.judge.scales.usual and point.label.startswith(OUT_OF_RANGE) and not result.passed:
            told = f"values {LARGE:g} times the example's are beyond the lower precision: {result.reason}"
            self.report.limits.append(told)
            result = PointResult(point.label, dict(point.sizes), skipped=told)
        self._record(point, result)
        return result

    def decisions(self, decisions: Sequence[Decision], tried: Sequence[Point]) -> None:
        """Inputs that take the sides of decisions which no point so far took."""
        judge = self.judge
        self.progress("decisions")
        seen = [*tried, *(edge.point for edge in self._edges())]
        sides = both_sides(judge.reference, judge.signature, judge.examples, decisions, seen)
        for point in sides.points:
            self._record(point, self._checked(point))
        self.report.limits += sides.missing

    def _checked(self, point: Point) -> PointResult:
        self.progress(point.label)
        return self.judge.check(point, self.judge.expected if point.label == "example" else None)

    def _record(self, point: Point, result: PointResult) -> None:
        self.report.points.append(result)
        if not result.passed:
            self.report.failing_inputs = self.report.failing_inputs or self.judge.meeting(point).inputs


def _find_ranges(report: ValidationReport, judge: Judge, path: Any, examples: Sequence[torch.Tensor]) -> None:
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
