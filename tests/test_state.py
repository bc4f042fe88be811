"""State that forward updates: reported when frozen, threaded through when explicit."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import fxexport


class Recurrence(nn.Module):
    """Counts its calls and keeps the last rows it saw: one buffer written in place, one replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.register_buffer("count", torch.zeros(1))
        self.register_buffer("cache", torch.zeros(2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count += 1
        self.cache = torch.cat([self.cache[1:], self.linear(x).mean(0, keepdim=True)])
        return x * self.count + self.cache.sum()


@pytest.fixture
def model() -> Recurrence:
    torch.manual_seed(0)
    return Recurrence().eval()


def test_frozen_state_is_reported_and_the_model_keeps_its_own(model: Recurrence, tmp_path: Path) -> None:
    artifact = fxexport.compile(model, tmp_path / "m.onnx", torch.randn(4, 3))
    assert [spec.name for spec in artifact.inputs] == ["x"]
    assert any("keeps state: count, cache" in note for note in artifact.report.notes)
    assert model.count.item() == 0
    assert not model.cache.any()


@pytest.mark.parametrize("suffix", ["onnx", "pt", "pt2"])
def test_explicit_state_goes_in_and_out(model: Recurrence, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"m.{suffix}"
    compiled = fxexport.compile(model, path, torch.randn(4, 3), dynamic={"x": ["batch", None]}, state="explicit")
    assert [spec.name for spec in compiled.inputs] == ["x", "input_count", "input_cache"]
    assert [spec.name for spec in compiled.outputs] == ["output", "output_count", "output_cache"]
    artifact, eager = fxexport.Artifact.load(path), copy.deepcopy(model)
    state = {"count": model.count, "cache": model.cache}
    with torch.no_grad():
        for batch in (4, 1, 7):
            x = torch.randn(batch, 3)
            result, state = artifact(x, state=state)
            torch.testing.assert_close(result, eager(x))
    torch.testing.assert_close(state["cache"], eager.cache)
    assert state["count"].item() == 3
    assert model.count.item() == 0


def test_explicit_state_of_a_model_without_any(tmp_path: Path) -> None:
    artifact = fxexport.compile(nn.Linear(3, 2), tmp_path / "m.onnx", torch.randn(4, 3), state="explicit")
    assert [spec.name for spec in artifact.inputs] == ["input"]
    assert artifact(torch.ones(4, 3)).shape == (4, 2)


def test_unknown_state_is_refused(model: Recurrence, tmp_path: Path) -> None:
    with pytest.raises(fxexport.InputError, match="'frozen' or 'explicit'"):
        fxexport.compile(model, tmp_path / "m.onnx", torch.randn(4, 3), state="kept")
    with pytest.raises(fxexport.InputError, match="missing inputs"):
        fxexport.compile(model, tmp_path / "m.onnx", torch.randn(4, 3), state="explicit")(torch.randn(4, 3))
