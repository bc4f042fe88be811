"""Inactive dropout of every kind goes, active dropout stays."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxexport.capture import capture_model
from fxexport.passes import RemoveDropout
from fxexport.rewrite import PassManager
from fxexport.testing import assert_rewrites, assert_unchanged

aten = torch.ops.aten
X = (torch.randn(2, 4, 3, 3),)


class Call(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor):
        return self.function(x)


KINDS = [
    (nn.Dropout(0.3), aten.dropout.default),
    (nn.Dropout2d(0.3), aten.feature_dropout.default),
    (nn.AlphaDropout(0.3), aten.alpha_dropout.default),
    (nn.FeatureAlphaDropout(0.3), aten.feature_alpha_dropout.default),
]


@pytest.mark.parametrize(("module", "op"), KINDS, ids=lambda value: str(value))
def test_every_kind(module: nn.Module, op) -> None:
    program = assert_rewrites(
        RemoveDropout(),
        nn.Sequential(nn.Conv2d(4, 4, 1), module, nn.Sigmoid()),
        None,
        X,
        gone=[op],
        count=1,
        dynamic={"input": {0: "batch"}},
        rtol=0,
        atol=0,
    )
    assert program.node_count() == 2


def test_several_in_one_model() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(), nn.ReLU(), nn.Dropout(), nn.Dropout())
    assert_rewrites(RemoveDropout(), model, None, X, gone=[aten.dropout.default], count=3)


def test_dropout_of_nothing_goes_even_when_active() -> None:
    assert_rewrites(RemoveDropout(), Call(lambda x: F.dropout(x, 0.0, True) + 1), None, X, gone=[aten.dropout.default])


def test_native_dropout_goes_where_its_mask_is_not_read() -> None:
    op = aten.native_dropout.default
    assert_rewrites(RemoveDropout(), Call(lambda x: op(x, 0.5, False)[0] + 1), None, X, gone=[op], count=1)
    assert_unchanged(RemoveDropout(), Call(lambda x: op(x, 0.5, False)), X, reason="mask is used")


def test_active_dropout_stays() -> None:
    model = Call(lambda x: F.dropout(x, 0.5, True))
    program = capture_model(model, X, allow_random=True).program
    after, (record,) = PassManager([RemoveDropout()]).run(program)
    assert record.count == 0
    assert "active in inference" in record.near_misses[0].reason
    assert len(list(after.find(aten.dropout.default))) == 1


def test_no_dropout_no_change() -> None:
    assert_unchanged(RemoveDropout(), nn.ReLU(), X)
