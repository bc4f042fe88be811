"""Root-mean-square normalization in every spelling becomes one operator, and what only looks like it stays."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from norm_spellings import SPELLINGS, rms_norm
from torch import Tensor, nn

import fxexport
from fxexport.passes import FoldNormAffine, ReplaceRmsNorm
from fxexport.rewrite import resolve
from fxexport.testing import assert_preserves, assert_rewrites, assert_unchanged, programs

aten = torch.ops.aten
RMS = aten.rms_norm.default
X = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
EPS = 1e-5
KEEP = {"dim": -1, "keepdim": True}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_is_one_operator(spelling: str) -> None:
    assert_rewrites(
        ReplaceRmsNorm(),
        lambda x: rms_norm(spelling, x, EPS),
        lambda x: F.rms_norm(x, [8], eps=EPS),
        (X,),
        dynamic={"x": ["batch", "time", None]},
    )


OTHERS = {
    "vector norm": (lambda x: x / (x.norm(**KEEP) ** 2 / 8 + EPS).sqrt(), EPS, 1),
    "vector norm over root of n": (lambda x: x / (x.norm(**KEEP) / 8**0.5), 0.0, 1),
    "root of n times": (lambda x: 8**0.5 * x / torch.linalg.vector_norm(x, **KEEP), 0.0, 1),
    "root of the sum": (lambda x: x * (8 / (x.pow(2).sum(**KEEP) + 8 * EPS)) ** 0.5, EPS, 1),
    "tensor eps": (lambda x: x * torch.rsqrt(x.square().mean(**KEEP) + torch.tensor(EPS)), EPS, 1),
    "eps first": (lambda x: x * torch.rsqrt(EPS + x.square().mean(**KEEP)), EPS, 1),
}


@pytest.mark.parametrize("name", OTHERS)
def test_roots_and_norms(name: str) -> None:
    model, eps, count = OTHERS[name]
    program = assert_rewrites(ReplaceRmsNorm(), model, None, (X,), ops={RMS: 1}, count=count)
    (node,) = program.find(RMS)
    assert node.args[3] == pytest.approx(eps)
    assert node.args[2] is None


def test_the_sum_of_squares_has_the_rest_as_its_weight() -> None:
    model = lambda x: x * torch.rsqrt((x * x).sum(**KEEP) + 1e-3)  # noqa: E731
    program = assert_rewrites(ReplaceRmsNorm(), model, None, (X,), ops={RMS: 1, aten.mul.Tensor: 0})
    (node,) = program.find(RMS)
    assert node.args[3] == pytest.approx(1e-3 / 8)
    torch.testing.assert_close(program.constant_value(node.args[2]), torch.full([8], 8**-0.5))


def test_what_is_normalized_may_be_a_product_itself() -> None:
    def model(x: Tensor, y: Tensor) -> Tensor:
        h = x * y * 3
        return h * torch.rsqrt(h.pow(2).mean(**KEEP) + EPS)

    assert_rewrites(ReplaceRmsNorm(), model, lambda x, y: F.rms_norm(x * y * 3, [8], eps=EPS), (X, X + 1))


def test_other_factors_stay_factors() -> None:
    model = lambda x, gate: gate * x / (x.square().mean(**KEEP) + EPS).sqrt()  # noqa: E731
    assert_rewrites(ReplaceRmsNorm(), model, lambda x, gate: F.rms_norm(x, [8], eps=EPS) * gate, (X, X + 1))


def test_several_axes() -> None:
    model = lambda x: x * torch.rsqrt(x.square().mean((1, 2), keepdim=True) + EPS)  # noqa: E731
    assert_rewrites(ReplaceRmsNorm(), model, lambda x: F.rms_norm(x, [3, 8], eps=EPS), (X,))


def test_channels_first_for_one_row() -> None:
    model = lambda x: x * torch.rsqrt(x.square().mean(1, keepdim=True) + EPS)  # noqa: E731
    assert_rewrites(ReplaceRmsNorm(), model, None, (X[:1],), ops={RMS: 1, aten.permute.default: 2})
    assert_unchanged(ReplaceRmsNorm(), model, (X,), reason="not over the last axes")


# ---------------------------------------------------------------- dtypes


class Norm(nn.Module):
    """Llama's: widened to float32, normalized, rounded, multiplied."""

    def __init__(self, dtype: torch.dtype, *, round_first: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter((torch.rand(8) + 0.5).to(dtype))
        self.round_first = round_first

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        if self.round_first:
            return self.weight * wide.to(x.dtype)
        return (wide * (1.0 + self.weight.float())).type_as(x)  # Gemma's


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("round_first", [True, False])
def test_half_precision_is_normalized_in_float32(dtype: torch.dtype, round_first: bool) -> None:
    first = [*resolve("remove-noops,remove-assertions"), ReplaceRmsNorm()]
    x = (X * 400).to(dtype)  # its squares are infinite in float16
    program = assert_rewrites(ReplaceRmsNorm(), Norm(dtype, round_first=round_first), None, (x,), ops={RMS: 1}, rtol=0)
    (node,) = program.find(RMS)
    assert node.meta["val"].dtype == torch.float32
    if dtype == torch.float32 or not round_first:
        assert_rewrites(FoldNormAffine(), Norm(dtype, round_first=round_first), None, (x,), first=first, count=1)
    else:
        assert_unchanged(FoldNormAffine(), Norm(dtype), (x,), first=first)


def test_promotion_to_float32_is_a_cast() -> None:
    """T5's: the quotient alone makes it float32."""
    model = lambda x: (x * torch.rsqrt(x.float().pow(2).mean(**KEEP) + EPS)).half()  # noqa: E731
    program = assert_rewrites(ReplaceRmsNorm(), model, None, (X.half(),), ops={RMS: 1, aten.mul.Tensor: 0})
    (node,) = program.find(RMS)
    assert node.args[0].meta["val"].dtype == torch.float32


# ---------------------------------------------------------------- what stays


def shared(x: Tensor) -> tuple[Tensor, Tensor]:
    mean = x.square().mean(**KEEP)
    return x * torch.rsqrt(mean + EPS), mean


STAYS = {
    "eps outside": (lambda x: x / (x.square().mean(**KEEP).sqrt() + EPS), "not under it"),
    "eps outside of a norm": (lambda x: x / (x.norm(**KEEP) / 8**0.5 + EPS), "not under it"),
    "another value": (lambda x: (x + 1) * torch.rsqrt(x.square().mean(**KEEP) + EPS), "size of another value"),
    "read elsewhere": (shared, "is read elsewhere"),
    "in half": (lambda x: x.half() * torch.rsqrt(x.half().square().mean(**KEEP) + EPS), "squares in torch.float16"),
    "broadcast along another axis": (
        lambda x: x[:, :, :3] * torch.rsqrt(x[:, :, :3].square().mean(-1).unsqueeze(1) + EPS),
        "other axes",
    ),
    "clamped": (lambda x: x * torch.rsqrt(x.square().mean(**KEEP).clamp(min=EPS)), ""),
    "cubes": (lambda x: x * torch.rsqrt(x.abs().pow(3).mean(**KEEP) + EPS), ""),
    "no root": (lambda x: x / (x.square().mean(**KEEP) + EPS), ""),
    "another root": (lambda x: x * (x.square().mean(**KEEP) + EPS) ** -0.25, ""),
    "maximum": (lambda x: x * torch.rsqrt(x.square().amax(**KEEP) + EPS), ""),
    "no eps": (lambda x: x / x.norm(**KEEP), ""),
    "of absolute values": (lambda x: x.abs() * torch.rsqrt(x.square().mean(**KEEP) + EPS), "another value"),
}


@pytest.mark.parametrize("name", STAYS)
def test_what_is_no_rms_norm_stays(name: str) -> None:
    model, reason = STAYS[name]
    assert_unchanged(ReplaceRmsNorm(), model, (X,), reason=reason)


def test_an_axis_of_dynamic_size_stays() -> None:
    model = lambda x: rms_norm("pow, mean, rsqrt", x, EPS)  # noqa: E731
    assert_unchanged(ReplaceRmsNorm(), model, (X,), dynamic={"x": [None, None, "n"]}, reason="dynamic size")


# ---------------------------------------------------------------- files and random programs


@pytest.mark.parametrize("opset", [17, 20, 23])
def test_in_a_file(opset: int, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    fxexport.compile(
        Norm(torch.float32).eval(), path, (X,), dynamic={"x": ["batch", "time", None]}, opset_version=opset
    )
    operators = [node.op_type for node in onnx.load(path).graph.node]
    spelled = ["Pow", "ReduceMean", "Add", "Sqrt", "Div", "Mul"]
    wanted = {17: ["Mul", "ReduceSum", "Mul", "Add", "Sqrt", "Div", "Mul"], 20: spelled, 23: ["RMSNormalization"]}
    assert operators == wanted[opset]


@pytest.mark.parametrize("suffix", [".pt", ".pt2"])
def test_in_other_formats(suffix: str, tmp_path: Path) -> None:
    axes = {"x": ["batch", None, None]}
    artifact = fxexport.compile(Norm(torch.float32).eval(), tmp_path / f"m{suffix}", (X,), dynamic=axes)
    fired = {record.name: record.count for record in artifact.report.passes}
    assert fired["replace-rms-norm"] == fired["fold-norm-affine"] == 1


@settings(max_examples=8, deadline=None, derandomize=True, database=None)
@given(
    st.sampled_from(list(SPELLINGS)),
    st.sampled_from([0.0, 1e-6, 0.5]),
    st.lists(st.integers(2, 5), min_size=1, max_size=4),
)
def test_random_spellings_and_shapes(spelling: str, eps: float, shape: list[int]) -> None:
    model = lambda x: rms_norm(spelling, x + 1, eps)  # noqa: E731
    assert_rewrites(ReplaceRmsNorm(), model, None, (torch.randn(shape),), ops={RMS: 1})


@settings(max_examples=8, deadline=None, derandomize=True, database=None)
@given(programs())
def test_never_changes_numbers(sample) -> None:
    assert_preserves(ReplaceRmsNorm(), sample)
