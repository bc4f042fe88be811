"""PatternPass: what matches, what does not and why, what becomes of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxexport import Constant, Match, NodePass, Pass, PassManager, PatternPass, PatternSet, Program, capture
from fxexport.errors import InputError, PassError, VerifyError
from fxexport.rewrite import PassRecord

aten = torch.ops.aten


class Wrapped(nn.Module):
    """A function as a model, with a linear layer whose weights it may use."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.linear = nn.Linear(4, 4)

    def forward(self, *tensors: Tensor) -> Any:
        needs_layer = "layer" in self.function.__code__.co_varnames
        return self.function(*tensors, layer=self.linear) if needs_layer else self.function(*tensors)


def rewrite(
    pass_: Pass, function: Callable[..., Any], *inputs: Tensor, dynamic: Any = None
) -> tuple[Program, PassRecord]:
    """The program after the pass, and its record; the numbers are compared on fresh values."""
    program = capture(Wrapped(function).eval(), inputs, dynamic=dynamic and {"tensors": dynamic})
    after, (record,) = PassManager([pass_]).run(program)
    fresh = [torch.rand_like(t) if t.is_floating_point() else t for t in inputs]
    for got, want in zip(after.run(*fresh), program.run(*fresh), strict=True):
        torch.testing.assert_close(got, want)
    return after, record


def calls(program: Program) -> list[str]:
    """The operators of a program in order, without their overloads."""
    return [n.target.__name__.split(".")[0] for n in program.graph.nodes if n.op == "call_function"]


def x(*shape: int) -> Tensor:
    return torch.randn(*(shape or (2, 4)))


class FuseSilu(PatternPass):
    """``x * sigmoid(x) -> silu(x)``."""

    name = "fuse-silu"

    @staticmethod
    def pattern(x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)

    @staticmethod
    def replacement(x: Tensor) -> Tensor:
        return F.silu(x)


# ---------------------------------------------------------------- spellings


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * torch.sigmoid(x),
        lambda x: torch.sigmoid(x) * x,
        lambda x: x.mul(x.sigmoid()),
        lambda x: x * nn.Sigmoid()(x),
        lambda x: torch.mul(F.sigmoid(x), x),
        lambda x: x.clone().mul_(x.sigmoid()),
        lambda x: x * x.contiguous().sigmoid(),
    ],
)
def test_every_spelling_matches(function: Callable[..., Any]) -> None:
    after, record = rewrite(FuseSilu(), function, x())
    assert record.count == 1
    assert "silu" in calls(after)
    assert "sigmoid" not in calls(after)


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 3, 4, 5)])
def test_other_ranks_and_symbolic_sizes_match(shape: tuple[int, ...]) -> None:
    names = [f"d{i}" for i in range(len(shape))]
    after, record = rewrite(FuseSilu(), lambda x: x * x.sigmoid(), x(*shape), dynamic=[names])
    assert record.count == 1
    assert [str(axis) for axis in after.signature.outputs[0].axes] == names


def test_a_pattern_in_place_matches_what_is_not() -> None:
    pass_ = PatternPass.of("relu-add", lambda x: x.add(1).relu_(), lambda x: torch.clamp(x + 1, min=0))
    _, record = rewrite(pass_, lambda x: F.relu(x + 1), x())
    assert record.count == 1


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.view(2, 3, 2, 2).transpose(1, 2),
        lambda x: x.reshape(2, 3, 2, -1).transpose(2, 1),
        lambda x: x.unflatten(-1, (2, 2)).permute(0, 2, 1, 3),
        lambda x: x.unflatten(2, (2, -1)).swapaxes(-2, -3),
        lambda x: x.contiguous().view(x.shape[0], x.shape[1], 2, 2).transpose(-3, -2).contiguous(),
    ],
)
def test_shape_arithmetic_and_its_spellings(function: Callable[..., Any]) -> None:
    assert rewrite(SplitHeads(), function, x(2, 3, 4))[1].count == 1
    assert rewrite(SplitHeads(), function, x(2, 3, 4).transpose(0, 1).contiguous().transpose(0, 1))[1].count == 1


class SplitHeads(PatternPass):
    """``[b, t, h * d] -> [b, h, t, d]``, of any number of heads."""

    name = "split-heads"
    example_inputs = (torch.zeros(2, 5, 32), 4)

    @staticmethod
    def pattern(x: Tensor, heads: int) -> Tensor:
        b, t, c = x.shape
        return x.view(b, t, heads, c // heads).transpose(1, 2)

    @staticmethod
    def replacement(x: Tensor, heads: int) -> Tensor:
        return torch.stack(x.chunk(heads, dim=-1), dim=1)


def test_shape_arithmetic_matches_at_symbolic_sizes() -> None:
    def split(x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], 2, 2).transpose(1, 2)

    after, record = rewrite(SplitHeads(), split, x(2, 3, 4), dynamic=[["b", "t", None]])
    assert record.count == 1
    longer = x(3, 7, 4)
    torch.testing.assert_close(after.run(longer)[0], split(longer))


def test_shape_arithmetic_that_differs_does_not_match() -> None:
    _, record = rewrite(SplitHeads(), lambda x: x.view(2, 6, 1, 2).transpose(1, 2), x(2, 3, 4))
    assert record.count == 0
    assert "expected [2, 3, 1, 4], found [2, 6, 1, 2]" in record.near_misses[0].reason
    _, record = rewrite(SplitHeads(), lambda x: x.view(2, 2, 2).transpose(1, 2), x(2, 4))
    assert "not enough values to unpack" in record.near_misses[0].reason


# ---------------------------------------------------------------- literals


class FuseAttention(PatternPass):
    """``softmax(q k' / sqrt(d)) v -> scaled_dot_product_attention(q, k, v)``."""

    name = "fuse-attention"
    example_inputs = (torch.zeros(2, 4, 8, 16),) * 3

    @staticmethod
    def pattern(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(-1) @ v

    @staticmethod
    def replacement(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)


def attention(scale: float) -> Callable[..., Any]:
    return lambda q, k, v: torch.softmax(q.matmul(k.mT) / scale, dim=q.dim() - 1).matmul(v)


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4), (2, 2, 3, 4)])
def test_numbers_computed_from_shapes_are_those_of_the_match(shape: tuple[int, ...]) -> None:
    inputs = [x(*shape) for _ in range(3)]
    axes = [["length", None] if len(shape) == 2 else ["batch", *[None] * (len(shape) - 3), "length", None]] * 3
    assert rewrite(FuseAttention(), attention(2.0), *inputs, dynamic=axes)[1].count == 1
    _, record = rewrite(FuseAttention(), attention(3.0), *inputs)
    assert record.count == 0
    assert record.near_misses[0].reason.endswith("expected 2.0, found 3.0")


def test_literals_match_exactly() -> None:
    pass_ = PatternPass.of("norm", lambda x: F.layer_norm(x, (4,), eps=1e-5), lambda x: F.layer_norm(x, (4,)))
    assert rewrite(pass_, lambda x: F.layer_norm(x, (4,), eps=1e-5), x(4, 4))[1].count == 1
    _, record = rewrite(pass_, lambda x: F.layer_norm(x, (4,), eps=1e-6), x(4, 4))
    assert record.count == 0
    assert "eps of layer_norm" in record.near_misses[0].reason
    assert "expected 1e-05, found 1e-06" in record.near_misses[0].reason


def test_defaults_are_literals_too() -> None:
    pass_ = PatternPass.of(
        "gelu", lambda x: F.gelu(x, approximate="none"), lambda x: x * 0.5 * (1 + (x / 2**0.5).erf())
    )
    assert rewrite(pass_, lambda x: F.gelu(x), x())[1].count == 1
    assert rewrite(pass_, lambda x: F.gelu(x, approximate="tanh"), x())[1].count == 0


@pytest.mark.parametrize(("dim", "same"), [(-1, True), (2, True), (1, False)])
def test_dimensions_are_counted_from_either_end(dim: int, same: bool) -> None:
    pass_ = PatternPass.of("softmax", lambda x: x.softmax(-1), lambda x: x.log_softmax(-1).exp(), (torch.zeros(2, 2),))
    assert rewrite(pass_, lambda x: x.softmax(dim), x(2, 3, 4))[1].count == same


def test_a_float_for_an_int_matters_where_it_promotes() -> None:
    pass_ = PatternPass.of("double", lambda x: x * 2, lambda x: x + x)
    assert rewrite(pass_, lambda x: x * 2.0, x())[1].count == 1
    assert rewrite(pass_, lambda x: x * 2, torch.arange(4))[1].count == 1
    assert rewrite(pass_, lambda x: x * 2.0, torch.arange(4))[1].count == 0


class FoldScale(PatternPass):
    """``linear(x, W, b) * c -> linear(x, W * c, b * c)``."""

    name = "fold-scale"
    example_inputs = (torch.zeros(2, 3), torch.zeros(5, 3), torch.zeros(5), 2.5)

    @staticmethod
    def pattern(x: Tensor, weight: Constant, bias: Constant | None, scale: float) -> Tensor:
        return F.linear(x, weight, bias) * scale

    @staticmethod
    def replacement(x: Tensor, weight: Constant, bias: Constant | None, scale: float) -> Tensor:
        return F.linear(x, weight * scale, None if bias is None else bias * scale)


def test_wildcard_literals_optional_arguments_and_folded_constants() -> None:
    after, record = rewrite(FoldScale(), lambda x, layer=None: layer(x) * 3.0, x())
    assert calls(after) == ["linear"]
    assert record.rewrites[0].operators == ("aten.linear.default", "aten.mul.Tensor")
    assert all("fold_scale" in name for name in after.constants())
    after, _ = rewrite(FoldScale(), lambda x, layer=None: F.linear(x, layer.weight) * 0.25, x())
    assert calls(after) == ["linear"]
    assert len(after.constants()) == 1


def test_constants_must_be_constants() -> None:
    _, record = rewrite(FoldScale(), lambda x, w: F.linear(x, w) * 3.0, x(), x(4, 4))
    assert record.count == 0
    assert any("expected a constant for 'weight'" in miss.reason for miss in record.near_misses)


def test_shared_weights_are_folded_once_and_the_model_is_untouched() -> None:
    def twice(x: Tensor, layer: Any = None) -> Tensor:
        return layer(layer(x) * 2.0) * 2.0

    after, record = rewrite(FoldScale(), twice, x())
    assert record.count == 2
    assert len(after.constants()) == 2


def test_dtypes_and_sizes_as_wildcards() -> None:
    pass_ = PatternPass.of(
        "cast-relu",
        lambda x, dtype: torch.relu(x.to(dtype)),
        lambda x, dtype: torch.relu(x).to(dtype),
        (torch.zeros(2), torch.float64),
    )
    after, record = rewrite(pass_, lambda x: x.to(torch.float16).relu(), x())
    assert record.count == 1
    assert after.output_nodes[0].meta["val"].dtype == torch.float16
    narrow = PatternPass.of("narrow", lambda x, n: x[:, :n] * 2, lambda x, n: (x * 2)[:, :n], (torch.zeros(2, 6), 3))
    assert rewrite(narrow, lambda x: x[:, :2] * 2, x())[1].count == 1


def test_a_wildcard_that_no_operator_is_given_is_refused() -> None:
    pass_ = PatternPass.of("inverse", lambda x, c: x * (1 / c), lambda x, c: x / c, (torch.zeros(2), 4.0))
    with pytest.raises(PassError, match="no operator is given 'c' as it is"):
        rewrite(pass_, lambda x: x * 0.5, x())


def test_tensors_made_from_numbers_are_literals() -> None:
    pass_ = PatternPass.of("two", lambda x: x * torch.tensor(2.0), lambda x: x + x)
    two = torch.tensor(2.0)
    assert rewrite(pass_, lambda x: x * torch.tensor(2.0), x())[1].count == 1
    assert rewrite(pass_, lambda x: x * two, x())[1].count == 1
    assert rewrite(pass_, lambda x: x * torch.tensor(3.0), x())[1].count == 0
    assert rewrite(pass_, lambda x: x * torch.tensor([2.0]), x())[1].count == 0


# ---------------------------------------------------------------- forms of patterns


def test_commutative_operators_are_tried_in_both_orders_together() -> None:
    pass_ = PatternPass.of("factor", lambda x, y, z: x * y + x * z, lambda x, y, z: x * (y + z))
    assert rewrite(pass_, lambda a, b, c: b * a + a * c, x(), x(), x())[1].count == 1
    assert rewrite(pass_, lambda a, b, c: a * b + c * b, x(), x(), x())[1].count == 1
    assert rewrite(pass_, lambda a, b, c: a * b + c * c, x(), x(), x())[1].count == 0
    scaled = PatternPass.of("sub", lambda x, y: torch.add(x, y, alpha=2), lambda x, y: x + y + y)
    after, record = rewrite(scaled, lambda a, b: torch.add(a, b, alpha=2), x(), x())
    assert record.count == 1
    assert calls(after) == ["add", "add"]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_variadic_arguments(count: int) -> None:
    pass_ = PatternPass.of(
        "relu-cat",
        lambda *xs: torch.relu(torch.cat(xs, 1)),
        lambda *xs: torch.cat([torch.relu(x) for x in xs], 1),
        ([torch.zeros(2, 3), torch.zeros(2, 4)],),
    )
    after, record = rewrite(pass_, lambda x: torch.relu(torch.cat([x + i for i in range(count)], -1)), x())
    assert record.count == 1
    assert calls(after).count("relu") == count


def test_a_variadic_argument_with_work_on_each_element() -> None:
    pass_ = PatternPass.of(
        "cat-relu",
        lambda xs: torch.cat([torch.relu(x) for x in xs], 0),
        lambda xs: torch.relu(torch.cat(xs, 0)),
        ([torch.zeros(2, 3), torch.zeros(1, 3)],),
    )
    after, record = rewrite(pass_, lambda a, b, c: torch.cat([a.relu(), b.relu(), c.relu()]), x(), x(), x())
    assert record.count == 1
    assert calls(after) == ["cat", "relu"]


def test_several_outputs() -> None:
    def pattern(x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.sin(x), torch.cos(x)

    def replacement(x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.polar(torch.ones_like(x), x)
        return y.imag, y.real

    pass_ = PatternPass.of("polar", pattern, replacement)
    after, record = rewrite(pass_, lambda x: (x.cos() + 1, x.sin() * 2), x())
    assert record.count == 1
    assert "polar" in calls(after)
    assert rewrite(pass_, lambda x, y: (x.cos() + 1, y.sin() * 2), x(), x())[1].count == 0


def test_several_outputs_that_are_read_before_all_inputs_are_there() -> None:
    pass_ = PatternPass.of(
        "pair", lambda x, y, w: (x @ w, y @ w), lambda x, y, w: ((x @ w) + 0, (y @ w) + 0), (x(4, 4),) * 3
    )

    def chained(a: Tensor, w: Tensor) -> Tensor:
        return (a @ w).relu() @ w

    _, record = rewrite(pass_, chained, x(4, 4), x(4, 4))
    assert record.count == 0
    assert any("read before all its inputs" in miss.reason for miss in record.near_misses)


def test_alternatives_are_tried_in_order_and_named() -> None:
    class FuseGelu(PatternPass):
        """``gelu`` spelled out in two ways ``-> gelu``."""

        name = "fuse-gelu"
        patterns = {  # noqa: RUF012
            "erf": lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
            "erf-last": lambda x: x * 0.5 * (1 + torch.erf(x * 0.7071067811865475)),
        }

        @staticmethod
        def replacement(x: Tensor) -> Tensor:
            return F.gelu(x)

    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        return x * 0.5 * (torch.erf(x / 2**0.5) + 1), x * 0.5 * (1 + torch.erf(x * 0.7071067811865475))

    after, record = rewrite(FuseGelu(), both, x())
    assert [r.rule for r in record.rewrites] == ["fuse-gelu/erf", "fuse-gelu/erf-last"]
    assert calls(after) == ["gelu", "gelu"]


def test_options_are_seen_by_pattern_and_replacement() -> None:
    @dataclass(frozen=True)
    class Scale(PatternPass):
        """``x * by -> x / (1 / by)``."""

        name = "scale"
        by: float = 2.0

        def pattern(self, x: Tensor) -> Tensor:
            return x * self.by

        def replacement(self, x: Tensor) -> Tensor:
            return x / (1 / self.by)

    assert rewrite(Scale(), lambda x: x * 2.0, x())[1].count == 1
    assert rewrite(Scale(by=4.0), lambda x: x * 2.0, x())[1].count == 0
    assert str(Scale(by=4.0)) == "scale{by=4.0}"


def test_the_replacement_may_branch_on_shape_and_dtype() -> None:
    pass_ = PatternPass.of(
        "mean", lambda x: x.mean(-1), lambda x: x.sum(-1) / x.shape[-1] if x.dim() == 2 else x.mean(x.dim() - 1)
    )
    assert "sum" in calls(rewrite(pass_, lambda x: x.mean(-1), x(2, 3))[0])
    assert "sum" not in calls(rewrite(pass_, lambda x: x.mean(-1), x(2, 3, 4))[0])


def test_a_replacement_may_contain_its_pattern_and_be_its_argument() -> None:
    shifted = PatternPass.of("shift", lambda x: torch.relu(x), lambda x: torch.relu(x + 0.0))
    after, record = rewrite(shifted, lambda x: torch.relu(torch.relu(x).sin()), x())
    assert record.count == 2
    assert calls(after) == ["add", "relu", "sin", "add", "relu"]
    gone = PatternPass.of("double-negation", lambda x: x.neg().neg(), lambda x: x)
    after, record = rewrite(gone, lambda x: x.neg().neg().neg().neg().sin(), x())
    assert calls(after) == ["sin"]


# ---------------------------------------------------------------- what must not happen


def test_interior_values_used_elsewhere_stay() -> None:
    def shared(x: Tensor) -> tuple[Tensor, Tensor]:
        y = x.sigmoid()
        return x * y, y

    after, record = rewrite(FuseSilu(), shared, x())
    assert record.count == 0
    assert calls(after) == ["sigmoid", "mul"]
    assert "sigmoid is also returned by the model" in record.near_misses[0].reason

    class Shared(FuseSilu):
        """As its base, also where sigmoid is read elsewhere."""

        allow_shared = True

    after, record = rewrite(Shared(), shared, x())
    assert record.count == 1
    assert sorted(calls(after)) == ["sigmoid", "silu"]


def test_overlapping_and_adjacent_matches() -> None:
    pass_ = PatternPass.of("relu-relu", lambda x: torch.relu(torch.relu(x)), lambda x: torch.relu(x))
    for length in range(2, 7):
        after, record = rewrite(pass_, lambda x, n=length: chain(x, n), x())
        assert record.count == length - 1
        assert calls(after) == ["relu"]
    pair = PatternPass.of("exp-log", lambda x: torch.log(torch.exp(x)), lambda x: x * 1.0)
    after, record = rewrite(pair, lambda x: x.exp().log().exp().log().exp(), x())
    assert record.count == 2
    assert calls(after) == ["mul", "mul", "exp"]


def chain(x: Tensor, length: int) -> Tensor:
    for _ in range(length):
        x = torch.relu(x)
    return x


def test_check_decides_and_its_reason_is_kept() -> None:
    seen: list[Match] = []

    def check(match: Match) -> bool | str:
        seen.append(match)
        return True if match.shape("x")[-1] == 4 else f"the last size is {match.shape('x')[-1]}, not 4"

    pass_ = PatternPass.of("fuse-silu", lambda x: x * x.sigmoid(), F.silu, check=check)
    assert rewrite(pass_, lambda x: x * x.sigmoid(), x(2, 4))[1].count == 1
    (match,) = seen
    assert match.dtype("x") == torch.float32
    assert match.root.target == aten.mul.Tensor
    assert match["x"].op == "placeholder"
    assert match.constant("x") is None
    _, record = rewrite(pass_, lambda x: x * x.sigmoid(), x(2, 3))
    assert record.count == 0
    assert record.near_misses[0].reason == "the last size is 3, not 4"
    assert (record.near_misses[0].matched, record.near_misses[0].total) == (2, 2)


def test_check_sees_constants_users_and_the_module() -> None:
    class Positive(PatternPass):
        """``linear -> linear`` where all weights are positive."""

        name = "positive"
        example_inputs = (torch.zeros(2, 3), torch.zeros(5, 3), torch.zeros(5))

        @staticmethod
        def pattern(x: Tensor, weight: Constant, bias: Constant) -> Tensor:
            return F.linear(x, weight, bias)

        @staticmethod
        def replacement(x: Tensor, weight: Constant, bias: Constant) -> Tensor:
            return torch.addmm(bias, x, weight.t())

        def check(self, match: Match) -> bool | str:
            weight = match.constant("weight")
            assert weight is not None
            names = [user.name for user in match.users("x")]
            return f"{match.module_path}: {names}: {weight.shape[0]} rows"

    _, record = rewrite(Positive(), lambda x, layer=None: layer(x) + x.sum(), x())
    assert record.near_misses[0].reason == "linear: ['sum_1']: 4 rows"


def test_a_replacement_of_another_shape_or_dtype_is_refused() -> None:
    program = capture(Wrapped(lambda x: x.relu()).eval(), (x(),))
    for wrong in (lambda x: x.relu().sum(), lambda x: x.relu().double(), lambda x: (x.relu(), x)):
        with pytest.raises(PassError, match=r"pass bad"):
            PassManager([PatternPass.of("bad", lambda x: x.relu(), wrong)]).run(program)
    assert calls(program) == ["relu"]
    with pytest.raises(VerifyError, match="cannot stand for"):
        PassManager([PatternPass.of("bad", lambda x: x.relu(), lambda x: x.relu().sum())]).run(program)


def test_a_pattern_does_not_fix_a_dynamic_size() -> None:
    def pattern(x: Tensor) -> Tensor:
        return x + 1 if x.shape[0] == 3 else x * 1

    pass_ = PatternPass.of("fixes", pattern, lambda x: x - (-1), (torch.zeros(3, 2),))
    after, _ = rewrite(pass_, lambda x: (x + 1).view(x.shape[0], -1), x(3, 4), dynamic=[["batch", None]])
    assert str(after.signature.inputs[0].axes[0]) == "batch"
    assert after.run(x(5, 4))[0].shape == (5, 4)


@pytest.mark.parametrize(
    ("pattern", "examples", "message"),
    [
        (lambda x: x, (torch.zeros(2),), "returns an argument"),
        (lambda x, y: x.relu(), (torch.zeros(2),) * 2, "does not use its argument 'y'"),
        (lambda x: x.relu() if x.sum() > 0 else x, (torch.zeros(2),), "cannot be traced"),
        (lambda x: nn.Linear(2, 2)(x), (torch.zeros(2),), "uniform|weights"),
        (lambda x, y: x + y, (torch.zeros(2),), "one example input for each"),
        (lambda x: x.nonzero_of_nothing(), None, "needs example_inputs"),
        (lambda x: "no tensor", (torch.zeros(2),), "must return a tensor"),
    ],
)
def test_patterns_that_make_no_sense(pattern: Any, examples: Any, message: str) -> None:
    with pytest.raises(PassError, match=message):
        rewrite(PatternPass.of("odd", pattern, lambda *a: a[0], examples), lambda x: x.relu(), x())


def test_a_pass_without_pattern_is_refused() -> None:
    class Empty(PatternPass):
        """``nothing -> nothing``."""

        name = "empty"

    with pytest.raises((InputError, PassError), match="neither a pattern nor patterns"):
        rewrite(Empty(), lambda x: x.relu(), x())


# ---------------------------------------------------------------- several passes


def test_a_set_matches_all_its_passes_in_one_walk() -> None:
    class RemoveNegation(NodePass):
        """``neg(neg(x)) -> x``."""

        name = "remove-negation"
        targets = (aten.neg,)

        def rewrite(self, program: Program, node: torch.fx.Node) -> Any:
            inner: Any = node.args[0]
            return inner.args[0] if inner.target == aten.neg.default else None

    both = PatternSet((FuseSilu(), RemoveNegation()))
    after, record = rewrite(both, lambda x: (x * x.sigmoid()).neg().neg(), x())
    assert [r.rule for r in record.rewrites] == ["fuse-silu", "remove-negation"]
    assert calls(after) == ["silu"]
    assert str(both) == "pattern-set{fuse-silu,remove-negation}"


def test_near_misses_tell_node_expected_and_found() -> None:
    pass_ = FuseAttention()
    _, record = rewrite(
        pass_, lambda q, k, v: F.dropout((q @ k.mT / 2.0).softmax(-1), 0.1, False).relu() @ v, *[x(4, 4)] * 3
    )
    (miss, *_) = [miss for miss in record.near_misses if miss.node == "matmul_1"]
    assert (miss.matched, miss.total) == (1, 5)
    assert "expected aten.softmax.int, found relu (aten.relu.default)" in miss.reason
    _, record = rewrite(FuseSilu(), lambda x, y: x * y.sigmoid(), x(), x())
    assert "found y" in record.near_misses[0].reason or "again" in record.near_misses[0].reason
