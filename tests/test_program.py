"""The contract that passes and lowering rely on."""

from __future__ import annotations

import io
import warnings

import pytest
import torch
from torch import Tensor, nn

from fxexport.capture import capture
from fxexport.errors import VerifyError
from fxexport.program import Program, module_path, source_line

aten = torch.ops.aten


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("offset", torch.randn(4))

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(x).relu() + self.offset, y * 2


X, Y = torch.randn(3, 4), torch.randn(2)


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def program(net: Net) -> Program:
    return capture(net, (X, Y), dynamic={"x": {0: "batch"}})


def only(program: Program, target) -> torch.fx.Node:
    (node,) = program.find(target)
    return node


def saved_and_loaded(program: Program) -> torch.nn.Module:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program.to_exported(), buffer)
        buffer.seek(0)
        return torch.export.load(buffer).module()


# ---------------------------------------------------------------- reading


def test_reads(program: Program, net: Net) -> None:
    program.verify()
    assert [n.name for n in program.input_nodes] == ["x", "y"]
    assert len(program.output_nodes) == 2
    assert program.node_count() == 4
    assert set(program.constants()) == {"layer.weight", "layer.bias", "offset"}
    assert torch.equal(program.constants()["offset"], net.offset)
    assert not program.is_constant(program.input_nodes[0])
    assert not program.is_constant(None)
    assert program.constant_value(program.input_nodes[0]) is None
    assert program.constant_value(only(program, aten.relu.default)) is None


def test_runs_as_eager_does(program: Program, net: Net) -> None:
    for got, want in zip(program.run(X, Y), net(X, Y), strict=True):
        torch.testing.assert_close(got, want)
    assert program.run(torch.randn(7, 4), Y)[0].shape == (7, 4)


def test_says_where_a_node_comes_from(program: Program) -> None:
    assert module_path(only(program, aten.linear.default)).endswith("layer")
    assert "test_program.py:" in source_line(only(program, aten.relu.default))


# ---------------------------------------------------------------- clones


def test_clones_are_independent(program: Program, net: Net) -> None:
    text, twin = str(program), program.clone()
    relu = only(twin, aten.relu.default)
    twin.replace(relu, twin.insert(aten.tanh.default, relu.args, before=relu))
    twin.add_constant("extra", torch.ones(1))
    twin.notes.append("changed")
    twin.erase_dead()
    twin.graph_module.meta["mark"] = True
    assert str(program) == text
    assert "mark" not in program.graph_module.meta
    assert "extra" not in program.constants()
    torch.testing.assert_close(program.run(X, Y)[0], net(X, Y)[0])
    torch.testing.assert_close(twin.run(X, Y)[0], net.layer(X).tanh() + net.offset)
    only(program, aten.relu.default).meta["val"] = None
    assert only(program.clone(), aten.relu.default).meta["val"] is None
    assert only(twin, aten.tanh.default).meta["val"] is not None


def test_a_clone_shares_tensors_and_symbols(program: Program) -> None:
    twin = program.clone()
    assert twin.fake_mode is program.fake_mode
    for name, tensor in program.constants().items():
        assert twin.constants()[name].data_ptr() == tensor.data_ptr()


# ---------------------------------------------------------------- editing


def test_a_new_constant_survives_export_save_and_load(program: Program, net: Net) -> None:
    relu = only(program, aten.relu.default)
    scale = program.add_constant("layer.scale", torch.tensor([1.0, 2.0, 3.0, 4.0]))
    new = program.insert(aten.mul.Tensor, (relu.args[0], scale), before=relu)
    program.replace(relu, new)
    program.erase_dead()
    program.verify()
    want = net.layer(X) * torch.tensor([1.0, 2.0, 3.0, 4.0]) + net.offset
    torch.testing.assert_close(program.run(X, Y)[0], want)
    module = saved_and_loaded(program)
    torch.testing.assert_close(module(X, Y)[0], want)
    larger = torch.randn(9, 4)
    torch.testing.assert_close(module(larger, Y)[0], program.run(larger, Y)[0])


def test_constant_names_are_unique(program: Program) -> None:
    names = [program.constant_name(program.add_constant("layer.weight", torch.ones(1) * i)) for i in range(2)]
    assert names == ["layer.weight_1", "layer.weight_2"]
    assert float(program.constants()["layer.weight_2"]) == 1.0
    program.verify()


def test_insert_knows_symbolic_shapes_and_keeps_the_origin(program: Program) -> None:
    relu = only(program, aten.relu.default)
    new = program.insert(aten.transpose.int, (relu, 0, 1), before=next(iter(relu.users)), like=relu)
    assert new.meta["val"].shape[0] == 4
    assert not isinstance(new.meta["val"].shape[1], int)
    assert source_line(new) == source_line(relu)
    assert module_path(new) == module_path(relu)


def test_insert_refuses_what_the_operator_refuses(program: Program) -> None:
    text, relu = str(program), only(program, aten.relu.default)
    with pytest.raises(VerifyError, match=r"aten.mm.default does not accept its arguments"):
        program.insert(aten.mm.default, (relu, relu.args[0]), before=relu)
    assert str(program) == text


@pytest.mark.parametrize(
    ("target", "args"),
    [(aten.sum.default, ()), (aten.transpose.int, (0, 1)), (aten.to.dtype, (torch.float64,))],
)
def test_replace_refuses_another_shape_or_dtype(program: Program, target, args) -> None:
    relu = only(program, aten.relu.default)
    new = program.insert(target, (relu.args[0], *args), before=relu)
    with pytest.raises(VerifyError, match=r"cannot stand for relu .* made at .*test_program.py:\d+"):
        program.replace(relu, new)
    assert relu.users


def test_an_output_can_be_replaced(program: Program) -> None:
    old = program.output_nodes[1]
    new = program.insert(aten.add.Tensor, (program.input_nodes[1], 1.0), before=old)
    program.replace(old, new)
    assert program.output_nodes[1] is new
    program.verify()
    assert torch.equal(program.run(X, Y)[1], Y + 1)
    assert torch.equal(saved_and_loaded(program)(X, Y)[1], Y + 1)


def test_an_input_can_become_an_output(program: Program) -> None:
    program.replace(program.output_nodes[1], program.input_nodes[1])
    program.verify()
    assert torch.equal(program.run(X, Y)[1], Y)
    assert torch.equal(saved_and_loaded(program)(X, Y)[1], Y)


def test_a_node_returned_twice() -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            y = x.relu()
            return y, x.tanh(), y

    program = capture(Twice(), (X,))
    program.verify()
    assert program.output_nodes[0] is program.output_nodes[2]
    relu = program.output_nodes[0]
    program.replace(relu, program.insert(aten.sigmoid.default, relu.args, before=relu))
    program.verify()
    for result in (program.run(X), saved_and_loaded(program)(X)):
        assert torch.equal(result[0], X.sigmoid())
        assert torch.equal(result[0], result[2])


def test_erase_dead_drops_calls_and_constants_but_no_inputs(program: Program) -> None:
    relu = only(program, aten.relu.default)
    program.replace(relu, program.insert(aten.sin.default, (program.input_nodes[0],), before=relu))
    assert program.erase_dead() == 3  # linear and its two constants
    assert set(program.constants()) == {"offset"}
    assert [n.name for n in program.input_nodes] == ["x", "y"]
    assert program.erase_dead() == 0
    program.verify()
    assert set(program.to_exported().state_dict) == {"offset"}


def test_two_placeholders_of_one_tensor() -> None:
    """Tied weights: dropping one use must not take the tensor from the other."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).relu())

    model = Tied().eval()
    program = capture(model, (X,))
    relu = only(program, aten.relu.default)
    program.replace(relu, program.insert(aten.sin.default, (program.input_nodes[0],), before=relu))
    program.erase_dead()
    program.verify()
    torch.testing.assert_close(program.run(X)[0], model.b(X.sin()))


# ---------------------------------------------------------------- checks


def missing_meta(program: Program) -> None:
    del only(program, aten.relu.default).meta["val"]


def lost_constant(program: Program) -> None:
    program._state.pop("offset")


def lost_output(program: Program) -> None:
    program.graph.output_node().args = ((program.output_nodes[0],),)


def disorder(program: Program) -> None:
    only(program, aten.add.Tensor).append(only(program, aten.relu.default))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (missing_meta, "relu"),
        (lost_constant, "offset has no value"),
        (lost_output, "outputs"),
        (disorder, "well formed"),
    ],
)
def test_verify_finds_damage(program: Program, damage, message: str) -> None:
    damage(program)
    with pytest.raises(VerifyError, match=message):
        program.verify()


def test_prints_its_interface(program: Program) -> None:
    program.notes.append("a note")
    head, note, *_ = str(program).splitlines()
    assert head.startswith("Program(x['batch', 4], y[2]) -> (")
    assert head.endswith("4 nodes")
    assert note == "  note: a note"
