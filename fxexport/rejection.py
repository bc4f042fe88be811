"""What is left of a wrong artifact: the candidate, its report, the inputs, who is to blame, and the error to raise."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch

from fxexport.blame import Blame, Case, History, explain_failure
from fxexport.capture import Captured
from fxexport.errors import ValidationError
from fxexport.report import Report
from fxexport.validation import ValidationReport, evaluate
from fxexport.validation.numbers import Scales


class Rejected(Protocol):
    """What a staging directory offers to a candidate that failed."""

    directory: Path

    def reject(self) -> Path:
        """Keeps the directory for inspection and returns its new place."""
        ...


def find_culprit(
    history: History,
    captured: Captured,
    report: Report,
    scales: Scales,
    staging: Rejected,
    timeout: float,
    options: dict[str, Any],
) -> Blame | str:
    """The first wrong rewrite, or why there is none to name ('' where nothing was rewritten or nothing ran)."""
    assert report.validation is not None
    if not history.steps or not report.validation.failures:
        return ""
    inputs = report.validation.failing_inputs or tuple(captured.examples)  # a file that cannot be loaded has none
    case = Case(
        captured.reference, inputs, scales, staging.directory, report.path.name, report.format, timeout, options
    )
    return explain_failure(history, captured.program, case)


def reject(
    staging: Rejected, report: Report, validation: ValidationReport, blame: Blame | str, names: Sequence[str]
) -> ValidationError:
    """Keeps the candidate, its report and the failing inputs in ``<path>.rejected``; returns the error to raise.

    ``names``: one for each tensor of the failing inputs.
    """
    failures = validation.failures
    lines = [f"{point.label} {point.sizes or ''}: {point.reason}" for point in failures[:5]]
    if not failures:
        lines = ["no point could be compared: " + "; ".join(p.skipped for p in validation.points)]
    report.blame = blame if isinstance(blame, Blame) else None
    report.notes += filter(None, [str(blame)])
    staging.directory.joinpath("report.json").write_text(json.dumps(report.to_json(), indent=1))
    staging.directory.joinpath("report.txt").write_text(str(report))
    if validation.failing_inputs is not None:
        torch.save(dict(zip(names, validation.failing_inputs, strict=True)), staging.directory / "inputs.pt")
    kept = staging.reject()
    if isinstance(blame, Blame) and blame.repro:
        blame = replace(blame, repro=str(kept / blame.repro))
    error = ValidationError(
        "\n".join(
            [
                f"{report.path.name} does not agree with the eager model and was not published:",
                *(f"  {line}" for line in lines),
                *_hints(report, validation),
                *filter(None, [str(blame)]),
                f"The candidate, its report and the inputs are in {kept}; {report.path} is as it was before.",
            ]
        )
    )
    error.blame = blame if isinstance(blame, Blame) else None
    return error


def _hints(report: Report, validation: ValidationReport) -> list[str]:
    """Ways out that the failing points suggest."""
    hints = [report.precision.ways_out] if report.precision and any(p.outputs for p in validation.failures) else []
    if any(point.label.endswith("=1") and 1 in point.sizes.values() for point in validation.failures):
        hints.append("Where size 1 is not needed, declare the dimension with torch.export.Dim(name, min=2).")
    for guard in report.signature.guards if report.signature else ():
        broken = (point for point in validation.failures if point.sizes and not evaluate(guard.condition, point.sizes))
        if any(broken):
            hints.append(
                f"At {guard.place} the model decides whether {guard.condition}, and the graph holds one side of it: keep "
                "to sizes on that side (torch.export.Dim with min and max), or write both sides with torch.cond."
            )
    return hints
