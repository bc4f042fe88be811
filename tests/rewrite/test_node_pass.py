"""NodePass: what ``rewrite`` may return, and what happens to the calls that only the old one read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, fx, nn

from fxexport.capture import capture
from fxexport.errors import PassError
from fxexport.program import Program
from fxexport.rewrite import NodePass, PassManager, PassRecord

aten = torch.ops.aten
NEG, RELU, TANH = aten.neg.default, aten.relu.default, aten.tanh.default
X = torch.randn(3, 4)


@dataclass(frozen=True)
class At(NodePass):
    """Calls ``action`` at every call of relu."""

    name: ClassVar[str] = "at"
    targets: ClassVar[tuple[Any, ...]] = (RELU,)
    action: Callable[[Program, fx.Node], Any] = lambda program, node: None

    def rewrite(self, program: Program, node: fx.Node) -> Any:
        return self.action(program, node)


@dataclass(frozen=True)
class RemoveDoubleNegation(NodePass):
    """``neg(neg(x)) -> x``: exact."""

    name: ClassVar[str] = "remove-double-negation"
    targets: ClassVar[tuple[Any, ...]] = (NEG,)

    def rewrite(self, program: Program, node: fx.Node) -> Any:
        inner = node.args[0]
        return inner.args[0] if isinstance(inner, fx.Node) and inner.target == NEG else None


def run(pass_: NodePass, forward: Callable[[Tensor], Any]) -> tuple[Program, PassRecord]:
    class Plain(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return forward(x)

    program = capture(Plain(), (X,), dynamic={"x": {0: "batch"}})
    after, (record,) = PassManager([pass_]).run(program)
    x, want = torch.randn(5, 4), program.run(X)
    assert [tuple(t.shape) for t in after.run(x)] == [(5, *t.shape[1:]) for t in want]
    return after, record


def to_tanh(program: Program, node: fx.Node) -> fx.Node:
    return program.insert(TANH, node.args, before=node)


def count(program: Program, operator: Any) -> int:
    return len(list(program.find(operator)))


def test_a_node_takes_the_place_of_the_old_one() -> None:
    after, record = run(At(to_tanh), lambda x: x.relu() + 1)
    assert torch.equal(after.run(X)[0], X.tanh() + 1)
    (rewrite,) = record.rewrites
    assert (rewrite.rule, rewrite.node, rewrite.operators) == ("at", "relu", ("aten.relu.default",))
    assert rewrite.made == ("tanh_default",)
    assert "test_node_pass.py:" in rewrite.line


def test_an_operand_can_be_the_answer() -> None:
    after, record = run(RemoveDoubleNegation(), lambda x: x.neg().neg().neg().neg() + 1)
    assert (count(after, NEG), record.count) == (0, 2)
    assert torch.equal(after.run(X)[0], X + 1)


def test_shared_operands_stay() -> None:
    def forward(x: Tensor) -> Tensor:
        y = -x
        return -y + y * 2

    after, record = run(RemoveDoubleNegation(), forward)
    assert (count(after, NEG), record.count) == (1, 1)
    assert torch.equal(after.run(X)[0], X - 2 * X)


def test_dead_operands_are_erased_at_once_with_all_they_read() -> None:
    """A later rule of the same round must not see what nothing reads any more."""
    seen = []

    def action(program: Program, node: fx.Node) -> fx.Node:
        new = program.insert(TANH, (program.input_nodes[0],), before=node)
        seen.append((node, new, program))
        return new

    class Watch(At):
        def rewrite(self, program: Program, node: fx.Node) -> Any:
            assert not [n for n in program.find(aten.exp.default, aten.sin.default) if not n.users]
            return super().rewrite(program, node)

    after, _ = run(Watch(action), lambda x: x.exp().sin().relu() + x.exp().sin().relu())
    assert (count(after, aten.exp.default), count(after, aten.sin.default), len(seen)) == (0, 0, 2)


def test_true_means_that_the_edits_were_made() -> None:
    def action(program: Program, node: fx.Node) -> bool:
        program.replace(node, to_tanh(program, node))
        return True

    after, record = run(At(action), lambda x: x.relu().relu())
    assert (count(after, TANH), record.count) == (2, 2)
    assert [r.node for r in record.rewrites] == ["relu", "relu_1"]


def test_a_text_is_the_reason_for_a_near_miss() -> None:
    after, record = run(At(lambda program, node: "too hot"), lambda x: x.relu())
    assert (count(after, RELU), record.count, record.near_miss_count) == (1, 0, 1)
    (miss,) = record.near_misses
    assert (miss.rule, miss.node, miss.reason) == ("at", "relu", "too hot")
    assert "test_node_pass.py:" in miss.line
    assert "1 near misses" in str(record)


@pytest.mark.parametrize("answer", [None, False])
def test_nothing_to_do_leaves_no_trace(answer: bool | None) -> None:
    after, record = run(At(lambda program, node: answer), lambda x: x.relu())
    assert (count(after, RELU), record.count, record.near_miss_count) == (1, 0, 0)


@pytest.mark.parametrize("answer", [1, 0.5, RELU, [True], torch.ones(1)], ids=lambda a: type(a).__name__)
def test_anything_else_is_refused_with_pass_and_node(answer: Any) -> None:
    message = rf"^pass at.* relu \(aten\.relu\.default\) made at .*rewrite\(\) returned {type(answer).__name__}"
    with pytest.raises(PassError, match=message):
        run(At(lambda program, node: answer), lambda x: x.relu())


def test_a_node_of_another_shape_is_refused_with_the_line_of_the_user() -> None:
    def action(program: Program, node: fx.Node) -> fx.Node:
        return program.insert(aten.sum.default, node.args, before=node)

    with pytest.raises(PassError, match=r"sum_default .* cannot stand for relu .*test_node_pass\.py:\d+"):
        run(At(action), lambda x: x.relu())


@pytest.mark.parametrize("targets", [(aten.relu,), ("aten::relu",), ("aten::no_such_operator", RELU)], ids=str)
def test_targets_are_operators_packets_or_names(targets: tuple[Any, ...]) -> None:
    class Other(At):
        pass

    Other.targets = targets
    after, _ = run(Other(to_tanh), lambda x: x.relu())
    assert count(after, RELU) == 0


def test_a_call_that_a_rewrite_made_is_looked_at_in_the_next_round() -> None:
    def action(program: Program, node: fx.Node) -> fx.Node | None:
        inner = node.args[0]
        if isinstance(inner, fx.Node) and inner.target == RELU:
            return inner
        return None

    after, record = run(At(action), lambda x: x.relu().relu().relu())
    assert (count(after, RELU), record.count) == (1, 2)
