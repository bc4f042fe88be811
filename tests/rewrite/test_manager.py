"""Passes are transactions: kept when right, rolled back and named when not."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor, fx, nn

from fxexport.capture import capture
from fxexport.capture.pipeline import capture_model
from fxexport.errors import InputError, PassError, VerifyError
from fxexport.program import Program
from fxexport.rewrite import NodePass, Pass, PassManager, PassRecord, PassResult, resolve
from fxexport.rewrite.manager import MAX_ROUNDS
from fxexport.validation.numbers import Scales, judge_on

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
    assert str(caught.value).endswith('; the program was rolled back (on_error="skip" goes on without it)')
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
    assert str(failed).count("rolled back") == 1
    assert "on_error" not in failed.error
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


def test_trace_prints_each_rewrite_and_near_miss(program: Program, monkeypatch, capsys) -> None:
    monkeypatch.setenv("FXEXPORT_TRACE", "1")
    PassManager([Nudge(only="other", others=False)]).run(program)
    head, miss = capsys.readouterr().err.splitlines()
    assert head.startswith("fxexport: nudge{only=other,others=False}: 0 rewritten, 1 near misses, 3 -> 3 nodes")
    assert miss.startswith("fxexport:   near miss nudge: relu (")
    PassManager([Nudge()]).run(program)
    _, rewrite = capsys.readouterr().err.splitlines()
    assert rewrite.startswith("fxexport:   rewrote nudge: relu (")
    PassManager([Nudge()]).run(program, limit=1)
    assert capsys.readouterr().err == ""


# ---------------------------------------------------------------- numbers after each pass


@dataclass(frozen=True)
class Nudge(NodePass):
    """``relu(x) -> clamp(x, 0) + by``: wrong, but for ``by = 0``; the others stay right where ``only`` names one."""

    name: ClassVar[str] = "nudge"
    targets: ClassVar[tuple[object, ...]] = (aten.relu.default,)
    by: float = 0.0
    only: str = ""
    others: bool = True

    def rewrite(self, program: Program, node: fx.Node) -> fx.Node | str:
        mine = self.only in ("", node.name)
        if not mine and not self.others:
            return "not this one"
        zero = program.insert(aten.clamp.default, (node.args[0], 0), before=node)
        return program.insert(aten.add.Tensor, (zero, self.by if mine else 0.0), before=node)


X = torch.randn(3, 4)


def test_a_judge_measures_what_each_pass_moved(program: Program) -> None:
    passes = [Nudge(), Do(lambda p: 0), Nudge(by=1e-6)]
    _, records = PassManager(passes[:2], judge=judge_on([X])).run(program)
    assert [r.delta for r in records] == [0.0, None]
    _, (record,) = PassManager(passes[2:], judge=judge_on([X])).run(program)
    assert record.delta is not None
    assert 0 < record.delta < 2e-6
    assert "outputs moved by 1.0e-06" in str(record)
    _, (record,) = PassManager(passes[2:]).run(program)
    assert record.delta is None


def test_wrong_numbers_are_refused_with_output_place_and_tolerance(program: Program) -> None:
    text = str(program)
    message = (
        r"pass nudge\{by=0.5\}.*changes the numbers on the examples: output 'output': \d+ of 12 values differ; "
        r"worst at \(\d, \d\): expected .*, got .*rtol 1.0e-04.* from its rewrite of relu \(.*test_manager.py:\d+\) on"
    )
    with pytest.raises(VerifyError, match=message):
        PassManager([Nudge(by=0.5)], judge=judge_on([X])).run(program)
    after, (failed, worked) = PassManager([Nudge(by=0.5), Nudge()], judge=judge_on([X]), on_error="skip").run(program)
    assert "changes the numbers" in (failed.error or "")
    assert (worked.error, worked.delta) == (None, 0.0)
    assert str(program) == text
    assert torch.equal(after.run(X)[0], program.run(X)[0])


def test_the_tolerance_can_be_chosen(program: Program) -> None:
    passes = [Nudge(by=0.5)]
    _, (record,) = PassManager(passes, judge=judge_on([X], Scales(rtol=0.0, atol=0.6))).run(program)
    assert record.delta == pytest.approx(0.5, abs=1e-6)
    with pytest.raises(VerifyError):
        PassManager([Nudge(by=1e-5)], judge=judge_on([X], Scales(rtol=0.0, atol=0.0))).run(program)


@pytest.mark.parametrize("wrong", range(11))
def test_of_many_rewrites_the_wrong_one_is_named(wrong: int) -> None:
    program = capture(nn.Sequential(*[nn.ReLU(), nn.Tanh()] * 11), (X,))
    name = f"relu_{wrong}" if wrong else "relu"
    with pytest.raises(VerifyError, match=rf"from its rewrite of {name} in {2 * wrong} \(.*\) on"):
        PassManager([Nudge(by=2.0, only=name)], judge=judge_on([X])).run(program)


def test_each_program_is_run_once(program: Program, monkeypatch) -> None:
    runs = []
    run = Program.run
    monkeypatch.setattr(Program, "run", lambda self, *inputs: runs.append(self) or run(self, *inputs))
    PassManager([Nudge(), Do(tanh_of_add), Do(tanh_of_add)], judge=judge_on([X], Scales(atol=9.0))).run(program)
    assert len(runs) == len(set(map(id, runs))) == 4


def tanh_of_add(program: Program) -> None:
    (node,) = program.find(aten.add.Tensor)
    node.args = (node.args[0], 1.0)


def test_integers_and_nans_are_exact() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return (x * 100).int() + 1, x.log().relu()

    def one_more(p: Program) -> None:
        (node,) = p.find(aten.add.Tensor)
        node.args = (node.args[0], 2)

    def no_nan(p: Program) -> None:
        (node,) = p.find(aten.relu.default)
        p.replace(node, p.insert(aten.nan_to_num.default, node.args, before=node))

    program = capture_model(Model(), (X,), allow_nan=True).program
    for action, message in ((one_more, "12 of 12 values differ.*exact comparison"), (no_nan, "only one side is NaN")):
        with pytest.raises(VerifyError, match=message):
            PassManager([Do(action)], judge=judge_on([X], Scales(rtol=9.0, atol=9.0))).run(program)
    _, (record,) = PassManager([Nudge()], judge=judge_on([X])).run(program)
    assert record.delta == 0.0


def test_random_outputs_are_compared_in_form_only() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x.relu(), x + 1

    program = capture(Model(), (X,), output_names=["noise", "sum"])
    _, (record,) = PassManager([Nudge(by=5.0)], judge=judge_on([X], Scales(unstable={"noise"}))).run(program)
    assert record.delta == 0.0
    with pytest.raises(VerifyError, match="output 'noise'"):
        PassManager([Nudge(by=5.0)], judge=judge_on([X], Scales(unstable={"sum"}))).run(program)


def test_a_program_that_does_not_run_any_more_is_refused(program: Program) -> None:
    """Shapes are right by the meta kernel; the constant behind the placeholder is not."""

    def break_constant(p: Program) -> None:
        (node,) = p.find(aten.relu.default)
        p.replace(node, p.insert(aten.clone.default, node.args, before=node))
        p._state["linear.weight"] = torch.randn(4, 7)

    with pytest.raises(VerifyError, match="what it leaves does not run in eager: RuntimeError"):
        PassManager([Do(break_constant)], judge=judge_on([X])).run(program)


def test_large_programs_are_rewritten_whole() -> None:
    block = [nn.Linear(8, 8), nn.LayerNorm(8), nn.GELU(), nn.Dropout(0.1)]
    program = capture(nn.Sequential(*block * 130), (torch.randn(2, 8),), dynamic={"input": {0: "batch"}})
    assert program.node_count() == 520
    after, records = PassManager(resolve("default")).run(program)
    assert {record.name: record.count for record in records}["remove-dropout"] == 130
    assert after.node_count() == 390


# ---------------------------------------------------------------- classes that are no passes


@pytest.mark.parametrize("name", ["two words", "a,b", "a{b}", "", "pass\n", 3, None])
def test_a_name_that_no_pipeline_can_spell_is_refused(name: object) -> None:
    made = type("FuseAll", (Do,), {"name": name})
    with pytest.raises(
        InputError, match=r"FuseAll has no name.*'fuse-all'|FuseAll is named .* which a pipeline cannot"
    ):
        made()


def test_a_pass_without_a_name_is_refused() -> None:
    class FuseAll(Pass):
        def run(self, program: Program) -> PassResult:
            return PassResult(0)

    with pytest.raises(InputError, match=r"FuseAll has no name; give the class one, such as `name = 'fuse-all'`"):
        FuseAll()


def test_fields_of_a_pass_that_is_no_dataclass_are_refused() -> None:
    class Half(ReluToTanh):
        shared: ClassVar[int] = 3
        name: str = "half"
        rate: float = 0.5

    for arguments in ({}, {"rate": 0.25}):
        with pytest.raises(InputError, match=r"^rate of .*Half cannot be set: write @dataclass\(frozen=True\)"):
            Half(**arguments)

    @dataclass(frozen=True)
    class Whole(Half):
        other: int = 1

    with pytest.raises(InputError, match=r"^rate of .*Half cannot be set"):
        Whole()
    assert dataclass(frozen=True)(Half)(rate=0.25).rate == 0.25


def test_a_right_class_is_made_copied_and_pickled() -> None:
    class Named(ReluToTanh):
        name: str = "named.2"  # a constant of Pass: no option
        shared: ClassVar[int] = 3

    assert str(Named()) == "named.2"
    assert copy.deepcopy(Named()) == Named()
    assert pickle.loads(pickle.dumps(ReluToTanh())) == ReluToTanh()


@dataclass(frozen=True)
class TanhToRelu(NodePass):
    name: ClassVar[str] = "tanh-to-relu"
    targets = (aten.tanh.default,)
    repeats = True

    def rewrite(self, program: Program, node: fx.Node) -> fx.Node:
        return program.insert(aten.relu.default, node.args, before=node)


@dataclass(frozen=True)
class ReluBackToTanh(NodePass):
    name: ClassVar[str] = "relu-back-to-tanh"
    targets = (aten.relu.default,)
    repeats = True

    def rewrite(self, program: Program, node: fx.Node) -> fx.Node:
        return program.insert(aten.tanh.default, node.args, before=node)


def test_passes_that_never_end_are_stopped_and_it_is_told(program: Program) -> None:
    after, records = PassManager([ReluBackToTanh(), TanhToRelu()]).run(program)
    assert 2 < len(records) <= 2 * (1 + MAX_ROUNDS)
    assert any("stopped after" in note and "may find more" in note for note in after.notes)
    assert not any("stopped after" in note for note in program.notes)


def test_a_pass_that_finds_nothing_costs_no_copy(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    copies: list[Program] = []
    clone = Program.clone

    def counted(self: Program) -> Program:
        copies.append(self)
        return clone(self)

    monkeypatch.setattr(Program, "clone", counted)
    nothing = [*(resolve("cancel-casts") * 5), *(resolve("merge-common-subexpressions,remove-assertions") * 5)]
    PassManager(nothing).run(program)
    assert len(copies) <= 2  # the one that is returned, and one to work on


@dataclass(frozen=True)
class Reorders(Pass):
    """Puts a call elsewhere and says that it did nothing."""

    name: ClassVar[str] = "reorders"

    def run(self, program: Program) -> PassResult:
        relu = next(program.find(aten.relu.default))
        next(program.find(aten.linear.default)).prepend(relu)
        return PassResult(0)


def test_a_pass_that_says_nothing_of_what_it_did_is_still_verified(program: Program) -> None:
    with pytest.raises(VerifyError, match="not well formed"):
        PassManager([Reorders()]).run(program)
