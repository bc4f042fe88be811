"""``precision=`` from the outside: the gate, the report, the file, int8 in ONNX, refusals, the command line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import fxexport
from fxexport.cli import main
from fxexport.errors import InputError, ValidationError
from fxexport.report.description import describe
from fxexport.report.text import render_metadata
from fxexport.verification import verify

MODEL = """
import torch
from torch import nn

def tiny():
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)), torch.randn(3, 16)
"""


def tiny() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16), nn.Softmax(-1), nn.Linear(16, 4)).eval()


X = torch.linspace(-1, 1, 48).reshape(3, 16)


def export(path: Path, precision: str | None, model: nn.Module | None = None, **options: Any) -> Any:
    return fxexport.compile(model or tiny(), path, X, dynamic=True, precision=precision, **options)  # type: ignore[arg-type]


def operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


class BatchFirst(nn.Module):
    """A norm, its two leading axes exchanged, a product: what torch's own attention does to a batch that comes first."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.out = nn.LayerNorm(16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(x).transpose(0, 1)).transpose(0, 1)


def test_a_cast_before_a_transpose_before_a_product_loads(tmp_path: Path) -> None:
    """onnxruntime 1.32 dies on Cast -> Transpose([1, 0, 2]) -> MatMul; the cast goes last."""
    torch.manual_seed(0)
    path = tmp_path / "m.onnx"
    fxexport.compile(BatchFirst().eval(), path, torch.randn(2, 3, 16), dynamic=True, precision="fp16")
    kinds = [kind for kind in operators(path) if kind in ("Transpose", "Cast", "MatMul")]
    assert kinds[: kinds.index("MatMul")] == ["Transpose", "Cast"]


# ---------------------------------------------------------------- the gate


@pytest.mark.parametrize(
    ("name", "file"), [("fp16", "m.onnx"), ("bf16", "m.pt2"), ("fp16", "m.pt"), ("int8-dynamic", "m.onnx")]
)
def test_the_file_computes_in_it_and_the_report_says_by_which_tolerance(name: str, file: str, tmp_path: Path) -> None:
    artifact = export(tmp_path / file, name)
    report = str(artifact.report)
    assert re.search(rf"{name}: \d of \d operators\ntolerance: rtol [\d.]+ \(default\)", report)
    worst = max(o.max_abs for p in artifact.report.validation.points for o in p.outputs)
    assert 1e-6 < worst < 0.1  # not the float32 file
    assert artifact(X).dtype == torch.float32
    told = describe(tmp_path / file).metadata
    assert told is not None
    assert told["precision"]["name"] == name
    assert f"{name}: " in render_metadata(tmp_path / file, told)


def test_a_tolerance_of_the_users_own_decides(tmp_path: Path) -> None:
    with pytest.raises(
        ValidationError, match=r"It computes in fp16, and was held to rtol 1e-07, atol 1e-09: give keep_fp"
    ):
        export(tmp_path / "m.onnx", "fp16", rtol=1e-7, atol=1e-9)
    assert not (tmp_path / "m.onnx").exists()


def test_a_wrong_pass_is_not_excused_by_a_wide_tolerance(tmp_path: Path) -> None:
    from dataclasses import dataclass

    from fxexport.rewrite import NodePass

    @dataclass(frozen=True)
    class DropRelu(NodePass):
        """``relu(x) -> x``: wrong."""

        name = "drop-relu"
        targets = (torch.ops.aten.relu.default,)

        def rewrite(self, program: Any, node: Any) -> Any:
            return node.args[0]

    with pytest.raises(ValidationError) as caught:
        export(tmp_path / "m.onnx", "fp16", passes=[DropRelu()])
    assert caught.value.blame is not None
    assert caught.value.blame.pass_name == "drop-relu"


def test_what_the_runtime_has_no_kernels_for_is_named_before_publishing(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"few kernels for bfloat16, in which the file computes .*Gemm \(3\)"):
        export(tmp_path / "m.onnx", "bf16")
    assert not (tmp_path / "m.onnx").exists()


def test_values_far_beyond_the_examples_are_a_limit_that_is_told(tmp_path: Path) -> None:
    class Cubes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return self.b(x * x.abs() * x.abs())

    torch.manual_seed(0)
    report = export(tmp_path / "m.pt", "fp16", Cubes().eval()).report
    assert any(
        note.startswith("values 1000 times the example's are beyond the lower precision") for note in report.notes
    )


def test_roundings_that_onnxruntime_skips_on_the_cpu_are_tried_in_pytorch(tmp_path: Path) -> None:
    report = export(tmp_path / "m.onnx", "fp16").report
    (rounded,) = (p for p in report.validation.points if p.label == "example, each operator rounded")
    (plain,) = (p for p in report.validation.points if p.label == "example")
    assert rounded.passed
    assert rounded.outputs[0].max_abs != plain.outputs[0].max_abs


def test_verify_holds_the_file_to_the_same_tolerance(tmp_path: Path) -> None:
    export(tmp_path / "m.onnx", "fp16")
    assert verify(tmp_path / "m.onnx", tiny(), X).passed
    other = tiny()
    with torch.no_grad():
        other[0].weight.mul_(1.5)  # type: ignore[index,union-attr]
    assert not verify(tmp_path / "m.onnx", other, X).passed


@pytest.mark.parametrize("name", ["fp16", "int8-dynamic"])
def test_same_model_same_bytes(name: str, tmp_path: Path) -> None:
    files = [tmp_path / "a" / "m.onnx", tmp_path / "b" / "m.onnx"]
    for file in files:
        export(file, name, mkdir=True)
    assert files[0].read_bytes() == files[1].read_bytes()


# ---------------------------------------------------------------- int8


def test_int8_products(tmp_path: Path) -> None:
    export(tmp_path / "m.onnx", "int8-dynamic")
    found = operators(tmp_path / "m.onnx")
    assert found.count("MatMulInteger") == found.count("DynamicQuantizeLinear") == 3
    assert not {"Gemm", "MatMul"} & set(found)
    assert {each.domain for each in onnx.load(tmp_path / "m.onnx").opset_import} <= {""}  # standard operators only


def test_int8_keeps_the_modules_that_are_named(tmp_path: Path) -> None:
    report = export(tmp_path / "m.onnx", "int8-dynamic", keep_fp32=["2"]).report
    assert operators(tmp_path / "m.onnx").count("MatMulInteger") == 2
    assert [(kept.module, kept.reason) for kept in report.precision.kept] == [("2", "asked for by keep_fp32")]


def test_int8_keeps_products_whose_inputs_have_outliers(tmp_path: Path) -> None:
    class Outlier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 4)
            with torch.no_grad():
                self.a.bias[0] = 1e4
                self.b.weight[:, 0] = 0.0

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x))

    torch.manual_seed(0)
    report = export(tmp_path / "m.onnx", "int8-dynamic", Outlier().eval()).report
    assert [kept.module for kept in report.precision.kept] == ["b"]
    assert operators(tmp_path / "m.onnx").count("MatMulInteger") == 1


def test_int8_with_external_data_leaves_one_data_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 256), nn.ReLU(), nn.Linear(256, 16)).eval()
    export(tmp_path / "m.onnx", "int8-dynamic", model, external_data=True)
    assert len([file for file in tmp_path.iterdir() if file.suffix == ".data"]) == 1
    assert verify(tmp_path / "m.onnx", model, X).passed


def test_int8_of_convolutions_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="changes nothing"):
        fxexport.compile(
            nn.Conv1d(16, 4, 1).eval(), tmp_path / "m.onnx", torch.randn(1, 16, 3), precision="int8-dynamic"
        )
    assert not (tmp_path / "m.onnx").exists()


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"precision": "fp8"}, "is not known; give one of fp16, bf16, int8-dynamic"),
        ({"precision": "int8-dynamic", "file": "m.pt2"}, "is for .onnx files, not pt2"),
        ({"precision": "int8-dynamic", "export_modules_as_functions": True}, "cannot be combined with export_modules"),
        ({"precision": None, "keep_fp32": ("0",)}, "give precision, too"),
        ({"precision": "fp16", "keep_fp32": "0"}, "a sequence of module paths"),
        ({"precision": "fp16", "keep_fp32": ("9",)}, "keep_fp32 names '9'; the modules are 0, 1, 2, 3, 4"),
    ],
)
def test_what_cannot_be(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = tmp_path / options.pop("file", "m.onnx")
    with pytest.raises(InputError, match=re.escape(said)):
        export(path, options.pop("precision"), **options)
    assert not path.exists()


# ---------------------------------------------------------------- several files, the command line


def test_each_file_of_a_pipeline(tmp_path: Path) -> None:
    model = nn.Sequential()
    model.add_module("encoder", nn.Sequential(nn.Linear(16, 32), nn.ReLU()))
    model.add_module("decoder", nn.Linear(32, 4))
    parts: dict[str, Any] = {"subnets": ["encoder", "decoder"], "driver": lambda whole, x: whole(x)}
    pipeline = fxexport.compile(model.eval(), tmp_path / "m.onnx", X, precision="fp16", keep_fp32=["0"], **parts)
    assert isinstance(pipeline, fxexport.Pipeline)
    for name in ("encoder", "decoder"):
        told = describe(tmp_path / f"{name}-m.onnx").metadata
        assert told is not None
        assert told["precision"]["name"] == "fp16"


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "halfmodel.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    command = ["compile", "halfmodel:tiny", "-o", "m.onnx", "--precision", "fp16", "--keep-fp32", "0"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert "fp16: " in result.output
    assert "asked for by keep_fp32" in result.output
