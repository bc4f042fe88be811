"""The contract that passes and lowering rely on."""

from __future__ import annotations

import copy
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
    assert str(program) == text
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


def test_a_clone_keeps_names_order_and_users(program: Program) -> None:
    """Also names that Python or an erased node has: a copy through fx would give others."""
    program.input_nodes[0].name = "input"
    program._input_specs["input"] = program._input_specs["x"]
    relu = only(program, aten.relu.default)
    gone = program.insert(aten.tanh.default, relu.args, before=relu)
    program.erase(gone)
    twin = program.clone()
    nodes, copies = list(program.graph.nodes), list(twin.graph.nodes)
    assert [str(n.format_node()) for n in copies] == [str(n.format_node()) for n in nodes]
    assert [[u.name for u in n.users] for n in copies] == [[u.name for u in n.users] for n in nodes]
    assert all(a.meta == b.meta and a.meta is not b.meta for a, b in zip(nodes, copies, strict=True))
    assert not set(nodes) & set(copies)
    assert len(twin.graph.nodes) == len(program.graph.nodes) == len(nodes)
    assert sorted(copies) == copies
    relu = only(twin, aten.relu.default)
    assert twin.insert(aten.tanh.default, relu.args, before=relu).name == "tanh_default_1"
    assert twin.insert(aten.tanh.default, relu.args, before=relu).name == "tanh_default_2"
    twin.erase_dead()
    twin.verify()


def test_a_deep_copy_has_constants_of_its_own(program: Program) -> None:
    twin = copy.deepcopy(program)
    twin.verify()
    assert str(twin) == str(program)
    assert torch.equal(twin.run(X, Y)[0], program.run(X, Y)[0])
    for name, tensor in program.constants().items():
        assert twin.constants()[name].data_ptr() != tensor.data_ptr()


def test_a_clone_has_branches_of_its_own() -> None:
    class Choice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cond(x.sum() > 0, lambda a: a + 1, lambda a: a - 1, (x,))

    program = capture(Choice(), (X,))
    twin = program.clone()
    for branch in (n for n in twin.graph.nodes if n.op == "get_attr"):
        module = getattr(twin._root, branch.target)
        for node in module.graph.nodes:
            if node.op == "call_function":
                node.target = aten.mul.Tensor
        module.recompile()
    twin.verify()
    assert torch.equal(program.run(torch.ones(3, 4))[0], torch.full((3, 4), 2.0))
    assert torch.equal(twin.run(torch.ones(3, 4))[0], torch.ones(3, 4))
    assert torch.equal(twin.to_exported().module()(torch.ones(3, 4))[0], torch.ones(3, 4))
    del twin._root._modules[branch.target]
    with pytest.raises(VerifyError, match="nonexistent attribute"):
        twin.verify()


def test_the_graph_module_is_a_copy(program: Program, net: Net) -> None:
    module, text = program.graph_module, str(program)
    assert torch.equal(module(*program.constants().values(), X, Y)[0], net(X, Y)[0])
    module.graph.erase_node(module.graph.output_node())
    assert str(program) == text
    program.verify()


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


def test_many_constants_keep_their_place_and_their_names(program: Program) -> None:
    inputs = program.input_nodes
    made = [program.add_constant(name, torch.ones(1)) for name in ("w", "w", "w_1", "w", "offset") for _ in range(2)]
    names = [program.constant_name(node) for node in made]
    assert names[:3] == ["w", "w_1", "w_2"]
    assert len({*names, "offset"}) == len(names) + 1
    twin = program.clone()
    last = twin.add_constant("w", torch.ones(1))
    assert twin.constant_name(last) not in names
    placeholders = [n.name for n in twin.graph.nodes if n.op == "placeholder"]
    assert placeholders[-2:] == [n.name for n in inputs]
    assert placeholders[-3] == last.name
    twin.verify()


def test_constants_bytes_counts_shared_memory_once(program: Program) -> None:
    assert program.constants_bytes() == 4 * (16 + 4 + 4)
    base = torch.zeros(100)
    program.add_constant("a", base[:10])
    program.add_constant("b", base[5:])
    assert program.constants_bytes() == 4 * (24 + 100)
    program.erase_dead()
    assert program.constants_bytes() == 4 * 24


def test_erase_takes_calls_that_nothing_reads(program: Program) -> None:
    relu = only(program, aten.relu.default)
    new = program.insert(aten.tanh.default, relu.args, before=relu)
    program.erase(new)
    assert not list(program.find(aten.tanh.default))
    with pytest.raises(VerifyError, match=r"relu cannot be erased: it is read by add.*test_program.py:\d+"):
        program.erase(relu)
    for node in (program.input_nodes[0], program.graph.output_node()):
        with pytest.raises(VerifyError, match=r"is a (placeholder|output), not a call|is read by"):
            program.erase(node)
    program.verify()


def test_find_is_in_graph_order_and_safe_while_editing(program: Program) -> None:
    relu = only(program, aten.relu.default)
    new = program.insert(aten.tanh.default, relu.args, before=relu)
    program.insert(aten.tanh.default, relu.args, before=new)
    targets = (aten.relu.default, aten.tanh.default, aten.linear.default)
    found = list(program.find(*targets))
    assert found == [n for n in program.graph.nodes if n.target in targets]
    seen = []
    for node in program.find(*targets):
        seen.append(node)
        if node is found[0]:
            program.erase(new)
    assert seen == [n for n in found if n is not new]


def test_replace_refuses_a_node_that_reads_the_old_one(program: Program) -> None:
    relu = only(program, aten.relu.default)
    new = program.insert(aten.tanh.default, (relu,), before=relu.next)
    with pytest.raises(VerifyError, match="tanh_default cannot stand for relu, which it reads"):
        program.replace(relu, new)
    program.verify()


@pytest.mark.parametrize(
    ("packet", "rest", "overload"),
    [
        (aten.relu, (), aten.relu.default),
        (aten.add, (1.0,), aten.add.Tensor),
        (aten.transpose, (0, 1), aten.transpose.int),
    ],
)
def test_insert_chooses_the_overload(program: Program, packet, rest, overload) -> None:
    relu = only(program, aten.relu.default)
    assert program.insert(packet, (relu.args[0], *rest), before=relu).target is overload
    with pytest.raises(VerifyError, match=r"no overload of aten\.mm accepts its arguments"):
        program.insert(aten.mm, (relu.args[0],), before=relu)


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
