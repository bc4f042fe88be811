"""Operators in branches and loops that ONNX has no form of: decomposed there as they are outside."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from onnxscript import opset20
from torch import Tensor, nn

import fxexport
from fxexport import Artifact

aten = torch.ops.aten


class Halting(nn.Module):
    """A recurrent cell, applied again until a head says that it is enough."""

    def __init__(self, cell: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.cell, self.stop = cell(6, 6), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        state: Any = None
        for _ in range(3):
            state = self.cell(x, state)
            h = state[0] if isinstance(state, tuple) else state
            if (self.stop(h) > 0.1).all():
                break
        return h  # type: ignore[no-any-return]


class Written(nn.Module):
    """Operators in the words of others, a loop over an open axis among them."""

    def forward(self, x: Tensor) -> Tensor:
        if x.mean() > 0:
            y = torch.cdist(x, x).amax() + torch.logcumsumexp(x, 0).sum()
            return F.adaptive_avg_pool1d(x[:, None], 4)[:, 0] * y
        return x[:, :4]


class Returned(nn.Module):
    """A branch that returns what it was given, and views of it."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if x.mean() > 0:
            return x.T, x, x.reshape(-1)
        return x.T * 2, x + 1, torch.cumsum(x.reshape(-1), 0)


def same(model: nn.Module, path: Path, **options: Any) -> None:
    torch.manual_seed(0)
    artifact = fxexport.compile(model, path, (torch.randn(2, 6),), dynamic={"x": {0: "batch"}}, **options)
    assert isinstance(artifact, Artifact)
    for batch in (1, 5):
        for shift in (-1.0, 1.0):
            x = torch.randn(batch, 6) * 0.5 + shift
            with torch.no_grad():
                torch.testing.assert_close(artifact(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cell", [nn.GRUCell, nn.LSTMCell, nn.RNNCell], ids=lambda cell: cell.__name__)
def test_recurrent_cells_in_branches(cell: Any, tmp_path: Path) -> None:
    same(Halting(cell).eval(), tmp_path / "m.onnx")


@pytest.mark.parametrize("model", [Written(), Returned()], ids=["written out", "operands and views"])
def test_branches(model: nn.Module, tmp_path: Path) -> None:
    same(model.eval(), tmp_path / "m.onnx")


def test_branches_beside_a_translation_of_the_user(tmp_path: Path) -> None:
    """The user's translation is taken, whichever way the program goes."""

    class Sine(Returned):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return super().forward(x.sin())

    calls = []

    def sine(x: Any) -> Any:
        calls.append(x)
        return opset20.Sin(x)

    same(Sine().eval(), tmp_path / "m.onnx", custom_translation_table={aten.sin.default: sine})
    assert calls
