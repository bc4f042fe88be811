"""Outputs that hold memory which the model takes and does not write."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import fxexport
from fxexport.capture.filled_memory import OTHERS, ZEROS, Filled
from fxexport.errors import CaptureError, ValidationError
from fxexport.session import open_session


class Placeholders(nn.Module):
    """One output never written, one half written, one that has nothing to do with it."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        part = x.new_empty(x.shape[0], 4)
        part[:, :2] = x[:, :2]
        ids = torch.empty(x.shape[0], dtype=torch.int64)
        return {"none": torch.empty_like(x), "part": part, "sum": x.sum(1), "ids": ids}


@pytest.mark.parametrize("suffix", ["onnx", "pt", "pt2"])
def test_they_stay_and_are_not_compared(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"m.{suffix}"
    artifact = fxexport.compile(Placeholders().eval(), path, torch.randn(3, 5), dynamic={"x": ["batch", None]})
    told = [note for note in artifact.report.notes if "does not write (torch.empty)" in note]
    assert [note.partition(" holds")[0] for note in told] == ["output['none']", "output['part']", "output['ids']"]
    assert "6 of 12 values" in told[1]
    assert "6 of 12 values" in str(artifact.report)
    for point in artifact.report.validation.points:
        judges = {output.name: output.judge for output in point.outputs}
        assert judges == {
            "none": "shape and dtype only", "part": "eager", "sum": "eager", "ids": "shape and dtype only",
        }  # fmt: skip
    session, x = open_session(path), torch.randn(2, 5)
    none, part, total, ids = session(["x"], [x])
    assert not none.any(), "the same on every run: zeros"
    assert not ids.any()
    assert torch.equal(part, torch.cat([x[:, :2], torch.zeros(2, 2)], 1))
    torch.testing.assert_close(total, x.sum(1))


class HalfWrong(nn.Module):
    """Its half written output is wrong in the half that is written, once it is lowered."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        part = torch.empty(x.shape[0], 4)
        part[:, :2] = x[:, :2] if not torch.compiler.is_compiling() else x[:, 1:3]
        return part


def test_what_is_written_is_compared(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="6 of 12 values differ"):
        fxexport.compile(HalfWrong().eval(), tmp_path / "m.onnx", torch.randn(3, 5))


class Leaks(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = x + torch.empty(3)
        return y, y.relu() + y


class Shaped(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[: int(torch.empty(1, dtype=torch.int64)) + 1]


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Leaks(), r"every value of output\[0\], output\[1\] depends on memory that the model takes and does not write"),
        (Shaped(), "the shape of an output depends on memory"),
    ],
    ids=["leaks", "shaped"],
)
def test_it_is_refused_where_nothing_else_is_left(tmp_path: Path, model: nn.Module, reason: str) -> None:
    with pytest.raises(CaptureError, match=reason):
        fxexport.compile(model.eval(), tmp_path / "m.onnx", torch.randn(3))
    assert not list(tmp_path.iterdir())


class Overwritten(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.empty_like(x)
        y[:] = x * 2
        return y


def test_memory_that_is_written_is_nothing_to_tell(tmp_path: Path) -> None:
    artifact = fxexport.compile(Overwritten().eval(), tmp_path / "m.onnx", torch.randn(3))
    assert not artifact.report.notes
    assert {output.judge for point in artifact.report.validation.points for output in point.outputs} == {"eager"}


def test_random_numbers_are_not_mistaken_for_it(tmp_path: Path) -> None:
    class Both(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.empty_like(x), x + torch.rand(3)

    with pytest.raises(CaptureError, match=r"^output\[1\] differs from run to run in eager"):
        fxexport.compile(Both().eval(), tmp_path / "m.onnx", torch.randn(3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.complex64, torch.int32, torch.bool, torch.uint8])
def test_every_dtype_is_filled(dtype: torch.dtype) -> None:
    held = []
    for filling in (ZEROS, *OTHERS):
        with Filled(filling) as memory:
            made = [torch.empty(2, dtype=dtype), torch.empty_strided((2, 2), (1, 2), dtype=dtype)]
            made.append(made[0].new_empty(3))
        assert memory.used
        held.append([tensor.flatten()[0].item() for tensor in made])
    assert held[0] == [0, 0, 0]
    assert held[1] != held[2]
