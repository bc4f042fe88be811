"""Rows 15, 17, 18 and 40 of the fault table, at the level of comparing and running."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import onnx
import psutil
import pytest
import torch
from onnx import TensorProto, helper

from fxexport.errors import ValidationError
from fxexport.validation.compare import compare_output
from fxexport.validation.runner import ArtifactProcess


def save_model(
    path: Path, nodes: list[onnx.NodeProto], inputs: list[onnx.ValueInfoProto], output: onnx.ValueInfoProto
) -> Path:
    graph = helper.make_graph(nodes, "g", inputs, [output])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def counting_loop(path: Path) -> Path:
    """y = number of turns of an ONNX Loop, given as input ``turns``: 2**62 of them never end."""
    add = helper.make_node("Add", ["so_far", "one"], ["more"])
    go_on = helper.make_node("Identity", ["go"], ["still"])
    one = helper.make_tensor("one", TensorProto.INT64, [], [1])
    state = [
        helper.make_tensor_value_info("i", TensorProto.INT64, []),
        helper.make_tensor_value_info("go", TensorProto.BOOL, []),
        helper.make_tensor_value_info("so_far", TensorProto.INT64, []),
    ]
    results = [
        helper.make_tensor_value_info("still", TensorProto.BOOL, []),
        helper.make_tensor_value_info("more", TensorProto.INT64, []),
    ]
    body = helper.make_graph([add, go_on], "body", state, results, [one])
    start = helper.make_tensor("start_value", TensorProto.INT64, [], [0])
    nodes = [
        helper.make_node("Constant", [], ["start"], value=start),
        helper.make_node("Loop", ["turns", "", "start"], ["y"], body=body),
    ]
    turns = helper.make_tensor_value_info("turns", TensorProto.INT64, [])
    return save_model(path, nodes, [turns], helper.make_tensor_value_info("y", TensorProto.INT64, []))


def allocator(path: Path) -> Path:
    """y = float32 zeros of the shape given as input ``shape``, int64 [1]."""
    node = helper.make_node("ConstantOfShape", ["shape"], ["y"])
    shape = helper.make_tensor_value_info("shape", TensorProto.INT64, [1])
    return save_model(path, [node], [shape], helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"]))


@pytest.fixture(autouse=True)
def _nothing_left_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    folder = tmp_path / "tmpdir"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    before = {child.pid for child in psutil.Process().children()}
    yield
    assert list(folder.glob("fxexport*")) == []
    assert {child.pid for child in psutil.Process().children()} <= before


@contextlib.contextmanager
def soon(action: threading.Timer) -> Iterator[None]:
    action.start()
    try:
        yield
    finally:
        action.cancel()
        action.join()


def test_fault_15_nan_and_inf_positions_must_match() -> None:
    expected = torch.tensor([1.0, math.nan, math.inf, 2.0])
    assert compare_output("y", expected, expected.clone(), None).passed
    moved = compare_output("y", expected, torch.tensor([math.nan, 1.0, math.inf, 2.0]), None)
    assert (moved.passed, moved.nan_mismatch) == (False, 2)
    flipped = compare_output("y", expected, torch.tensor([1.0, math.nan, -math.inf, 2.0]), None)
    assert (flipped.passed, flipped.inf_mismatch) == (False, 1)
    all_nan = torch.full((4,), math.nan)
    assert not compare_output("y", torch.ones(4), all_nan, None).passed
    assert not compare_output("y", all_nan, torch.ones(4), None).passed


def test_fault_17_integers_are_compared_exactly() -> None:
    for dtype in (torch.uint8, torch.int8, torch.int32, torch.int64):
        result = compare_output("y", torch.tensor([3], dtype=dtype), torch.tensor([4], dtype=dtype), None)
        assert (result.passed, result.max_abs) == (False, 1.0)  # uint8: not 255
    big = torch.tensor([2**53], dtype=torch.int64)
    assert not compare_output("y", big, big + 1, None).passed  # equal as float64
    assert not compare_output("y", torch.tensor([True]), torch.tensor([False]), None).passed


def test_fault_18_empty_equals_empty_of_the_same_shape_and_dtype(tmp_path: Path) -> None:
    empty = torch.zeros(0, 3)
    assert compare_output("y", empty, empty.clone(), None).passed
    assert not compare_output("y", empty, torch.zeros(3, 0), None).passed
    assert not compare_output("y", empty, torch.zeros(0, 3, dtype=torch.float64), None).passed
    assert not compare_output("y", empty, torch.zeros(1, 3), None).passed
    with ArtifactProcess("onnx", threads=1) as process:
        process.load(allocator(tmp_path / "m.onnx"))
        got = process.run({"shape": torch.tensor([0])})["y"]
    assert compare_output("y", torch.zeros(0), got, None).passed


def test_fault_40_crash_is_a_failed_check(tmp_path: Path) -> None:
    with ArtifactProcess("onnx", threads=1) as process:
        process.load(counting_loop(tmp_path / "m.onnx"))
        pid = process.pid
        assert pid is not None
        crash = threading.Timer(0.5, os.kill, (pid, signal.SIGSEGV))
        with soon(crash), pytest.raises(ValidationError, match="died with SIGSEGV while running"):
            process.run({"turns": torch.tensor(2**62)})
        with pytest.raises(ValidationError, match="SIGSEGV"):  # still known later
            process.run({"turns": torch.tensor(1)})
        assert not psutil.pid_exists(pid)


def test_fault_40_killed_between_commands(tmp_path: Path) -> None:
    with ArtifactProcess("onnx", threads=1) as process:
        process.load(counting_loop(tmp_path / "m.onnx"))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(ValidationError, match=r"died with SIGKILL \(possibly out of memory\) while running"):
            process.run({"turns": torch.tensor(1)})


def test_fault_40_worker_that_cannot_start_shows_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "numpy.py").write_text("raise RuntimeError('no numpy for you')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with (
        ArtifactProcess("onnx") as process,
        pytest.raises(ValidationError, match="exit status 1 while starting") as caught,
    ):
        process.load(tmp_path / "m.onnx")
    assert "no numpy for you" in str(caught.value)


def test_fault_40_hang_ends_at_the_limit_and_says_how_to_raise_it(tmp_path: Path) -> None:
    path = counting_loop(tmp_path / "m.onnx")
    with ArtifactProcess("onnx", threads=1, timeout=30.0) as process:
        process.load(path)
        assert process.run({"turns": torch.tensor(1000)})["y"].item() == 1000
        process.timeout = 1.0  # loading may take longer than that on a busy machine
        pid, started = process.pid, time.monotonic()
        with pytest.raises(ValidationError, match=r"still running after 1 s .*ArtifactProcess\(timeout=\.\.\.\)"):
            process.run({"turns": torch.tensor(2**62)})
        assert 0.9 < time.monotonic() - started < 10
        assert pid is not None
        assert not psutil.pid_exists(pid)


def test_fault_40_memory_limit_is_a_failed_check(tmp_path: Path) -> None:
    path = allocator(tmp_path / "m.onnx")
    with ArtifactProcess("onnx", threads=1, memory_limit_gb=4.0) as process:
        process.load(path)
        assert process.run({"shape": torch.tensor([1000])})["y"].shape == (1000,)
        with pytest.raises(ValidationError, match=r"ran out of memory \(memory_limit_gb=4.0\): raise the limit"):
            process.run({"shape": torch.tensor([2**31])})  # 8 GiB


def test_fault_40_interrupt_kills_the_worker(tmp_path: Path) -> None:
    """Ctrl-C during a run: the exception passes, the worker does not survive it, and cannot answer the next
    question.
    """
    with ArtifactProcess("onnx", threads=1) as process:
        process.load(counting_loop(tmp_path / "m.onnx"))
        pid = process.pid
        press = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
        with soon(press), pytest.raises(KeyboardInterrupt):
            process.run({"turns": torch.tensor(2**62)})
        assert pid is not None
        assert not psutil.pid_exists(pid)
        with pytest.raises(ValidationError, match="interrupted while running"):
            process.run({"turns": torch.tensor(1)})


def is_running(pid: int) -> bool:
    """False for a zombie too: the first process of a container may never collect an orphan."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


_PARENT = """
import sys, torch
from fxexport.validation.runner import ArtifactProcess
process = ArtifactProcess("onnx", threads=1)
process.load(sys.argv[1])
print(process.pid, flush=True)
process.run({"turns": torch.tensor(2**62)})
"""


def test_fault_40_worker_does_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    """A worker busy in native code notices within seconds that the process which asked is gone."""
    path = counting_loop(tmp_path / "m.onnx")
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", _PARENT, str(path)], stdout=subprocess.PIPE, text=True, env=environment
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        time.sleep(0.3)
        assert is_running(pid)
        parent.kill()
    deadline = time.monotonic() + 10
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_running(pid)
