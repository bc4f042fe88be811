"""What models of real toolboxes do besides their hooks, in plain torch: each of these once stopped or bent an export."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import fxexport
from fxexport.capture import Reference, bind_example
from fxexport.capture.private_copy import private_copy
from fxexport.exportable import ExportRequest, prepared_part


class Wrapped:
    """A bound method in a proxy that cannot be copied, as tracing and logging decorators put on an instance."""

    def __init__(self, method: Any) -> None:
        self.method = method

    def __deepcopy__(self, memo: dict[int, Any]) -> Wrapped:
        raise NotImplementedError("object proxy must define __deepcopy__()")


class GrowingMask(nn.Module):
    """Keeps a mask that grows with the longest input so far, by a factor that makes its length a float."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.longest: float = 0
        self.training_step = Wrapped(self.forward)

    def input_example(self) -> Tensor:
        return torch.randn(2, 6, 4)

    @property
    def input_types(self) -> dict[str, fxexport.Tensor]:
        return {"frames": fxexport.Tensor("batch", "time", "channel")}

    @property
    def output_types(self) -> dict[str, fxexport.Tensor]:
        return {"scores": fxexport.Tensor("batch", "time", "channel")}

    def forward_for_export(self, frames: Tensor) -> Tensor:
        length = frames.size(1)
        if length > self.longest:
            self.longest = length * 2 if length < 5 else length * 1.5 if length < 10 else length
            self.register_buffer("steps", torch.arange(0, self.longest), persistent=False)
        return self.linear(frames) + self.steps[: frames.size(1), None]

    def forward(self, frames: Tensor) -> Tensor:
        raise AssertionError("forward_for_export is what is exported")


def test_what_refers_to_the_model_is_not_to_blame_for_an_attribute_that_cannot_be_copied() -> None:
    model = GrowingMask()
    with prepared_part(model, "self", ExportRequest(Path("model.onnx"))) as part:
        copied, notes = private_copy(part.module)
        copied(torch.randn(1, 3, 4))
    assert copied.longest == 6
    assert part.module.longest == model.longest == 0
    assert [note.split()[0] for note in notes] == ["training_step"]


def test_a_length_that_became_a_float_bounds_the_size_like_any_other(tmp_path: Path) -> None:
    model = GrowingMask()
    model.forward_for_export(torch.randn(1, 8, 4))  # up to 12.0
    report = str(fxexport.compile(model, tmp_path / "model.onnx").report)
    assert "time <= 12:" in report


def test_a_mask_that_grows_in_the_first_call_bounds_the_size_by_the_mask_and_not_by_how_it_grew(tmp_path: Path) -> None:
    made = fxexport.compile(GrowingMask(), tmp_path / "model.onnx")
    (time,) = [dimension for dimension in made.report.signature.dimensions if dimension.name == "time"]
    assert (time.minimum, time.maximum) == (0, 9)
    assert "forward builds steps, longest in its first call" in str(made.report)


class Counter(GrowingMask):
    """Counts its calls in a plain attribute, and returns the count."""

    def forward_for_export(self, frames: Tensor) -> Tensor:
        result = super().forward_for_export(frames)
        self.calls = getattr(self, "calls", 0) + 1
        return result + self.calls


def test_a_model_whose_second_call_differs_is_captured_in_its_present_state(tmp_path: Path) -> None:
    made = fxexport.compile(Counter(), tmp_path / "model.onnx")
    (time,) = [dimension for dimension in made.report.signature.dimensions if dimension.name == "time"]
    assert (time.minimum, time.maximum) == (5, 9)
    assert "forward builds" not in str(made.report)


class Kind:
    """What a toolbox says of an axis: what it means, and not whether it may change."""

    def __init__(self, kind: str) -> None:
        self.kind = kind


class NeuralType:
    """A toolbox's type of a tensor, by its attributes."""

    optional = False

    def __init__(self, *kinds: str) -> None:
        self.axes = tuple(map(Kind, kinds))


class Streaming(nn.Module):
    """A chunk of any length, and a cache of the ``frames`` before it; what comes back is the next cache."""

    def __init__(self, frames: int) -> None:
        super().__init__()
        self.frames = frames
        self.linear, self.past = nn.Linear(4, 4), nn.Linear(4 * frames, 4)

    def input_example(self) -> tuple[Tensor, Tensor]:
        return torch.randn(1, 6, 4), torch.randn(1, self.frames, 4)

    input_types: ClassVar[dict[str, Any]] = {
        "chunk": NeuralType("batch", "time", "dimension"),
        "cache": NeuralType("batch", "time", "dimension"),
    }
    output_types: ClassVar[dict[str, Any]] = {
        "scores": NeuralType("batch", "time", "dimension"),
        "next": NeuralType("batch", "time", "dimension"),
    }

    def forward(self, chunk: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.linear(chunk) + self.past(cache.flatten(1))[:, None]
        return scores, torch.cat([cache, chunk], 1)[:, -self.frames :]


@pytest.mark.parametrize("frames", [3, 1])
def test_a_time_axis_that_eager_has_at_one_size_only_is_fixed_and_said(tmp_path: Path, frames: int) -> None:
    made = fxexport.compile(Streaming(frames).eval(), tmp_path / "model.onnx")
    chunk, cache = made.report.signature.inputs
    assert (chunk.axes, cache.axes) == (("batch", "chunk_time", 4), ("batch", frames, 4))
    assert any(f"fixed at {frames}" in note and "eager takes no other size" in note for note in made.report.notes)


def test_a_time_axis_of_our_own_type_that_the_model_fixes_is_an_error(tmp_path: Path) -> None:
    model = Streaming(3).eval()
    kinds = {"chunk": "frames", "cache": "past"}
    model.input_types = {name: fxexport.Tensor("batch", kind, "dimension") for name, kind in kinds.items()}
    with pytest.raises(fxexport.CaptureError, match="dimension 1 of 'cache' \\('past'\\) was declared dynamic"):
        fxexport.compile(model, tmp_path / "model.onnx")


class Chunked(nn.Module):
    """Windows of 8 steps that overlap by half: one of them where the input is short."""

    def input_example(self) -> Tensor:
        return torch.randn(2, 8, 1)

    input_types: ClassVar[dict[str, Any]] = {"frames": fxexport.Tensor("batch", "time", "channel")}

    def forward(self, frames: Tensor) -> Tensor:
        padded = nn.functional.pad(frames, (0, 0, 0, -frames.size(1) % 8))
        blocks = padded.view(padded.size(0), padded.size(1) // 8, 8, padded.size(2))
        size, stride = list(blocks.size()), list(blocks.stride())
        size[1], stride[1] = size[1] * 2 - 1, stride[1] // 2
        windows = blocks.as_strided(size, stride)
        scores = nn.functional.pad(torch.einsum("bcxd,bcyd->bcxy", windows, windows), (0, 0, 0, 1))
        return scores.view(*scores.size()[:-2], scores.size(-1), scores.size(-2))


def test_a_number_of_chunks_that_is_1_on_the_example_stays_a_number_of_chunks(tmp_path: Path) -> None:
    made = fxexport.compile(Chunked().eval(), tmp_path / "model.onnx")
    points = [point.sizes["time"] for point in made.report.validation.points]
    assert max(points) > 8  # more than one window, and agreed
    assert made.report.signature.outputs[0].axes[1] != 1


class CastsToSingle(nn.Module):
    """Works in float32, whatever it is given, as features of audio and norms do."""

    def forward(self, x: Tensor) -> Tensor:
        return x.to(torch.float32).sum(0, dtype=torch.float32) + torch.zeros(1, dtype=torch.float32)


def test_the_float64_judge_runs_in_float64_where_the_model_casts_to_float32() -> None:
    x = torch.full((3,), 0.1)
    reference = Reference(CastsToSingle(), bind_example(CastsToSingle(), (x,), None))
    (exact,) = reference.run([x], double=True)
    assert exact.dtype == torch.float64
    assert exact.item() == x.double().sum().item() != reference.run([x])[0].item()
