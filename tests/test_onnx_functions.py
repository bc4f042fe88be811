"""Modules as ONNX functions: S13, ``export_modules_as_functions``."""

from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

import fxexport
from fxexport.lowering.onnx_file import check_onnx, write_onnx
from fxexport.lowering.onnx_functions import DOMAIN, FunctionRecord, number_calls, outline_functions
from fxexport.lowering.onnx_translation import translate
from fxexport.program import Program


class Written:
    """A model with functions, run beside the same model without."""

    def __init__(self, program: Program, classes: Any, folder: Path, *, numbered: bool = True, **options: Any) -> None:
        self.program, self.folder = program, folder
        self.plain = translate(program, options.get("opset", 20))
        self.model = translate(number_calls(program) if numbered else program, options.pop("opset", 20), **options)
        self.records = outline_functions(self.model, program, classes)
        for name, model in (("plain", self.plain), ("outlined", self.model)):
            check_onnx(model)
            write_onnx(model, folder / f"{name}.onnx")
        self.proto = onnx.load(folder / "outlined.onnx")
        onnx.checker.check_model(self.proto, full_check=True)

    def calls(self, where: Any = None) -> Counter[str]:
        nodes = self.proto.graph.node if where is None else where.node
        return Counter(node.op_type for node in nodes if node.domain == DOMAIN)

    def function(self, name: str) -> onnx.FunctionProto:
        return next(each for each in self.proto.functions if each.name == name)

    def record(self, name: str) -> FunctionRecord:
        return next(each for each in self.records if each.name == name)

    def check(self, *inputs: Tensor) -> None:
        """The numbers are those of the file without functions (but for roundings: onnxruntime optimizes the two files
        differently) and those of eager PyTorch."""
        results = []
        for name in ("plain", "outlined"):
            session = ort.InferenceSession(self.folder / f"{name}.onnx", providers=["CPUExecutionProvider"])
            feed = {i.name: x.numpy() for i, x in zip(session.get_inputs(), inputs, strict=True)}
            results.append(session.run(None, feed))
        for plain, outlined, eager in zip(*results, self.program.run(*inputs), strict=True):
            np.testing.assert_allclose(outlined, plain, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(outlined, eager.numpy(), rtol=1e-4, atol=1e-5)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def written(
    model: nn.Module, args: tuple[Tensor, ...], classes: bool | Collection[Any], folder: Path, **options: Any
) -> Written:
    return Written(fxexport.capture(model.eval(), args), classes, folder, **options)


def encoder(layers: int = 6) -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    stack = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
    for parameter in stack.parameters():
        nn.init.normal_(parameter, std=0.2)
    return stack


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(torch.relu(self.norm(self.first(x)))) + x)


class Block(nn.Module):
    def __init__(self, size: int = 4) -> None:
        super().__init__()
        self.linear = nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x)) + x


# -------------------------------------------------------------------- S13


@pytest.mark.parametrize("opset", [18, 20, 23])
def test_S13_six_equal_blocks_are_one_function_called_six_times(tmp_path: Path, opset: int) -> None:
    out = written(encoder(), (torch.randn(2, 5, 16),), {nn.TransformerEncoderLayer}, tmp_path, opset=opset)
    assert out.calls() == {"TransformerEncoderLayer": 6}
    assert len(out.proto.graph.node) == 6
    [record] = out.records
    assert record.calls == tuple(f"layers.{i}" for i in range(6))
    assert record.inline == ()
    assert record.nodes > 20
    assert "called 6 times" in str(record)
    sizes = {name: (tmp_path / f"{name}.onnx").stat().st_size for name in ("plain", "outlined")}
    assert sizes["outlined"] < sizes["plain"]
    out.check(torch.randn(2, 5, 16))


def test_S13_through_the_whole_road(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    program = fxexport.capture(encoder(2).eval(), (torch.randn(2, 5, 16),))
    fxexport.lower(program, path, functions=["TransformerEncoderLayer"])
    proto = onnx.load(path)
    assert [node.op_type for node in proto.graph.node] == ["TransformerEncoderLayer"] * 2
    assert [o.name for o in proto.graph.output] == ["output"]
    assert proto.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    modules = [prop.value for node in proto.graph.node for prop in node.metadata_props if prop.key == "fxexport.module"]
    assert modules == ["layers.0", "layers.1"]
    inside = {p.value for n in proto.functions[0].node for p in n.metadata_props if p.key == "fxexport.module"}
    assert "self_attn" in inside
    assert not any("layers" in path for path in inside)


def test_weights_are_inputs_named_as_in_the_module(tmp_path: Path) -> None:
    out = written(nn.Sequential(Block(), Block()), (torch.randn(2, 4),), {Block}, tmp_path)
    assert list(out.function("Block").input) == ["input", "linear.weight", "linear.bias"]
    assert {i.name for i in out.proto.graph.initializer} == {
        f"{i}.linear.{w}" for i in (0, 1) for w in ("weight", "bias")
    }


def test_blocks_of_a_residual_net_share_their_function_whatever_their_width(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), Residual(4), Residual(4), nn.Conv2d(4, 6, 3, 2), Residual(6), Residual(6))
    out = written(model, (torch.randn(1, 3, 12, 12),), {"Residual"}, tmp_path)
    assert out.calls() == {"Residual": 4}
    assert {node.op_type for node in out.proto.graph.node} == {"Conv", "Residual"}
    out.check(torch.randn(1, 3, 12, 12))


def test_dynamic_axes_stay_dynamic(tmp_path: Path) -> None:
    example = (torch.randn(2, 5, 16),)
    program = fxexport.capture(encoder(3).eval(), example, dynamic={"src": {0: "batch", 1: "time"}})
    out = Written(program, {nn.TransformerEncoderLayer}, tmp_path)
    assert out.calls() == {"TransformerEncoderLayer": 3}
    out.check(torch.randn(2, 5, 16))
    out.check(torch.randn(3, 9, 16))


def test_a_module_called_twice_is_two_calls(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.other = Block(), Block()
            self.again = self.other

        def forward(self, x: Tensor) -> Tensor:
            return self.block(torch.cos(self.block(x))) + self.again(self.other(x))

    out = written(Twice(), (torch.randn(2, 4),), {Block}, tmp_path)
    assert out.calls() == {"Block": 4}
    assert sorted(out.record("Block").calls) == ["again", "block", "block", "other"]
    assert len(out.proto.graph.initializer) == 4
    out.check(torch.randn(2, 4))


def test_nodes_that_something_outside_runs_between_stay_inline(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block()

        def forward(self, x: Tensor) -> Tensor:
            return self.block(torch.cos(self.block(x)))

    out = written(Twice(), (torch.randn(2, 4),), {Block}, tmp_path, numbered=False)  # two calls that look like one
    assert out.calls() == {}
    assert not out.proto.functions
    [(path, why)] = out.records[0].inline
    assert path == "block"
    assert "Cos in the model itself runs between its operators" in why
    assert "no function" in str(out.records[0])
    out.check(torch.randn(2, 4))


def test_two_modules_woven_into_each_other_are_one_call_and_one_inline(tmp_path: Path) -> None:
    """Each could become a call alone, both could not: each would have to run before the other."""
    out = written(nn.Sequential(Block(), Block()), (torch.randn(2, 4),), False, tmp_path)
    names = {name: tuple(text) for name, text in {"a": ("", "a"), "b": ("", "b")}.items()}
    x = ir.Value(name="x", shape=ir.Shape([2]), type=ir.TensorType(ir.DataType.FLOAT))
    first = [ir.node("Sin", [x]), ir.node("Cos", [x])]
    second = [ir.node("Exp", first[0].outputs), ir.node("Abs", first[1].outputs)]
    total = ir.node("Add", [second[0].outputs[0], second[1].outputs[0]])
    for node, path in zip([*first, *second], "abba", strict=True):
        node.metadata_props["pkg.torch.onnx.name_scopes"] = str([*names[path], "op"])
        node.metadata_props["pkg.torch.onnx.class_hierarchy"] = str(["m.Root", "m.Woven", "aten"])
    total.metadata_props["pkg.torch.onnx.name_scopes"] = "['', 'op']"
    total.metadata_props["pkg.torch.onnx.class_hierarchy"] = "['m.Root', 'aten']"
    graph = ir.Graph([x], total.outputs, nodes=[*first, *second, total], opset_imports={"": 20}, name="g")
    records = outline_functions(ir.Model(graph, ir_version=10), out.program, ["Woven"])
    assert [node.op_type for node in graph].count("Woven") == 1
    assert sum(len(record.calls) for record in records) == 1
    assert sum(len(record.inline) for record in records) == 1


def test_what_is_merged_across_blocks_is_computed_once_outside(tmp_path: Path) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(Prepared() for _ in range(3))

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x, mask)
            return x

    class Prepared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Linear(4, 4)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            bias = torch.where(mask, 0.0, -5.0).unsqueeze(-1)  # the same in every layer: optimization keeps one
            return torch.tanh(self.block(x) * 0.5 + bias) + torch.sigmoid(x)

    args = (torch.randn(2, 3, 4), torch.tensor([[True, True, False], [True, False, False]]))
    out = written(Masked(), args, {"Prepared"}, tmp_path)
    assert out.calls() == {"Prepared": 3}
    assert [node.op_type for node in out.proto.graph.node].count("Where") == 1
    out.check(*args)


def test_inner_values_that_are_read_outside_are_outputs(tmp_path: Path) -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            hidden = torch.tanh(self.linear(x))
            return hidden * 2 + x, hidden

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pairs = nn.ModuleList(Pair() for _ in range(3))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x, first = self.pairs[0](x)
            x, _ = self.pairs[1](x)
            x, last = self.pairs[2](x)
            return x, first + last

    out = written(Model(), (torch.randn(2, 4),), {"Pair"}, tmp_path)
    assert out.calls() == {"Pair": 3}
    assert len(out.function("Pair").output) == 2
    out.check(torch.randn(2, 4))


def test_modules_in_modules_are_functions_that_functions_call(tmp_path: Path) -> None:
    out = written(encoder(4), (torch.randn(2, 5, 16),), True, tmp_path)
    assert out.calls() == {"TransformerEncoderLayer": 4}
    inner = out.calls(out.function("TransformerEncoderLayer"))
    assert inner["MultiheadAttention"] == 1
    assert inner["Linear"] == 2
    assert DOMAIN in {each.domain for each in out.function("TransformerEncoderLayer").opset_import}
    assert DOMAIN not in {each.domain for each in out.function("Linear").opset_import}
    assert len(out.record("Linear").calls) == 8
    out.check(torch.randn(2, 5, 16))


def test_blocks_of_different_structure_get_functions_of_their_own(tmp_path: Path) -> None:
    class Either(nn.Module):
        def __init__(self, positive: bool) -> None:
            super().__init__()
            self.linear, self.positive = nn.Linear(4, 4), positive

        def forward(self, x: Tensor) -> Tensor:
            y = self.linear(x)
            return torch.relu(y) * x if self.positive else torch.tanh(y) * x

    model = nn.Sequential(*(Either(positive) for positive in (True, False, True, True)))
    out = written(model, (torch.randn(2, 4),), {"Either"}, tmp_path)
    assert out.calls() == {"Either": 3, "Either_1": 1}
    assert out.record("Either_1").calls == ("1",)
    out.check(torch.randn(2, 4))


def test_true_leaves_alone_what_occurs_once(tmp_path: Path) -> None:
    model = nn.Sequential(Block(), Block(), nn.Linear(4, 4), nn.Tanh())
    out = written(model, (torch.randn(3, 2, 4),), True, tmp_path)
    assert out.calls()["Block"] == 2
    assert "Tanh" not in out.calls()
    assert all(len(record.calls) > 1 for record in out.records if record.name)
    out.check(torch.randn(3, 2, 4))


def test_sizes_asked_for_are_part_of_the_structure(tmp_path: Path) -> None:
    class Split(nn.Module):
        def __init__(self, heads: int) -> None:
            super().__init__()
            self.heads = heads

        def forward(self, x: Tensor) -> Tensor:
            parts = x.reshape(2, 3, self.heads, 8 // self.heads)
            return torch.softmax(parts, -1).reshape(2, 3, 8) + x

    model = nn.Sequential(Split(2), Split(4), Split(2))
    out = written(model, (torch.randn(2, 3, 8),), {"Split"}, tmp_path)
    assert out.calls() == {"Split": 2, "Split_1": 1}
    assert all(list(function.input) == ["input"] for function in out.proto.functions)  # sizes are inside
    out.check(torch.randn(2, 3, 8))


def test_weights_shared_in_some_blocks_only_are_inputs_of_their_own(tmp_path: Path) -> None:
    class Gated(nn.Module):
        def __init__(self, tied: bool) -> None:
            super().__init__()
            self.one = nn.Parameter(torch.randn(4))
            self.two = self.one if tied else nn.Parameter(torch.randn(4))

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(x * self.one) + torch.sigmoid(x.abs() * self.two)

    out = written(nn.Sequential(Gated(True), Gated(False)), (torch.randn(2, 4),), {"Gated"}, tmp_path)
    assert out.calls() == {"Gated": 2}
    assert len(out.function("Gated").input) == 3
    first, second = (node.input for node in out.proto.graph.node)
    assert first[1] == first[2]
    assert second[1] != second[2]
    out.check(torch.randn(2, 4))


def test_branches_that_read_values_of_the_block(tmp_path: Path) -> None:
    class Chooser(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.linear(x)
            return torch.cond(y.sum() > 0, lambda y, x: torch.tanh(y) + x, lambda y, x: y * 3.0 - x, (y, x))

    out = written(nn.Sequential(Chooser(), Chooser(), Chooser()), (torch.randn(2, 4),), {"Chooser"}, tmp_path)
    assert out.calls() == {"Chooser": 3}
    assert "If" in {node.op_type for node in out.function("Chooser").node}
    for seed in range(4):
        torch.manual_seed(seed)
        out.check(torch.randn(2, 4) * 3)


def test_a_weight_of_one_number_that_all_calls_share_stays_a_weight(tmp_path: Path) -> None:
    class Scaled(nn.Module):
        def __init__(self, factor: nn.Parameter) -> None:
            super().__init__()
            self.factor = factor

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(x * self.factor) * 2.0

    factor = nn.Parameter(torch.tensor(3.0))
    out = written(nn.Sequential(Scaled(factor), Scaled(factor)), (torch.randn(2, 4),), {"Scaled"}, tmp_path)
    assert list(out.function("Scaled").input) == ["input", "factor"]  # and the 2 is inside
    assert [i.name for i in out.proto.graph.initializer] == ["0.factor"]
    out.check(torch.randn(2, 4))


@pytest.mark.parametrize("option", ["fold_constants", "keep_weights"])
def test_unfolded_constants_and_overridable_weights(tmp_path: Path, option: str) -> None:
    out = written(encoder(2), (torch.randn(2, 5, 16),), True, tmp_path, **{option: option == "keep_weights"})
    assert out.calls()["TransformerEncoderLayer"] == 2
    session = ort.InferenceSession(tmp_path / "outlined.onnx", providers=["CPUExecutionProvider"])
    x = torch.randn(2, 5, 16)
    [got] = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(got, out.program.run(x)[0].numpy(), rtol=1e-4, atol=1e-5)


def test_a_class_that_is_not_there_is_said(tmp_path: Path) -> None:
    model = nn.Sequential(Block(), nn.Identity(), nn.Dropout())
    out = written(model, (torch.randn(2, 4),), [nn.Conv2d, "Blok", nn.Dropout], tmp_path)
    told = {record.class_name: record.note for record in out.records}
    assert "no module of this class; there are: Block" in told["Blok"]
    assert "no module of this class" in told["torch.nn.modules.conv.Conv2d"]
    assert not out.proto.functions


def test_nothing_asked_changes_nothing(tmp_path: Path) -> None:
    out = written(nn.Sequential(Block(), Block()), (torch.randn(2, 4),), False, tmp_path)
    assert out.records == []
    assert not out.proto.functions
    assert (tmp_path / "plain.onnx").read_bytes() == (tmp_path / "outlined.onnx").read_bytes()


def _scopes(model: ir.Model) -> Iterator[str]:
    return (node.metadata_props.get("pkg.torch.onnx.name_scopes", "") for node in model.graph)


def test_numbers_of_calls_do_not_reach_the_file(tmp_path: Path) -> None:
    shared = Block()
    program = fxexport.capture(nn.Sequential(shared, shared, Block()).eval(), (torch.randn(2, 4),))
    out = Written(program, ["Tanh"], tmp_path)
    assert not any("@" in scopes for scopes in _scopes(out.model))
    assert program.graph is not number_calls(program).graph
