"""What is cut and joined again is what it was; what may differ for some size stays."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxexport.passes import RemoveNoops, SimplifySlices
from fxexport.testing import assert_rewrites, assert_unchanged

aten = torch.ops.aten
X = torch.randn(4, 6)
SIZES = {"x": {0: "n"}}
CALLS = (aten.slice.Tensor, aten.cat.default, aten.split.Tensor, aten.chunk.default, aten.index_select.default)


def halves(x: Tensor) -> Tensor:
    n = x.shape[0]
    return torch.cat([x[:n], x[n:]])


GO = {
    "cat of both sides": (lambda x: torch.cat([(y := x.sin())[:2], y[2:]]).cos(), 0),
    "cat of three": (lambda x: torch.cat([(y := x.sin())[:, :1], y[:, 1:4], y[:, 4:]], 1).cos(), 0),
    "cat of neighbours": (lambda x: torch.cat([(y := x.sin())[:, :1], y[:, 1:4], y[:, 2:]], 1).cos(), 3),
    "from the end": (lambda x: torch.cat([(y := x.sin())[:-2], y[-2:]]).cos(), 0),
    "piece of cat": (lambda x: torch.cat([x.sin(), x.cos()], 1)[:, 6:].exp(), 0),
    "piece of cat, dynamic": (lambda x: torch.cat([x.sin(), x.cos()])[x.shape[0] :].exp(), 0),
    "pieces of cat": (lambda x: torch.cat([x.sin(), x.cos(), x], 1)[:, :12].exp(), 1),
    "slice of slice": (lambda x: x.sin()[:, 1:][:, 2:4].cos(), 1),
    "joined splits": (lambda x: torch.cat(x.sin().split(2, 1), 1).cos(), 0),
    "joined chunks": (lambda x: torch.cat(x.sin().chunk(3, -1), 1).cos(), 0),
    "stacked": (lambda x: torch.stack(x.sin().unbind(1), 1).cos(), 0),
    "index of a range": (lambda x: x.sin().index_select(1, torch.arange(2, 5)).cos(), 1),
    "empty pieces": (lambda x: torch.cat([x.sin(), x.new_zeros(x.shape[0], 0)], 1).cos(), 0),
}
STAY = {
    "a gap": (lambda x: torch.cat([x[:, :2], x[:, 3:]], 1), ""),
    "in the other order": (lambda x: torch.cat([x[2:], x[:2]]), ""),
    "overlapping": (lambda x: torch.cat([x[:, :4], x[:, 2:]], 1), ""),
    "of another axis": (lambda x: torch.cat([x[:, :3], x[:, 3:]], 0), ""),
    "of two sources": (lambda x: torch.cat([x.sin()[:2], x.cos()[2:]]), ""),
    "not a border": (lambda x: torch.cat([x, x.sin()], 1)[:, 1:], "borders"),
    "not a border for every size": (lambda x: torch.cat([x, x.sin()])[4:], "borders"),
    "splits in another order": (lambda x: torch.cat(x.split(2, 1)[::-1], 1), ""),
    "not all splits": (lambda x: torch.cat(x.split(2, 1)[:2], 1), ""),
    "splits along another axis": (lambda x: torch.cat(x.split(3, 1), 0), ""),
    "by two": (lambda x: x[::2][1:], ""),
    "indices by two": (lambda x: x.index_select(1, torch.arange(0, 6, 2)), "no range of step 1"),
    "computed bounds": (lambda x: x[: x.shape[0] - 1][1:], "bounds are computed"),
}


@pytest.mark.parametrize("name", GO)
def test_go(name: str) -> None:
    model, left = GO[name]
    program = assert_rewrites(SimplifySlices(), model, None, (X,), dynamic=SIZES, first=[RemoveNoops()], rtol=0, atol=0)
    assert len(list(program.find(*CALLS))) == left


@pytest.mark.parametrize("name", STAY)
def test_stay(name: str) -> None:
    model, reason = STAY[name]
    assert_unchanged(SimplifySlices(), model, (X,), dynamic=SIZES, first=[RemoveNoops()], reason=reason)


def test_the_whole_by_its_size() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return halves(x.sin()).cos()

    program = assert_rewrites(SimplifySlices(), Model(), None, (X,), dynamic=SIZES)
    assert len(list(program.find(aten.cat.default))) == 0
