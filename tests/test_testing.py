"""The helpers for pass authors: each assertion holds where it should, and fails where it should, saying why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxexport.capture import capture
from fxexport.errors import InputError
from fxexport.program import Program
from fxexport.rewrite import Pass, PassManager, PassResult
from fxexport.testing import (
    GROUPS,
    OPERATORS,
    Draft,
    Refused,
    assert_preserves,
    assert_rewrites,
    assert_unchanged,
    first_difference,
    programs,
)
from fxexport.testing.assertions import as_module
from fxexport.testing.random_programs import LAYOUTS, SIZES, build

aten = torch.ops.aten
X = (torch.randn(2, 4),)
BATCH = {"x": {0: "batch"}}
MODEL = nn.Sequential(nn.Linear(4, 4), nn.ReLU())


@dataclass(frozen=True)
class Swap(Pass):
    """``old(x) -> new(x)``, with as many faults as a test asks for."""

    name: ClassVar[str] = "swap"
    old: Any = aten.relu.default
    new: Any = aten.clamp_min.default
    more: tuple[Any, ...] = (0,)
    fault: str = ""
    model: nn.Module | None = None

    def run(self, program: Program) -> PassResult:
        found = list(program.find(self.old))
        for node in found:
            program.replace(node, program.insert(self.new, (*node.args, *self.more), before=node))
        if self.fault == "writes to weights":
            for value in program.constants().values():
                value.add_(1)
        for parameter in self.model.parameters() if self.model else ():
            parameter.data.add_(1)
        if self.fault == "says nothing":
            return PassResult(len(found))
        return PassResult(len(found), () if found else ("there is no relu here",))


def before(x: Tensor) -> Tensor:
    return torch.relu(x).sin()


def after(x: Tensor) -> Tensor:
    return torch.clamp_min(x, 0).sin()


# ---------------------------------------------------------------- assert_rewrites


def test_a_right_rewrite_passes() -> None:
    program = assert_rewrites(Swap(), before, after, X, gone=[aten.relu.default], count=1, dynamic=BATCH)
    assert [node.target for node in program.find(aten.clamp_min.default)] == [aten.clamp_min.default]


def test_modules_and_functions_are_alike() -> None:
    class Module(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x).sin()

    assert_rewrites(Swap(), Module(), after, X)
    assert_rewrites(Swap(), nn.Sequential(nn.Linear(4, 4), nn.ReLU()), None, X, ops={aten.clamp_min.default: 1})


def test_a_function_of_torch_has_the_parameters_of_the_one_before() -> None:
    swap = Swap(old=aten.sin.default, new=aten.cos.default, more=())
    with pytest.raises(AssertionError, match="differs from eager"):  # so the graph is the one of torch.cos
        assert_rewrites(swap, lambda x: x.sin(), torch.cos, X, dynamic=BATCH)


WRONG = {
    "did not fire:\n  note: there is no relu": dict(before=lambda x: x.sin()),
    "did not fire, without": dict(pass_=Swap(fault="says nothing"), before=lambda x: x.sin()),
    "fired 1 times, not 2": dict(count=2),
    "was not there before": dict(gone=[aten.tanh.default]),
    "wanted .* calls, found": dict(ops={aten.clamp_min.default: 2}),
    "first difference": dict(after=lambda x: torch.clamp_min(x, 1).sin()),
    "differs from eager": dict(pass_=Swap(new=aten.clamp_max.default), after=None),
    "fired 1 times more on its own result": dict(
        pass_=Swap(old=aten.sin.default, new=aten.sin.default, more=()), after=None
    ),
    "wrote into the constant 0.weight": dict(
        pass_=Swap(fault="writes to weights"), before=nn.Sequential(nn.Linear(4, 4), nn.ReLU()), after=None
    ),
    "0.weight of the model was written to": dict(pass_=Swap(model=MODEL), before=MODEL, after=None),
}


@pytest.mark.parametrize("message", WRONG)
def test_every_condition_can_fail(message: str) -> None:
    case: dict[str, Any] = {"pass_": Swap(), "before": before, "after": after, "inputs": X, **WRONG[message]}
    with pytest.raises(AssertionError, match=message):
        assert_rewrites(**case)


def test_a_rewrite_that_is_right_for_the_example_only() -> None:
    """``clamp_max(x, 5)`` is ``x`` for the values of the example; ``mean`` is a sum over two for its size."""
    with pytest.raises(AssertionError, match="differs from eager"):
        assert_rewrites(Swap(new=aten.clamp_max.default, more=(5,)), before, None, (torch.zeros(2, 4),))
    half = Swap(old=aten.mean.default, new=aten.sum.default, more=())

    def halved(x: Tensor) -> Tensor:
        return x[:, 0].mean() * 2

    with pytest.raises(AssertionError, match="differs from eager"):
        assert_rewrites(half, halved, None, X, dynamic=BATCH)


def test_passes_that_run_first_run_on_both() -> None:
    """Without ``first``, the clone that one side has and the other lacks is a difference."""
    from fxexport.passes import RemoveNoops

    def copied(x: Tensor) -> Tensor:
        return torch.clamp_min(x.clone(), 0).sin()

    assert_rewrites(Swap(), before, copied, X, first=[RemoveNoops()])
    with pytest.raises(AssertionError, match="first difference"):
        assert_rewrites(Swap(), before, copied, X)


# ---------------------------------------------------------------- assert_unchanged


def test_unchanged() -> None:
    assert_unchanged(Swap(), lambda x: x.sin(), X, reason="no relu")
    with pytest.raises(AssertionError, match="does not say 'too large'"):
        assert_unchanged(Swap(), lambda x: x.sin(), X, reason="too large")
    with pytest.raises(AssertionError, match="fired 1 times"):
        assert_unchanged(Swap(), before, X)


# ---------------------------------------------------------------- comparing graphs


def differ(a: Any, b: Any, inputs: Any = X, **options: Any) -> str | None:
    first, second = (capture(as_module(f), inputs, dynamic=options.get("dynamic")) for f in (a, b))
    return first_difference(first, second)


W = torch.randn(4)
CLOSE, FAR = W * (1 + 1e-6), W + 0.01
SAME: dict[str, tuple[Any, Any]] = {
    "operands swapped": (lambda x: x.sin() + x.cos(), lambda x: x.cos() + x.sin()),
    "calls reordered": (lambda x: (x.sin(), x.cos()), lambda x: (lambda c: (x.sin(), c))(x.cos())),
    "defaults spelt out": (lambda x: x.softmax(-1), lambda x: F.softmax(x, -1, dtype=None)),
    "dead code": (lambda x: (x.tanh(), x.sin())[1], lambda x: x.sin()),
    "constants close": (lambda x: x * W, lambda x: x * CLOSE),
    "sizes read elsewhere": (
        lambda x: x.sin().expand(3, x.shape[0], 4),
        lambda x: (lambda y: y.expand(3, y.shape[0], 4))(x.sin()),
    ),
    "what capture asserts of a cast": (
        lambda x: x.to(torch.float64),
        lambda x: aten.to.dtype(x, torch.float64),
    ),
    "an int where a float is meant": (lambda x: F.layer_norm(x, [4], eps=1), lambda x: F.layer_norm(x, [4], eps=1.0)),
}
OTHER: dict[str, tuple[Any, Any, str]] = {
    "operator": (lambda x: x.sin(), lambda x: x.cos(), "aten.cos.default"),
    "wiring": (lambda x: x.sin() - x.cos(), lambda x: x.cos() - x.sin(), "sub"),
    "scaled sums do not commute": (
        lambda x: torch.add(x.sin(), x, alpha=2),
        lambda x: torch.add(x, x.sin(), alpha=2),
        "alpha=2",
    ),
    "literal": (lambda x: x * 2, lambda x: x * 3, "3"),
    "an int for a float": (lambda x: x * 2, lambda x: x * 2.0, "2.0"),
    "a bool for an int": (lambda x: x * 1, lambda x: x * True, "True"),
    "constant": (lambda x: x * W, lambda x: x * FAR, "mul"),
    "size": (lambda x: x.expand(x.shape[0], *x.shape), lambda x: x.expand(3, *x.shape), "expand"),
    "formula": (lambda x: x.expand(x.shape[0] + 1, *x.shape), lambda x: x.expand(x.shape[0], *x.shape), "expand"),
    "outputs swapped": (lambda x: (x.sin(), x.cos()), lambda x: (x.cos(), x.sin()), "output 0"),
    "number of outputs": (lambda x: x.sin(), lambda x: (x.sin(), x.sin()), "1 outputs, wanted 2"),
    "computed twice": (lambda x: x.sin() * x.sin(), lambda x: (lambda y: y * y)(x.sin()), "computed 2 times, wanted 1"),
    "an assertion": (
        lambda x: x.sin(),
        lambda x: (torch._assert_async(x.sum() == x.sum(), "is a number"), x.sin())[1],
        "wanted sum",
    ),
    "an output of the input": (lambda x: (x, x.sin()), lambda x: (x.sin(), x.sin()), "input x"),
}


@pytest.mark.parametrize("name", SAME)
def test_same_graph(name: str) -> None:
    assert differ(*SAME[name], dynamic={"x": {0: "batch"}}) is None


@pytest.mark.parametrize("name", OTHER)
def test_another_graph(name: str) -> None:
    a, b, said = OTHER[name]
    for left, right in ((a, b), (b, a)):
        found = differ(left, right, dynamic={"x": {0: "batch"}})
        assert found is not None
    assert said in str(differ(a, b, dynamic={"x": {0: "batch"}}))


def test_sizes_are_those_of_the_same_axis() -> None:
    def first(x: Tensor, y: Tensor) -> Tensor:
        return torch.zeros(x.shape[0]) + x.sum() + y.sum()

    def second(x: Tensor, y: Tensor) -> Tensor:
        return torch.zeros(y.shape[0]) + x.sum() + y.sum()

    inputs, dynamic = (torch.randn(3), torch.randn(4)), {"x": {0: "m"}, "y": {0: "n"}}
    assert differ(first, first, inputs, dynamic=dynamic) is None
    assert "zeros" in str(differ(first, second, inputs, dynamic=dynamic))


def test_an_unused_input_counts() -> None:
    one, two = capture(as_module(lambda x: x.sin()), X), capture(as_module(lambda x, y: x.sin()), (*X, *X))
    assert "inputs differ" in str(first_difference(one, two))


def test_messages_name_the_line_of_the_user() -> None:
    def one(x: Tensor) -> Tensor:
        return x.sin()

    assert f"test_testing.py:{one.__code__.co_firstlineno + 1})" in str(differ(one, lambda x: x.cos()))


# ---------------------------------------------------------------- random programs


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_makes_programs(name: str) -> None:
    """By eight fixed choices on every layout of inputs: valid, true about its outputs, and it runs."""
    accepted = 0
    for i, layout in enumerate(LAYOUTS):
        choices = bytes((i * 37 + k * 11) % 256 for k in range(12))
        sample = build(layout, [(("operator", OPERATORS[name]), choices)] * 2, [0, 0], seed=i, wild=False)
        accepted += len(sample.operators)
        sample.program.verify()
        for inputs, which in ((sample.inputs, 0), (sample.other_inputs, 1)):
            for spec, value in zip(sample.program.signature.outputs, sample.program.run(*inputs), strict=True):
                shape = [
                    eval(a, {k: v[which] for k, v in SIZES.items()}) if isinstance(a, str) else a for a in spec.axes
                ]
                assert (list(value.shape), value.dtype) == (shape, spec.dtype)
    assert accepted >= 1


def test_a_program_can_be_exported_again() -> None:
    steps = [((name, OPERATORS[name]), bytes(12)) for name in ("linear", "relu", "split", "batch_norm")]
    sample = build(LAYOUTS[2], steps, [0, 1, 99], seed=0, wild=False)
    exported = sample.program.to_exported().module()
    for got, want in zip(exported(*sample.other_inputs), sample.program.run(*sample.other_inputs), strict=True):
        torch.testing.assert_close(got, want)


def test_a_call_that_would_fix_a_dynamic_size_is_refused() -> None:
    def fixing(draft: Draft) -> fx.Node:
        return draft.call(aten.add.Tensor, draft.tensor(), draft.constant([3, 4]))

    sample = build(LAYOUTS[2], [(("fixing", fixing), bytes(12))], [0], seed=0, wild=False)
    assert sample.operators == ()
    assert not sample.program.fake_mode.shape_env.replacements


def test_a_layer_without_channels_is_refused() -> None:
    def empty(draft: Draft) -> fx.Node:
        return draft.call(aten.slice.Tensor, draft.tensor(), 1, 9, 10)

    conv = OPERATORS["conv"]
    sample = build(LAYOUTS[4], [(("empty", empty), bytes(12)), (("conv", conv), bytes(12))], [0], seed=0, wild=False)
    assert sample.operators == ("empty",)


def test_drawn_programs_read_well() -> None:
    sample = build(LAYOUTS[0], [(("linear", OPERATORS["linear"]), bytes(12))], [0], seed=0, wild=False)
    text = repr(sample)
    assert "aten.linear.default" in text
    assert "x: float32[3, 4]" in text
    assert "layer" in text


def test_operators_can_be_restricted_and_added() -> None:
    pytest.importorskip("hypothesis")
    from hypothesis import find, given, settings

    def own(draft: Draft) -> fx.Node:
        if not draft.values:
            raise Refused("nothing")
        return draft.call(aten.hardtanh.default, draft.tensor("float"))

    @settings(max_examples=30, deadline=None, derandomize=True, database=None)
    @given(programs({"relu": 1, own: 2}))
    def only_these(sample: Any) -> None:
        assert set(sample.operators) <= {"relu", "own"}

    only_these()
    once = settings(database=None, derandomize=True, deadline=None)
    smallest = find(programs(["copies", own]), lambda sample: "own" in sample.operators, settings=once)
    assert smallest.program.node_count() == 1
    with pytest.raises(InputError, match="no operator 'rleu'; groups: elementwise"):
        programs(["rleu"])
    assert set(OPERATORS) == {name for group in GROUPS.values() for name in group}


def test_preserving_is_told_from_not_preserving() -> None:
    steps = [(("relu", OPERATORS["relu"]), bytes(12))]
    sample = build(LAYOUTS[0], steps, [0], seed=0, wild=False)
    (record,) = assert_preserves(Swap(), sample)
    assert record.count == 1
    with pytest.raises(AssertionError, match=r"'output(_0)?' differs by .*, rounding alone by"):
        assert_preserves(Swap(new=aten.clamp_max.default), sample)


def test_what_rounding_decides_is_not_blamed_on_the_pass() -> None:
    """``(x * 3) / 3 - x`` is 0 or one unit, by the order of the operations; its sign is decided by rounding."""

    def undecided(draft: Draft) -> fx.Node:
        x = draft.tensor()
        there = draft.call(aten.div.Tensor, draft.call(aten.mul.Tensor, x, 3.1), 3.1)
        return draft.call(aten.sign.default, draft.call(aten.sub.Tensor, there, x))

    @dataclass(frozen=True)
    class Reciprocal(Pass):
        name: ClassVar[str] = "reciprocal"
        by: float = 1 / 3.1

        def run(self, program: Program) -> PassResult:
            nodes = list(program.find(aten.div.Tensor))
            for node in nodes:
                program.replace(node, program.insert(aten.mul.Tensor, (node.args[0], self.by), before=node))
            return PassResult(len(nodes))

    sample = build(LAYOUTS[4], [(("undecided", undecided), bytes(12))], [0], seed=0, wild=False)
    made, _ = PassManager([Reciprocal()]).run(sample.program)
    assert not torch.equal(made.run(*sample.inputs)[0], sample.program.run(*sample.inputs)[0])
    assert_preserves(Reciprocal(), sample)
    flat = build(
        LAYOUTS[4], [(("div", lambda d: d.call(aten.div.Tensor, d.tensor(), 3.1)), bytes(12))], [0], seed=0, wild=False
    )
    with pytest.raises(AssertionError, match="differs by"):
        assert_preserves(Reciprocal(by=0.33), flat)
