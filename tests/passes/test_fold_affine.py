"""A constant factor or summand after a layer: into its weights, or left where that would change something."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest
import torch
from torch import Tensor, nn

import fxexport
from fxexport.passes import FoldAffine, FoldBatchnorm
from fxexport.passes.fold_constants import FoldConstants
from fxexport.testing import assert_rewrites, assert_unchanged

aten = torch.ops.aten
MUL, ADD, SUB, DIV = aten.mul.Tensor, aten.add.Tensor, aten.sub.Tensor, aten.div.Tensor


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Call(nn.Module):
    """A model of layers, buffers and a plain function of them and x."""

    def __init__(self, function: Callable[..., Tensor], **parts: nn.Module | Tensor) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, nn.Module):
                setattr(self, name, part)
            else:
                self.register_buffer(name, part)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def channels(count: int = 6, rank: int = 4) -> Tensor:
    return (torch.rand(count) + 0.5).reshape(count, *(1,) * (rank - 2))


def image() -> tuple[Tensor]:
    return (torch.randn(2, 4, 6, 6),)


SPELLINGS = {
    "mul": lambda m, x: m.conv(x) * m.c,
    "mul by a number": lambda m, x: 0.3 * m.conv(x),
    "div": lambda m, x: m.conv(x) / m.c,
    "add": lambda m, x: m.c + m.conv(x),
    "add with alpha": lambda m, x: torch.add(m.conv(x), m.c, alpha=3),
    "add with alpha on the layer": lambda m, x: torch.add(m.c, m.conv(x), alpha=3),
    "sub": lambda m, x: m.conv(x) - m.c,
    "sub with alpha": lambda m, x: torch.sub(m.c, m.conv(x), alpha=2),
    "sub from a number": lambda m, x: 1 - m.conv(x),
    "rsub": lambda m, x: torch.rsub(m.conv(x), m.c, alpha=2),
    "neg": lambda m, x: -m.conv(x),
    "four axes": lambda m, x: m.conv(x) * m.c[None],
}
LAYERS = {
    "conv": nn.Conv2d(4, 6, 3, padding=1),
    "grouped, no bias": nn.Conv2d(4, 6, 3, groups=2, dilation=2, bias=False),
    "reflect": nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
    "transposed": nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling(name: str) -> None:
    constant = channels()[None] if name == "four axes" else channels()
    function = SPELLINGS[name] if name != "four axes" else SPELLINGS["mul"]
    model = Call(function, conv=nn.Conv2d(4, 6, 3), c=constant)
    program = assert_rewrites(FoldAffine(), model, None, image(), count=1, dynamic={"x": {0: "batch"}})
    assert program.node_count() == 1


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer(name: str) -> None:
    model = Call(lambda m, x: (m.layer(x) - m.c) * m.d / m.c + m.d, layer=LAYERS[name], c=channels(), d=channels())
    assert_rewrites(FoldAffine(), model, None, image(), count=4, ops={MUL: 0, ADD: 0, SUB: 0, DIV: 0})


def test_the_sum_of_shifts_keeps_the_weight() -> None:
    model = Call(lambda m, x: m.conv(x) + m.c, conv=nn.Conv2d(4, 6, 3), c=channels())
    program = assert_rewrites(FoldAffine(), model, None, image(), count=1)
    assert set(program.constants()) == {"conv.weight", "conv.bias_folded"}


def frozen(m: Call, x: Tensor) -> Tensor:
    """torchvision's FrozenBatchNorm2d."""
    w, b, var, mean = (t.reshape(1, -1, 1, 1) for t in (m.w, m.b, m.var, m.mean))
    scale = w * (var + 1e-5).rsqrt()
    return m.conv(x) * scale + (b - mean * scale)


def spelled_out(m: Call, x: Tensor) -> Tensor:
    w, b, var, mean = (t[None, :, None, None] for t in (m.w, m.b, m.var, m.mean))
    return (m.conv(x) - mean) / torch.sqrt(var + 1e-5) * w + b


@pytest.mark.parametrize("function", [frozen, spelled_out])
def test_batchnorm_spelled_out(function: Callable[..., Tensor], tmp_path) -> None:
    parts = {name: torch.rand(6) + 0.5 for name in ("w", "b", "var", "mean")}
    model = Call(function, conv=nn.Conv2d(4, 6, 3, bias=False), **parts)
    artifact = fxexport.compile(model, tmp_path / "m.onnx", image(), passes=[FoldConstants(), FoldAffine()])
    assert [node.op_type for node in onnx.load(artifact.path).graph.node] == ["Conv"]


def test_a_scaled_projection_behind_the_split_into_heads() -> None:
    model = Call(lambda m, x: m.q(x).view(2, 3, 2, 4).transpose(1, 2) * 0.5, q=nn.Linear(5, 8))
    program = assert_rewrites(FoldAffine(), model, None, (torch.randn(2, 3, 5),), count=1, ops={MUL: 0})
    assert {node.target for node in program.graph.nodes if node.op == "call_function"} == {
        aten.linear.default,
        aten.view.default,
        aten.transpose.int,
    }


MOVES = {
    "transpose": (lambda y: y.transpose(1, 2), (8, 1)),
    "permute": (lambda y: y.permute(2, 0, 1), (8, 1, 1)),
    "flatten": (lambda y: y.flatten(0, 1), (8,)),
    "view": (lambda y: y.reshape(1, 2, 3, 8), (8,)),
    "unsqueeze": (lambda y: y.unsqueeze(1), (8,)),
    "contiguous": (lambda y: y.transpose(1, 2).contiguous(), (8, 1)),
}


@pytest.mark.parametrize("name", MOVES)
def test_channels_are_followed_through_moves(name: str) -> None:
    move, shape = MOVES[name]
    model = Call(lambda m, x: move(m.f(x)) * m.c, f=nn.Linear(5, 8), c=torch.rand(8).reshape(shape))
    assert_rewrites(FoldAffine(), model, None, (torch.randn(2, 3, 5),), count=1, ops={MUL: 0})


def test_a_square_is_no_channel_axis() -> None:
    """The factor runs along time, of as many steps as there are channels."""
    model = Call(lambda m, x: m.f(x) * m.c, f=nn.Linear(5, 8), c=torch.rand(8, 1))
    assert_unchanged(FoldAffine(), model, (torch.randn(2, 8, 5),))
    model = Call(lambda m, x: m.f(x).transpose(1, 2) * m.c, f=nn.Linear(5, 8), c=torch.rand(8))
    assert_unchanged(FoldAffine(), model, (torch.randn(2, 8, 5),))
    model = Call(lambda m, x: m.f(x).view(2, 4, 8) * m.c, f=nn.Linear(5, 4), c=torch.rand(8))
    assert_unchanged(FoldAffine(), model, (torch.randn(2, 8, 5),))


def test_a_conv_without_a_batch_axis() -> None:
    model = Call(lambda m, x: m.conv(x) * m.c, conv=nn.Conv1d(4, 6, 1), c=torch.rand(6, 1))
    assert_rewrites(FoldAffine(), model, None, (torch.randn(4, 6),), count=1, ops={MUL: 0})
    model = Call(lambda m, x: m.conv(x) * m.c, conv=nn.Conv1d(4, 6, 1), c=torch.rand(6))
    assert_unchanged(FoldAffine(), model, (torch.randn(4, 6),))


STAYS = {
    "divides": (lambda m, x: m.c / m.conv(x), ""),
    "rounded": (lambda m, x: torch.div(m.conv(x), m.c, rounding_mode="floor"), ""),
    "not a constant": (lambda m, x: m.conv(x) * x.mean(), ""),
    "another layer": (lambda m, x: m.conv(x) + m.conv(x), ""),
    "several axes": (lambda m, x: m.conv(x) + m.map, ""),
    "five axes": (lambda m, x: m.conv(x) * m.five, ""),
    "channels made by it": (lambda m, x: m.one(x) * m.c, ""),
    "another shape": (lambda m, x: m.one(x) * m.wider, "shape or dtype"),
    "another dtype": (lambda m, x: m.conv(x) * m.wide, "shape or dtype"),
    "weight computed": (lambda m, x: nn.functional.conv2d(x, m.conv.weight.tanh()) * m.c, ""),
    "read elsewhere": (lambda m, x: (y := m.conv(x)) * m.c + y, ""),
    "read by itself": (lambda m, x: (y := m.conv(x)) * y, ""),
}


@pytest.mark.parametrize("name", STAYS)
def test_stays(name: str) -> None:
    function, reason = STAYS[name]
    parts = {"map": torch.rand(6, 4, 1), "five": torch.rand(5, 1, 1, 1, 1), "wide": channels().double()}
    parts["wider"] = torch.rand(1, 1, 1, 1, 1)
    model = Call(function, conv=nn.Conv2d(4, 6, 3), one=nn.Conv2d(4, 1, 3), c=channels(), **parts)
    assert_unchanged(FoldAffine(), model, image(), reason=reason)


def test_division_by_zero_stays() -> None:
    c = channels()
    c[1] = 0
    model = Call(lambda m, x: (m.conv(x) / m.c).clamp(-1, 1), conv=nn.Conv2d(4, 6, 3), c=c)
    assert_unchanged(FoldAffine(), model, image(), reason="not finite")


def test_what_float16_cannot_hold_stays() -> None:
    model = Call(lambda m, x: m.conv(x) * 1e-6, conv=nn.Conv2d(4, 6, 3)).half()
    assert_unchanged(FoldAffine(), model, (torch.randn(2, 4, 6, 6).half(),), reason="too small")


def test_a_large_shared_weight_is_not_stored_twice() -> None:
    model = Call(lambda m, x: nn.functional.linear(m.f(x), m.f.weight) * 0.5, f=nn.Linear(600, 600))
    x = (torch.randn(1, 600),)
    assert_unchanged(FoldAffine(), model, x, reason="stored twice")
    assert_unchanged(
        FoldAffine(max_weight_mib=1),
        Call(lambda m, x: m.f(x) * 2, f=nn.Linear(600, 600)),
        x,
        reason="larger than 1 MiB",
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_other_dtypes(dtype: torch.dtype) -> None:
    model = Call(lambda m, x: m.conv(x) * m.c + m.c, conv=nn.Conv2d(4, 6, 3), c=channels()).to(dtype)
    tolerance = {torch.float16: 5e-3, torch.bfloat16: 4e-2}.get(dtype)
    program = assert_rewrites(
        FoldAffine(), model, None, (torch.randn(2, 4, 6, 6).to(dtype),), count=2, rtol=tolerance, atol=tolerance
    )
    assert {t.dtype for t in program.constants().values()} == {dtype}


def test_batchnorms_one_after_the_other_and_what_lies_between() -> None:
    """bn . scale . bn after a conv: all of it is the conv."""
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.BatchNorm2d(6)).eval()
    for bn in (model[1], model[2]):
        bn.running_mean.normal_()
        bn.running_var.uniform_(0.5, 2)
    scaled = Call(lambda m, x: m.last(m.first(x) * 0.5 - m.c), first=model[:2], last=model[2], c=channels())
    assert_rewrites(FoldAffine(), scaled, None, image(), first=[FoldBatchnorm()], count=4, ops={MUL: 0, ADD: 0, SUB: 0})
