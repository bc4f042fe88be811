"""The clean-up passes together: run until nothing is left, and the same again."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from fxexport.capture import capture
from fxexport.program import Program
from fxexport.rewrite import PassManager, resolve
from fxexport.rewrite.manager import MAX_ROUNDS

aten = torch.ops.aten
NAMES = (
    *("fold-constants", "simplify-shapes", "simplify-arithmetic", "cancel-casts", "simplify-slices"),
    *("cancel-reshapes", "cancel-transposes", "merge-common-subexpressions"),
)


class Layered(nn.Module):
    """Each clean-up pass has something to do only after another one did."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = parametrizations.weight_norm(nn.Linear(8, 8))
        self.register_buffer("scale", torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x) * (self.scale + 0.5)  # a factor of one, once it is folded
        y = torch.cat([y.mT[:, :4], y.mT[:, 4:]], 1).relu().mT.flatten(0, 1).view(x.shape)
        return y + torch.cat([(self.linear(x) * 1).mT.mT.half().float(), x], 0)[: x.shape[0]]


def cleaned(program: Program) -> tuple[Program, PassManager, int]:
    manager = PassManager(resolve("default"))
    after, records = manager.run(program)
    return after, manager, len(records)


def test_the_passes_repeat_until_nothing_is_left() -> None:
    model, x = Layered().eval(), torch.randn(3, 5, 8)
    program = capture(model, (x,), dynamic={"x": {0: "batch"}})
    after, manager, count = cleaned(program)
    assert len(manager.passes) < count <= len(manager.passes) * (1 + MAX_ROUNDS)
    assert len(manager.ran) == count
    calls = [node.target for node in after.graph.nodes if node.op == "call_function"]
    assert aten._weight_norm.default not in calls
    assert aten.mul.Tensor not in calls
    assert aten.mT.default not in calls
    assert calls.count(aten.linear.default) == 1
    for size in (3, 2):
        y = torch.randn(size, 5, 8)
        torch.testing.assert_close(after.run(y)[0], model(y))
    _, records = PassManager(resolve("default")).run(after)
    assert not any(record.count for record in records)


def test_the_passes_that_ran_make_the_same_program_again() -> None:
    program = capture(Layered().eval(), (torch.randn(3, 5, 8),), dynamic={"x": {0: "batch"}})
    after, manager, count = cleaned(program)
    again, records = PassManager(manager.ran).run(program, limit=10**6)
    assert len(records) == count
    assert str(again.graph) == str(after.graph)


@pytest.mark.parametrize("name", NAMES)
def test_each_is_on_by_default_and_repeats(name: str) -> None:
    (pass_,) = resolve(name)
    assert pass_.default
    assert pass_.repeats
    assert pass_ in resolve("default")
