"""Proving an artifact right: points to try, a subprocess to run it in, eager as the judge."""

from fxexport.validation.compare import OutputComparison, Tolerance, compare_output, tolerance_for
from fxexport.validation.judge import PointResult
from fxexport.validation.runner import ArtifactProcess
from fxexport.validation.sweep import evaluate
from fxexport.validation.validate import ValidationReport, validate

__all__ = [
    "ArtifactProcess",
    "OutputComparison",
    "PointResult",
    "Tolerance",
    "ValidationReport",
    "compare_output",
    "evaluate",
    "tolerance_for",
    "validate",
]
