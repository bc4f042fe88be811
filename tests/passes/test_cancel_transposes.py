"""Transposes that undo each other go."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fxexport.passes import CancelTransposes, RemoveAssertions
from fxexport.testing import assert_rewrites, assert_unchanged

aten = torch.ops.aten
X = torch.randn(2, 3, 4)
SIZES = {"x": {0: "batch", 2: "time"}}
ORDERS = (aten.permute.default, aten.transpose.int, aten.movedim.int, aten.mT.default)
SCALE = torch.tensor(3.0)


def between(x: Tensor) -> Tensor:
    y = x.permute(0, 2, 1)
    return (y.relu() * 2 + torch.where(y > 0, y.sin(), SCALE)).to(torch.float64).transpose(1, 2)


def also_read(x: Tensor) -> tuple[Tensor, Tensor]:
    y = x.transpose(1, 2)
    return y.relu().transpose(1, 2), y


CANCEL = {
    "to the source": (lambda x: x.sin().permute(2, 0, 1).permute(1, 2, 0).cos(), 0),
    "to one": (lambda x: x.sin().transpose(0, 1).movedim(0, 2).cos(), 1),
    "of a square": (lambda x: x.sin().mT.mT.cos(), 0),
    "three": (lambda x: x.sin().transpose(0, 1).transpose(1, 2).transpose(0, 1).cos(), 1),
    "across elementwise calls": (between, 0),
    "of two operands": (lambda x: (x.transpose(1, 2) - x.sin().mT.exp()).mT, 0),
    "by broadcasting": (lambda x: (x.transpose(1, 2) * x[:, :1].transpose(1, 2)).transpose(1, 2), 0),
    "beside another reader": (also_read, 1),
}
STAY = {
    "one": (lambda x: x.transpose(1, 2), ""),
    "not the inverse": (lambda x: x.permute(2, 0, 1).relu().permute(2, 0, 1), "is not transposed back"),
    "an operand in the old order": (lambda x: (x.mT + x.reshape(x.shape[0], 4, 3)).mT, "is not transposed back"),
    "read between": (lambda x: ((y := x.mT.relu()).mT, y + 1), "is read elsewhere"),
    "not elementwise": (lambda x: x.mT.softmax(1).mT, ""),
    "another rank": (lambda x: (x.mT + x[0, :, 0]).mT, "has another rank"),
    "the inner one is read": (lambda x: ((y := x.transpose(0, 1)).mT, y + 1), "is read elsewhere"),
    "memory is looked at": (lambda x: x.mT.mT.as_strided((2,), (1,)), "strides"),
}


@pytest.mark.parametrize("name", CANCEL)
def test_cancel(name: str) -> None:
    model, left = CANCEL[name]
    program = assert_rewrites(
        CancelTransposes(), model, None, (X,), dynamic=SIZES, first=[RemoveAssertions()], rtol=0, atol=0
    )
    assert len(list(program.find(*ORDERS))) == left


@pytest.mark.parametrize("name", STAY)
def test_stay(name: str) -> None:
    model, reason = STAY[name]
    assert_unchanged(CancelTransposes(), model, (X,), reason=reason)


def test_a_square_is_not_its_transpose() -> None:
    assert_unchanged(CancelTransposes(), lambda x: x.mT.relu(), (torch.randn(3, 3),))
