"""Normalizations in files of every opset and dtype: right, and in the operators that run fastest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxexport

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(3, 4, 6, 8, generator=GENERATOR)
W, B = torch.rand(8, generator=GENERATOR) + 0.5, torch.rand(8, generator=GENERATOR)
V, C = torch.rand(4, generator=GENERATOR) + 0.5, torch.rand(4, generator=GENERATOR)
DYNAMIC = {"x": ["batch", None, "height", None]}
SPELLED = ["Pow", "ReduceMean", "Add", "Sqrt", "Div", "Mul"]
GROUPED = ["Reshape", "InstanceNormalization", "Shape", "Reshape"]


def as_module(function: Callable[[Tensor], Tensor]) -> nn.Module:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x)

    return Model().eval()


def lowered(function: Callable[[Tensor], Tensor], path: Path, opset: int, x: Tensor = X) -> list[str]:
    """The operators of the file, whose result in onnxruntime is that of eager, also at other sizes."""
    program = fxexport.capture(as_module(function), (x,), dynamic=DYNAMIC)
    fxexport.lower(program, path, opset_version=opset)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    bound = 2e-3 if x.dtype == torch.float16 else 1e-5
    for example in (x, torch.cat([x, x + 1])[:5, :, :3]):
        (found,) = session.run(None, {"x": example.contiguous().numpy()})
        torch.testing.assert_close(torch.from_numpy(found), function(example), rtol=bound, atol=bound)
    return [node.op_type for node in onnx.load(path).graph.node]


CASES: dict[str, tuple[Callable[[Tensor], Tensor], list[str]]] = {
    "rms_norm": (lambda x: F.rms_norm(x, [8]), SPELLED),
    "rms_norm, weight": (lambda x: F.rms_norm(x, [8], W.to(x.dtype), 1e-3), SPELLED),
    "layer_norm": (lambda x: F.layer_norm(x, [8]), ["LayerNormalization"]),
    "layer_norm, bias": (lambda x: F.layer_norm(x, [8], None, B.to(x.dtype)), ["LayerNormalization"]),
    "instance_norm": (lambda x: F.instance_norm(x), ["InstanceNormalization"]),
    "instance_norm, weight": (lambda x: F.instance_norm(x, weight=V.to(x.dtype)), ["InstanceNormalization"]),
    "fixed statistics": (
        lambda x: F.instance_norm(x, C.to(x.dtype), V.to(x.dtype), use_input_stats=False),
        ["BatchNormalization"],
    ),
    "group_norm": (lambda x: F.group_norm(x, 2), GROUPED),
    "group_norm, weight": (
        lambda x: F.group_norm(x, 2, V.to(x.dtype), C.to(x.dtype)),
        [*GROUPED, "BatchNormalization"],
    ),
    "vector norm": (lambda x: torch.linalg.vector_norm(x, dim=(1, -1)), ["Mul", "ReduceSum", "Sqrt"]),
    "vector norm, kept": (lambda x: torch.linalg.vector_norm(x, dim=1, keepdim=True), ["Mul", "ReduceSum", "Sqrt"]),
    "sum of absolutes": (lambda x: torch.linalg.vector_norm(x, 1, dim=1), ["ReduceL1"]),
}


@pytest.mark.parametrize("opset", [18, 21, 23])
@pytest.mark.parametrize("name", CASES)
def test_operators_and_numbers(name: str, opset: int, tmp_path: Path) -> None:
    function, wanted = CASES[name]
    if opset == 23 and wanted == SPELLED:
        wanted = ["RMSNormalization"]
    assert lowered(function, tmp_path / "m.onnx", opset) == wanted


@pytest.mark.parametrize("name", [name for name in CASES if "norm" in name])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_other_dtypes(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    lowered(CASES[name][0], tmp_path / "m.onnx", 20, X.to(dtype))


def test_lengths_in_half_precision_do_not_overflow(tmp_path: Path) -> None:
    """Their squares are more than the largest number of float16."""
    lowered(lambda x: torch.linalg.vector_norm(x, dim=-1), tmp_path / "m.onnx", 20, (X * 300).half())


def test_opset_17_has_no_mean_over_given_axes(tmp_path: Path) -> None:
    operators = lowered(CASES["rms_norm, weight"][0], tmp_path / "m.onnx", 17)
    assert operators == ["Mul", "ReduceSum", "Mul", "Add", "Sqrt", "Div", "Mul"]


def test_onnxruntime_makes_one_operator_of_the_words(tmp_path: Path) -> None:
    lowered(CASES["rms_norm"][0], tmp_path / "m.onnx", 20)
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(tmp_path / "m.onnx", options, providers=["CPUExecutionProvider"])
    operators = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert operators == ["SimplifiedLayerNormalization"]


def test_over_an_axis_of_dynamic_size(tmp_path: Path) -> None:
    operators = lowered(lambda x: F.layer_norm(x, x.shape[2:]), tmp_path / "m.onnx", 20)
    assert operators[-1] == "LayerNormalization"
