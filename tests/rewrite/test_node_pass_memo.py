"""What a NodePass remembers in a run, and calls with several results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, fx, nn

from fxexport.capture import capture
from fxexport.errors import PassError
from fxexport.program import Program
from fxexport.rewrite import NodePass, PassManager, first_result

aten = torch.ops.aten
X = torch.randn(3, 4)


class Call(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


@dataclass(frozen=True)
class ReluToScale(NodePass):
    """``relu(x) -> x * scale``, where ``scale`` is the number of the axis of size 4."""

    name: ClassVar[str] = "relu-to-scale"
    targets: ClassVar[tuple[Any, ...]] = (aten.relu.default,)

    def rewrite(self, program: Program, node: fx.Node) -> fx.Node:
        self.memo["calls"] = self.memo.get("calls", 0) + 1
        value = torch.tensor(float(node.meta["val"].shape[0] == 4))
        scale = self.constant(program, "scale", value)
        return program.insert(aten.mul.Tensor, (*node.args, scale), before=node)


def test_equal_constants_of_one_name_are_one() -> None:
    program = capture(Call(lambda x: (x.relu(), x.sin().relu(), x.T.relu())), (X,))
    after, (record,) = PassManager([ReluToScale()]).run(program)
    assert record.count == 3
    assert {k: float(v) for k, v in after.constants().items()} == {"scale": 0.0, "scale_1": 1.0}


def test_each_run_starts_without_memories() -> None:
    pass_ = ReluToScale()
    for _ in range(2):
        after, _ = PassManager([pass_, pass_]).run(capture(Call(lambda x: x.relu()), (X,)))
        assert list(after.constants()) == ["scale"]
    assert pass_.memo == {}


@dataclass(frozen=True)
class SortToInput(NodePass):
    """``sort(x)[0] -> x``: wrong, but it shows."""

    name: ClassVar[str] = "sort-to-input"
    targets: ClassVar[tuple[Any, ...]] = (aten.sort,)
    careful: bool = True

    def rewrite(self, program: Program, node: fx.Node) -> Any:
        return node.args[0] if first_result(node) or not self.careful else "its order is read"


def test_one_node_stands_for_the_first_result() -> None:
    after, (record,) = PassManager([SortToInput()]).run(capture(Call(lambda x: x.sort().values + 1), (X,)))
    assert (record.count, after.node_count()) == (1, 1)
    assert torch.equal(after.run(X)[0], X + 1)


def test_a_call_whose_other_results_are_read_stays() -> None:
    program = capture(Call(lambda x: tuple(x.sort())), (X,))
    _, (record,) = PassManager([SortToInput()]).run(program)
    assert (record.count, record.near_misses[0].reason) == (0, "its order is read")
    with pytest.raises(PassError, match="of which more than the first result is read"):
        PassManager([SortToInput(careful=False)]).run(program)
