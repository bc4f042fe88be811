"""Hidden limits of a dimension are found by larger sizes, exactly, and attributed to eager or to the export."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ProveEverywhere, Untouched
from torch import nn

from fxexport.capture.pipeline import capture_model
from fxexport.errors import CaptureError
from fxexport.lowering import lower
from fxexport.signature import Dimension, Signature, TensorSpec
from fxexport.validation import ArtifactProcess, ValidationReport, validate
from fxexport.validation.sweep import Point
from fxexport.validation.working_range import WorkingRange, describe, table_sizes, working_ranges

FRAMES, LENGTH = torch.randn(2, 4, 20), torch.tensor([20, 11])
MASKED = {"x": {0: "batch", 2: "time"}, "length": {0: "batch"}}


class Positions(nn.Module):
    """A table of 64 positions, sliced."""

    table: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.randn(1, 64, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.table[:, : x.size(1)]


class Looked(nn.Module):
    """Positions looked up behind a stride of 4: no shape in the graph tells how long the table is."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(100, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x[:, ::4]
        y: torch.Tensor = x + self.table(torch.arange(x.size(1)))
        return y


class Relative(nn.Module):
    """A relative positional encoding: a window around the centre of a table for 50 frames."""

    table: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.randn(1, 2 * 50 - 1, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        centre, time = self.table.size(1) // 2 + 1, x.size(1)
        return x @ self.table[:, centre - time : centre + time - 1].transpose(1, 2)


class Masked(nn.Module):
    """A mask from a buffer that eager grows, as masked convolutions do it. ``max_len`` is a tensor, not a buffer."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 4, 3, padding=1)
        self.grow(size)

    def grow(self, size: int) -> None:
        self.range, self.max_len = torch.arange(size), torch.tensor(size)

    def forward(self, x: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        if x.size(2) > self.max_len:
            self.grow(2 * x.size(2))
        mask = self.range[: x.size(2)].unsqueeze(0) < length.unsqueeze(1)
        y: torch.Tensor = self.conv(x * mask.unsqueeze(1))
        return y


class MaskedByBuffer(Masked):
    def grow(self, size: int) -> None:
        self.register_buffer("range", torch.arange(size), persistent=False)
        self.register_buffer("max_len", torch.tensor(size))


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine must not end a search; the budget of one run alone decides what is too slow."""
    monkeypatch.setattr("fxexport.validation.working_range._SECONDS", 60.0)


@pytest.fixture
def prove_ranges(tmp_path: Path) -> Callable[..., ValidationReport]:
    def prove(model: nn.Module, example: Any, dynamic: Any, suffix: str = "onnx") -> ValidationReport:
        captured = capture_model(model.eval(), example, dynamic_shapes=dynamic)
        path = tmp_path / f"model.{suffix}"
        lower(captured.program, path)
        with ArtifactProcess("torchscript" if suffix == "pt" else suffix) as process:
            return validate(process, path, captured.reference, captured.program.signature, captured.examples)

    return prove


def range_of(report: ValidationReport, name: str) -> WorkingRange:
    assert report.passed, [point.reason for point in report.failures]
    return next(found for found in report.ranges if found.dimension == name)


@pytest.mark.parametrize("suffix", ["onnx", "pt", "pt2"])
def test_a_table_that_eager_slices_is_a_limit_of_eager(suffix: str, prove_ranges: Any) -> None:
    report = prove_ranges(Positions(), torch.randn(2, 10, 4), {"x": {0: "batch", 1: "time"}}, suffix)
    found = range_of(report, "time")
    assert (found.minimum, found.maximum, found.by) == (1, 64, "eager")
    assert describe(found).startswith("dimension 'time' works up to 64: eager refuses 65: RuntimeError: The size of")
    assert report.limits == [describe(found)]
    assert range_of(report, "batch").maximum is None
    assert found.to_json() in report.to_json()["ranges"]


def test_a_table_that_no_shape_tells_of_is_found_behind_a_stride(prove_ranges: Any) -> None:
    found = range_of(prove_ranges(Looked(), torch.randn(2, 12, 4), {"x": {0: "batch", 1: "time"}}), "time")
    assert (found.maximum, found.by) == (400, "eager")
    assert "eager refuses 401: IndexError" in found.reason


def test_a_relative_encoding_is_tried_up_to_its_bound(prove_ranges: Any) -> None:
    """One frame more and the slice starts at -1: Python wraps around, so nobody refuses it and only the graph says no."""
    found = range_of(prove_ranges(Relative(), torch.randn(2, 10, 4), {"x": {1: "time"}}), "time")
    assert (found.maximum, found.tried, found.by) == (50, 50, "graph")


@pytest.mark.parametrize("kind", [Masked, MaskedByBuffer])
def test_a_buffer_that_eager_grows_is_a_limit_of_the_export(
    kind: type[Masked], prove_ranges: Any, untouched: Untouched
) -> None:
    model = kind(40).eval()
    with untouched(model):
        report = prove_ranges(model, (FRAMES, LENGTH), MASKED)
    found = range_of(report, "time")
    assert (found.maximum, found.by) == (40, "artifact")
    assert "at 41 eager works and the artifact does not" in describe(found)
    assert "give an example with a larger 'time'" in describe(found)
    assert report.limits == [describe(found)]


@pytest.mark.parametrize("size", [0, 10])
def test_a_buffer_that_grows_on_the_example_is_no_limit(size: int, prove_ranges: Any) -> None:
    found = range_of(prove_ranges(Masked(size), (FRAMES, LENGTH), MASKED), "time")
    assert (found.minimum, found.maximum, found.tried) == (size + 1, None, 160)


def test_sizes_compared_with_a_tensor_are_named_in_the_notes(prove: ProveEverywhere) -> None:
    captured = prove(Masked(40).eval(), (FRAMES, LENGTH), dynamic_shapes=MASKED)
    (guard,) = captured.program.signature.guards
    assert guard.condition == "time <= 40"
    assert guard.place.startswith("tests/test_working_range.py:")
    (note,) = [note for note in captured.program.notes if "is fixed as it is now" in note]
    assert note == f"max_len = 40 is fixed as it is now: sizes are compared with it at {guard.place}"


def test_many_layers_make_one_note() -> None:
    class Layers(nn.ModuleList):
        def forward(self, x: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
            for layer in self:
                x = layer(x, length)
            return x

    captured = capture_model(Layers(Masked(40) for _ in range(5)).eval(), (FRAMES, LENGTH), dynamic_shapes=MASKED)
    (note,) = [note for note in captured.program.notes if "fixed as they are now" in note]
    assert note.startswith("0.max_len, 1.max_len, 2.max_len and 2 more = 40 are fixed")


def test_a_fixed_size_is_compared_with_a_tensor_that_stays(prove: ProveEverywhere) -> None:
    assert prove(Masked(40).eval(), (FRAMES, LENGTH)).program.signature.dimensions == ()


class Written(Masked):
    """What ``max_len`` holds is changed in place before it is compared: its value is not known any more."""

    def forward(self, x: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        self.max_len.data.add_(length.max() - 30)
        return super().forward(x, length)


class OnData(Masked):
    def forward(self, x: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        return x if x.size(2) > length.max() else -x


def test_a_tensor_whose_value_changes_with_the_data_stops_capture() -> None:
    with pytest.raises(CaptureError, match=r"(?s)neither a parameter nor a buffer.*register_buffer"):
        capture_model(Written(40).eval(), (FRAMES, LENGTH), dynamic_shapes=MASKED)


def test_a_size_compared_with_data_decides_in_the_artifact(prove: ProveEverywhere) -> None:
    captured = prove(OnData(40).eval(), (FRAMES, LENGTH), dynamic_shapes=MASKED)
    assert captured.program.signature.guards == ()
    longest = torch.tensor([20, 3]), torch.tensor([19, 3])
    for length, sign in zip(longest, (-1, 1), strict=True):
        assert torch.equal(captured.program.run(FRAMES, length)[0], sign * FRAMES)


def test_no_limit_costs_few_runs(prove_ranges: Any) -> None:
    report = prove_ranges(nn.Linear(4, 4), torch.randn(2, 20, 4), {"input": {0: "batch", 1: "time"}})
    assert [(found.maximum, found.tried) for found in report.ranges] == [(None, 16), (None, 160)]
    assert describe(report.ranges[1]) == "dimension 'time' works: no limit found, tried up to 160"
    assert report.limits == []


@dataclass
class Fake:
    skipped: str = ""
    reason: str = ""

    @property
    def passed(self) -> bool:
        return not self.reason


def searched(
    judge: Callable[[int], Fake], own: int = 8, maximum: int | None = None, seconds: float = 0.001
) -> tuple[WorkingRange, list[int]]:
    """The range of one dimension of ``[time, 4]`` beside a table of 500, and the sizes that were tried."""
    dimension = Dimension("time", own, maximum=maximum)
    signature = Signature((TensorSpec("x", torch.float32, ("time", 4)),), (), dimensions=(dimension,))
    tried = []

    def check(point: Point) -> Fake:
        assert point.inputs[0].shape == (point.sizes["time"], 4)
        tried.append(point.sizes["time"])
        return judge(point.sizes["time"])

    (found,) = working_ranges(signature, [torch.randn(own, 4)], nn.Embedding(500, 3), check, {}, seconds)
    return found, tried


@pytest.mark.parametrize("limit", [9, 64, 300, 500])
def test_the_limit_is_exact(limit: int) -> None:
    found, tried = searched(lambda size: Fake(reason="wrong" if size > limit else ""))
    assert (found.maximum, found.by) == (limit, "artifact")
    assert limit + 1 in tried
    assert len(tried) < 16


def test_sizes_that_must_divide_do_not_hide_larger_ones() -> None:
    found, _ = searched(lambda size: Fake(skipped="eager refuses it: odd") if size > 320 or size % 8 else Fake())
    assert (found.maximum, found.by) == (320, "eager")


def test_a_slow_model_is_not_tried_at_larger_sizes() -> None:
    found, tried = searched(lambda size: Fake(), seconds=3.1)
    assert tried == []
    assert describe(found).endswith("tried up to 8; larger sizes not tried: one run takes 3.1 s")


def test_inputs_stay_within_the_budget() -> None:
    found, tried = searched(lambda size: Fake(), own=2**19)
    assert (found.maximum, max(tried, default=0)) == (None, 2**20)


@pytest.mark.parametrize("reason", ["the onnx artifact failed: it ran out of memory", "artifact process (onnx) died"])
def test_a_machine_that_gives_up_is_no_limit_of_the_model(reason: str) -> None:
    found, tried = searched(lambda size: Fake(reason=reason if size > 100 else ""))
    assert (found.maximum, found.tried, found.by) == (None, 64, "")
    assert reason in describe(found)
    assert len(tried) == 2


def test_a_bound_within_which_all_works_is_the_graphs() -> None:
    found, _ = searched(lambda size: Fake(), maximum=100)
    assert (found.maximum, found.by) == (100, "graph")
    found, _ = searched(lambda size: Fake(), maximum=100, seconds=3.1)
    assert (found.maximum, found.tried, found.by) == (100, 8, "graph")
    found, _ = searched(lambda size: Fake(reason="wrong" if size > 90 else ""), maximum=100)
    assert (found.maximum, found.by) == (90, "artifact")


def test_tables_are_buffers_tensors_embeddings_and_own_parameters() -> None:
    model = Masked(40)
    model.table, model.own = nn.Embedding(30, 3), Positions()
    assert {40, 30, 64} <= set(table_sizes(model))
    assert set(table_sizes(nn.Conv1d(5, 6, 7))) == set()
