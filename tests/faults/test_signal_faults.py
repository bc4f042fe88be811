"""Rows of the fault table about sizes that depend on the data, and about complex numbers."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from conftest import ProveEverywhere
from torch import Tensor, nn

import fxexport
from fxexport.capture.pipeline import capture_model
from fxexport.errors import LoweringError
from fxexport.lowering import lower

X = torch.randn(4, 3)
ROWS = {"x": ["rows", None]}
Z = torch.randn(2, 3, dtype=torch.complex64)


class Free(nn.Module):
    def __init__(self, forward: Any) -> None:
        super().__init__()
        self.forward = forward


def compiled(model: nn.Module, path: Path, *example: Any, **options: Any) -> fxexport.Artifact:
    artifact = fxexport.compile(model, path, *example, **options)
    assert isinstance(artifact, fxexport.Artifact)
    return artifact


@pytest.mark.parametrize(
    ("forward", "axes"),
    [
        (lambda x: x.nonzero(), [("output_dim_0", 2)]),
        (lambda x: x[x > 0], [("output_dim_0",)]),
        (lambda x: (x[x.sum(1) > 0], x * 2), [("output_0_dim_0", 3), ("rows", 3)]),
        (lambda x: torch.masked_select(x, x > 0) * 2, [("output_dim_0",)]),
        (lambda x: torch.unique((x * 2).long()), [("output_dim_0",)]),
        (lambda x: torch.repeat_interleave(x, x.abs()[:, 0].long() + 1, dim=0), [("output_dim_0", 3)]),
    ],
    ids=["nonzero", "mask of all", "mask of rows", "masked_select", "unique", "repeat_interleave"],
)
def test_fault_21_a_size_that_depends_on_the_data_is_named_and_compared(
    forward: Any, axes: list[Any], prove: ProveEverywhere, tmp_path: Path
) -> None:
    captured = prove(Free(forward), (X,), dynamic=ROWS)
    signature = captured.program.signature
    assert [spec.axes for spec in signature.outputs] == axes
    assert any("depends on the values of the inputs" in note for note in captured.program.notes)
    assert "u0" not in json.dumps(signature.to_json())
    file = onnx.load(tmp_path / "proved.onnx")
    names = {d.dim_param for v in [*file.graph.output, *file.graph.value_info] for d in v.type.tensor_type.shape.dim}
    assert not any(name.startswith(("u0", "u1", "s")) for name in names), names
    assert tuple(d.dim_param or d.dim_value for d in file.graph.output[0].type.tensor_type.shape.dim) == axes[0]


def test_fault_24_complex_results_are_pairs_in_onnx_and_kept_elsewhere(prove: ProveEverywhere, tmp_path: Path) -> None:
    model = Free(lambda x: {"wave": torch.fft.rfft(x), "power": torch.fft.rfft(x).abs()}).eval()
    captured = prove(model, (X,), dynamic=ROWS, formats=("pt", "pt2"))
    assert [spec.dtype for spec in captured.program.signature.outputs] == [torch.complex64, torch.float32]
    artifact = compiled(model, tmp_path / "pairs.onnx", (X,), dynamic=ROWS)
    assert [(spec.dtype, spec.axes) for spec in artifact.outputs] == [
        (torch.float32, ("rows", 2, 2)),
        (torch.float32, ("rows", 2)),
    ]
    assert any("output['wave'] is complex: real in the file" in note for note in artifact.report.notes)
    for name, want in model(X[:2] - 1).items():
        torch.testing.assert_close(artifact(X[:2] - 1)[name], want)


def test_fault_24_complex_inputs_are_pairs_in_onnx_and_taken_elsewhere(prove: ProveEverywhere, tmp_path: Path) -> None:
    model, axes = Free(lambda z: z.abs()).eval(), {"z": ["rows", None]}
    captured = prove(model, (Z,), dynamic=axes, formats=("pt", "pt2"))
    assert captured.program.signature.inputs[0].dtype == torch.complex64
    artifact = compiled(model, tmp_path / "pairs.onnx", (Z,), dynamic=axes)
    assert (artifact.inputs[0].dtype, artifact.inputs[0].axes) == (torch.float32, ("rows", 3, 2))
    for z in (Z[:1] * 2j, torch.view_as_real(Z[:1] * 2j)):
        torch.testing.assert_close(artifact(z), Z[:1].abs() * 2)


def test_fault_24_a_program_with_complex_ends_is_refused_in_onnx_with_the_way_out(tmp_path: Path) -> None:
    """Whoever lowers a program by hand."""
    program = capture_model(
        Free(lambda z: {"square": z * z, "size": z.abs()}), (Z,), dynamic={"z": ["rows", None]}
    ).program
    file = tmp_path / "refused.onnx"
    with pytest.raises(LoweringError, match=r"(?s)input 'z' is complex64 \['rows', 3\].*view_as_complex") as caught:
        lower(program, file)
    assert "output 'square' is complex64 ['rows', 3]" in str(caught.value)
    assert "'size'" not in str(caught.value)
    assert not file.exists()


def test_fault_24_the_way_out_works(prove: ProveEverywhere) -> None:
    def forward(x: Tensor) -> Tensor:
        return torch.view_as_real(torch.view_as_complex(x).conj() * 2)

    captured = prove(Free(forward), (torch.view_as_real(Z),), dynamic={"x": ["rows", None, None]})
    assert captured.program.signature.outputs[0].axes == ("rows", 3, 2)


def test_fault_24_an_operator_without_a_complex_translation_is_named_with_its_line(tmp_path: Path) -> None:
    def forward(x: Tensor) -> Tensor:
        z = torch.fft.rfft(x)
        return torch.exp(z).abs()

    line = inspect.getsourcelines(forward)[1] + 2
    program = capture_model(Free(forward), (X,), dynamic=ROWS).program
    with pytest.raises(LoweringError, match=rf"aten.exp.default  used in .* at .*test_signal_faults.py:{line}"):
        lower(program, tmp_path / "refused.onnx")
