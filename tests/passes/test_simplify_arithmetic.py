"""Operands that are given back as they are; near misses that are not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fxexport.passes import RemoveNoops, SimplifyArithmetic
from fxexport.testing import assert_rewrites, assert_unchanged

X = torch.tensor([[-0.0, 0.0, 1.5], [3.0, 1e30, -2.0]])
BATCH = {"x": {0: "batch"}}
ONE, ZERO = torch.tensor(1.0), torch.tensor([0.0])
GO = {
    "times one": lambda x: x.sin() * 1,
    "one times": lambda x: 1.0 * x.sin(),
    "times a constant one": lambda x: x.sin() * ONE,
    "by one": lambda x: x.sin() / 1,
    "minus nothing": lambda x: x.sin() - 0,
    "minus a constant zero": lambda x: x.sin() - ZERO,
    "to the first": lambda x: x.sin() ** 1,
    "whole plus nothing": lambda x: (x > 0).long() + 0,
    "negated twice": lambda x: x.sin().neg().neg(),
    "not not": lambda x: (x > 0).logical_not().logical_not(),
    "where both are one": lambda x: torch.where(x > 0, y := x.sin(), y),
    "and true": lambda x: (x > 0) & torch.tensor(True),
    "or false": lambda x: torch.tensor(False) | (x > 0),
    "and itself": lambda x: (y := x > 0) & y,
    "relu of relu": lambda x: x.relu().relu(),
}
STAY = {
    "real plus nothing": (lambda x: x.sin() + 0, ""),
    "minus the other zero": (lambda x: x.sin() - (-0.0), ""),
    "times two": (lambda x: x.sin() * 2, ""),
    "two over": (lambda x: 2 / x.cos(), ""),
    "rounded": (lambda x: torch.div(x.sin(), 1, rounding_mode="floor"), ""),
    "to real": (lambda x: (x > 0).long() * 1.0, "changes the dtype"),
    "whole by one": (lambda x: (x > 0).long() / 1, "changes the dtype"),
    "to more": (lambda x: x.sum(0) * torch.tensor([[1.0]]), "changes the dtype or the shape"),
    "and false": (lambda x: (x > 0) & torch.tensor(False), ""),
    "scaled": (lambda x: torch.sub(x, torch.zeros(1), alpha=2), ""),
    "where of two": (lambda x: torch.where(x > 0, x.sin(), x), ""),
}


@pytest.mark.parametrize("name", GO)
def test_go(name: str) -> None:
    before = GO[name]
    assert_rewrites(SimplifyArithmetic(), before, None, (X,), dynamic=BATCH, first=[RemoveNoops()], rtol=0, atol=0)


@pytest.mark.parametrize("name", STAY)
def test_stay(name: str) -> None:
    model, reason = STAY[name]
    assert_unchanged(SimplifyArithmetic(), model, (X,), first=[RemoveNoops()], reason=reason)


def test_the_sign_of_zero_is_kept() -> None:
    def model(x: Tensor) -> Tensor:
        return (x * 1 - 0).reciprocal()

    program = assert_rewrites(SimplifyArithmetic(), model, lambda x: x.reciprocal(), (X + 1,), count=2)
    assert program.run(torch.tensor([[-0.0, 0.0, 1.0]]))[0].tolist() == [[float("-inf"), float("inf"), 1.0]]
