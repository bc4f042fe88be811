"""Artifacts in a subprocess: tensors arrive and return unchanged, and nothing is left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from fxexport.errors import InputError, ValidationError
from fxexport.validation import worker
from fxexport.validation.runner import ArtifactProcess, TensorInfo
from fxexport.validation.worker import read_tensors, write_tensors

Typed = tuple[str, int, Sequence[int | str]]

ONNX_TYPES = {
    torch.bool: TensorProto.BOOL,
    torch.uint8: TensorProto.UINT8,
    torch.int8: TensorProto.INT8,
    torch.int16: TensorProto.INT16,
    torch.int32: TensorProto.INT32,
    torch.int64: TensorProto.INT64,
    torch.float16: TensorProto.FLOAT16,
    torch.bfloat16: TensorProto.BFLOAT16,
    torch.float32: TensorProto.FLOAT,
    torch.float64: TensorProto.DOUBLE,
}


@pytest.fixture(autouse=True)
def _temporary_files_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Every test of this file leaves no temporary file, no child and no zombie."""
    folder = tmp_path / "tmpdir"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    before = {child.pid for child in psutil.Process().children()}
    yield
    assert list(folder.glob("fxexport*")) == []
    assert {child.pid for child in psutil.Process().children()} <= before


def save_onnx(path: Path, nodes: list[onnx.NodeProto], inputs: list[Typed], outputs: list[Typed]) -> Path:
    infos = [[helper.make_tensor_value_info(*value) for value in side] for side in (inputs, outputs)]
    graph = helper.make_graph(nodes, "g", infos[0], infos[1])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path)
    return path


def add_and_negate(path: Path) -> Path:
    """total = a + b, minus = -a; float32 [n, 3]."""
    nodes = [helper.make_node("Add", ["a", "b"], ["total"]), helper.make_node("Neg", ["a"], ["minus"])]
    rows: list[int | str] = ["n", 3]
    inputs: list[Typed] = [("a", TensorProto.FLOAT, rows), ("b", TensorProto.FLOAT, rows)]
    outputs: list[Typed] = [("total", TensorProto.FLOAT, rows), ("minus", TensorProto.FLOAT, rows)]
    return save_onnx(path, nodes, inputs, outputs)


def identities(path: Path) -> Path:
    """One Identity for each dtype, and for shapes (), (0, 3) and (2, 3): ``x_float32`` -> ``y_float32``."""
    names = [str(dtype).removeprefix("torch.") for dtype in ONNX_TYPES]
    nodes = [helper.make_node("Identity", [f"x_{name}"], [f"y_{name}"]) for name in names]
    shapes: list[Sequence[int | str]] = [["n", 3]] * len(names)
    typed = list(zip(names, ONNX_TYPES.values(), shapes, strict=True))
    for name in ("scalar", "empty"):
        nodes.append(helper.make_node("Identity", [f"x_{name}"], [f"y_{name}"]))
        typed.append((name, TensorProto.FLOAT, [] if name == "scalar" else [0, 3]))
    inputs: list[Typed] = [(f"x_{name}", kind, shape) for name, kind, shape in typed]
    outputs: list[Typed] = [(f"y_{name}", kind, shape) for name, kind, shape in typed]
    return save_onnx(path, nodes, inputs, outputs)


def bits(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)


class Everything(nn.Module):
    """Nested results with None, a number and an empty tensor, as user models return them."""

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor], Tensor, None, int]:
        return x + y, [x * 2, y[:0]], x.sum(), None, x.shape[0]


class Scripted(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor], int]:
        return x - y, {"b": x * 2, "a": y[:0]}, x.dim()


class Complex(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 1j


# ---- ONNX


def test_onnx_runs_by_name_and_describes_itself(tmp_path: Path) -> None:
    path = add_and_negate(tmp_path / "m.onnx")
    a, b = torch.randn(4, 3), torch.randn(4, 3)
    with ArtifactProcess("onnx", threads=1) as process:
        loaded = process.load(path)
        results = process.run({"b": b, "a": a})
        again = process.run({"a": a[:1], "b": b[:1]})
    assert loaded.inputs == (TensorInfo("a", "float32", ("n", 3)), TensorInfo("b", "float32", ("n", 3)))
    assert [info.name for info in loaded.outputs] == ["total", "minus"]
    assert loaded.providers == ("CPUExecutionProvider",)
    assert "onnxruntime" in loaded.versions
    assert loaded.seconds > 0
    assert list(results) == ["total", "minus"]
    torch.testing.assert_close(results["total"], a + b, rtol=0, atol=0)
    torch.testing.assert_close(results["minus"], -a, rtol=0, atol=0)
    torch.testing.assert_close(again["total"], (a + b)[:1], rtol=0, atol=0)
    assert process.last_run_seconds > 0


def test_every_dtype_and_shape_survives_the_journey(tmp_path: Path) -> None:
    base = torch.tensor([[0.0, 1.5, -2.0], [100.0, 1.0, 3.0]])
    inputs = {f"x_{str(dtype).removeprefix('torch.')}": base.to(dtype) for dtype in ONNX_TYPES}
    inputs["x_float32"] = torch.tensor([[1.0, float("nan"), -0.0], [float("inf"), float("-inf"), 1e-40]])
    inputs |= {"x_scalar": torch.tensor(7.0), "x_empty": torch.zeros(0, 3)}
    with ArtifactProcess("onnx", threads=1) as process:
        loaded = process.load(identities(tmp_path / "m.onnx"))
        results = process.run(inputs)
        empty = process.run({name: x[:0] if x.dim() else x for name, x in inputs.items()})
    assert {info.name: info.dtype for info in loaded.inputs}["x_bfloat16"] == "bfloat16"
    for name, sent in inputs.items():
        returned = results[name.replace("x_", "y_")]
        assert (returned.dtype, returned.shape) == (sent.dtype, sent.shape), name
        assert torch.equal(bits(returned), bits(sent)), name
        assert empty[name.replace("x_", "y_")].shape == (sent[:0].shape if sent.dim() else ()), name
    assert results["y_scalar"].item() == 7.0


def test_strided_views_conjugates_and_gradients_are_accepted(tmp_path: Path) -> None:
    wide = torch.randn(3, 8)
    leaf = torch.randn(4, 3, requires_grad=True)
    with ArtifactProcess("onnx", threads=1) as process:
        process.load(add_and_negate(tmp_path / "m.onnx"))
        results = process.run({"a": wide.t()[::2], "b": leaf})
    torch.testing.assert_close(results["total"], wide.t()[::2] + leaf.detach(), rtol=0, atol=0)
    results["total"].add_(1)  # what comes back is ordinary writable memory


def test_missing_provider_is_an_error(tmp_path: Path) -> None:
    with ArtifactProcess("onnx") as process:
        asked = ["NoSuchExecutionProvider", "CPUExecutionProvider"]
        with pytest.raises(ValidationError, match=r"NoSuchExecutionProvider is missing.*has only"):
            process.load(add_and_negate(tmp_path / "m.onnx"), asked)
        with pytest.raises(ValidationError, match="nothing loaded"):
            process.run({})


def test_errors_of_the_runtime_name_the_step_and_leave_the_process_usable(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a model")
    a = torch.ones(1, 3)
    with ArtifactProcess("onnx", threads=1) as process:
        with pytest.raises(ValidationError, match=r"failed while loading .*broken\.onnx: InvalidProtobuf"):
            process.load(broken)
        process.load(add_and_negate(tmp_path / "m.onnx"))
        with pytest.raises(ValidationError, match="failed while running"):
            process.run({"a": a})
        with pytest.raises(ValidationError, match="failed while running"):
            process.run({"a": a.double(), "b": a})
        assert process.run({"a": a, "b": a})["total"].tolist() == [[2.0, 2.0, 2.0]]


def test_operator_without_a_kernel_is_explained(tmp_path: Path) -> None:
    node = helper.make_node("MatMul", ["x", "x"], ["y"])
    square: list[Typed] = [("x", TensorProto.BFLOAT16, [2, 2])]
    path = save_onnx(tmp_path / "m.onnx", [node], square, [("y", TensorProto.BFLOAT16, [2, 2])])
    with (
        ArtifactProcess("onnx") as process,
        pytest.raises(ValidationError, match="no kernel for this operator"),
    ):
        process.load(path)


# ---- torch formats


def check_flattened(results: dict[str, Tensor], expected: list[Tensor]) -> None:
    assert list(results) == [f"output_{i}" for i in range(len(expected))]
    for got, want in zip(results.values(), expected, strict=True):
        assert (got.dtype, got.shape) == (want.dtype, want.shape)
        torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_pt2_takes_inputs_by_position_and_returns_leaves(tmp_path: Path) -> None:
    x, y = torch.randn(2, 3), torch.randn(2, 3)
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(Everything(), (x, y), dynamic_shapes=({0: batch}, {0: batch}))
    torch.export.save(program, tmp_path / "m.pt2")
    x, y = torch.randn(5, 3), torch.randn(5, 3)
    with ArtifactProcess("pt2", threads=1) as process:
        loaded = process.load(tmp_path / "m.pt2")
        results = process.run({"any": x, "name": y})
        with pytest.raises(ValidationError, match=r"1 inputs given, the program takes 2: x, y"):
            process.run({"x": x})
    assert [(info.name, info.dtype) for info in loaded.inputs] == [("x", "float32"), ("y", "float32")]
    assert "torch" in loaded.versions
    check_flattened(results, [x + y, x * 2, y[:0], x.sum(), torch.tensor(5)])


def test_pt2_with_keyword_and_constant_inputs(tmp_path: Path) -> None:
    class Keyword(nn.Module):
        def forward(self, x: Tensor, scale: float, *, extra: dict[str, Tensor]) -> Tensor:
            return x * scale + extra["bias"]

    x, bias = torch.randn(2, 3), torch.randn(3)
    torch.export.save(torch.export.export(Keyword(), (x, 3.0), {"extra": {"bias": bias}}), tmp_path / "m.pt2")
    with ArtifactProcess("pt2", threads=1) as process:
        assert len(process.load(tmp_path / "m.pt2").inputs) == 2
        check_flattened(process.run({"x": x, "bias": bias}), [x * 3.0 + bias])


def test_torchscript_takes_inputs_by_position_and_returns_leaves(tmp_path: Path) -> None:
    torch.jit.script(Scripted()).save(str(tmp_path / "m.ts"))
    x, y = torch.randn(2, 3), torch.randn(2, 3)
    with ArtifactProcess("torchscript", threads=1) as process:
        loaded = process.load(tmp_path / "m.ts")
        results = process.run({"x": x, "y": y})
        with pytest.raises(ValidationError, match="torch artifacts run on the CPU"):
            process.load(tmp_path / "m.ts", ["CUDAExecutionProvider"])
    assert [info.name for info in loaded.inputs] == ["x", "y"]
    check_flattened(results, [x - y, x * 2, y[:0], torch.tensor(2)])


def test_complex_tensors_travel_in_torch_formats(tmp_path: Path) -> None:
    x = torch.complex(torch.randn(3), torch.randn(3))
    torch.jit.trace(Complex(), x).save(str(tmp_path / "m.ts"))
    with ArtifactProcess("torchscript", threads=1) as process:
        process.load(tmp_path / "m.ts")
        check_flattened(process.run({"x": x.conj()}), [x.conj() * 1j])


# ---- the process


def test_start_returns_before_the_imports_and_closing_is_idempotent(tmp_path: Path) -> None:
    process = ArtifactProcess("pt2")
    started = time.perf_counter()
    process.start()
    process.start()
    assert time.perf_counter() - started < 0.5  # importing torch alone takes longer
    pid = process.pid
    assert pid is not None
    assert os.getpgid(pid) == pid
    assert len(list(Path(tempfile.gettempdir()).glob("fxexport-run-*"))) == 1
    process.close()
    assert list(Path(tempfile.gettempdir()).glob("fxexport-run-*")) == []
    process.close()
    assert not psutil.pid_exists(pid)
    with pytest.raises(ValidationError, match=r"close\(\) was called"):
        process.load(tmp_path / "m.pt2")


def test_worker_ends_with_the_object_even_without_close() -> None:
    process = ArtifactProcess("onnx")
    process.start()
    pid = process.pid
    del process
    assert pid is not None
    assert not psutil.pid_exists(pid)


def test_relative_path_and_another_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub dir ü").mkdir()
    add_and_negate(tmp_path / "sub dir ü" / "m.onnx")
    a = torch.ones(2, 3)
    with ArtifactProcess("onnx", threads=1) as process:
        monkeypatch.chdir(tmp_path / "sub dir ü")
        process.load("m.onnx")
        assert process.run({"a": a, "b": a})["total"].sum().item() == 12.0


def test_two_instances_in_two_threads(tmp_path: Path) -> None:
    path = add_and_negate(tmp_path / "m.onnx")
    sums: dict[int, list[float]] = {}

    def work(number: int) -> None:
        a = torch.full((2, 3), float(number))
        with ArtifactProcess("onnx", threads=1) as process:
            process.load(path)
            sums[number] = [process.run({"a": a, "b": a})["total"].sum().item() for _ in range(5)]

    threads = [threading.Thread(target=work, args=(number,)) for number in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sums == {1: [12.0] * 5, 2: [24.0] * 5}


@pytest.mark.parametrize(
    "options",
    [{"format": "tflite"}, {"format": "onnx", "timeout": 0}, {"format": "onnx", "memory_limit_gb": -1.0}],
)
def test_nonsense_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(InputError):
        ArtifactProcess(**options)  # type: ignore[arg-type]


def test_unsupported_input_dtype_is_refused(tmp_path: Path) -> None:
    with ArtifactProcess("onnx", threads=1) as process:
        process.load(add_and_negate(tmp_path / "m.onnx"))
        with pytest.raises(InputError, match=r"'a'.*float8"):
            process.run({"a": torch.zeros(1, 3).to(torch.float8_e4m3fn)})


# ---- the worker itself


def test_worker_speaks_json_lines_whatever_libraries_print(tmp_path: Path) -> None:
    """A module that prints to stdout while it runs must not disturb the protocol; ``stop`` ends it with
    status 0.
    """

    class Loud(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            print("noise on stdout")
            return x

    torch.jit.script(Loud()).save(str(tmp_path / "m.ts"))
    sent = torch.ones(2)
    write_tensors(tmp_path / "in", [("x", "float32", (2,), sent.view(torch.uint8).numpy())])
    commands = [
        {"load": str(tmp_path / "m.ts"), "threads": 1, "providers": ["CPUExecutionProvider"]},
        {"run": {"inputs": str(tmp_path / "in"), "outputs": str(tmp_path / "out")}},
        {"dance": True},
        {"stop": True},
    ]
    finished = subprocess.run(
        [sys.executable, "-P", worker.__file__, "torchscript"],
        input="".join(json.dumps(command) + "\n" for command in commands),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    answers = [json.loads(line) for line in finished.stdout.splitlines()]
    assert [next(iter(answer)) for answer in answers] == ["ready", "loaded", "ran", "error"]
    assert "noise on stdout" in finished.stderr
    assert read_tensors(tmp_path / "out")[0][3].view(np.float32).tolist() == [1.0, 1.0]


def test_worker_does_not_import_fxexport() -> None:
    source = Path(worker.__file__).read_text()
    assert "import fxexport" not in source
    assert "from fxexport" not in source


def test_truncated_tensor_file_is_noticed(tmp_path: Path) -> None:
    write_tensors(tmp_path / "t", [("x", "float32", (100,), np.zeros(400, np.uint8))])
    with (tmp_path / "t").open("r+b") as file:
        file.truncate(300)
    with pytest.raises(ValueError, match="ends inside tensor 'x'"):
        read_tensors(tmp_path / "t")
