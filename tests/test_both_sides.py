"""Inputs on both sides of decisions that a model takes on values."""

from __future__ import annotations

import linecache
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import pytest
import torch
from torch import nn

from fxexport.capture.pipeline import capture_model, reference_for
from fxexport.capture.recording_decisions import decisions_of
from fxexport.capture.reference import Reference
from fxexport.decisions import Decision, Form
from fxexport.lowering import lower
from fxexport.signature import Signature, TensorSpec
from fxexport.validation import ArtifactProcess, ValidationReport, validate
from fxexport.validation.both_sides import Sides, both_sides
from fxexport.validation.sweep import points

Forward = Callable[..., torch.Tensor]


def mean_is_not_one(x: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    if torch.mean(maps) != 1:
        return x / maps.square().sum()
    return x


def has_nan(x: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    if torch.isnan(x).any():
        x = torch.where(x.isnan(), 0.0, x)
    return x * maps


def is_loud(x: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    if x.abs().max() > 37:
        return x.clamp(-37, 37)
    return x + maps


def refines(x: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    steps = 0
    while torch.min(x.abs()) > 0.5 and steps < 3:
        x, steps = x * 0.75, steps + 1
    return x + maps


def between(x: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    level = x.mean()
    if level > 0.1:
        return x + maps
    if level < -0.1:
        return x - maps
    return x * maps


def impossible(x: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    if x.square().sum() < 0:
        return -x
    return x + maps


def refused(x: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    if x.mean() < 0:
        raise ValueError("expects positive images")
    return x.sqrt() + maps


class Calls(nn.Module):
    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.function = forward

    def forward(self, x: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
        return self.function(x, maps)


def given() -> list[torch.Tensor]:
    return [torch.rand(2, 5) + 1, torch.rand(2, 5) + 1]


def reference_of(forward: Forward, example: Sequence[torch.Tensor]) -> Reference:
    return reference_for(Calls(forward).eval(), tuple(example))[0]


SIGNATURE = Signature(
    (TensorSpec("x", torch.float32, (2, 5), "x"), TensorSpec("maps", torch.float32, (2, 5), "maps")), ()
)


def decisions(
    reference: Reference, example: Sequence[torch.Tensor], form: Form, value: bool | None = None
) -> list[Decision]:
    """What a capture would say of the sites of ``reference``, first of those that the example meets."""
    sites = dict.fromkeys(site for site, _ in decisions_of(reference, example))
    return [Decision(site, linecache.getline(__file__, int(site.split(":")[1])).strip(), form, value) for site in sites]


def found(forward: Forward, form: Form = "branch") -> tuple[Sides, Reference, list[Decision]]:
    example = given()
    reference = reference_of(forward, example)
    known = decisions(reference, example, form)
    return both_sides(reference, SIGNATURE, example, known, points(SIGNATURE, example)), reference, known


@pytest.mark.parametrize("forward", [mean_is_not_one, has_nan, is_loud, refines], ids=lambda f: f.__name__)
def test_the_other_side_is_found(forward: Forward) -> None:
    example = given()
    reference = reference_of(forward, example)
    known = decisions(reference, example, "branch")
    sides, (decision, *_) = both_sides(reference, SIGNATURE, example, known), known
    assert not sides.missing
    (point, *_) = sides.points
    assert point.label.startswith(f"branch {decision.site} ")
    taken = point.label.removeprefix(f"branch {decision.site} ")
    assert (decision.site, taken == "True") in decisions_of(reference, point.inputs)


def test_what_lies_between_two_sides_is_found() -> None:
    example = given()
    reference = reference_of(between, example)
    negative = [-example[0], example[1]]
    known = decisions(reference, negative, "branch")
    assert len(known) == 2
    sides = both_sides(reference, SIGNATURE, example, known)
    assert not sides.missing
    both = {side for point in sides.points for side in decisions_of(reference, point.inputs)}
    assert {(decision.site, side) for decision in known for side in (True, False)} <= both


def test_what_other_points_take_is_not_searched() -> None:
    example = given()
    reference = reference_of(mean_is_not_one, example)
    known = decisions(reference, example, "select")
    tried = [*points(SIGNATURE, example), *found(mean_is_not_one)[0].points]
    assert both_sides(reference, SIGNATURE, example, known, tried) == Sides()


def test_what_is_never_reached_is_said() -> None:
    sides, _, (decision,) = found(impossible)
    assert not sides.points
    assert sides.missing == [
        f"the side True of 'if x.square().sum() < 0:' at {decision.site} was not reached by any input tried: proved on "
        "structure only"
    ]


@pytest.mark.parametrize("form", ["assumed", "raises"])
def test_one_side_is_enough_where_there_is_no_other(form: Form) -> None:
    assert found(impossible, form)[0] == Sides()


def test_eager_is_not_run_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    module: Any = __import__("fxexport.validation.both_sides", fromlist=["decisions_of"])
    real = module.decisions_of
    monkeypatch.setattr(module, "decisions_of", lambda *given: runs.append(1) or real(*given))
    found(impossible)
    assert 20 < len(runs) <= 64


class Judged(Protocol):
    """Judges a file that holds what ``file`` does by a model that decides."""

    def __call__(
        self, forward: Forward, file: Forward, form: Form = "branch", value: bool | None = None
    ) -> ValidationReport: ...


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judged]:
    """One runtime for all files."""
    with ArtifactProcess("onnx") as process:

        def judge(
            forward: Forward, file: Forward, form: Form = "branch", value: bool | None = None
        ) -> ValidationReport:
            example = given()
            reference, expected, _, _ = reference_for(Calls(forward).eval(), tuple(example))
            signature = (program := capture_model(Calls(file).eval(), tuple(example)).program).signature
            path = tmp_path_factory.mktemp("judged") / "m.onnx"
            lower(program, path)
            known = decisions(reference, example, form, value)
            return validate(process, path, reference, signature, example, expected=expected, decisions=known)

        yield judge


def test_a_baked_side_is_wrong(judged: Judged) -> None:
    report = judged(is_loud, lambda x, maps: torch.where(x.abs().max() > 1e4, -x, x + maps))
    assert not report.passed
    right = judged(is_loud, lambda x, m: torch.where(x.abs().max() > 37, x.clamp(-37, 37), x + m))
    assert right.passed


def test_a_side_that_rounding_alone_reaches_is_compared(judged: Judged) -> None:
    report = judged(mean_is_not_one, lambda x, maps: x / maps.square().sum())
    assert not report.passed
    right = judged(mean_is_not_one, lambda x, m: torch.where(m.mean() != 1, x / m.square().sum(), x))
    assert right.passed


def test_nan_is_compared_where_the_model_looks_for_it(judged: Judged) -> None:
    report = judged(has_nan, lambda x, maps: x * maps)
    assert [point.label.rpartition(" ")[2] for point in report.failures] == ["True"]
    assert report.failures[0].label.startswith("branch tests/test_both_sides.py:")
    assert judged(has_nan, lambda x, maps: torch.where(x.isnan(), 0.0, x) * maps).passed


def test_what_was_assumed_is_kept_to(judged: Judged) -> None:
    report = judged(is_loud, lambda x, maps: x + maps, "assumed", False)
    assert report.passed
    skipped = {point.label: point.skipped for point in report.points if point.skipped}
    assert set(skipped) == {"large", "large in x"}
    assert "is True here, and the artifact has only the other side" in skipped["large"]


def test_a_side_that_raises_is_skipped(judged: Judged) -> None:
    report = judged(refused, lambda x, maps: x.sqrt() + maps, "raises", False)
    assert report.passed
    skipped = {point.label: point.skipped for point in report.points if point.skipped}
    assert "eager refuses it: ValueError: expects positive images" in skipped["negated"]


def test_what_was_not_reached_is_a_limit(judged: Judged) -> None:
    report = judged(impossible, lambda x, maps: x + maps)
    assert report.passed
    assert len(report.limits) == 1
    assert "proved on structure only" in report.limits[0]
