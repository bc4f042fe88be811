"""Each pass fires where it should, is right, and leaves the rest alone."""

import torch
from fxexport_sample_passes import FuseSilu, ReplaceLogistic
from torch import nn

from fxexport.testing import assert_rewrites, assert_unchanged

X = torch.randn(2, 6) * 20
AXES = {"x": ["batch", None]}


def logistic(x):
    return x / (torch.exp(-x) + 1)


def product(x):
    return x * torch.sigmoid(x)


def silu(x):
    return nn.functional.silu(x)


class Head(nn.Module):
    def forward(self, x):
        return product(x)


def test_logistic_becomes_a_product() -> None:
    assert_rewrites(ReplaceLogistic(), logistic, product, X, count=1, dynamic=AXES)


def test_product_becomes_silu() -> None:
    assert_rewrites(FuseSilu(), product, silu, X, count=1, dynamic=AXES)
    assert_rewrites(FuseSilu(), lambda x: torch.sigmoid(x) * x, silu, X, count=1)


def test_together_they_make_silu_of_the_logistic() -> None:
    assert_rewrites(FuseSilu(), logistic, silu, X, first=[ReplaceLogistic()], dynamic=AXES)


def test_lookalikes_stay() -> None:
    assert_unchanged(ReplaceLogistic(), lambda x: x / (torch.exp(x) + 1), X)
    assert_unchanged(ReplaceLogistic(), lambda x: x / (torch.exp(-x) + 2), X)
    assert_unchanged(ReplaceLogistic(), lambda x: x / torch.add(torch.exp(-x), 1, alpha=2), X)
    assert_unchanged(FuseSilu(), lambda x: x * torch.sigmoid(x + 1), X)
    assert_unchanged(FuseSilu(), lambda x: x * torch.sigmoid(x), torch.arange(4), reason="silu is for real numbers")


def test_modules_can_be_left_alone() -> None:
    net = nn.Sequential(nn.Linear(6, 6), Head(), nn.Linear(6, 6), Head()).eval()
    assert_rewrites(FuseSilu(skip=("1",)), net, None, X, count=1)
    assert_unchanged(FuseSilu(skip=("1", "3")), net, X, reason="1 is to be left alone")
