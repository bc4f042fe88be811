"""Eager and artifact on one point, output by output."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from fxexport.capture.recording_decisions import decisions_of
from fxexport.capture.reference import Reference, Tensors
from fxexport.errors import ValidationError
from fxexport.input_assumption import InputAssumption, met
from fxexport.signature import Signature
from fxexport.validation.compare import OutputComparison
from fxexport.validation.numbers import Scales
from fxexport.validation.runner import ArtifactProcess
from fxexport.validation.stability import Shaken
from fxexport.validation.sweep import Point
from fxexport.validation.values import roles_of


@dataclass(frozen=True)
class PointResult:
    """What happened at one point: a comparison for each output, or why it was skipped or failed.

    ``left_out``: outputs that were not compared although others were, and why.
    """

    label: str
    sizes: dict[str, int]
    outputs: tuple[OutputComparison, ...] = ()
    skipped: str = ""
    error: str = ""
    left_out: tuple[str, ...] = ()

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
            "left_out": list(self.left_out),
            "outputs": [output.to_json() for output in self.outputs],
        }


@dataclass
class Judge:
    """Compares the artifact that ``process`` has loaded with ``reference``.

    Attributes:
        signature: of the whole captured call, also of inputs that the artifact does not have; it takes those of ``fed``.
        examples: the flat example inputs, and ``expected`` eager's outputs for them.
        assumed: site of a decision on values -> the only side that the artifact has.
        inputs_assumed: what is guaranteed of inputs: points get the values that meet it.
        seconds: what the slowest check took.
        spent: what all checks took together.
    """

    process: ArtifactProcess
    reference: Reference
    signature: Signature
    examples: Sequence[torch.Tensor]
    expected: Tensors
    scales: Scales
    fed: Collection[str]
    assumed: Mapping[str, bool] = field(default_factory=dict)
    inputs_assumed: Sequence[InputAssumption] = ()
    seconds: float = 0.0
    spent: float = 0.0

    def check(self, point: Point, expected: Tensors | None = None) -> PointResult:
        """Eager and artifact on one point; ``expected`` are eager's outputs, where they are known."""
        started = time.monotonic()
        result = self._check(point, expected)
        taken = time.monotonic() - started
        self.seconds, self.spent = max(self.seconds, taken), self.spent + taken
        return result

    def meeting(self, point: Point) -> Point:
        """``point`` with the values that the assumptions say."""
        if not self.inputs_assumed:
            return point
        names = [spec.name for spec in self.signature.inputs]
        return replace(point, inputs=met(self.inputs_assumed, names, point.inputs))

    def _check(self, point: Point, expected: Tensors | None) -> PointResult:
        sizes, point = dict(point.sizes), self.meeting(point)
        try:
            if other := self._not_assumed(point):
                return PointResult(point.label, sizes, skipped=other)
            expected = self.reference.run(point.inputs) if expected is None else expected
            undefined = self._undefined(point, expected)
        except Exception as error:  # noqa: BLE001 - eager may refuse a size in any way it likes; that is reported
            return PointResult(point.label, sizes, skipped=f"eager refuses it: {_told(error)}")
        if point.lenient and all(mask.numel() and bool(mask.all()) for mask in undefined):
            return PointResult(point.label, sizes, skipped="not compared: eager returns NaN or Inf")
        try:
            got = self.run(point)
        except ValidationError as error:
            return PointResult(point.label, sizes, error=str(error))
        names = [spec.name for spec in self.signature.outputs]
        results = self.scales.compare(
            names, expected, got, lambda: self.reference.run(point.inputs, double=True), undefined
        )
        if point.lenient and not all(result.passed for result in results):
            return self._excused(point, expected, results)
        return PointResult(point.label, sizes, tuple(results))

    def _not_assumed(self, point: Point) -> str:
        """Says so where eager takes a side that the artifact does not have."""
        if self.assumed:
            for site, taken in decisions_of(self.reference, point.inputs):
                if self.assumed.get(site, taken) != taken:
                    return f"not compared: the decision at {site} is {taken} here, and the artifact has only the other side"
        return ""

    def _undefined(self, point: Point, expected: Tensors) -> list[torch.Tensor]:
        """Elements of which eager's value means nothing: memory it did not write; at values of our own making, NaN and Inf
        in outputs that hold none on the example."""
        masks = [torch.zeros_like(output, dtype=torch.bool) for output in expected]
        if self.reference.unwritten_outputs:
            masks = list(self.reference.unwritten(point.inputs, expected))
        if point.lenient:
            for mask, output, example in zip(masks, expected, self.expected, strict=True):
                if _finite(example).all():
                    mask |= ~_finite(output)
        return masks

    def _excused(self, point: Point, expected: Tensors, results: Sequence[OutputComparison]) -> PointResult:
        """The result without the outputs at which eager itself hangs on its last bit, or only numbers beneath it differ."""
        roles = roles_of(self.signature, self.examples)
        shaken = Shaken(self.reference, roles, self.examples, point.inputs, expected)
        kept, left_out = [], {}
        for position, result in enumerate(results):
            example = self.expected[position]
            excuse = "" if result.passed else _rounded_off(result, example) or shaken.excuse(position, result)
            if excuse:
                left_out[result.name] = excuse
            else:
                kept.append(result)
        if not kept:
            return PointResult(point.label, dict(point.sizes), skipped=f"not compared: {next(iter(left_out.values()))}")
        told = tuple(f"{name!r} not compared: {excuse}" for name, excuse in left_out.items())
        return PointResult(point.label, dict(point.sizes), tuple(kept), left_out=told)

    def run(self, point: Point) -> list[torch.Tensor]:
        """The artifact's outputs at ``point``, as it is. Raises ValidationError where it does not run."""
        names = [spec.name for spec in self.signature.inputs]
        given = dict(zip(names, point.inputs, strict=True))
        outputs = self.process.run({name: value for name, value in given.items() if name in self.fed})
        wanted = [spec.name for spec in self.signature.outputs]
        if self.process.format != "onnx":
            return list(outputs.values())
        if set(outputs) != set(wanted):
            raise ValidationError(f"the artifact's outputs are {list(outputs)}, expected {wanted}")
        return [outputs[name] for name in wanted]


def _rounded_off(result: OutputComparison, example: torch.Tensor) -> str:
    """Says so where an artifact differs by less than one rounding of what the output is on the ``example``: far out on the
    tail of a sigmoid, runtimes give 0 for 1e-29."""
    if not (example.is_floating_point() or example.is_complex()) or result.nan_mismatch or result.inf_mismatch:
        return ""
    usual = example[_finite(example)].abs()
    limit = torch.finfo(example.dtype).eps * float(usual.max()) if usual.numel() else 0.0
    if not 0 < result.max_abs <= limit:
        return ""
    return f"a difference of {result.max_abs:.1e} is less than one rounding of the output's values on the example"


def _finite(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.isfinite() if tensor.is_floating_point() or tensor.is_complex() else torch.ones_like(tensor).bool()


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
