"""Sizes are asked for once, of inputs, and only where they are not known."""

from __future__ import annotations

import operator

import pytest
import torch
from torch import Tensor, nn

from fxexport.capture import capture
from fxexport.passes import SimplifyShapes
from fxexport.program import Program
from fxexport.rewrite import PassManager
from fxexport.testing import assert_rewrites, assert_unchanged
from fxexport.testing.assertions import as_module

aten = torch.ops.aten
X = torch.randn(4, 6)
SIZES = {"x": {0: "n", 1: "t"}}
ONE = {"x": {0: "n"}}


def sizes_in(program: Program) -> list[torch.fx.Node]:
    return [n for n in program.graph.nodes if isinstance(n.meta.get("val"), (int, torch.SymInt))]


def with_sizes(source: Tensor, dynamic: dict, edit) -> Program:
    """A captured ``sin`` with calls that ``edit`` puts before the output, as a rewrite would."""

    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sin()

    program = capture(Model().eval(), (source,), dynamic=dynamic)
    (sin,) = program.find(aten.sin.default)
    end = program.graph.output_node()
    end.args = ((edit(program, sin, end),),)
    return program


def test_the_size_of_a_result_is_that_of_the_input() -> None:
    def edit(program: Program, sin, end):
        rows = [program.insert(aten.sym_size.int, (sin, 0), before=end) for _ in range(2)]
        columns = program.insert(aten.sym_size.int, (sin, 1), before=end)
        total = program.insert(operator.mul, (rows[0], columns), before=end)
        flat = program.insert(aten.reshape.default, (sin, [total]), before=end)
        return program.insert(aten.reshape.default, (flat, [rows[1], columns]), before=end)

    program = with_sizes(X, SIZES, edit)
    after, _ = PassManager([SimplifyShapes()]).run(program)
    assert {node.args for node in sizes_in(after)} == {(after.input_nodes[0], 0), (after.input_nodes[0], 1)}
    assert len(sizes_in(after)) == 2
    for shape in ((4, 6), (2, 5)):
        x = torch.randn(shape)
        torch.testing.assert_close(after.run(x)[0], x.sin(), rtol=0, atol=0)


def test_arithmetic_that_comes_back_is_one_size() -> None:
    def edit(program: Program, sin, end):
        size = program.insert(aten.sym_size.int, (sin, 0), before=end)
        four = program.insert(operator.mul, (size, 4), before=end)
        back = program.insert(operator.floordiv, (four, 4), before=end)
        wide = program.insert(aten.unsqueeze.default, (sin, 0), before=end)
        return program.insert(aten.expand.default, (wide, [back, back, 6]), before=end)

    program = with_sizes(X, ONE, edit)
    after, _ = PassManager([SimplifyShapes()]).run(program)
    assert [node.target for node in sizes_in(after)] == [aten.sym_size.int]
    (expand,) = after.find(aten.expand.default)
    assert expand.args[1][1:] == [-1, 6]
    x = torch.randn(3, 6)
    torch.testing.assert_close(after.run(x)[0], x.sin().expand(3, 3, 6), rtol=0, atol=0)


def test_known_sizes_are_numbers() -> None:
    def edit(program: Program, sin, end):
        size = program.insert(aten.sym_size.int, (sin, 0), before=end)
        two = program.insert(operator.sub, (program.insert(operator.add, (size, 2), before=end), size), before=end)
        return program.insert(aten.reshape.default, (sin, [-1, two]), before=end)

    after, _ = PassManager([SimplifyShapes()]).run(with_sizes(X, ONE, edit))
    assert not sizes_in(after)
    (reshape,) = after.find(aten.reshape.default)
    assert reshape.args[1] == [-1, 2]


@pytest.mark.parametrize(
    ("before", "asked"),
    [
        (lambda x: x.view(x.shape[0], 2, 3), [-1, 2, 3]),
        (lambda x: x.reshape(x.shape[0] * 2, 3), [-1, 3]),
        (lambda x: x.unsqueeze(1).expand(x.shape[0], 5, 6), [-1, 5, 6]),
    ],
    ids=["view", "reshape of a product", "expand"],
)
def test_one_dynamic_size_is_not_asked_for(before, asked: list[int]) -> None:
    program = assert_rewrites(SimplifyShapes(), before, None, (X,), dynamic=ONE, rtol=0, atol=0)
    (call,) = program.find(aten.view.default, aten.reshape.default, aten.expand.default)
    assert (call.args[1], sizes_in(program)) == (asked, [])


def test_two_dynamic_sizes_stay() -> None:
    assert_unchanged(SimplifyShapes(), lambda x: x.view(x.shape[0], x.shape[1], 1), (X,), dynamic=SIZES)


def test_a_size_that_is_a_result_stays() -> None:
    program = capture(as_module(lambda x: x.sin() * x.shape[0]), (X,), dynamic=ONE)
    after, (record,) = PassManager([SimplifyShapes()]).run(program)
    assert record.count == 0
    assert len(sizes_in(after)) == 1


def test_the_size_of_an_input_that_is_read_is_preferred() -> None:
    class Masked(nn.Module):
        def forward(self, mask: Tensor, x: Tensor) -> Tensor:
            return x + torch.arange(mask.shape[0])[:, None]

    model, mask = Masked().eval(), torch.ones(4, 6)
    program = capture(model, (mask, X), dynamic={"mask": {0: "n"}, "x": {0: "n"}})
    (size,) = [n for n in program.graph.nodes if n.target is aten.sym_size.int]
    size.args = (program.input_nodes[0], 0)
    after, _ = PassManager([SimplifyShapes()]).run(program)
    assert not after.input_nodes[0].users
    torch.testing.assert_close(after.run(mask[:2], X[:2])[0], model(mask[:2], X[:2]), rtol=0, atol=0)
