"""Python decisions on small buffers are decisions on constants; decisions on data stay refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import ProveEverywhere, Untouched
from torch import nn
from torch._subclasses import fake_tensor

from fxexport.capture.known_constants import known_values
from fxexport.capture.pipeline import capture_model
from fxexport.errors import CaptureError

X = torch.randn(2, 3)


class Decides(nn.Module):
    """Branches on a flag, slices by a count, loops over sizes: all of them buffers."""

    def __init__(self, flag: bool) -> None:
        super().__init__()
        self.register_buffer("flag", torch.tensor(flag))
        self.register_buffer("count", torch.tensor(2))
        self.register_buffer("pads", torch.tensor([1, 2]))
        self.register_buffer("scale", torch.tensor([2.0, 3.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.flag:
            x = x * self.scale[0]
        for pad in self.pads:
            x = F.pad(x, (0, int(pad)))
        return x[:, : int(self.count)] + self.count


@pytest.mark.parametrize("flag", [True, False])
def test_decisions_on_buffers_are_fixed_and_noted(flag: bool, prove: ProveEverywhere, untouched: Untouched) -> None:
    model = nn.Sequential(Decides(flag)).eval()
    with untouched(model):
        captured = prove(model, X, dynamic={"input": ["n", None]})
    assert captured.program.notes == ["decisions of forward on 0.flag, 0.count, 0.pads are fixed as they are now"]
    assert captured.program.signature.inputs[0].axes == ("n", 3)


class Initialises(nn.Module):
    """A flag that forward itself changes: the decision is about state, not about a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("ready", torch.tensor(False))
        self.register_buffer("shift", torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.ready:
            self.shift.copy_(x.mean(0))
            self.ready.fill_(True)
        return x - self.shift


class OnData(Decides):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if self.flag and x.sum() > 0 else x


@pytest.mark.parametrize("model", [Initialises(), OnData(True)], ids=lambda m: type(m).__name__)
def test_decisions_on_state_and_data_stay_refused(model: Any) -> None:
    with pytest.raises(CaptureError, match=r"the model takes a Python decision at .*test_known_constants.py"):
        capture_model(model.eval(), X)


def test_torch_is_left_as_it_was() -> None:
    before = fake_tensor.CONSTANT_NUMEL_LIMIT
    with pytest.raises(ZeroDivisionError), known_values():
        raise ZeroDivisionError
    assert before == fake_tensor.CONSTANT_NUMEL_LIMIT
