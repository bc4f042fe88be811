"""TorchScript files in which operators mean what they mean today, not what they meant in older versions of PyTorch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxexport


class Divide(nn.Module):
    """Cut to an integer by the first versions of ``div``; of complex numbers, they knew nothing."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x / y


class Fill(nn.Module):
    """Floats whatever it was filled with, in the first versions of ``full``."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.full(x.shape, 3)


COMPLEX = (torch.tensor([1 + 2j, 3 - 1j]), torch.tensor([2 - 1j, 0.5 + 4j]))


@pytest.mark.parametrize("args", [(torch.tensor([7, -3]), torch.tensor([2, 2])), COMPLEX], ids=["int", "complex"])
def test_division(args: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    artifact = fxexport.compile(Divide().eval(), tmp_path / "model.pt", args)
    torch.testing.assert_close(torch.jit.load(str(artifact.path))(*args)[0], args[0] / args[1])


def test_full(tmp_path: Path) -> None:
    x = torch.tensor([[5, 6]])
    artifact = fxexport.compile(Fill().eval(), tmp_path / "model.pt", (x,))
    (given,) = torch.jit.load(str(artifact.path))(x)
    assert given.dtype == torch.int64
    assert given.tolist() == [[3, 3]]
