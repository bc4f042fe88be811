"""Rows of the fault table about passes: one that fails, one that never settles, one that grows the constants."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from conftest import Untouched
from torch import Tensor, fx, nn

from fxexport import InputError, PassError, compiler
from fxexport.capture import capture
from fxexport.errors import VerifyError
from fxexport.program import Program
from fxexport.rewrite import NodePass, PassManager, arguments
from fxexport.rewrite.manager import FREE_GROWTH

aten = torch.ops.aten
X = torch.randn(2, 3)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).relu()


@dataclass(frozen=True)
class AtRelu(NodePass):
    """``relu(x) -> action(x)``."""

    name: ClassVar[str] = "at-relu"
    targets: ClassVar[tuple[Any, ...]] = (aten.relu.default,)
    action: Callable[[Program, fx.Node], Any] = lambda program, node: None

    def rewrite(self, program: Program, node: fx.Node) -> Any:
        return self.action(program, node)


def raises(program: Program, node: fx.Node) -> None:
    program.insert(aten.tanh.default, node.args, before=node)
    raise ZeroDivisionError("not today")


def lies(program: Program, node: fx.Node) -> bool:
    node.target = aten.gelu.default
    node.meta["val"] = node.meta["val"].double()
    return True


def half(program: Program, node: fx.Node) -> bool:
    """An edit in the middle of which the order of the graph is lost."""
    linear = node.args[0]
    assert isinstance(linear, fx.Node)
    if node.next is linear:
        return False
    linear.prepend(node)
    return True


def miscounts(program: Program, node: fx.Node) -> fx.Node:
    return program.insert(aten.tanh.default, node.args, before=node)


@pytest.mark.parametrize(("action", "kind"), [(raises, PassError), (lies, VerifyError), (half, VerifyError)])
@pytest.mark.parametrize("check", ["final", "each"])
def test_fault_41_a_pass_that_fails_is_rolled_back_and_named(
    action: Any, kind: type[PassError], check: Any, out: Path, untouched: Untouched
) -> None:
    model = Net().eval()
    with untouched(model):
        with pytest.raises(kind, match=r"(?s)^pass at-relu.*relu.*the program was rolled back") as caught:
            compiler.compile(model, out, X, passes=[AtRelu(action)], check=check)
        assert type(caught.value) is kind
        assert not list(out.parent.iterdir())
        artifact = compiler.compile(model, out, X, passes=[AtRelu(action)], on_error="skip", check=check)
    assert any("pass at-relu" in note and "was left out" in note for note in artifact.report.notes)
    assert torch.allclose(artifact(X), model(X), atol=1e-6)


def test_fault_41_wrong_numbers_are_an_error_of_the_pass_where_each_is_checked(out: Path) -> None:
    message = r"^pass at-relu.*output 'output'.*from its rewrite of relu \(.*test_rewrite_faults.py:\d+\) on"
    with pytest.raises(VerifyError, match=message):
        compiler.compile(Net().eval(), out, X, passes=[AtRelu(miscounts)], check="each")
    assert not list(out.parent.iterdir())


def test_fault_41_check_is_refused_early_where_it_is_unknown(out: Path) -> None:
    with pytest.raises(InputError, match="check must be 'final' or 'each', got 'all'"):
        compiler.compile(object(), out, check="all")  # type: ignore[arg-type]


# ---------------------------------------------------------------- no end


@dataclass(frozen=True)
class ThereAndBack(NodePass):
    """``relu(x) -> relu(relu(x)) -> relu(x) -> ...``."""

    name: ClassVar[str] = "there-and-back"
    targets: ClassVar[tuple[Any, ...]] = (aten.relu.default,)

    def rewrite(self, program: Program, node: fx.Node) -> fx.Node | None:
        inner = node.args[0]
        assert isinstance(inner, fx.Node)
        if inner.target == aten.relu.default:
            return inner
        if any(user.target == aten.relu.default for user in node.users):
            return None
        return program.insert(
            aten.relu.default, (program.insert(aten.relu.default, (inner,), before=node),), before=node
        )


def test_fault_42_a_circle_is_named(out: Path) -> None:
    message = r"pass there-and-back.*a cycle of rewrites: there-and-back -> there-and-back.*test_rewrite_faults.py:\d+"
    with pytest.raises(PassError, match=message):
        compiler.compile(Net().eval(), out, X, passes=[ThereAndBack()])
    artifact = compiler.compile(Net().eval(), out, X, passes=[ThereAndBack()], on_error="skip")
    assert "a cycle of rewrites" in (artifact.report.passes[0].error or "")


def test_fault_42_growth_without_end_is_named(out: Path) -> None:
    def grow(program: Program, node: fx.Node) -> bool:
        node.args = (program.insert(aten.abs.default, node.args, before=node),)
        return True

    with pytest.raises(
        PassError, match=r"pass at-relu.*at-relu does not settle: after 32 rounds .*still rewrites relu"
    ):
        compiler.compile(Net().eval(), out, X, passes=[AtRelu(grow)])


# ---------------------------------------------------------------- large constants


class Expanded(nn.Module):
    def __init__(self, rows: int, base: int = 0) -> None:
        super().__init__()
        self.rows = rows
        self.register_buffer("row", torch.ones(1, 1024))
        self.register_buffer("base", torch.ones(max(base, 1), 1024))

    def forward(self, x: Tensor) -> Tensor:
        table = self.row.expand(self.rows, 1024)
        return table[x] + self.base.sum()


@dataclass(frozen=True)
class FoldExpand(NodePass):
    """``expand(constant) -> constant``."""

    name: ClassVar[str] = "fold-expand"
    targets: ClassVar[tuple[Any, ...]] = (aten.expand.default,)

    def rewrite(self, program: Program, node: fx.Node) -> fx.Node | str:
        value = program.constant_value(node.args[0])
        if value is None:
            return "not a constant"
        return program.add_constant("folded", value.expand(arguments(node)["size"]).contiguous())


def test_fault_47_a_large_constant_is_refused_with_both_sizes() -> None:
    index = torch.tensor([1, 2])
    program = capture(Expanded(5000), (index,))
    text = str(program)
    with pytest.raises(
        VerifyError, match=r"pass fold-expand.* grew from 0\.0 to 19\.5 MiB.* 25% and 16 MiB.*max_growth"
    ):
        PassManager([FoldExpand()]).run(program)
    after, (record,) = PassManager([FoldExpand()], on_error="skip").run(program)
    assert "grew from" in (record.error or "")
    for untouched in (program, after):
        assert str(untouched) == text
        assert untouched.constants_bytes() == 2 * 4096
        assert torch.equal(untouched.run(index)[0], torch.full((2, 1024), 1025.0))


@pytest.mark.parametrize(("rows", "base"), [(1000, 0), (5000, 20000)])
def test_fault_47_growth_within_the_limit_is_allowed(rows: int, base: int) -> None:
    """16 MiB are free; beside 78 MiB of constants, a quarter of them is."""
    index = torch.tensor([1, 2])
    program = capture(Expanded(rows, base), (index,))
    after, (record,) = PassManager([FoldExpand()]).run(program)
    assert record.count == 1
    assert after.constants_bytes() - program.constants_bytes() in range(rows * 4096 - 4096, rows * 4096 + 1)
    assert torch.equal(after.run(index)[0], program.run(index)[0])


def test_fault_47_the_limit_can_be_raised() -> None:
    program = capture(Expanded(5000), (torch.tensor([1, 2]),))
    after, _ = PassManager([FoldExpand()], max_growth=1e6).run(program)
    assert after.constants_bytes() > FREE_GROWTH
