"""Transforms of a fixed length become products with a matrix; others stay, and every setting keeps its numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import ProveEverywhere
from torch import Tensor, nn

from fxexport.capture.pipeline import capture_model
from fxexport.passes import DecomposeComplex, DecomposeStft
from fxexport.rewrite import PassManager
from fxexport.testing import assert_rewrites, assert_unchanged

aten = torch.ops.aten
X = torch.randn(2, 200)
TIME = {"x": ["batch", "time"]}


class Stft(nn.Module):
    window: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = {"n_fft": 30, "hop_length": 8, **options}
        self.register_buffer("window", torch.hann_window(self.options.get("win_length", 30)))

    def forward(self, x: Tensor) -> Tensor:
        return torch.view_as_real(torch.stft(x, window=self.window, return_complex=True, **self.options))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n_fft": 32, "win_length": 20},
        {"n_fft": 31, "win_length": 20, "pad_mode": "constant"},
        {"center": False},
        {"normalized": True, "onesided": False},
        {"hop_length": None},
    ],
    ids=str,
)
def test_every_setting_keeps_its_numbers_at_any_length(options: dict[str, Any]) -> None:
    program = assert_rewrites(
        DecomposeStft(),
        Stft(**options),
        None,
        (X,),
        gone=[aten.stft.default],
        ops={aten.conv1d.default: 1},
        count=1,
        dynamic=TIME,
        rtol=1e-4,
        atol=1e-5,
    )
    assert program.signature.outputs[0].axes[0] == "batch"


def test_the_parts_of_a_signal_without_batch() -> None:
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        z = torch.stft(x, 16, return_complex=True)
        return z.real, z.imag

    assert_rewrites(DecomposeStft(), forward, None, (X[0],), count=1, dynamic={"x": ["time"]}, atol=1e-5, rtol=1e-4)


def test_a_window_that_is_an_input_is_multiplied_in_the_graph() -> None:
    def forward(x: Tensor, window: Tensor) -> Tensor:
        return torch.stft(x, 16, 4, 10, window=window, return_complex=True).abs()

    inputs = (X, torch.rand(10) + 0.5)
    ops = {aten.mul.Tensor: 1, aten.constant_pad_nd.default: 1}
    assert_rewrites(DecomposeStft(), forward, None, inputs, ops=ops, count=1, dynamic=TIME, atol=1e-5, rtol=1e-4)


def test_a_long_transform_is_as_exact_as_a_fast_one() -> None:
    """In pieces: one sum of 512 terms is off by three times as much."""
    x, window = torch.randn(1, 20000), torch.hann_window(512)

    def forward(x: Tensor) -> Tensor:
        return torch.view_as_real(torch.stft(x, 512, 160, window=window, return_complex=True))

    program = assert_rewrites(DecomposeStft(), forward, None, (x,), ops={aten.conv1d.default: 8}, atol=1e-4)
    exact = torch.view_as_real(torch.stft(x.double(), 512, 160, window=window.double(), return_complex=True))
    error, own = ((y - exact).abs().max() for y in (program.run(x)[0], forward(x)))
    assert error < 2.5 * own


def test_equal_transforms_share_one_matrix() -> None:
    def forward(x: Tensor) -> Tensor:
        return torch.stft(x, 16, return_complex=True).abs() + torch.stft(-x, 16, return_complex=True).abs()

    program = assert_rewrites(DecomposeStft(), forward, None, (X,), count=2, dynamic=TIME, atol=1e-5, rtol=1e-4)
    assert len(program.constants()) == 1


def test_what_it_leaves_alone_and_why() -> None:
    assert_unchanged(DecomposeStft(), Stft(), (X.double(),), reason="float64, not float32")
    assert_unchanged(DecomposeStft(budget=1000), Stft(), (X,), reason="over the budget of 1000")


class MelFeatures(nn.Module):
    """A speech front end: pre-emphasis, power spectrum, mel filters, log, and the mean and deviation of each feature
    over the frames of each signal."""

    window: Tensor
    filters: Tensor

    def __init__(self, n_fft: int = 50, window: int = 40, hop: int = 16, mels: int = 6) -> None:
        super().__init__()
        self.n_fft, self.hop, self.length = n_fft, hop, window
        self.register_buffer("window", torch.hann_window(window, periodic=False))
        self.register_buffer("filters", torch.rand(1, mels, n_fft // 2 + 1))

    def forward(self, x: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        frames = torch.floor_divide(length, self.hop)
        heard = torch.arange(x.shape[1]).unsqueeze(0) < length.unsqueeze(1)
        x = torch.cat((x[:, 0].unsqueeze(1), x[:, 1:] - 0.97 * x[:, :-1]), dim=1).masked_fill(~heard, 0.0)
        z = torch.stft(x, self.n_fft, self.hop, self.length, self.window, pad_mode="constant", return_complex=True)
        power = torch.sqrt(torch.view_as_real(z).pow(2).sum(-1)).pow(2.0)
        x = torch.log(torch.matmul(self.filters, power) + 2**-10)
        mask = torch.arange(x.shape[-1]).unsqueeze(0) < frames.unsqueeze(1)
        count = mask.sum(1)[:, None].clamp(min=2)
        mean = x.masked_fill(~mask[:, None], 0.0).sum(2) / count
        spread = ((x - mean[..., None]).masked_fill(~mask[:, None], 0.0) ** 2).sum(2) / (count - 1)
        x = (x - mean[..., None]) / (spread.sqrt()[..., None] + 1e-5)
        return F.pad(x.masked_fill(~mask[:, None], 0.0), (0, 2)), frames


def test_a_speech_front_end_is_right_in_every_format(prove_rewritten: Any) -> None:
    inputs = (torch.randn(3, 400), torch.tensor([400, 250, 96]))
    program = prove_rewritten(MelFeatures(), inputs, dynamic={"x": ["batch", "time"], "length": ["batch"]})
    assert not any(is_complex(node) for node in program.graph.nodes)
    assert not list(program.find(aten.stft.default))


@pytest.mark.parametrize(
    "read",
    [
        lambda z: z.abs(),
        lambda z: (z.real, z.imag),
        lambda z: torch.log(z.abs() ** 2 + 1e-3),
        lambda z: (z * z.conj()).real,
        lambda z: torch.view_as_real(z / 3.0).transpose(1, 2),
    ],
    ids=["abs", "parts", "log power", "times conjugate", "view as real"],
)
def test_a_length_that_is_no_power_of_two_is_right_in_onnx(read: Any, prove_rewritten: Any) -> None:
    class Read(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return read(torch.stft(x, 100, 40, window=torch.hann_window(100), return_complex=True))

    program = prove_rewritten(Read(), (torch.randn(2, 900),), dynamic=TIME)
    assert not any(is_complex(node) for node in program.graph.nodes)


def is_complex(node: Any) -> bool:
    return isinstance(node.meta.get("val"), Tensor) and bool(node.meta["val"].is_complex())


@pytest.fixture
def prove_rewritten(prove: ProveEverywhere, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``prove`` behind the two passes; returns the program that was lowered."""

    def rewritten(*args: Any, **options: Any) -> Any:
        captured = capture_model(*args, **options)
        captured.program, _ = PassManager([DecomposeStft(), DecomposeComplex()]).run(captured.program)
        return captured

    monkeypatch.setattr("conftest.capture_model", rewritten)
    return lambda *args, **options: prove(*args, **options).program
