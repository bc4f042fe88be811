"""Blame: a wrong artifact leads to the rewrite that made it wrong, and to a script that shows it again."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from conftest import Untouched
from onnxscript import opset20 as op
from torch import Tensor, fx, nn

import fxexport
from fxexport import Pass, PassError, PassResult, Program, ValidationError, blame, compiler
from fxexport.blame import Blame
from fxexport.rewrite import NodePass

aten = torch.ops.aten
X = torch.randn(3, 4)


class Block(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.relu() + 0.25


class Net(nn.Module):
    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.blocks = nn.Sequential(*[Block() for _ in range(blocks)])

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.linear(x))


@dataclass(frozen=True)
class Spell(NodePass):
    """``relu(x) -> leaky_relu(x, 0) + off``: right, but for the call named ``wrong``."""

    name: ClassVar[str] = "spell"
    targets: ClassVar[tuple[Any, ...]] = (aten.relu.default,)
    wrong: str = ""
    off: float = 0.5

    def rewrite(self, program: Program, node: fx.Node) -> fx.Node:
        leaky = program.insert(aten.leaky_relu.default, (node.args[0], 0.0), before=node)
        return program.insert(aten.add.Tensor, (leaky, self.off if node.name == self.wrong else 0.0), before=node)


@dataclass(frozen=True)
class Whole(Pass):
    """``x + 0.25 -> x + 0.75`` in one go, without a ledger."""

    name: ClassVar[str] = "whole"

    def run(self, program: Program) -> PassResult:
        nodes = [node for node in program.find(aten.add.Tensor) if node.args[1] == 0.25]
        for node in nodes:
            node.args = (node.args[0], 0.75)
        return PassResult(len(nodes))


@dataclass(frozen=True)
class ByAbs(NodePass):
    """``relu(x) -> (x + abs(x)) / 2``: exact; ``only`` names the one call."""

    name: ClassVar[str] = "by-abs"
    targets: ClassVar[tuple[Any, ...]] = (aten.relu.default,)
    only: str = ""

    def rewrite(self, program: Program, node: fx.Node) -> fx.Node | None:
        if self.only not in ("", node.name):
            return None
        absolute = program.insert(aten.abs.default, node.args, before=node)
        total = program.insert(aten.add.Tensor, (node.args[0], absolute), before=node)
        return program.insert(aten.div.Tensor, (total, 2), before=node)


def wrong_abs(x: Any) -> Any:
    """A translation that no ONNX runtime can be blamed for."""
    return op.Add(op.Abs(x), 1.0)


def wrong_linear(x: Any, weight: Any, bias: Any) -> Any:
    return op.MatMul(x, op.Transpose(weight, perm=[1, 0]))


def failure(out: Path, passes: Any, model: nn.Module | None = None, **options: Any) -> ValidationError:
    """The error of a compilation that must fail; no file is published, no scratch is left."""
    model = model or Net()
    with pytest.raises(ValidationError) as caught:
        compiler.compile(model.eval(), out, X, passes=passes, **options)
    assert sorted(path.name for path in out.parent.iterdir()) == [f"{out.name}.rejected"]
    assert not [path for path in rejected(out).iterdir() if path.is_dir()], "candidates of the search are left"
    return caught.value


def rejected(out: Path) -> Path:
    return out.with_name(f"{out.name}.rejected")


def again(folder: Path, elsewhere: Path) -> subprocess.CompletedProcess[str]:
    """The repro, run from another directory."""
    return subprocess.run(
        [sys.executable, str(folder / "repro.py")],
        cwd=elsewhere,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(Path(fxexport.__path__[0]).parent)},
    )


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The steps at which programs were tried."""
    steps: list[int] = []
    program_at = blame.History.program_at

    def counting(self: blame.History, step: int) -> Program:
        steps.append(step)
        return program_at(self, step)

    monkeypatch.setattr(blame.History, "program_at", counting)
    return steps


# ---------------------------------------------------------------- in eager


def test_the_wrong_rewrite_is_named_and_can_be_run_again(out: Path, tmp_path: Path, untouched: Untouched) -> None:
    model = Net().eval()
    with untouched(model):
        error = failure(out, ["remove-noops", Spell("relu_1"), "remove-noops"], model)
    found = error.blame
    assert (found.pass_name, found.number, found.judge) == ("spell{wrong=relu_1}", 2, "eager")
    assert (found.rewrite.node, found.rewrite.module) == ("relu_1", "blocks.1")
    sentence = (
        r"The first wrong rewrite is number 2 of pass spell\{wrong=relu_1\}: relu_1 in blocks.1 \(.*test_blame.py:\d+\)"
    )
    assert re.match(sentence, str(error).splitlines()[-2])
    folder = rejected(out)
    for text in (str(error), folder.joinpath("report.txt").read_text()):
        assert "number 2 of pass spell{wrong=relu_1}: relu_1 in" in " ".join(text.split())
    assert f"; repro: {folder / 'repro.py'}" in str(error)
    report = json.loads(folder.joinpath("report.json").read_text())
    assert (report["blame"]["number"], report["blame"]["rewrite"]["node"]) == (2, "relu_1")
    done = again(folder, tmp_path)
    assert (done.returncode, done.stderr) == (1, "")
    assert "number 2 of pass spell{wrong=relu_1}: relu_1 in blocks.1" in done.stdout
    assert "before: right" in done.stdout
    assert "output: largest difference 5.000e-01" in done.stdout
    assert "after: WRONG" in done.stdout
    assert folder.joinpath("before.pt2").replace(folder / "after.pt2")  # a rewrite put right
    assert again(folder, tmp_path).returncode == 0


def test_the_repro_needs_only_torch(out: Path, tmp_path: Path) -> None:
    failure(out, [Spell("relu")])
    block = tmp_path / "fxexport.py"
    block.write_text("raise ImportError('not installed')")
    done = subprocess.run(
        [sys.executable, str(rejected(out) / "repro.py")],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize(("blocks", "wrong"), [(1, 0), (2, 1), (3, 0), (7, 3), (8, 7), (8, 0), (12, 5)])
def test_as_many_runs_as_the_logarithm_at_most(out: Path, counted: list[int], blocks: int, wrong: int) -> None:
    found = failure(out, [Spell(f"relu_{wrong}" if wrong else "relu")], Net(blocks)).blame
    assert found.step == found.number == wrong + 1
    assert found.runs <= math.ceil(math.log2(blocks + 1))
    assert len(counted) == found.runs + 2  # and before and after, to save them


def test_a_pass_without_a_ledger_is_named_as_a_whole(out: Path) -> None:
    error = failure(out, [Spell(), Whole()])
    assert (error.blame.pass_name, error.blame.number, error.blame.step) == ("whole", 0, 4)
    assert "The first wrong rewrite is pass whole as a whole; repro:" in str(error)


def test_a_pass_that_was_skipped_is_not_among_the_suspects(out: Path) -> None:
    @dataclass(frozen=True)
    class Fails(Spell):
        name: ClassVar[str] = "fails"

        def rewrite(self, program: Program, node: fx.Node) -> fx.Node:
            if node.name == "relu_1":
                raise RuntimeError("no")
            return super().rewrite(program, node)

    found = failure(out, [Fails("relu"), Spell("relu_2")], on_error="skip").blame
    assert (found.pass_name, found.number) == ("spell{wrong=relu_2}", 3)


def test_wrong_at_another_size_only(out: Path, tmp_path: Path) -> None:
    """The example agrees; the failing point is what is searched with."""

    @dataclass(frozen=True)
    class Narrow(NodePass):
        name: ClassVar[str] = "narrow"
        targets: ClassVar[tuple[Any, ...]] = (aten.relu.default,)

        def rewrite(self, program: Program, node: fx.Node) -> fx.Node | None:
            if node.name != "relu_2":
                return None
            batch = program.insert(aten.sym_size.int, (node.args[0], 0), before=node)
            more = program.insert(aten.full.default, ([], batch), {"dtype": torch.float32}, before=node)
            three = program.insert(aten.sub.Tensor, (more, 3.0), before=node)
            relu = program.insert(aten.clamp.default, (node.args[0], 0), before=node)
            return program.insert(aten.add.Tensor, (relu, three), before=node)

    found = failure(out, [Narrow()], dynamic={"x": {0: "batch"}}).blame
    assert (found.pass_name, found.rewrite.node, found.judge) == ("narrow", "relu_2", "eager")
    assert torch.load(rejected(out) / "inputs.pt")["x"].shape[0] != 3
    assert again(rejected(out), tmp_path).returncode == 1


# ---------------------------------------------------------------- right in eager, wrong as a file


def test_a_rewrite_that_the_format_gets_wrong(out: Path, tmp_path: Path) -> None:
    table = {aten.abs.default: wrong_abs}
    error = failure(out, [ByAbs("relu_2")], custom_translation_table=table)
    found = error.blame
    assert (found.judge, found.pass_name, found.number) == ("artifact", "by-abs{only=relu_2}", 1)
    assert found.runs <= 1
    folder = rejected(out)
    assert again(folder, tmp_path).returncode == 0, "without the wrong table it is right"
    script, line = folder / "repro.py", "custom_translation_table = None"
    assert line in script.read_text()
    tmp_path.joinpath("table.py").write_text(
        "from onnxscript import opset20 as op\n\ndef wrong_abs(x):\n    return op.Add(op.Abs(x), 1.0)\n"
    )
    change = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import table\n"
        "custom_translation_table = {torch.ops.aten.abs.default: table.wrong_abs}"
    )
    script.write_text(script.read_text().replace(line, change))
    done = again(folder, tmp_path)
    assert done.returncode == 1, done.stderr
    assert "pass by-abs{only=relu_2}: relu_2 in blocks.2" in done.stdout
    assert "before: right" in done.stdout
    assert "does not agree with the eager model" in done.stdout
    assert sorted(p.name for p in folder.parent.iterdir()) == [folder.name]


def test_without_any_pass_it_is_wrong_already(out: Path, tmp_path: Path) -> None:
    error = failure(out, [Spell()], custom_translation_table={aten.linear.default: wrong_linear})
    assert (error.blame.step, error.blame.pass_name, error.blame.rewrite) == (0, "", None)
    assert error.blame.runs == 2
    assert "No rewrite is wrong: it is already wrong without passes, so the lowering or the runtime is" in str(error)
    assert not (rejected(out) / "before.pt2").exists()
    assert again(rejected(out), tmp_path).returncode == 0


def test_a_program_that_cannot_be_a_file_before_the_passes(out: Path) -> None:
    """The first that can be written is wrong: whether by the rewrite or the lowering, nobody can tell."""

    class Unknown(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.bessel_j0(x) + x.relu()

    @dataclass(frozen=True)
    class Known(NodePass):
        name: ClassVar[str] = "known"
        targets: ClassVar[tuple[Any, ...]] = (aten.special_bessel_j0.default,)

        def rewrite(self, program: Program, node: fx.Node) -> fx.Node:
            zero = program.insert(aten.mul.Tensor, (node.args[0], 0.0), before=node)
            return program.insert(aten.add.Tensor, (zero, 1.0), before=node)

    error = failure(out, [Known()], Unknown())
    assert (error.blame.judge, error.blame.step) == ("eager", 1)  # wrong in eager: nothing to lower
    table = {aten.abs.default: wrong_abs}

    @dataclass(frozen=True)
    class Exact(Known):
        def rewrite(self, program: Program, node: fx.Node) -> fx.Node:
            absolute = program.insert(aten.abs.default, node.args, before=node)
            return program.insert(aten.cos.default, (absolute,), before=node)

    class Even(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.bessel_j0(x * 1e-4) + x.relu()

    error = failure(out, [Exact()], Even(), custom_translation_table=table)
    assert (error.blame.judge, error.blame.step) == ("artifact", 1)
    assert "the program before it cannot be a file" in str(error)


# ---------------------------------------------------------------- when nothing can be blamed


def test_nothing_was_rewritten(out: Path) -> None:
    error = failure(out, "none", custom_translation_table={aten.linear.default: wrong_linear})
    assert error.blame is None
    assert "wrong rewrite" not in str(error)


def test_a_search_that_fails_does_not_hide_the_failure(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: blame.History, step: int) -> Program:
        raise PassError(f"step {step} is beyond me")

    monkeypatch.setattr(blame.History, "program_at", broken)
    error = failure(out, [Spell("relu")])
    assert error.blame is None
    assert "does not agree with the eager model" in str(error)
    assert "blame could not be found: step 1 is beyond me" in str(error)
    assert "blame could not be found" in rejected(out).joinpath("report.txt").read_text()


def test_a_failure_that_does_not_repeat_is_nobodys_fault(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that was killed, say: without a second look the last rewrite of all would be blamed."""
    monkeypatch.setattr(blame.Case, "wrong_as_artifact", lambda case, program: False)
    error = failure(out, [Spell()], custom_translation_table={aten.linear.default: wrong_linear})
    assert error.blame is None
    assert "blame could not be found: a second file of the same program is right" in str(error)


def test_large_models_have_no_repro(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blame, "MAX_REPRO_BYTES", 70)
    error = failure(out, [Spell("relu")])
    assert isinstance(error.blame, Blame)
    assert "relu in blocks.0" in str(error)
    assert "no repro was written: the constants have" in str(error)
    assert not error.blame.repro
    assert not list(rejected(out).glob("*.pt2"))


@pytest.mark.parametrize("step", ["wrong_in_eager", "wrong_as_artifact"])
def test_ctrl_c_during_the_search_leaves_nothing(out: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    table = {aten.linear.default: wrong_linear}
    monkeypatch.setattr(blame.Case, step, interrupt)
    with pytest.raises(KeyboardInterrupt):
        compiler.compile(Net().eval(), out, X, passes=[Spell()], custom_translation_table=table)
    assert not list(out.parent.iterdir())


def test_check_each_finds_it_before_there_is_a_file(out: Path) -> None:
    with pytest.raises(PassError, match=r"pass spell\{wrong=relu_1\}.*from its rewrite of relu_1 in blocks.1"):
        compiler.compile(Net().eval(), out, X, passes=[Spell("relu_1")], check="each")
    artifact = compiler.compile(Net().eval(), out, X, passes=[Spell()], check="each")
    assert [record.delta for record in artifact.report.passes] == [0.0]
    artifact = compiler.compile(Net().eval(), out, X, passes=[Spell()])
    assert [record.delta for record in artifact.report.passes] == [None]
