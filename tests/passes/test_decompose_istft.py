"""The inverse transform becomes a transposed convolution in every setting; what cannot stays, with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxexport
from fxexport import Artifact
from fxexport.passes import DecomposeIstft
from fxexport.testing import assert_rewrites, assert_unchanged

aten = torch.ops.aten
FRAMES = {"x": ["batch", None, "frames", None]}


class Istft(nn.Module):
    window: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = {"n_fft": 16, "hop_length": 4, **options}
        self.register_buffer("window", torch.hann_window(self.options.get("win_length", self.options["n_fft"])) + 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.istft(torch.complex(x[..., 0], x[..., 1]), window=self.window, **self.options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"win_length": 12, "normalized": True},
        {"n_fft": 18, "hop_length": 5},
        {"center": False},
        {"hop_length": None, "length": 30},
        {"length": 70},
    ],
    ids=str,
)
def test_every_setting_keeps_its_numbers_at_any_number_of_frames(options: dict[str, Any]) -> None:
    bins = options.get("n_fft", 16) // 2 + 1
    x = torch.randn(2, bins, 12, 2)
    ops, gone = {aten.conv_transpose1d.default: 2}, [aten.istft.default]
    assert_rewrites(DecomposeIstft(), Istft(**options), None, (x,), gone=gone, ops=ops, count=1, dynamic=FRAMES,
                    rtol=1e-4, atol=1e-5)  # fmt: skip


def test_two_sides_and_no_batch() -> None:
    x = torch.randn(16, 12, 2)
    assert_rewrites(DecomposeIstft(), Istft(onesided=False), None, (x,), count=1, rtol=1e-4, atol=1e-5)


def test_a_window_that_is_an_input_is_multiplied_in_the_graph() -> None:
    def forward(x: Tensor, window: Tensor) -> Tensor:
        return torch.istft(torch.complex(x[..., 0], x[..., 1]), 16, 4, window=window)

    inputs = (torch.randn(2, 9, 12, 2), torch.rand(16) + 0.5)
    assert_rewrites(DecomposeIstft(), forward, None, inputs, ops={aten.mul.Tensor: 2}, count=1, rtol=1e-4, atol=1e-5)


def test_what_it_leaves_alone_and_why() -> None:
    x = (torch.randn(2, 9, 12, 2),)
    assert_unchanged(DecomposeIstft(budget=1000), Istft(), x, reason="over the budget of 1000")


@pytest.mark.parametrize("suffix", [".onnx", ".pt"])
def test_enhancement_of_a_signal_of_any_length(suffix: str, tmp_path: Path) -> None:
    class Enhance(nn.Module):
        window: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("window", torch.hann_window(16))
            self.gain = nn.Parameter(torch.rand(9, 1))

        def forward(self, x: Tensor) -> Tensor:
            z = torch.stft(x, 16, 4, window=self.window, return_complex=True)
            return torch.istft(z * self.gain, 16, 4, window=self.window, length=x.shape[-1])

    model = Enhance().eval()
    artifact = fxexport.compile(model, tmp_path / f"m{suffix}", torch.randn(2, 64), dynamic={"x": ["batch", "time"]})
    assert isinstance(artifact, Artifact)
    for shape in [(1, 64), (3, 81), (2, 50)]:
        x = torch.randn(shape)
        torch.testing.assert_close(artifact(x), model(x), rtol=1e-4, atol=1e-5)
