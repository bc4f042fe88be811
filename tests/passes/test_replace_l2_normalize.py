"""Division by the Euclidean length in every spelling becomes the operators of F.normalize."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor

import fxexport
from fxexport.passes import ReplaceL2Normalize
from fxexport.testing import assert_preserves, assert_rewrites, assert_unchanged, programs

aten = torch.ops.aten
X = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
X[0, 0] = 1e-5  # shorter than the bound below
KEEP = {"dim": 2, "keepdim": True}


def clamped(x: Tensor) -> Tensor:
    return x / aten.clamp_min(torch.linalg.vector_norm(x, 2.0, **KEEP), 2**-10)


def plain(x: Tensor) -> Tensor:
    return x / torch.linalg.vector_norm(x, 2.0, **KEEP)


SPELLINGS = {
    "normalize": (lambda x: F.normalize(x, dim=-1, eps=2**-10), clamped),
    "maximum": (lambda x: x / torch.maximum(x.pow(2).sum(**KEEP).sqrt(), torch.tensor(2**-10)), clamped),
    "clamp": (lambda x: x / (x * x).sum(**KEEP).sqrt().clamp(min=2**-10), clamped),
    "clamped under the root": (lambda x: x * (x * x).sum(**KEEP).clamp(min=2**-20).rsqrt(), clamped),
    "rsqrt": (lambda x: x * torch.rsqrt(x.square().sum(**KEEP)), plain),
    "power": (lambda x: x * (x**2).sum(-1).unsqueeze(-1) ** -0.5, plain),
    "expanded": (lambda x: x / x.norm(dim=-1, keepdim=True).expand_as(x), plain),
    "reciprocal": (lambda x: x * (1 / x.norm(dim=-1, keepdim=True)), plain),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_is_one(name: str) -> None:
    before, after = SPELLINGS[name]
    assert_rewrites(ReplaceL2Normalize(), before, after, (X,), dynamic={"x": ["batch", "time", None]})


def test_along_other_axes_and_with_factors() -> None:
    model = lambda x, g: 2 * g * F.normalize(x, dim=(1, 2))  # noqa: E731
    wanted = {aten.linalg_vector_norm.default: 1, aten.expand_as.default: 0}
    assert_rewrites(ReplaceL2Normalize(), model, None, (X, X + 1), ops=wanted, count=1)


def returns_its_length(x: Tensor) -> tuple[Tensor, Tensor]:
    length = x.square().sum(**KEEP).sqrt()
    return x / length, length


STAYS = {
    "eps added": (lambda x: x / (x.norm(**KEEP) + 1e-6), "not under it"),
    "eps under the root": (lambda x: x * torch.rsqrt(x.square().sum(**KEEP) + 1e-6), ""),
    "another norm": (lambda x: F.normalize(x, p=1, dim=-1), ""),
    "another value": (lambda x: (x + 1) * torch.rsqrt(x.square().sum(**KEEP)), "another value"),
    "as it is": (clamped, ""),
    "length read": (returns_its_length, "is read elsewhere"),
}


@pytest.mark.parametrize("name", STAYS)
def test_what_is_no_l2_normalization_stays(name: str) -> None:
    model, reason = STAYS[name]
    assert_unchanged(ReplaceL2Normalize(), model, (X,), reason=reason)


def test_a_vector_of_zeros_is_as_in_eager(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    model, axes = _module(lambda x: F.normalize(x, dim=-1)), {"x": ["batch", None, None]}
    fxexport.compile(model, path, (torch.cat([X, X * 0]),), dynamic=axes)
    operators = [node.op_type for node in onnx.load(path).graph.node]
    assert operators == ["Mul", "ReduceSum", "Sqrt", "Clip", "Div"]


def _module(function) -> torch.nn.Module:
    class Model(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x)

    return Model().eval()


@settings(max_examples=8, deadline=None, derandomize=True, database=None)
@given(programs())
def test_never_changes_numbers(sample) -> None:
    assert_preserves(ReplaceL2Normalize(), sample)
