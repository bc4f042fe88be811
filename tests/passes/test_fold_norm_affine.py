"""The factor and the shift after a normalization become its weight and bias."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor

from fxexport.passes import FoldNormAffine
from fxexport.testing import assert_preserves, assert_rewrites, assert_unchanged, programs

aten = torch.ops.aten
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(2, 3, 8, generator=GENERATOR)
IMAGE = torch.randn(2, 4, 5, 6, generator=GENERATOR)
W, B = torch.rand(8, generator=GENERATOR), torch.rand(8, generator=GENERATOR)
V, C = torch.rand(4, 1, 1, generator=GENERATOR), torch.rand(4, 1, 1, generator=GENERATOR)
LN, RMS, GN, IN = (
    aten.layer_norm.default,
    aten.rms_norm.default,
    aten.group_norm.default,
    aten.instance_norm.default,
)
GONE = {aten.mul.Tensor: 0, aten.add.Tensor: 0}

FOLDS = {
    "rms_norm": (lambda x: F.rms_norm(x, [8]) * W, lambda x: F.rms_norm(x, [8], W), X),
    "layer_norm": (lambda x: B + W * F.layer_norm(x, [8]), lambda x: F.layer_norm(x, [8], W, B), X),
    "bias alone": (lambda x: F.layer_norm(x, [8]) + B, lambda x: F.layer_norm(x, [8], None, B), X),
    "two axes": (
        lambda x: F.layer_norm(x, [3, 8]) * X[0],
        lambda x: F.layer_norm(x, [3, 8], X[0]),
        X,
    ),
}


@pytest.mark.parametrize("name", FOLDS)
def test_folds(name: str) -> None:
    before, after, x = FOLDS[name]
    assert_rewrites(FoldNormAffine(), before, after, (x,))


IMAGES = {
    "instance_norm": (lambda x: F.instance_norm(x) * V + C, IN),
    "group_norm": (lambda x: C + V[None] * F.group_norm(x, 2), GN),
    "layer_norm of the image": (lambda x: F.layer_norm(x, [5, 6]) * V + C, IN),
    "layer_norm of channels too": (lambda x: F.layer_norm(x, [4, 5, 6]) * V + C, GN),
    "channels first": (lambda x: F.layer_norm(x.permute(0, 2, 3, 1), [4]).permute(0, 3, 1, 2) * V + C, LN),
    "transposed": (lambda x: F.layer_norm(x.transpose(1, 3), [4]).transpose(1, 3) * V, LN),
}


@pytest.mark.parametrize("name", IMAGES)
def test_one_number_a_channel(name: str) -> None:
    model, norm = IMAGES[name]
    assert_rewrites(FoldNormAffine(), model, None, (IMAGE,), ops={norm: 1, **GONE})


def test_a_computed_weight() -> None:
    """Gemma's, whose weight is kept less one."""
    before, after = lambda x, w: F.rms_norm(x, [8]) * (1 + w), lambda x, w: F.rms_norm(x, [8], 1 + w)
    assert_rewrites(FoldNormAffine(), before, after, (X, W))


def test_a_weight_more_is_multiplied() -> None:
    before, after = lambda x: F.layer_norm(x, [8], W) * B, lambda x: F.layer_norm(x, [8], W * B)
    assert_rewrites(FoldNormAffine(), before, after, (X,))


def test_a_narrower_weight_is_widened() -> None:
    program = assert_rewrites(FoldNormAffine(), lambda x: F.rms_norm(x, [8]) * W.half(), None, (X,), ops=GONE)
    (node,) = program.find(RMS)
    assert node.args[2].meta["val"].dtype == torch.float32


def twice(x: Tensor) -> Tensor:
    y = F.layer_norm(x, [8])
    return y * W + y


STAYS = {
    "a number": (lambda x: F.layer_norm(x, [8]) * 2, X, ""),
    "one for each row": (lambda x: F.layer_norm(x, [8]) * x.sum(-1, keepdim=True), X, ""),
    "another value": (lambda x: F.layer_norm(x, [8]) + x, X, ""),
    "read elsewhere": (twice, X, "is read elsewhere"),
    "a bias before": (lambda x: F.layer_norm(x, [8], W, B) * W, X, ""),
    "rms_norm has no bias": (lambda x: F.rms_norm(x, [8], W) + B, X, ""),
    "a factor of the bias": (lambda x: torch.add(F.layer_norm(x, [8]), B, alpha=2), X, ""),
    "rounded in between": (lambda x: F.rms_norm(x, [8]).half() * W.half(), X, ""),
    "a wider weight": (lambda x: F.rms_norm(x.half(), [8]) * W, X, ""),
    "for the other axis": (lambda x: F.layer_norm(x, [6]) * V[..., 0], IMAGE[:, :, :4], ""),
    "fixed statistics": (
        lambda x: F.instance_norm(x, V.flatten(), C.flatten(), use_input_stats=False) * V,
        IMAGE,
        "",
    ),
    "axes in another order": (
        lambda x: F.layer_norm(x.transpose(2, 3), [6, 5]).transpose(2, 3) * x[0, 0],
        IMAGE,
        "",
    ),
}


@pytest.mark.parametrize("name", STAYS)
def test_what_is_no_weight_stays(name: str) -> None:
    model, x, reason = STAYS[name]
    assert_unchanged(FoldNormAffine(), model, (x,), reason=reason)


@settings(max_examples=8, deadline=None, derandomize=True, database=None)
@given(programs())
def test_never_changes_numbers(sample) -> None:
    assert_preserves(FoldNormAffine(), sample)
