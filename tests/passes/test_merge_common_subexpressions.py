"""Equal calls become one; what is not the same each time is computed each time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import fxexport
from fxexport.capture import capture, capture_model
from fxexport.passes import MergeCommonSubexpressions
from fxexport.rewrite import PassManager
from fxexport.testing import assert_rewrites, assert_unchanged
from fxexport.testing.assertions import as_module

aten = torch.ops.aten
X = torch.randn(3, 4)
BATCH = {"x": {0: "batch"}}
EQUAL = {
    "twice": (lambda x: x.sin() * 2 + x.sin(), {aten.sin.default: 1}),
    "a chain": (lambda x: (x.sin().cos(), x.sin().cos()), {aten.sin.default: 1, aten.cos.default: 1}),
    "defaults spelled out": (lambda x: x.softmax(-1) + aten.softmax.int(x, -1, None), {aten.softmax.int: 1}),
    "several results": (lambda x: x.split(2, 1)[0] + x.split(2, 1)[1], {aten.split.Tensor: 1}),
    "of sizes": (
        lambda x: torch.arange(x.shape[0]) + torch.arange(x.shape[0]).flip(0),
        {aten.arange.default: 1, aten.sym_size.int: 1},
    ),
    "cat of the same": (lambda x: (torch.cat([x, x]), torch.cat([x, x]) + 1), {aten.cat.default: 1}),
    "nan": (lambda x: x.nan_to_num(float("inf")) + x.nan_to_num(float("inf")), {aten.nan_to_num.default: 1}),
}
DIFFERENT = {
    "another number": lambda x: x * 2 + x * 3,
    "another type of number": lambda x: (x.int() * 2) + (x.int() * 2.0),
    "the sign of zero": lambda x: aten.pow.Scalar(-0.0, x) + aten.pow.Scalar(0.0, x),
    "another order": lambda x: (x - x.sin()) * (x.sin() - x),
    "true is not one": lambda x: x.cumsum(1) + x.cumsum(0),
    "another dtype": lambda x: x.sum(0, dtype=torch.float64) + x.sum(0, dtype=torch.float32),
}


@pytest.mark.parametrize("name", EQUAL)
def test_equal_calls_become_one(name: str) -> None:
    model, ops = EQUAL[name]
    assert_rewrites(MergeCommonSubexpressions(), model, None, (X,), ops=ops, dynamic=BATCH, rtol=0, atol=0)


@pytest.mark.parametrize("name", DIFFERENT)
def test_different_calls_stay(name: str) -> None:
    program, _ = PassManager([MergeCommonSubexpressions()]).run(capture(as_module(DIFFERENT[name]), (X,)))
    torch.testing.assert_close(program.run(X)[0], DIFFERENT[name](X), rtol=0, atol=0, equal_nan=True)
    kept = max(sum(node.target == each.target for node in program.graph.nodes) for each in program.graph.nodes)
    assert kept >= 2


def test_random_numbers_are_drawn_twice() -> None:
    def model(x: Tensor) -> Tensor:
        return torch.rand_like(x) - torch.rand_like(x)

    program = capture_model(as_module(model), (X,), allow_random=True).program
    _, (record,) = PassManager([MergeCommonSubexpressions()]).run(program)
    assert record.count == 0
    assert "not give the same each time" in record.near_misses[0].reason


def test_sizes_that_only_the_data_tells() -> None:
    def model(x: Tensor) -> tuple[Tensor, Tensor]:
        return (x > 0).nonzero() * 2, (x > 0).nonzero() + 1

    program, _ = PassManager([MergeCommonSubexpressions()]).run(capture(as_module(model), (X,)))
    for x in (X, X.abs(), -X.abs()):
        for got, want in zip(program.run(x), model(x), strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_branches_are_merged_each_on_its_own() -> None:
    def model(x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda x: x.sin() + x.sin().cos(), lambda x: x.sin() - 1, (x,)) + x.sin()

    program, (record,) = PassManager([MergeCommonSubexpressions()]).run(capture(as_module(model), (X,)))
    calls = [len(graph.find_nodes(op="call_function", target=aten.sin.default)) for _, _, graph in program.graphs()]
    assert (record.count, calls) == (1, [1, 1, 1])
    for x in (X.abs(), -X.abs()):
        torch.testing.assert_close(program.run(x)[0], model(x), rtol=0, atol=0)


def test_nothing_to_merge() -> None:
    assert_unchanged(MergeCommonSubexpressions(), lambda x: x.sin() + x.cos(), (X,), dynamic=BATCH)


def test_outputs_that_are_one_value_keep_their_names_in_the_file(tmp_path: Path) -> None:
    artifact = fxexport.compile(Twice().eval(), tmp_path / "m.onnx", X, dynamic=BATCH)
    assert [spec.name for spec in artifact.signature.outputs] == ["a", "b"]
    assert any("'a' and 'b' are one value" in note for note in artifact.report.notes)


class Twice(torch.nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"a": x.sin() + 1, "b": x.sin() + 1}
