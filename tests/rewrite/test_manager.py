"""Passes are transactions: kept when right, rolled back and named when not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from fxexport.capture import capture
from fxexport.errors import InputError, PassError, VerifyError
from fxexport.program import Program
from fxexport.rewrite import Pass, PassManager, PassRecord, PassResult, resolve

aten = torch.ops.aten


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).relu().clone()


@pytest.fixture
def program() -> Program:
    return capture(Net(), (torch.randn(3, 4),), dynamic={"x": {0: "batch"}})


@dataclass(frozen=True)
class Do(Pass):
    """Runs a plain function: ``Do(lambda program: ...)``; counts 1 unless the function returns a count."""

    name: ClassVar[str] = "do"
    action: Callable[[Program], object] = lambda program: None

    def run(self, program: Program) -> PassResult:
        count = self.action(program)
        return PassResult(count if isinstance(count, int) else 1)


@dataclass(frozen=True)
class ReluToTanh(Pass):
    """``relu(x) -> tanh(x)``."""

    name: ClassVar[str] = "relu-to-tanh"

    def run(self, program: Program) -> PassResult:
        count = 0
        for node in program.find(aten.relu.default):
            program.replace(node, program.insert(aten.tanh.default, node.args, before=node))
            count += 1
        return PassResult(count, ("as asked",))


def tanh_twice(program: Program) -> None:
    (node,) = program.find(aten.tanh.default)
    program.replace(node, program.insert(aten.sigmoid.default, node.args, before=node))


def test_runs_passes_in_order_on_copies(program: Program) -> None:
    text = str(program)
    after, records = PassManager([ReluToTanh(), Do(tanh_twice)]).run(program)
    assert str(program) == text
    assert [r.name.split("{")[0] for r in records] == ["relu-to-tanh", "do"]
    assert records[0] == PassRecord("relu-to-tanh", 1, 3, 3, records[0].seconds, ("as asked",))
    x = torch.randn(5, 4)
    weight, bias = after.constants().values()
    assert torch.equal(after.run(x)[0], torch.sigmoid(torch.nn.functional.linear(x, weight, bias)))


def test_marks_what_each_pass_made(program: Program) -> None:
    after, _ = PassManager([ReluToTanh(), Do(tanh_twice)]).run(program)
    marks = {n.name: n.meta.get("custom", {}).get("fxexport_passes") for n in after.graph.nodes}
    assert marks["linear"] is None
    assert marks["sigmoid_default"] == ("relu-to-tanh", "do")
    assert marks["clone"] == ("relu-to-tanh", "do")
    assert all("fxexport_passes" not in n.meta.get("custom", {}) for n in program.graph.nodes)


def test_marks_do_not_leak_into_the_program_given(program: Program) -> None:
    (relu,) = program.find(aten.relu.default)
    relu.meta["custom"] = {"mine": 1}
    after, _ = PassManager([ReluToTanh()]).run(program)
    assert relu.meta["custom"] == {"mine": 1}
    (tanh,) = after.find(aten.tanh.default)
    assert tanh.meta["custom"] == {"mine": 1, "fxexport_passes": ("relu-to-tanh",)}


def test_no_passes_return_the_program(program: Program) -> None:
    assert PassManager([]).run(program) == (program, [])


def test_a_record_is_json(program: Program) -> None:
    _, (record,) = PassManager([ReluToTanh()]).run(program)
    data = json.loads(json.dumps(record.to_json()))
    assert data["name"] == "relu-to-tanh"
    assert data["notes"] == ["as asked"]
    assert data["error"] is None
    assert "1 rewritten, 3 -> 3 nodes" in str(record)


def test_dead_code_is_erased(program: Program) -> None:
    (node,) = program.find(aten.relu.default)
    twin = program.clone()

    def orphan(p: Program) -> None:
        (linear,) = p.find(aten.linear.default)
        (relu,) = p.find(aten.relu.default)
        p.replace(linear, p.insert(aten.mul.Tensor, (linear.args[0], 2.0), before=relu))

    after, (record,) = PassManager([Do(orphan)]).run(twin)
    assert after.constants() == {}
    assert (record.nodes_before, record.nodes_after) == (3, 3)
    assert node.name == "relu"


# ---------------------------------------------------------------- failures


def boom(program: Program) -> None:
    for node in program.find(aten.relu.default):
        raise RuntimeError(f"no {node.op} today")


def wrong_meta(program: Program) -> None:
    (node,) = program.find(aten.relu.default)
    node.target = aten.gelu.default
    node.meta["val"] = node.meta["val"].double()


def refuses_its_arguments(program: Program) -> None:
    (node,) = program.find(aten.relu.default)
    node.target = aten.mm.default


def output_shape(program: Program) -> None:
    (node,) = program.find(aten.clone.default)
    new = program.insert(aten.sum.default, (node,), before=program.graph.output_node())
    program.graph.output_node().args = ((new,),)


def later_meta(program: Program) -> None:
    """The call itself is right, but what reads it is not any more."""
    (node,) = program.find(aten.relu.default)
    node.target = aten.argmax.default
    node.meta["val"] = program.propagate(node)


def no_meta(program: Program) -> None:
    (node,) = program.find(aten.clone.default)
    del node.meta["val"]


def unknown_placeholder(program: Program) -> None:
    with program.graph.inserting_before(program.input_nodes[0]):
        program.graph.placeholder("surprise")


def wrong_order(program: Program) -> None:
    relu, clone = next(program.find(aten.relu.default)), next(program.find(aten.clone.default))
    clone.append(relu)


def another_value(program: Program) -> None:
    program._state["linear.weight"] = torch.randn(2, 2)
    (node,) = program.find(aten.linear.default)
    new = program.add_constant("late", torch.randn(4, 4))
    program._state["late"] = torch.randn(2, 2)
    node.args = (node.args[0], new)


def secretly(program: Program) -> int:
    (node,) = program.find(aten.relu.default)
    node.target = aten.tanh.default
    return 0


FAILURES = [
    (boom, PassError, "RuntimeError: no call_function today"),
    (wrong_meta, VerifyError, 'its meta."val". says torch.float64'),
    (refuses_its_arguments, VerifyError, "does not accept its arguments any more"),
    (output_shape, VerifyError, "cannot stand for clone"),
    (later_meta, VerifyError, r"clone \(aten.clone.default\) is torch.int64"),
    (no_meta, VerifyError, 'clone .* has no meta\\["val"\\]'),
    (unknown_placeholder, VerifyError, "surprise"),
    (wrong_order, VerifyError, "not well formed"),
    (another_value, VerifyError, "new constant c_late is torch.float32"),
    (secretly, VerifyError, "reported no rewrite but changed relu"),
]


@pytest.mark.parametrize(("action", "kind", "message"), FAILURES, ids=lambda v: getattr(v, "__name__", None))
def test_a_failing_pass_is_named_and_rolled_back(program: Program, action, kind, message) -> None:
    text, values = str(program), program.constants()
    with pytest.raises(kind, match=message) as caught:
        PassManager([Do(action)]).run(program)
    assert type(caught.value) is kind
    assert str(caught.value).startswith("pass do")
    assert 'on_error="skip"' in str(caught.value)
    assert caught.value.__cause__ is not None
    assert str(program) == text
    assert program.constants().keys() == values.keys()
    program.verify()


@pytest.mark.parametrize(("action", "kind", "message"), FAILURES, ids=lambda v: getattr(v, "__name__", None))
def test_skipping_records_the_error_and_goes_on(program: Program, action, kind, message) -> None:
    after, (failed, worked) = PassManager([Do(action), ReluToTanh()], on_error="skip").run(program)
    assert failed.error is not None
    assert "pass do" in failed.error
    assert (failed.count, failed.nodes_before, failed.nodes_after) == (0, 3, 3)
    assert "failed, rolled back" in str(failed)
    assert worked.error is None
    assert worked.count == 1
    assert len(list(after.find(aten.tanh.default))) == 1


def test_the_error_names_node_and_source_line(program: Program) -> None:
    with pytest.raises(PassError, match=r"at relu \(aten.relu.default\) made at .*test_manager.py:\d+"):
        PassManager([Do(boom)]).run(program)
    with pytest.raises(VerifyError, match=r"test_manager.py:\d+"):
        PassManager([Do(wrong_meta)]).run(program)


def test_a_pass_that_returns_nothing_is_named(program: Program) -> None:
    class Forgets(Do):
        def run(self, program: Program) -> PassResult:
            return None  # type: ignore[return-value]

    with pytest.raises(PassError, match="returned NoneType instead of a PassResult"):
        PassManager([Forgets()]).run(program)


def test_ctrl_c_passes_through(program: Program) -> None:
    def interrupt(program: Program) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        PassManager([Do(interrupt)], on_error="skip").run(program)


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_pass_may_not_fix_a_dynamic_dimension(program: Program, on_error: str) -> None:
    """x[batch, 4] + c[3, 1] holds only for a batch of 3: torch would quietly specialise it."""

    def specialise(program: Program) -> None:
        (node,) = program.find(aten.relu.default)
        constant = program.add_constant("three", torch.ones(3, 1))
        program.replace(node, program.insert(aten.add.Tensor, (node.args[0], constant), before=node))

    with pytest.raises(VerifyError, match=r"fixed dynamic dimensions: .* = 3"):
        PassManager([Do(specialise)], on_error=on_error).run(program)


def test_fresh_unknown_sizes_are_not_a_difference() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.relu()[x.relu() > 0] * 2

    program = capture(Model(), (torch.randn(3, 4),))
    after, (record,) = PassManager([ReluToTanh()]).run(program)
    assert record.count == 2
    x = torch.randn(3, 4)
    assert torch.equal(after.run(x)[0], x.tanh()[x.tanh() > 0] * 2)


def test_branches_survive() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cond(x.sum() > 0, lambda a: a + 1, lambda a: a - 1, (x.relu(),))

    program = capture(Model(), (torch.randn(3, 4),))
    after, _ = PassManager([ReluToTanh()]).run(program)
    assert torch.equal(after.run(torch.ones(3, 4))[0], torch.ones(3, 4).tanh() + 1)


@pytest.mark.parametrize(("passes", "on_error"), [([ReluToTanh], "raise"), (["relu-to-tanh"], "raise"), ([], "ignore")])
def test_bad_arguments_are_refused_at_once(passes, on_error) -> None:
    with pytest.raises(InputError):
        PassManager(passes, on_error=on_error)


def test_trace_prints_one_line_a_pass(program: Program, monkeypatch, capsys) -> None:
    PassManager([ReluToTanh()]).run(program)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("FXEXPORT_TRACE", "1")
    PassManager([ReluToTanh()]).run(program)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fxexport: relu-to-tanh: 1 rewritten, 3 -> 3 nodes")


def test_large_programs_are_rewritten_whole() -> None:
    block = [nn.Linear(8, 8), nn.LayerNorm(8), nn.GELU(), nn.Dropout(0.1)]
    program = capture(nn.Sequential(*block * 130), (torch.randn(2, 8),), dynamic={"input": {0: "batch"}})
    assert program.node_count() == 520
    after, records = PassManager(resolve("default")).run(program)
    assert {record.name: record.count for record in records}["remove-dropout"] == 130
    assert after.node_count() == 390
