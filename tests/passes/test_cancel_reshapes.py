"""Of several reshapes one is left, or none."""

from __future__ import annotations

import pytest
import torch

from fxexport.passes import CancelReshapes
from fxexport.testing import assert_rewrites, assert_unchanged

aten = torch.ops.aten
X = torch.randn(2, 3, 4)
SIZES = {"x": {0: "batch", 1: "time"}}
RESHAPES = (
    *(aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.unflatten.int, aten.expand.default),
    *(aten.unsqueeze.default, aten.squeeze.dim),
)
SIZED = (aten.view.default, aten.reshape.default, aten._unsafe_view.default)
CANCEL = {
    "view of view": (lambda x: x.sin().view(-1, 4).view(x.shape[0], x.shape[1], 2, 2).cos(), 1),
    "back to the source": (lambda x: x.sin().view(-1, 4).view(x.shape[0], x.shape[1], 4).cos(), 0),
    "flatten and unflatten": (lambda x: x.sin().unflatten(2, (2, 2)).flatten(2).cos(), 0),
    "unsqueeze and squeeze": (lambda x: x.sin().unsqueeze(1).squeeze(1).cos(), 0),
    "two unsqueezed": (lambda x: x.sin().sum((0, 2)).unsqueeze(0).unsqueeze(2).cos(), 1),
    "expand of expand": (lambda x: x[:1, :, :1].sin().expand(-1, -1, 5).expand(7, x.shape[1], -1).cos(), 1),
    **{
        f"{outer._opname} of {inner._opname}": (
            lambda x, outer=outer, inner=inner: outer(inner(x.sin(), [-1, 4]), [x.shape[0], x.shape[1], 2, 2]).cos(),
            1,
        )
        for outer in SIZED
        for inner in SIZED
    },
    "three": (lambda x: x.sin().flatten(1).unsqueeze(0).view(-1, 2).cos(), 1),
    "read elsewhere but back": (lambda x: ((y := x.sin().view(-1, 2)).view(x.shape), y.cos()), 1),
}
STAY = {
    "one": (lambda x: x.view(-1, 4), ""),
    "read between": (lambda x: ((y := x.sin().view(-1, 4)).view(-1, 2), y.cos()), "is read elsewhere"),
    "several dynamic sizes": (lambda x: x.view(x.shape[0], -1, 2, 2).unsqueeze(0), "several dynamic sizes"),
    "a transpose between": (lambda x: x.flatten(0, 1).t().flatten(), ""),
    "memory is looked at": (lambda x: x.unsqueeze(0).squeeze(0).as_strided((2,), (1,)), "strides"),
}


@pytest.mark.parametrize("name", CANCEL)
def test_cancel(name: str) -> None:
    model, left = CANCEL[name]
    program = assert_rewrites(CancelReshapes(), model, None, (X,), dynamic=SIZES, rtol=0, atol=0)
    assert len(list(program.find(*RESHAPES))) == left


@pytest.mark.parametrize("name", STAY)
def test_stay(name: str) -> None:
    model, reason = STAY[name]
    assert_unchanged(CancelReshapes(), model, (X,), dynamic=None if "memory" in name else SIZES, reason=reason)
