"""Lengths that the model predicts: right for other values than those of the example, in every format."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import ProveEverywhere
from torch import Tensor, nn

from fxexport.capture.pipeline import Captured, capture_model
from fxexport.errors import CaptureError
from fxexport.session import open_session


class LengthRegulator(nn.Module):
    """Repeats every token by its predicted duration; rows of the batch are as long as the longest."""

    def __init__(self, whole: bool = False) -> None:
        super().__init__()
        self.predictor, self.whole = nn.Linear(3, 1), whole

    def forward(self, tokens: Tensor, pace: Tensor) -> tuple[Tensor, Tensor]:
        predicted = self.predictor(tokens).squeeze(-1)
        durations = torch.clamp(torch.exp(predicted.abs() + 0.3) - 1, 0, 75) * pace
        repeats = (durations + 0.5).floor().long()
        lengths = repeats.sum(dim=1)
        longest = int(lengths.max()) if self.whole else lengths.max()
        ends = torch.cumsum(F.pad(repeats, (1, 0)), dim=1)[:, None, :].to(tokens.dtype)
        steps = torch.arange(longest)[None, :, None]  # type: ignore[arg-type]
        chosen = (ends[:, :, :-1] <= steps) & (ends[:, :, 1:] > steps)
        return torch.matmul(chosen.to(tokens.dtype), tokens), lengths


class Repeat(nn.Module):
    """One batch of tokens, repeated by the same durations, and a layer behind."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 4, 3, padding=1)

    def forward(self, tokens: Tensor, durations: Tensor) -> Tensor:
        result: Tensor = self.conv(torch.repeat_interleave(tokens, durations, dim=1).transpose(1, 2))
        return result


TOKENS = torch.randn(2, 5, 3)
AXES = {"tokens": ["batch", "text", None], "pace": [None]}


def agrees_at(captured: Captured, folder: Path, *inputs: Tensor) -> list[tuple[int, ...]]:
    """Every proved file gives what eager gives on ``inputs``; the shapes of the outputs."""
    want = captured.reference.run(inputs)
    for suffix in ("onnx", "pt", "pt2"):
        names = [spec.name for spec in captured.program.signature.inputs]
        got = open_session(folder / f"proved.{suffix}")(names, list(inputs))
        for mine, theirs in zip(got, want, strict=True):
            torch.testing.assert_close(torch.as_tensor(mine), theirs, rtol=1e-4, atol=1e-5)
    return [tuple(tensor.shape) for tensor in want]


@pytest.mark.parametrize("whole", [False, True], ids=["tensor", "int"])
def test_a_length_regulator_follows_the_durations(whole: bool, prove: ProveEverywhere, tmp_path: Path) -> None:
    """``int(lengths.max())`` is a size that depends on the data as ``lengths.max()`` is."""
    captured = prove(LengthRegulator(whole).eval(), (TOKENS, torch.tensor([2.0])), dynamic=AXES)
    mel, lengths = captured.program.signature.outputs
    assert (mel.axes, lengths.axes) == (("batch", "output_0_dim_1", 3), ("batch",))
    slow, slower = (agrees_at(captured, tmp_path, TOKENS + 1, torch.tensor([pace]))[0][1] for pace in (3.0, 7.0))
    assert slower > slow > 0, "the durations changed nothing, so the test proves nothing"
    agrees_at(captured, tmp_path, torch.randn(3, 9, 3), torch.tensor([4.0]))


def test_repeats_of_the_example_are_not_fixed(prove: ProveEverywhere, tmp_path: Path) -> None:
    durations = torch.tensor([1, 0, 2, 3, 1])
    axes = {"tokens": ["batch", "text", None], "durations": ["text"]}
    captured = prove(Repeat().eval(), (TOKENS, durations), dynamic=axes)
    assert captured.program.signature.outputs[0].axes == ("batch", 4, "output_dim_2")
    assert agrees_at(captured, tmp_path, TOKENS, durations * 3)[0][2] == 21
    assert agrees_at(captured, tmp_path, torch.randn(1, 2, 3), torch.tensor([0, 4]))[0][2] == 4


def test_a_number_read_from_a_tensor_is_a_size(prove: ProveEverywhere, tmp_path: Path) -> None:
    class Crop(nn.Module):
        def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
            longest = lengths.max().item()
            return x[:, :longest].cumsum(1), torch.zeros(longest, 2)  # type: ignore[arg-type]

    axes = {"x": ["batch", "time"], "lengths": ["batch"]}
    captured = prove(Crop(), (torch.randn(4, 10), torch.tensor([3, 4, 1, 2])), dynamic=axes)
    shapes = agrees_at(captured, tmp_path, torch.randn(2, 12), torch.tensor([7, 5]))
    assert shapes == [(2, 7), (7, 2)]


def test_lengths_in_a_helper_and_a_number_as_a_factor(prove: ProveEverywhere, tmp_path: Path) -> None:
    def mask_of(lengths: Tensor) -> Tensor:
        return torch.arange(int(lengths.max().item()))[None] < lengths[:, None]

    class Masked(nn.Module):
        def forward(self, x: Tensor, lengths: Tensor) -> Any:
            return mask_of(lengths).to(x.dtype) * float(x.max())

    axes = {"x": ["batch", "time"], "lengths": ["batch"]}
    captured = prove(Masked(), (torch.randn(4, 10), torch.tensor([3, 4, 1, 2])), dynamic=axes)
    assert agrees_at(captured, tmp_path, torch.randn(2, 12), torch.tensor([7, 5])) == [(2, 7)]


def test_a_loop_over_a_length_and_a_branch_are_still_refused_with_their_line() -> None:
    class Loop(nn.Module):
        def forward(self, x: Tensor, n: Tensor) -> Tensor:
            for _ in range(int(n)):
                x = x + 1
            return x

    class Branch(nn.Module):
        def forward(self, x: Tensor, n: Tensor) -> Tensor:
            x = x * int(n)
            if x.sum() > 0:
                return x * 2
            return x

    for model, way in ((Loop(), r"torch\.while_loop"), (Branch(), r"t\.long\(\)\.item\(\)")):
        line = inspect.getsourcelines(type(model).forward)[1] + 1
        with pytest.raises(CaptureError, match=rf"test_data_dependent_shapes.py:{line}: .*(?s:.*){way}"):
            capture_model(model, (torch.randn(2, 3), torch.tensor(3)))
