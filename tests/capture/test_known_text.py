"""Messages that forward writes: they are no part of what an artifact computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxexport
from fxexport import Artifact
from fxexport.capture import capture
from fxexport.errors import CaptureError

X = torch.rand(2, 3) + 1


class Told(nn.Module):
    """Formats a tensor, a number of one and a size, in a branch, too."""

    def __init__(self) -> None:
        super().__init__()
        self.log = ""

    def forward(self, x: Tensor) -> Tensor:
        self.log = f"mean {x.mean():.3f}, largest {x.max().item():>8.2f}, {x.shape[0]:d} rows of {x}"
        if x.mean() > 1:
            print("high:", f"{x.min():.1e}")
            return x * 2
        return x - 1


@pytest.mark.parametrize("suffix", ["onnx", "pt"])
def test_text_made_of_data_stops_no_export_and_is_noted(suffix: str, tmp_path: Path) -> None:
    model = Told().eval()
    artifact = fxexport.compile(model, tmp_path / f"m.{suffix}", (X,), dynamic={"x": {0: "batch"}})
    assert isinstance(artifact, Artifact)
    for x in (torch.rand(5, 3) + 1, torch.rand(1, 3) - 1):
        torch.testing.assert_close(artifact(x), model(x))
    notes = [note for note in artifact.metadata["notes"] if note.startswith("text made of data at ")]
    assert notes
    assert all(note.endswith(": no artifact writes it") for note in notes)
    assert len(notes) == len(set(notes))


class Compared(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if f"{x.mean():.1f}".startswith("-") else x


class ReadBack(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * float(f"{x.mean():.1f}")


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (Compared(), r"forward decides on text that is made of the values of a tensor at .*test_known_text.py:\d+"),
        (ReadBack(), r"capture stopped at .*test_known_text.py:\d+: .*could not convert string to float: '<a torch"),
    ],
    ids=["compared", "read back"],
)
def test_text_that_decides_is_refused_at_its_line(model: nn.Module, told: str) -> None:
    with pytest.raises(CaptureError, match=told):
        capture(model.eval(), X)


class Counted(nn.Module):
    """``int`` of data in a branch: Python wants the number at once."""

    def __init__(self, count: Any) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        if x.mean() > 0:
            return x * self.count(x.sum())  # type: ignore[no-any-return]
        return x - 1


def test_int_of_data_in_a_branch_is_refused_with_what_to_write(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match=r"test_known_text.py:\d+") as caught:
        capture(Counted(lambda t: int(t)).eval(), X)
    assert "t.long().item() in the place of int(t)" in str(caught.value)
    way_out = Counted(lambda t: t.long().item()).eval()
    artifact = fxexport.compile(way_out, tmp_path / "m.onnx", (X,), dynamic={"x": {0: "batch"}})
    assert isinstance(artifact, Artifact)
    for x in (torch.rand(5, 3) + 1, -torch.rand(1, 3)):
        torch.testing.assert_close(artifact(x), way_out(x))
