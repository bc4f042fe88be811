"""Subnets whose hooks change what they compute, proved together; and what a teardown that fails leaves behind."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from conftest import Untouched
from torch import nn

import fxexport
from fxexport import Exportable, InputError, Pipeline, Tensor


class Scaled(nn.Module, Exportable):
    """Twice as much when exported, as a joint network that leaves out its softmax."""

    input_types: ClassVar = {"x": Tensor("batch", 4)}

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.factor = nn.Linear(4, 4), 1.0

    def _prepare_for_export(self, **kwargs: object) -> None:
        self.factor = 2.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) * self.factor


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Scaled(), Scaled()

    def list_export_subnets(self) -> list[str]:
        return ["first", "second"]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


def drive(model: Two, x: torch.Tensor) -> torch.Tensor:
    return model.second(model.first(x).relu())


def test_parts_that_hooks_change_are_proved_together_as_prepared(tmp_path: Path, untouched: Untouched) -> None:
    model, x = Two().eval(), torch.randn(3, 4)
    with untouched(model), pytest.warns(UserWarning, match="_prepare_for_export changes"):
        pipeline = fxexport.compile(model, tmp_path / "m.onnx", torch.ones(2, 4))
    assert isinstance(pipeline, Pipeline)
    assert pipeline.report.check.passed
    want = 2 * model.second.linear(2 * model.first.linear(x))
    got = pipeline(x=x)
    np.testing.assert_allclose(got["output"], want.detach().numpy(), rtol=1e-4, atol=1e-5)


def test_with_a_driver_too(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="_prepare_for_export changes"):
        pipeline = fxexport.compile(Two().eval(), tmp_path / "m.onnx", torch.ones(2, 4), driver=drive)
    assert pipeline.report.check.passed
    assert len({point.label.partition(",")[0] for point in pipeline.report.check.points}) >= 2, "other sizes as well"


def test_a_recording_of_the_model_without_its_hooks_is_said_to_prove_nothing(tmp_path: Path) -> None:
    model = Two().eval()
    recording = fxexport.record(model, drive, torch.ones(2, 4))
    with pytest.warns(UserWarning, match="_prepare_for_export changes"):
        pipeline = fxexport.compile(model, tmp_path / "m.onnx", recording=recording)
    assert pipeline.report.check is None
    assert any("the parts were not proved together" in note for note in pipeline.report.notes)


def test_a_teardown_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    class Failing(Scaled):
        def _export_teardown(self) -> None:
            raise RuntimeError("cannot tidy up")

    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")
    with (
        pytest.warns(UserWarning, match="changes"),
        pytest.raises(InputError, match="_export_teardown raised RuntimeError"),
    ):
        fxexport.compile(Failing().eval(), path, torch.ones(2, 4))
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["m.onnx"]


def test_another_python_value_is_no_further_example(tmp_path: Path) -> None:
    class Power(nn.Module):
        def forward(self, x: torch.Tensor, n: int) -> torch.Tensor:
            return x * n

    x = torch.randn(2)
    with pytest.raises(InputError, match=r"check_trace\[0\] has n = 3 \(not 2\): a Python value is fixed"):
        fxexport.compile(Power().eval(), tmp_path / "m.onnx", (x, 2), check_trace=[(x, 3)])


def test_an_example_hook_of_the_whole_that_fails_is_named_in_the_notes(tmp_path: Path) -> None:
    class Failing(Two):
        def input_example(self) -> torch.Tensor:
            raise ZeroDivisionError("no data here")

    model = Failing().eval()
    model.first.input_example = model.second.input_example = torch.ones(2, 4)
    with pytest.warns(UserWarning, match="_prepare_for_export changes"):
        pipeline = fxexport.compile(model, tmp_path / "m.onnx")
    (note,) = (note for note in pipeline.report.notes if "was not recorded" in note)
    assert "Failing.input_example() raised ZeroDivisionError" in note
    assert "no data here" in note


def test_an_example_hook_that_changes_the_model_changes_neither_parts_nor_judge(
    tmp_path: Path, untouched: Untouched
) -> None:
    class Changing(Two):
        def input_example(self, max_batch: int) -> torch.Tensor:
            with torch.no_grad():
                self.first.linear.weight.zero_()
            return torch.randn(max_batch, 4)

    model, x = Changing().eval(), torch.randn(3, 4)
    with untouched(model), pytest.warns(UserWarning, match="_prepare_for_export changes"):
        pipeline = fxexport.compile(model, tmp_path / "m.onnx")
    want = 2 * model.first.linear(x)
    np.testing.assert_allclose(pipeline.run("first", x=x)["output"], want.detach().numpy(), rtol=1e-4, atol=1e-5)
