"""Rows of the fault table about what goes wrong under way: nothing is left behind, the old file survives."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest
import torch
from conftest import Untouched
from torch import nn

import fxexport
from fxexport import Artifact, InputError, Pass, PassError, PassResult, Program, ValidationError, compiling
from fxexport.publishing import Staging
from fxexport.validation import ArtifactProcess

X = torch.randn(2, 3)
OLD = b"the old file, which was good"


class Net(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.linear, self.norm = nn.Linear(3, 4), nn.BatchNorm1d(4)
        self.fault: type[BaseException] | None = None
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.fault is not None and (self.fault is not GeneratorExit or torch.compiler.is_exporting()):
            raise self.fault("stop")
        result: torch.Tensor = self.norm(self.linear(x))
        return result


@dataclass(frozen=True)
class Stop(Pass):
    """Stops in the middle of rewriting."""

    name: ClassVar[str] = "stop"
    error: type[BaseException] = KeyboardInterrupt

    def run(self, program: Program) -> PassResult:
        program.graph.erase_node(program.graph.output_node())
        raise self.error("stop")


def export(model: nn.Module, out: Path, *example: Any, **options: Any) -> fxexport.Artifact:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return fxexport.compile(model, out, *example, **{"passes": "none", **options})


def workers() -> list[int]:
    """Processes that run artifacts for this one."""
    children = psutil.Process().children(recursive=True)
    return [p.pid for p in children if p.is_running() and "worker.py" in " ".join(p.cmdline())]


def assert_clean(out: Path) -> None:
    assert out.read_bytes() == OLD
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    assert not workers()


def stop(*args: Any, **kwargs: Any) -> Any:
    raise KeyboardInterrupt("stop")


STAGES = ["forward", "capture", "pass", "lowering", "load", "validation", "publishing"]


@pytest.mark.parametrize("stage", STAGES)
def test_fault_43_ctrl_c_at_any_stage(
    stage: str, out: Path, untouched: Untouched, monkeypatch: pytest.MonkeyPatch
) -> None:
    out.write_bytes(OLD)
    model, options, error = Net().train(), {}, KeyboardInterrupt
    if stage == "forward":
        model.fault = KeyboardInterrupt
    elif stage == "capture":
        model.fault = error = GeneratorExit  # like KeyboardInterrupt no Exception; only while torch.export runs
    elif stage == "pass":
        options["passes"] = Stop()
    elif stage == "lowering":
        monkeypatch.setattr(compiling, "lower", stop)
    elif stage == "publishing":
        monkeypatch.setattr(Staging, "publish", stop)
    else:
        monkeypatch.setattr(ArtifactProcess, {"load": "load", "validation": "run"}[stage], stop)
    with untouched(model), pytest.raises(error, match="stop"):
        export(model, out, X, **options)
    assert_clean(out)


def test_fault_43_an_exception_in_forward_or_in_a_pass(out: Path, untouched: Untouched) -> None:
    out.write_bytes(OLD)
    model = Net().train()
    model.fault = ZeroDivisionError
    with untouched(model), pytest.raises(ZeroDivisionError, match="stop") as caught:
        export(model, out, X)
    assert "the model's own error on the example inputs" in caught.value.__notes__[0]
    model.fault = None
    with untouched(model), pytest.raises(PassError, match=r"pass stop.*ZeroDivisionError: stop"):
        export(model, out, X, passes=Stop(ZeroDivisionError))
    assert_clean(out)
    assert export(model, out, X, passes=[Stop(ZeroDivisionError)], on_error="skip").report.validation.passed


SIGNALLED = """
import os, signal, sys, torch, fxexport
def progress(stage, detail):
    if stage == "validation":
        print("now", flush=True)
        signal.raise_signal(signal.SIGINT)
try:
    model = torch.nn.Linear(3, 4).eval()
    fxexport.compile(model, sys.argv[1], torch.ones(2, 3), passes="none", progress=progress)
except KeyboardInterrupt:
    import psutil
    print("left:", [p.cmdline() for p in psutil.Process().children(recursive=True)])
    raise
"""


def test_fault_43_a_real_signal(out: Path) -> None:
    out.write_bytes(OLD)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", SIGNALLED, str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.stdout == "now\nleft: []\n", done.stderr
    assert done.returncode == -signal.SIGINT, "as Python ends on Ctrl-C"
    assert_clean(out)


def test_fault_34_a_failing_export_keeps_the_old_file_and_the_evidence(out: Path) -> None:
    """A candidate that is wrong goes to ``<path>.rejected`` with its report and the inputs that show it."""

    def wrong(program: Program) -> None:
        node = next(program.find(torch.ops.aten.linear.default))
        node.args = (node.args[0], node.args[1])  # forgets the bias

    @dataclass(frozen=True)
    class Forget(Pass):
        """Loses a bias: the shapes stay true, the numbers do not."""

        name: ClassVar[str] = "forget"

        def run(self, program: Program) -> PassResult:
            wrong(program)
            return PassResult(1)

    model = nn.Linear(3, 4).eval()
    export(model, out, X)
    good = out.read_bytes()
    with pytest.raises(ValidationError, match="does not agree with the eager model and was not published") as caught:
        export(model, out, X, passes=Forget(), dynamic={"input": {0: "n"}})
    assert out.read_bytes() == good
    kept = out.with_name("model.onnx.rejected")
    assert str(kept) in str(caught.value)
    assert sorted(p.name for p in kept.iterdir() if not p.name.startswith(".")) == [
        *("after.pt2", "before.pt2", "expected.pt", "inputs.pt"),
        *("model.onnx", "report.json", "report.txt", "repro.json", "repro.py"),
    ]
    report = json.loads((kept / "report.json").read_text())
    assert not report["validation"]["passed"]
    assert any(not output["passed"] for point in report["validation"]["points"] for output in point["outputs"])
    inputs = torch.load(kept / "inputs.pt", weights_only=True)
    missing = Artifact.load(kept / "model.onnx")(**inputs) - model(inputs["input"]).detach()
    torch.testing.assert_close(missing, -model.bias.detach().expand_as(missing))
    assert sorted(p.name for p in out.parent.iterdir()) == ["model.onnx", "model.onnx.rejected"]


@pytest.mark.parametrize("format", ["onnx", "torchscript"])
def test_fault_40_the_process_that_runs_the_artifact_is_killed(format: str, out: Path, untouched: Untouched) -> None:
    out = out.with_suffix({"onnx": ".onnx", "torchscript": ".pt"}[format])
    out.write_bytes(OLD)
    model = Net().eval()

    def kill(stage: str, detail: str) -> None:
        if stage == "validation":
            for pid in workers():
                os.kill(pid, signal.SIGKILL)

    with untouched(model), pytest.raises(ValidationError, match="died with SIGKILL"):
        export(model, out, X, progress=kill)
    assert out.read_bytes() == OLD
    assert not workers()
    assert out.with_name(out.name + ".rejected").is_dir()


def test_fault_44_two_threads_write_the_same_files_as_one_after_the_other(tmp_path: Path) -> None:
    """Two instances of one class, exported at once to one directory, in two formats."""
    models = {f"{seed}.{suffix}": Net(seed).eval() for seed, suffix in ((1, "onnx"), (2, "onnx"), (3, "pt"))}
    folders = {name: tmp_path / name for name in ("together", "alone")}
    for folder in folders.values():
        folder.mkdir()
    errors: list[fxexport.ExportError] = []

    def run(name: str, folder: Path) -> None:
        try:
            export(models[name], folder / name, X, dynamic={"x": {0: "n"}}, passes="default")
        except fxexport.ExportError as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(name, folders["together"])) for name in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in models:
        run(name, folders["alone"])
    assert not errors
    for name in models:
        assert (folders["together"] / name).read_bytes() == (folders["alone"] / name).read_bytes()
    got = [Artifact.load(folders["together"] / name)(X) for name in models]
    for result, model in zip(got, models.values(), strict=True):
        torch.testing.assert_close(result, model(X).detach(), rtol=1e-4, atol=1e-5)


def test_fault_36_a_damaged_file_is_one_line_with_path_and_size(tmp_path: Path) -> None:
    program = fxexport.capture(Net().eval(), X)
    for suffix in ("onnx", "pt", "pt2"):
        whole = tmp_path / f"whole.{suffix}"
        fxexport.lower(program, whole)
        content = whole.read_bytes()
        for name, damaged in {
            "half": content[: len(content) // 2],
            "tail": content[:-10],
            "empty": b"",
            "text": b"not a model",
        }.items():
            path = tmp_path / f"{name}.{suffix}"
            path.write_bytes(damaged)
            with pytest.raises(InputError) as caught:
                Artifact.load(path)
            message = str(caught.value)
            assert message.startswith(f"{path} ({len(damaged):,} bytes) is not a complete")
            assert "\n" not in message


def test_fault_36_a_file_of_somebody_else(tmp_path: Path) -> None:
    torch.save(Net().state_dict(), tmp_path / "weights.pt")
    torch.export.save(torch.export.export(nn.ReLU(), (X,)), tmp_path / "foreign.pt2")
    for name in ("weights.pt", "foreign.pt2"):
        with pytest.raises(InputError, match="was not made by fxexport"):
            Artifact.load(tmp_path / name)
    for name in ("missing.onnx", ""):
        with pytest.raises(InputError, match="does not exist or is not a file"):
            Artifact.load(tmp_path / name)


ODD = [
    "-dash.onnx",
    "ünïcødé 模型 🙂.onnx",
    "with space.and.dots.onnx",
    ".hidden.onnx",
    "UPPER.ONNX",
    "quote'\"$HOME`;.onnx",
    "x" * 250 + ".onnx",
    "é" * 125 + ".onnx",
]


@pytest.mark.parametrize("name", ODD, ids=lambda name: name[:12])
def test_fault_48_odd_file_names(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the name of the data file beside it would become too long."""
    monkeypatch.chdir(tmp_path)
    model = nn.Linear(3, 400).eval()
    artifact = export(model, Path(name), X, external_data=len(name) > 100)
    assert artifact.path == tmp_path / name
    files = sorted(path.name for path in tmp_path.iterdir())
    assert name in files
    assert len(files) == (2 if len(name) > 100 else 1)
    torch.testing.assert_close(Artifact.load(name)(X), model(X).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("suffix", [".pt", ".ts", ".PT", ".pt2"])
def test_fault_48_odd_file_names_of_the_other_formats(suffix: str, tmp_path: Path) -> None:
    program = fxexport.capture(nn.ReLU().eval(), X)
    for stem in ("-é 模", "x" * (255 - len(suffix))):
        path = tmp_path / f"{stem}{suffix}"
        fxexport.lower(program, path)
        assert torch.equal(Artifact.load(path)(-X), torch.relu(-X))
        assert [p.name for p in tmp_path.iterdir()] == [path.name]
        path.unlink()
