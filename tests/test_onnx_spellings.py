"""Operators that ONNX lacks or torch.onnx translates too narrowly: each as a model, at other sizes and values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxexport
from fxexport import Artifact

IMAGE = {0: "batch", 2: "height", 3: "width"}
EYE = 3 * torch.eye(3)


class Calls(nn.Module):
    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def same(function: Callable[[Tensor], Any], example: Tensor, path: Path, others: list[Tensor], axes: Any) -> Artifact:
    """The artifact of ``function``, which agrees with it on ``others``."""
    artifact = fxexport.compile(Calls(function).eval(), path, (example,), dynamic={"x": axes} if axes else None)
    assert isinstance(artifact, Artifact)
    for other in others:
        torch.testing.assert_close(artifact(other), function(other), rtol=1e-4, atol=1e-5)
    return artifact


def written(change: Callable[[Tensor], None]) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        x = x.clone()
        change(x)
        return x

    return forward


def middle(x: Tensor) -> None:
    x[:, :, x[0, 0, :, 0] > 0] = 5.0


def last(x: Tensor) -> None:
    x[..., x[0, 0] > 0] = x[:, :, :1, 0] * 2


def rows(x: Tensor) -> None:
    x[x[:, 0, 0, 0] > 0] = x[0] * 2


def many_in_the_middle(x: Tensor) -> None:
    mask = x[0, 0, :, 0] > 0
    x[:, :, mask] = x[:, :, mask] * 3


@pytest.mark.parametrize("change", [middle, last, rows, many_in_the_middle], ids=lambda change: change.__name__)
def test_writes_by_a_mask(change: Callable[[Tensor], None], tmp_path: Path) -> None:
    others = [torch.randn(3, 3, 5, 6), -torch.rand(1, 3, 4, 4), torch.rand(2, 3, 4, 7)]
    same(written(change), torch.randn(2, 3, 4, 5), tmp_path / "m.onnx", others, IMAGE)


SHIFTS: dict[str, Callable[[Tensor], Tensor]] = {
    "positive": lambda x: x.roll(2, -1),
    "negative, several": lambda x: torch.roll(x, (1, -3), (2, 3)),
    "by half a size": lambda x: torch.roll(x, x.shape[-1] // 2, -1),
    "of all elements": lambda x: torch.roll(x, -3),
    "fftshift": lambda x: torch.fft.fftshift(x, dim=(-2, -1)),
    "ifftshift of all": lambda x: torch.fft.ifftshift(x),
}


@pytest.mark.parametrize("shift", SHIFTS.values(), ids=list(SHIFTS))
def test_shifts_of_dynamic_sizes(shift: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    others = [torch.randn(3, 3, 5, 7), torch.randn(1, 3, 1, 2), torch.randn(2, 3, 9, 8)]
    same(shift, torch.randn(2, 3, 4, 6), tmp_path / "m.onnx", others, IMAGE)


def test_matrices_step_by_step(tmp_path: Path) -> None:
    def forward(x: Tensor) -> Any:
        vector = torch.linalg.solve(x + EYE, x[..., 0])
        return torch.linalg.inv(x), torch.inverse(x + EYE), torch.linalg.solve(x, x + 1), vector

    needs_pivots = torch.tensor([[0.0, 2.0, 1.0], [1.0, 0.0, 3.0], [4.0, 1.0, 0.0]])
    example = torch.stack([needs_pivots, torch.randn(3, 3) + EYE])
    same(forward, example, tmp_path / "m.onnx", [example.flip(0), example[:1]], {0: "batch"})


def test_running_products_and_maxima_of_a_fixed_size(tmp_path: Path) -> None:
    def forward(x: Tensor) -> Any:
        return x.cumprod(1), tuple(x.round().cummax(1)), tuple(x.cummin(-1)), (x > 0).cumprod(1)

    same(forward, torch.randn(2, 7), tmp_path / "m.onnx", [torch.randn(5, 7), torch.zeros(1, 7)], {0: "batch"})


SMALL: dict[str, Callable[[Tensor], Any]] = {
    "median": lambda x: (x.median(), x.median(1).values, x.kthvalue(2, -1).values),
    "aminmax": lambda x: (tuple(torch.aminmax(x)), tuple(torch.aminmax(x, dim=1, keepdim=True))),
    "searchsorted": lambda x: torch.searchsorted(torch.tensor([-1.0, 0.0, 1.0]), x),
    "searchsorted by rows": lambda x: torch.searchsorted(x.sort(-1)[0], x, right=True),
    "hypot": lambda x: (torch.hypot(x * 1e30, x * 1e30), torch.copysign(x, x.flip(-1))),
    "activations": lambda x: (F.rrelu(x), F.logsigmoid(x * 300)),
}


@pytest.mark.parametrize("call", SMALL.values(), ids=list(SMALL))
def test_small_ones(call: Callable[[Tensor], Any], tmp_path: Path) -> None:
    same(call, torch.randn(2, 6), tmp_path / "m.onnx", [torch.randn(5, 6), torch.randn(1, 6)], {0: "batch"})


@pytest.mark.parametrize("suffix", [".onnx", ".pt"])
def test_a_squeeze_of_what_is_not_1(suffix: str, tmp_path: Path) -> None:
    def forward(x: Tensor) -> Tensor:
        return (x.squeeze(1) + x.squeeze((0, 1))).mean(1, keepdim=True).squeeze((1, 2))

    artifact = same(forward, torch.randn(2, 3, 4, 5), tmp_path / f"m{suffix}", [torch.randn(7, 3, 3, 2)], IMAGE)
    assert {d.name: d.range for d in artifact.signature.dimensions} == {"batch": "2..", "height": "2..", "width": "1.."}
    assert "dimension 'batch' works from 2: of size 1 it is squeezed away" in str(artifact)
