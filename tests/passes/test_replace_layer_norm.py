"""Layer normalization in every spelling becomes one operator, and what only looks like it stays."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from norm_spellings import SPELLINGS, layer_norm, normalized
from torch import Tensor, nn

import fxexport
from fxexport.passes import ReplaceLayerNorm
from fxexport.rewrite import resolve
from fxexport.testing import assert_preserves, assert_rewrites, assert_unchanged, programs

aten = torch.ops.aten
LN = aten.layer_norm.default
X = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
IMAGE = torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(1))
EPS = 1e-5
KEEP = {"dim": -1, "keepdim": True}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_is_one_operator(spelling: str) -> None:
    assert_rewrites(
        ReplaceLayerNorm(),
        lambda x: layer_norm(spelling, x, EPS),
        lambda x: F.layer_norm(x, [8], eps=EPS),
        (X,),
        dynamic={"x": ["batch", "time", None]},
    )


def with_var_mean(x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
    return (x - mean) / (variance + EPS).sqrt()


def with_std_mean(x: Tensor) -> Tensor:
    deviation, mean = torch.std_mean(x, -1, correction=0, keepdim=True)
    return (x - mean) / deviation


def centered_twice(x: Tensor) -> Tensor:
    x = x - x.mean(**KEEP)
    return x / torch.sqrt(x.var(**KEEP, correction=0) + EPS)


OTHERS = {
    "var": (lambda x: normalized(x, -1, EPS), EPS),
    "var, recomputed mean": (lambda x: (x - x.mean(**KEEP)) * (x.var(-1, False).unsqueeze(-1) + EPS).rsqrt(), EPS),
    "var_mean": (with_var_mean, EPS),
    "std_mean": (with_std_mean, 0.0),
    "std squared": (lambda x: (x - x.mean(**KEEP)) / (x.std(**KEEP, unbiased=False) ** 2 + EPS).sqrt(), EPS),
    "no eps": (lambda x: (x - x.mean(**KEEP)) / x.std(**KEEP, correction=0), 0.0),
    "centered first": (centered_twice, EPS),
}


@pytest.mark.parametrize("name", OTHERS)
def test_variances_and_deviations(name: str) -> None:
    model, eps = OTHERS[name]
    assert_rewrites(ReplaceLayerNorm(), model, lambda x: F.layer_norm(x, [8], eps=eps), (X,))


def test_several_axes() -> None:
    assert_rewrites(ReplaceLayerNorm(), lambda x: normalized(x, (1, 2)), lambda x: F.layer_norm(x, [3, 8]), (X,))


def test_other_factors_stay_factors() -> None:
    model = lambda x, gate: gate * (x - x.mean(**KEEP)) * 2 / torch.sqrt(x.var(**KEEP, correction=0) + EPS)  # noqa: E731
    assert_rewrites(ReplaceLayerNorm(), model, lambda x, gate: F.layer_norm(x, [8]) * 2.0 * gate, (X, X + 1))


def test_half_precision_is_normalized_in_float32() -> None:
    model = lambda x: normalized(x.float(), -1).half()  # noqa: E731
    program = assert_rewrites(ReplaceLayerNorm(), model, None, (X.half() * 400,), ops={LN: 1}, rtol=0)
    (node,) = program.find(LN)
    assert node.meta["val"].dtype == torch.float32


class ChannelsFirst(nn.Module):
    """ConvNeXt's, over the channels of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 1)
        self.weight, self.bias = nn.Parameter(torch.rand(6)), nn.Parameter(torch.rand(6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


def test_channels_first_is_permuted_there_and_back(tmp_path: Path) -> None:
    axes = {"x": ["batch", None, "height", "width"]}
    assert_rewrites(
        ReplaceLayerNorm(),
        lambda x: normalized(x, 1),
        lambda x: F.layer_norm(x.permute(0, 2, 3, 1), [4]).permute(0, 3, 1, 2),
        (IMAGE,),
        dynamic=axes,
    )
    path = tmp_path / "m.onnx"
    fxexport.compile(ChannelsFirst().eval(), path, (IMAGE,), dynamic=axes)
    operators = [node.op_type for node in onnx.load(path).graph.node]
    assert operators == ["Conv", "Transpose", "LayerNormalization", "Transpose"]


def test_a_middle_axis() -> None:
    assert_rewrites(
        ReplaceLayerNorm(),
        lambda x: normalized(x, (1, 3)),
        lambda x: F.layer_norm(x.permute(0, 2, 1, 3), [4, 6]).permute(0, 2, 1, 3),
        (IMAGE,),
    )


# ---------------------------------------------------------------- what stays


class Annotated(nn.Module):
    """The annotated transformer's: deviation with n - 1, eps outside of the root."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.rand(8)), nn.Parameter(torch.rand(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.a * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6) + self.b


def denormalized(x: Tensor) -> Tensor:
    mean, deviation = x.mean(**KEEP), torch.sqrt(x.var(**KEEP, correction=0) + EPS)
    return torch.tanh((x - mean) / deviation) * deviation + mean


def as_difference(x: Tensor) -> Tensor:
    mean = x.mean(**KEEP)
    return (x - mean) / torch.sqrt(x.square().mean(**KEEP) - mean**2 + EPS)


STAYS = {
    "annotated": (Annotated().eval(), "unbiased"),
    "eps outside": (lambda x: (x - x.mean(**KEEP)) / (x.std(**KEEP, correction=0) + EPS), "not under it"),
    "unbiased": (lambda x: (x - x.mean(**KEEP)) / torch.sqrt(x.var(**KEEP) + EPS), "unbiased"),
    "difference of means": (as_difference, "rounds in another way"),
    "statistics read": (denormalized, "is read elsewhere"),
    "not centered": (lambda x: x / torch.sqrt(x.var(**KEEP, correction=0) + EPS), "not centered"),
    "centered along another axis": (
        lambda x: (x - x.mean(1, keepdim=True)) / torch.sqrt(x.var(**KEEP, correction=0) + EPS),
        "another value",
    ),
    "in half": (lambda x: normalized(x.half(), -1), "squares in torch.float16"),
    "clamped": (
        lambda x: (x - x.mean(**KEEP)) / x.std(**KEEP, correction=0).clamp(min=EPS),
        "deviation is clamped",
    ),
    "absolute deviation": (lambda x: (x - x.mean(**KEEP)) / ((x - x.mean(**KEEP)).abs().mean(**KEEP) + EPS), ""),
    "scaled difference": (
        lambda x: torch.sub(x, x.mean(**KEEP), alpha=2) / torch.sqrt(x.var(**KEEP, correction=0) + EPS),
        "",
    ),
}


@pytest.mark.parametrize("name", STAYS)
def test_what_is_no_layer_norm_stays(name: str) -> None:
    model, reason = STAYS[name]
    assert_unchanged(ReplaceLayerNorm(), model, (X,), reason=reason)


def test_an_axis_of_dynamic_size_stays() -> None:
    axes = {"x": [None, None, "n"]}
    assert_unchanged(ReplaceLayerNorm(), lambda x: normalized(x, -1), (X,), dynamic=axes, reason="dynamic size")


def test_statistics_over_time_are_no_layer_norm_of_features() -> None:
    program = assert_rewrites(ReplaceLayerNorm(), lambda x: normalized(x, 1), None, (X,), first=resolve("remove-noops"))
    (node,) = program.find(LN)
    assert list(node.args[1]) == [3]


@settings(max_examples=8, deadline=None, derandomize=True, database=None)
@given(programs())
def test_never_changes_numbers(sample) -> None:
    assert_preserves(ReplaceLayerNorm(), sample)
