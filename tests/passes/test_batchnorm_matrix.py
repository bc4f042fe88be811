"""Batchnorm in the places where tools get it wrong, through the passes that fold it, in every format, and at random."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fxexport
from fxexport.capture import capture_model
from fxexport.passes import FoldAffine, FoldBatchnorm
from fxexport.rewrite import PassManager
from fxexport.testing import assert_rewrites, assert_unchanged

aten = torch.ops.aten
BN, MUL, ADD = aten.batch_norm.default, aten.mul.Tensor, aten.add.Tensor
FOLDS = [FoldBatchnorm(), FoldAffine()]
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def norm(channels: int, dims: int = 2, kind: type[nn.Module] | None = None, **options) -> nn.Module:
    """A batchnorm whose statistics and weights are far from 0 and 1."""
    result = (kind or NORMS[dims])(channels, **options)
    with torch.no_grad():
        for tensor in (result.running_mean, result.bias):
            if tensor is not None:
                tensor.normal_()
        for tensor in (result.running_var, result.weight):
            if tensor is not None:
                tensor.uniform_(0.3, 3.0)
    return result.eval()


class Call(nn.Module):
    """A model from modules and a plain function of them and x."""

    def __init__(self, function: Callable[..., Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            setattr(self, name, module)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def image(channels: int = 4) -> tuple[Tensor]:
    return (torch.randn(2, channels, 6, 6),)


# ---------------------------------------------------------------- every format


class Places(nn.Module):
    """One batchnorm of each fate: into the layer before, into the next, behind a move, alone, spelled out, in a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv, self.second = norm(3), nn.Conv2d(3, 4, 3), norm(4)
        self.padded, self.again = nn.Conv2d(4, 4, 3, padding=1, bias=False), norm(4)
        self.up, self.sync = nn.ConvTranspose2d(4, 4, 2, groups=2), norm(4, kind=nn.SyncBatchNorm)
        self.linear, self.last = nn.Linear(4, 5), norm(5, 1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.second(self.conv(self.first(image)))
        x = torch.cat([x, self.padded(self.again(x.relu()).relu())], 2)
        x = torch.cond(x.mean() > 0, lambda y: self.sync(self.up(y)), lambda y: self.up(y), (x,))
        return self.last(self.linear(x.flatten(2).transpose(1, 2)).transpose(1, 2))


@pytest.mark.parametrize("name", ["m.onnx", "m.pt", "m.pt2"])
def test_no_batchnorm_is_left_in_any_format(name: str, tmp_path: Path) -> None:
    path = fxexport.compile(
        Places().eval(), tmp_path / name, {"image": torch.randn(2, 3, 8, 8)}, dynamic={"image": {0: "batch"}}
    ).path
    if name == "m.onnx":
        graph = onnx.load(path).graph
        inner = [a.g for node in graph.node for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
        found = {node.op_type for g in [graph, *inner] for node in g.node}
        assert len(inner) == 2
    elif name == "m.pt":
        loaded = torch.jit.load(path)
        found = set(str(loaded.inlined_graph).replace("(", " ").split())
        assert "aten::conv2d" in found
    else:
        found = {
            str(node.target) for _, m in torch.export.load(path).graph_module.named_modules() for node in m.graph.nodes
        }
    assert not [each for each in found if "batch" in each.lower() and "norm" in each.lower()], found


# ---------------------------------------------------------------- places


FOLDED = {
    "sync": lambda m, x: m.sync(m.conv(x)),
    "affine-less": lambda m, x: m.plain(m.conv(x)),
    "one norm after two layers": lambda m, x: m.bn(m.conv(x)) + m.bn(m.other(x)),
    "one layer before two norms": lambda m, x: m.bn(m.conv(x)) + m.plain(m.conv(x)),
    "both shared": lambda m, x: m.bn(m.conv(x)) + m.bn(m.conv(x + 1)),
    "in a row": lambda m, x: m.plain(m.bn(m.conv(x))),
    "flattened": lambda m, x: m.line(m.conv(x).flatten(2)),
    "rows of a sequence": lambda m, x: m.rows(m.linear(x.flatten(2)).flatten(0, 1)),
    "behind a permutation": lambda m, x: m.bn(m.last(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)),
    "reflected padding": lambda m, x: m.bn(m.reflect(x)),
}


def parts() -> dict[str, nn.Module]:
    return {
        "conv": nn.Conv2d(4, 6, 3),
        "other": nn.Conv2d(4, 6, 3, bias=False),
        "reflect": nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
        "linear": nn.Linear(36, 6),
        "last": nn.Linear(4, 6),
        "bn": norm(6),
        "plain": norm(6, affine=False, momentum=None),
        "sync": norm(6, kind=nn.SyncBatchNorm),
        "line": norm(6, 1),
        "rows": norm(6, 1),
    }


@pytest.mark.parametrize("name", FOLDED)
def test_nothing_is_left_of_it(name: str) -> None:
    adds = {"one norm after two layers": 1, "one layer before two norms": 1, "both shared": 2}.get(name, 0)
    sizes = {"x": {2: "height"}} if name in ("sync", "both shared", "behind a permutation") else None
    wanted = {MUL: 0, ADD: adds}
    assert_rewrites(FoldBatchnorm(), Call(FOLDED[name], **parts()), None, image(), gone=[BN], ops=wanted, dynamic=sizes)


KEPT = {
    "concatenated": lambda m, x: m.bn(torch.cat([m.narrow(x), m.narrow(x)], 1)),
    "split by a reshape": lambda m, x: m.four(m.linear(x.flatten(2)).view(2, 4, 3, 2)),
    "rows, not channels": lambda m, x: m.four(m.wide(x)),
    "activated": lambda m, x: m.bn(m.conv(x).relu()),
    "pooled": lambda m, x: m.bn(F.avg_pool2d(m.conv(x), 2, padding=1)),
    "read twice": lambda m, x: m.bn(y := m.conv(x)) + y,
}


@pytest.mark.parametrize("name", KEPT)
def test_a_multiply_and_an_add_is_left(name: str) -> None:
    model = Call(KEPT[name], narrow=nn.Conv2d(4, 3, 3), wide=nn.Linear(6, 4), four=norm(4), **parts())
    program = assert_rewrites(FoldBatchnorm(), model, None, image(), gone=[BN], ops={MUL: 1})
    again, _ = PassManager([FoldAffine()]).run(program)
    assert len(list(again.find(MUL))) == 1


def test_one_conv_read_by_two_norms() -> None:
    model = Call(lambda m, x: m.bn(y := m.conv(x)) + m.plain(y), **parts())
    assert_rewrites(FoldBatchnorm(), model, None, image(), gone=[BN], ops={MUL: 2})


def test_statistics_of_the_batch_stay_and_are_told() -> None:
    model = Call(lambda m, x: m.bn(m.conv(x)), conv=nn.Conv2d(4, 6, 3), bn=norm(6, track_running_stats=False))
    assert_unchanged(FoldBatchnorm(), model, image(), reason="statistics of the batch")


def test_a_large_conv_with_several_norms_is_not_copied_past_the_limit() -> None:
    """Each copy would be 9 MiB: the manager refuses a pass that makes the program so much larger."""
    model = Call(
        lambda m, x: sum(bn(m.conv(x)) for bn in m.norms),
        conv=nn.Conv2d(512, 512, 3, bias=False),
        norms=nn.ModuleList(norm(512) for _ in range(4)),
    )
    program = capture_model(model, (torch.randn(1, 512, 3, 3),)).program
    after, (record,) = PassManager([FoldBatchnorm()]).run(program)
    assert record.count == 4
    assert not list(after.find(BN))
    x = torch.randn(1, 512, 3, 3)
    torch.testing.assert_close(after.run(x)[0], model(x), rtol=1e-4, atol=1e-4)


def test_a_large_siamese_model_folds_once() -> None:
    model = Call(lambda m, x: m.bn(m.conv(x)) - m.bn(m.conv(x.flip(0))), conv=nn.Conv2d(512, 512, 3), bn=norm(512))
    program = capture_model(model, (torch.randn(2, 512, 3, 3),)).program
    after, _ = PassManager([FoldBatchnorm()]).run(program)
    assert {name: tuple(t.shape) for name, t in after.constants().items()} == {
        "conv.weight_folded": (512, 512, 3, 3),
        "conv.bias_folded": (512,),
    }


@pytest.mark.parametrize("eps", [1e-5, 0.0])
def test_a_channel_without_variance(eps: float) -> None:
    bn = norm(6, eps=max(eps, 1e-30))
    bn.running_var[2] = 0
    model = nn.Sequential(nn.Conv2d(4, 6, 3), bn).eval()
    program = capture_model(model, image()).program
    after, _ = PassManager(FOLDS).run(program)
    x = image()[0]
    torch.testing.assert_close(after.run(x)[0], model(x), rtol=1e-3, atol=1e-3)
    assert all(bool(t.isfinite().all()) for t in after.constants().values())


@pytest.mark.parametrize("scale", [1e20, 1e-20])
def test_huge_and_tiny_scales(scale: float) -> None:
    bn = norm(6)
    bn.weight.data.mul_(scale)
    model = nn.Sequential(nn.Conv2d(4, 6, 3), bn).eval()
    (x,) = image()
    after, _ = PassManager(FOLDS).run(capture_model(model, (x,)).program)
    assert not list(after.find(BN))
    torch.testing.assert_close(after.run(x)[0] / scale, model(x) / scale, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- at random

STEPS = ["conv", "pad", "group", "up", "bn", "plain", "mul", "add", "sub", "div", "relu", "swap", "flat", "skip", "cat"]


class Chain(nn.Module):
    """Steps of ``STEPS`` on [batch, 4, height, width]; layers drawn by ``seed`` and shared by the steps of a name."""

    def __init__(self, steps: list[tuple[str, int]]) -> None:
        super().__init__()
        self.steps = steps
        made: dict[str, Callable[[], nn.Module]] = {
            "conv": lambda: nn.Conv2d(4, 4, 1),
            "pad": lambda: nn.Conv2d(4, 4, 3, padding=1, bias=False),
            "group": lambda: nn.Conv2d(4, 4, 3, padding=1, groups=2),
            "up": lambda: nn.ConvTranspose2d(4, 4, 3, padding=1, groups=2),
            "bn": lambda: norm(4),
            "plain": lambda: norm(4, affine=False),
            "cat": lambda: nn.Conv2d(8, 4, 1),
        }
        self.layers = nn.ModuleDict({f"{k}{i}": make() for k, make in made.items() for i in range(2)})
        self.register_buffer("c", torch.rand(2, 4, 1, 1) + 0.5)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        for name, which in self.steps:
            x = self._step(name, which, x)
        return x

    def _step(self, name: str, which: int, x: Tensor) -> Tensor:
        if name == "cat":
            return self.layers[f"cat{which}"](torch.cat([x, self.layers[f"bn{which}"](x)], 1))
        if f"{name}{which}" in self.layers:
            return self.layers[f"{name}{which}"](x)
        c = self.c[which]
        plain = {
            "mul": lambda: x * c,
            "add": lambda: c + x if which else x + 0.5,
            "sub": lambda: c - x if which else x - c,
            "div": lambda: x / c,
            "relu": lambda: x.relu(),
            "swap": lambda: (x.transpose(1, 3) * c.flatten()).transpose(1, 3),
            "flat": lambda: (x.flatten(2) * c.flatten()[:, None]).view(x.shape),
            "skip": lambda: x + self.layers[f"conv{which}"](x),
        }
        return plain[name]()


@settings(max_examples=12, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 1)), min_size=1, max_size=7), st.integers(0, 99))
def test_chains_of_layers_and_affine_steps_keep_their_numbers(steps: list[tuple[str, int]], seed: int) -> None:
    torch.manual_seed(seed)
    model = Chain(steps).double()
    x = torch.randn(2, 4, 4, 4, dtype=torch.float64)
    program = capture_model(model, (x,)).program
    after, _ = PassManager(FOLDS).run(program)
    after.verify()
    assert not list(after.find(BN))
    fresh = torch.randn(2, 4, 4, 4, dtype=torch.float64)
    for given_ in (x, fresh):
        torch.testing.assert_close(after.run(given_)[0], model(given_), rtol=1e-9, atol=1e-9)
