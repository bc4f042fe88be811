"""The engine under every NodePass and PatternPass: rounds to a fixed point, order, limits, circles, near misses."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, fx, nn

from fxexport.capture import capture
from fxexport.errors import PassError
from fxexport.program import Program
from fxexport.rewrite import PassManager, RulePass
from fxexport.rewrite.engine import KEPT_NEAR_MISSES, Book, run_rules
from fxexport.rewrite.ledger import whereabouts

aten = torch.ops.aten
X = torch.randn(3, 4)


@dataclass(frozen=True)
class Swap:
    """``old(x) -> new(x)``, once a call."""

    label: str
    old: Any
    new: Any
    tier: int = 0

    @property
    def targets(self) -> tuple[Any, ...]:
        return (self.old,)

    def attempt(self, program: Program, node: fx.Node, book: Book) -> bool:
        where = whereabouts(node)
        new = program.insert(self.new, node.args, before=node)
        program.replace(node, new)
        book.rewrote(self.label, node, [node], [new.name], where)
        return True


@dataclass(frozen=True)
class Grow(Swap):
    """``old(x) -> old(new(x))``."""

    def attempt(self, program: Program, node: fx.Node, book: Book) -> bool:
        inner = program.insert(self.new, node.args, before=node)
        node.args = (inner,)
        book.rewrote(self.label, node, [node], [inner.name], whereabouts(node))
        return True


@dataclass(frozen=True)
class Miss(Swap):
    """Refuses every call; ``matched`` of 10 operators agreed, as many as the literal of the call says."""

    def attempt(self, program: Program, node: fx.Node, book: Book) -> bool:
        matched = int(node.args[1])  # type: ignore[arg-type]
        book.missed(self.label, node, matched, 10, lambda: f"{matched} agreed")
        return False


@dataclass(frozen=True)
class Rules(RulePass):
    """The rules given."""

    name: ClassVar[str] = "rules"
    given: tuple[Any, ...] = ()

    def rules(self, program: Program) -> tuple[Any, ...]:
        return self.given


class Block(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.relu()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(), Block(), Block())

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


def program_of(forward: Callable[[Tensor], Tensor]) -> Program:
    class Plain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return forward(x)

    return capture(Plain(), (X,))


def operators(program: Program) -> list[Any]:
    return [node.target for node in program.graph.nodes if node.op == "call_function"]


RELU, TANH, SIGMOID = aten.relu.default, aten.tanh.default, aten.sigmoid.default


def test_a_chain_of_rules_reaches_its_end() -> None:
    """What one rule leaves, another takes up in the next round, whatever the order they are given in."""
    steps = [Swap("c", SIGMOID, aten.exp.default), Swap("b", TANH, SIGMOID), Swap("a", RELU, TANH)]
    program = capture(Net(), (X,))
    book = run_rules(program, steps)
    assert operators(program) == [aten.exp.default] * 3
    assert [r.rule for r in book.rewrites] == ["a"] * 3 + ["b"] * 3 + ["c"] * 3
    assert run_rules(program, steps).rewrites == []


def test_the_first_rule_that_fits_wins() -> None:
    for order, winner in (((TANH, SIGMOID), TANH), ((SIGMOID, TANH), SIGMOID)):
        program = program_of(torch.relu)
        book = run_rules(program, [Swap(str(new), RELU, new) for new in order])
        assert operators(program) == [winner]
        assert [r.rule for r in book.rewrites] == [str(winner)]


def test_a_rule_that_lists_a_target_twice_is_tried_once() -> None:
    class Twice(Miss):
        targets = (aten.add.Tensor, aten.add.Tensor)  # type: ignore[assignment]

    assert run_rules(program_of(lambda x: x + 3), [Twice("m", None, None)]).near_miss_count == 1


@pytest.mark.parametrize("limit", range(5))
def test_a_limit_stops_after_so_many_rewrites(limit: int) -> None:
    program = capture(Net(), (X,))
    book = run_rules(program, [Swap("a", RELU, TANH)], limit=limit)
    done = min(limit, 3)
    assert operators(program) == [TANH] * done + [RELU] * (3 - done)
    assert len(book.rewrites) == done


def test_a_limit_holds_within_a_later_round() -> None:
    program = capture(Net(), (X,))
    run_rules(program, [Swap("b", TANH, SIGMOID), Swap("a", RELU, TANH)], limit=4)
    assert operators(program) == [SIGMOID, TANH, TANH]


def test_a_rewrite_says_where_it_was() -> None:
    (first, *_) = run_rules(capture(Net(), (X,)), [Swap("a", RELU, TANH)]).rewrites
    assert (first.rule, first.node, first.operators, first.module) == ("a", "relu", ("aten.relu.default",), "blocks.0")
    assert re.search(r"test_engine.py:\d+$", first.line)
    assert first.made == ("tanh_default",)


# ---------------------------------------------------------------- rules that never end


def test_a_circle_is_named_with_its_rules_and_places() -> None:
    program = capture(Net(), (X,))
    circle = [Swap("to-tanh", RELU, TANH), Swap("to-relu", TANH, RELU)]
    with pytest.raises(PassError, match=r"to-tanh -> to-relu -> to-tanh leads back .*blocks\.0 .*test_engine\.py"):
        run_rules(program, circle)


def test_a_circle_is_found_behind_a_beginning_that_does_not_return() -> None:
    program = program_of(torch.exp)
    rules = [Swap("in", aten.exp.default, RELU), Swap("there", RELU, TANH), Swap("back", TANH, RELU)]
    with pytest.raises(PassError, match="back -> there -> back") as caught:
        run_rules(program, rules)
    assert "in ->" not in str(caught.value)


def test_a_rule_that_grows_for_ever_is_named() -> None:
    program = program_of(torch.relu)
    with pytest.raises(PassError, match=r"grow does not settle: after 5 rounds .*relu .*test_engine\.py"):
        run_rules(program, [Grow("grow", RELU, TANH)], max_rounds=5)
    assert operators(program) == [TANH] * 5 + [RELU]


def test_as_many_rounds_as_allowed_are_enough_for_a_chain_of_one_less() -> None:
    chain = [Swap("b", TANH, SIGMOID), Swap("a", RELU, TANH)]
    assert len(run_rules(program_of(torch.relu), chain, max_rounds=3).rewrites) == 2
    with pytest.raises(PassError, match="does not settle"):
        run_rules(program_of(torch.relu), chain, max_rounds=2)


# ---------------------------------------------------------------- near misses


def test_near_misses_come_best_first() -> None:
    program = program_of(lambda x: (x + 3) * 1 + 7 + 5 + 7)
    book = run_rules(program, [Miss("m", aten.add.Tensor, None)])
    assert [miss.matched for miss in book.near_misses] == [7, 7, 5, 3]
    assert [miss.node for miss in book.near_misses][:2] == ["add_1", "add_3"]
    assert str(book.near_misses[0]).endswith("7 of 10: 7 agreed")
    assert book.near_miss_count == 4


def test_only_the_best_near_misses_are_kept_and_all_are_counted() -> None:
    def long(x: Tensor) -> Tensor:
        for i in range(60):
            x = x + (i * 7 % 10)
        return x

    book = run_rules(program_of(long), [Miss("m", aten.add.Tensor, None)])
    assert book.near_miss_count == 48, "one operator in ten that agrees is none"
    assert [miss.matched for miss in book.near_misses] == [9] * 6 + [8] * 6 + [7] * 6 + [6] * 2
    assert len(book.near_misses) == KEPT_NEAR_MISSES


def test_near_misses_are_those_of_the_last_round() -> None:
    """A call refused in the first round and gone after it is no near miss."""
    rules = [Miss("m", aten.add.Tensor, None), Swap("a", RELU, TANH)]
    assert run_rules(program_of(lambda x: (x + 3).relu()), rules).near_miss_count == 1


def test_a_reason_nobody_will_read_is_not_made() -> None:
    made = []
    book, (node,) = Book(), program_of(torch.relu).find(RELU)
    for matched in [9] * KEPT_NEAR_MISSES + [2] * 50:
        book.missed("m", node, matched, 10, lambda: made.append(1) or "why")
    assert (len(made), book.near_miss_count) == (KEPT_NEAR_MISSES, KEPT_NEAR_MISSES + 50)


# ---------------------------------------------------------------- as a pass


def test_a_limit_is_counted_over_all_passes() -> None:
    program = capture(Net(), (X,))
    passes = [Rules((Swap("a", RELU, TANH),)), Rules((Swap("b", TANH, SIGMOID),))]
    for limit in range(8):
        after, records = PassManager(passes).run(program, limit=limit)
        assert sum(record.count for record in records) == min(limit, 6)
        second, first = max(0, min(limit, 6) - 3), min(limit, 3)
        assert operators(after) == [SIGMOID] * second + [TANH] * (first - second) + [RELU] * (3 - first)


def test_a_pass_that_goes_round_is_named_and_rolled_back() -> None:
    program = capture(Net(), (X,))
    text = str(program)
    circle = Rules((Swap("there", RELU, TANH), Swap("back", TANH, RELU)))
    with pytest.raises(PassError, match=r"^pass rules.*a cycle of rewrites: there -> back -> there"):
        PassManager([circle]).run(program)
    _, (record,) = PassManager([circle], on_error="skip").run(program)
    assert "a cycle of rewrites" in (record.error or "")
    assert str(program) == text
