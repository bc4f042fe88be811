"""What the manager compares after a pass: changed calls, their values, and nothing else."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fxexport.capture import capture
from fxexport.errors import VerifyError
from fxexport.program import Program
from fxexport.rewrite.checks import changed_calls, check_change

aten = torch.ops.aten


class Net(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x.masked_fill(x < 0, math.nan)
        return (y * 0.0).relu().transpose(0, 1)


@pytest.fixture
def program() -> Program:
    return capture(Net(), (torch.rand(3, 4),), dynamic={"x": {0: "batch"}})


def only(program: Program, target) -> torch.fx.Node:
    (node,) = program.find(target)
    return node


def test_a_copy_has_no_changed_calls(program: Program) -> None:
    """Also where a literal is nan, which is not equal to itself."""
    assert any(isinstance(a, float) and math.isnan(a) for n in program.graph.nodes for a in n.args)
    assert changed_calls(program, program.clone()) == []


@pytest.mark.parametrize("number", [-0.0, 0, False, 1.0])
def test_another_literal_is_a_change(program: Program, number) -> None:
    twin = program.clone()
    node = only(twin, aten.mul.Tensor)
    node.args = (node.args[0], number)
    assert changed_calls(program, twin) == [node]


def test_a_new_call_and_its_readers_are_changed(program: Program) -> None:
    twin = program.clone()
    relu = only(twin, aten.relu.default)
    new = twin.insert(aten.tanh.default, relu.args, before=relu)
    reader = next(iter(relu.users))
    twin.replace(relu, new)
    changed = changed_calls(program, twin)
    assert changed == [new, reader]
    check_change(program, twin, changed)


def test_a_wrong_value_is_found_among_right_ones(program: Program) -> None:
    twin = program.clone()
    relu = only(twin, aten.relu.default)
    good = [twin.insert(aten.tanh.default, relu.args, before=relu) for _ in range(3)]
    good[1].meta["val"] = good[1].meta["val"].double()
    with pytest.raises(VerifyError, match=r"tanh_default_1 .* is torch.float32.*says torch.float64"):
        check_change(program, twin, changed_calls(program, twin))


def test_new_strides_reach_later_calls(program: Program) -> None:
    """``relu`` of a transposed value is transposed too; a later call whose value said otherwise is brought up to date."""
    twin = program.clone()
    relu = only(twin, aten.relu.default)
    turned = twin.insert(aten.transpose.int, (relu.args[0], 0, 1), before=relu)
    dense = twin.insert(aten.clone.default, (turned,), {"memory_format": torch.contiguous_format}, before=relu)
    back = twin.insert(aten.transpose.int, (dense, 0, 1), before=relu)
    relu.args = (back,)
    old = relu.meta["val"].stride()
    check_change(program, twin, changed_calls(program, twin))
    assert relu.meta["val"].stride() != old
    assert relu.meta["val"].stride()[0] == 1
    assert only(program, aten.relu.default).meta["val"].stride() == old
