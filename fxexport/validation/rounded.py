"""A program of half precision, run operator by operator: what a runtime that skips its roundings does not show.

A runtime without float16 kernels computes in float32 and drops the casts in between (onnxruntime does on the CPU), so
nothing overflows in it. PyTorch rounds after every operator, as a device with such kernels does.
"""

from __future__ import annotations

from collections.abc import Sequence

from fxexport.capture.reference import Reference, Tensors
from fxexport.program import Program
from fxexport.validation.judge import PointResult
from fxexport.validation.numbers import Scales, run_eager
from fxexport.validation.sweep import Point


def run_rounded(
    program: Program, reference: Reference, points: Sequence[Point], scales: Scales
) -> tuple[list[PointResult], str]:
    """``program`` in eager PyTorch against the model at ``points``; and why that could not be done, or ''."""
    names = [spec.name for spec in program.signature.outputs]
    found: list[PointResult] = []
    for point in points:
        expected: Tensors = reference.run(point.inputs)
        try:
            got = run_eager(program, point.inputs)
        except RuntimeError as error:  # no kernel on the CPU; what a wrong program raises, the artifact raises as well
            reason = str(error).strip().splitlines()[0]
            return found, f"rounding after every operator could not be tried in PyTorch on the CPU: {reason}"
        label = f"{point.label}, each operator rounded"
        found.append(PointResult(label, dict(point.sizes), tuple(scales.compare(names, expected, got))))
    return found, ""
