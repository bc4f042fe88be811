"""Norms and softmax of half-precision numbers in float32, with casts around them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxexport
from fxexport.passes import AddCastsAroundNorms
from fxexport.rewrite import resolve
from fxexport.testing import assert_rewrites, assert_unchanged

aten = torch.ops.aten
CAST = aten._to_copy.default


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Call(nn.Module):
    def __init__(self, function: Callable[..., Tensor], size: int = 6) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("w", torch.rand(size) + 0.5)
        self.register_buffer("b", torch.randn(size))
        self.register_buffer("var", torch.rand(size) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


KINDS = {
    "batch": (lambda m, x: F.batch_norm(x, m.b, m.var, m.w, m.b), aten.batch_norm.default),
    "layer": (lambda m, x: F.layer_norm(x, (6,), m.w, m.b), aten.layer_norm.default),
    "rms": (lambda m, x: F.rms_norm(x, (6,), m.w), aten.rms_norm.default),
    "group": (lambda m, x: F.group_norm(x, 2, m.w, m.b), aten.group_norm.default),
    "instance": (lambda m, x: F.instance_norm(x), aten.instance_norm.default),
    "softmax": (lambda m, x: x.softmax(-1), aten.softmax.int),
    "log_softmax": (lambda m, x: x.log_softmax(1), aten.log_softmax.int),
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_as_close_to_float32_as_its_dtype_allows(name: str, dtype: torch.dtype) -> None:
    function, op = KINDS[name]
    model = Call(function).to(dtype).eval()
    x = (torch.randn(3, 6, 6) * 10).to(dtype)
    batch = {"x": {0: "batch"}}
    program = assert_rewrites(AddCastsAroundNorms(), model, None, (x,), count=1, ops={CAST: 2, op: 1}, dynamic=batch)
    (call,) = program.find(op)
    assert call.meta["val"].dtype == torch.float32
    assert program.output_nodes[0].meta["val"].dtype == dtype
    exact = model.double()(x.double())
    assert bool(((program.run(x)[0].double() - exact).abs() <= torch.finfo(dtype).eps * exact.abs() + 1e-6).all())


def test_what_it_leaves() -> None:
    x = torch.randn(3, 6, 6)
    assert_unchanged(AddCastsAroundNorms(), Call(KINDS["layer"][0]), (x,))
    assert_unchanged(AddCastsAroundNorms(softmax=False), Call(KINDS["softmax"][0]), (x.half(),))
    assert_unchanged(AddCastsAroundNorms(), Call(lambda m, x: x.softmax(-1, dtype=torch.float32)), (x.half(),))
    assert_unchanged(AddCastsAroundNorms(), Call(lambda m, x: x.relu() * m.w).half(), (x.half(),))
    assert not any(isinstance(each, AddCastsAroundNorms) for each in resolve("default"))


def test_computed_weights_are_cast_too() -> None:
    model = Call(lambda m, x: F.layer_norm(x, (6,), m.w * x.mean(), m.b)).half()
    assert_rewrites(AddCastsAroundNorms(), model, None, (torch.randn(3, 6).half(),), count=1, ops={CAST: 3})


def test_float32_statistics_stay_the_constants_they_are() -> None:
    model = nn.BatchNorm1d(6).eval()
    program = assert_rewrites(AddCastsAroundNorms(), model, None, (torch.randn(3, 6).half(),), count=1)
    assert set(program.constants()) == {"weight", "bias", "running_mean", "running_var"}


def test_in_the_file_a_sum_of_squares_does_not_overflow(tmp_path: Path) -> None:
    model = Call(lambda m, x: F.rms_norm(x, (64,), m.w), size=64).half().eval()
    x = (torch.randn(4, 64) * 400).half()
    artifact = fxexport.compile(
        model, tmp_path / "m.onnx", (x,), passes="default,add-casts-around-norms", opset_version=18
    )
    got = torch.as_tensor(np.asarray(artifact(x))).double()
    exact = model.double()(x.double())
    assert bool(((got - exact).abs() <= torch.finfo(torch.float16).eps * exact.abs() + 1e-6).all())
