"""Rows of the fault table about names, opsets and missing operators, through ``compile``."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from conftest import Untouched
from onnxscript import opset20
from torch import nn

import fxexport
from fxexport import CaptureError, InputError, LoweringError

X = torch.randn(2, 3)


class Conv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 4, 1)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        z = self.conv(x).relu()
        return z, z + y


EXAMPLE = (torch.randn(2, 3, 5), torch.randn(2, 4, 5))


class Free(nn.Module):
    def __init__(self, forward: Any) -> None:
        super().__init__()
        self.forward = forward


def export(model: nn.Module, out: Path, *example: Any, **options: Any) -> fxexport.Artifact:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return fxexport.compile(model, out, *example, **{"passes": "none", **options})


def refused(kind: type[Exception], message: str, model: nn.Module, out: Path, *example: Any, **options: Any) -> str:
    with pytest.raises(kind, match=message) as caught:
        export(model, out, *example, **options)
    assert not list(out.parent.iterdir()), "something was left on the disk"
    return str(caught.value)


def interface(path: Path) -> tuple[list[str], list[str]]:
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    return [i.name for i in model.graph.input], [o.name for o in model.graph.output]


def test_fault_25_a_name_twice(out: Path) -> None:
    refused(InputError, r"input_names repeats \['a'\]", Conv(), out, EXAMPLE, input_names=["a", "a"])
    refused(InputError, r"output_names repeats \['b'\]", Conv(), out, EXAMPLE, output_names=["b", "b"])
    refused(InputError, "list of non-empty strings", Conv(), out, EXAMPLE, input_names=["a", ""])
    refused(InputError, "list of non-empty strings", Conv(), out, EXAMPLE, input_names="ab")


def test_fault_26_one_name_for_an_input_and_an_output(out: Path) -> None:
    refused(
        InputError,
        r"\['a'\] would name both an input and an output",
        Conv(),
        out,
        EXAMPLE,
        input_names=["a", "b"],
        output_names=["a", "c"],
    )


def test_fault_26_default_names_give_way(out: Path) -> None:
    """A model that returns its inputs under their own names, and one whose output name is taken by hand."""
    artifact = export(Free(lambda x: {"x": x, "x_out": x + 1}), out, X)
    assert [s.name for s in artifact.outputs] == ["x_out", "x_out_1"]
    assert torch.equal(artifact(X)["x"], X)
    export(Conv(), out, EXAMPLE, input_names=["output_0", "conv.weight"])
    assert interface(out) == (["output_0", "conv.weight"], ["output_0_out", "output_1"])


@pytest.mark.parametrize("names", [["conv.weight", "conv.bias"], ["relu", "conv1d"], ["val_0", "self"]])
def test_fault_26_an_input_named_like_a_weight_or_an_inner_value(names: list[str], out: Path) -> None:
    artifact = export(Conv(), out, EXAMPLE, input_names=names, output_names=["add", "relu_1"])
    assert interface(out) == (names, ["add", "relu_1"])
    model = onnx.load(out)
    inner = [o for n in model.graph.node for o in n.output] + [i.name for i in model.graph.initializer]
    assert not set(inner) & set(names)
    torch.testing.assert_close(artifact(*EXAMPLE)[0], artifact(**dict(zip(names, EXAMPLE, strict=True)))[0])


def test_fault_27_too_few_or_too_many_names(out: Path) -> None:
    for option, needed in (("input_names", r"\['x', 'y'\]"), ("output_names", r"\['output_0', 'output_1'\]")):
        for given in (["a"], ["a", "b", "c"], []):
            message = refused(
                InputError, f"{option} has {len(given)} names for 2", Conv(), out, EXAMPLE, **{option: given}
            )
            assert f"given:  {given}" in message
            assert needed.replace("\\", "") in message


def test_fault_28_outputs_that_are_inputs_weights_or_returned_twice(out: Path) -> None:
    class Odd(Conv):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
            z = self.conv(x)
            return x, z, z, self.conv.weight, y, x

    model = Odd().eval()
    names = ["same", "z1", "z2", "weight", "also", "again"]
    artifact = export(model, out, EXAMPLE, output_names=names, dynamic={"x": {0: "n"}, "y": {0: "n"}})
    assert interface(out) == (["x", "y"], names)
    for got, want in zip(artifact(*EXAMPLE), model(*EXAMPLE), strict=True):
        torch.testing.assert_close(got, want.detach())


@pytest.mark.parametrize("opset", [9, 16, 24, 99, True, 18.0, "18"])
def test_fault_29_an_impossible_opset(opset: Any, out: Path, untouched: Untouched) -> None:
    model = Conv()
    with untouched(model):
        refused(
            InputError,
            f"opset_version {opset!r} cannot be produced",
            model,
            out,
            EXAMPLE,
            opset_version=opset,
        )


def test_fault_29_the_opset_of_the_file_is_the_one_asked_for(out: Path) -> None:
    for opset in (18, 23):
        export(Conv(), out, EXAMPLE, opset_version=opset)
        assert [entry.version for entry in onnx.load(out).opset_import] == [opset]
    refused_path = out.with_name("m.pt")
    with pytest.raises(InputError, match=r"opset_version is for \.onnx files"):
        export(Conv(), refused_path, EXAMPLE, opset_version=18)
    with pytest.raises(LoweringError, match="opset 17 was asked"):
        export(Free(lambda x: x.int() & 3), refused_path.with_suffix(".onnx"), X, opset_version=17)


@torch.library.custom_op("fxexport_faults::knit", mutates_args=())
def knit(x: torch.Tensor) -> torch.Tensor:
    return x * 3


@torch.library.custom_op("fxexport_faults::purl", mutates_args=())
def purl(x: torch.Tensor) -> torch.Tensor:
    return x + 0.5


knit.register_fake(torch.empty_like)
purl.register_fake(torch.empty_like)


class Needle(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = purl(knit(x))
        return result


TABLE: dict[Any, Any] = {
    torch.ops.fxexport_faults.knit.default: lambda x: opset20.Mul(x, 3.0),
    torch.ops.fxexport_faults.purl.default: lambda x: opset20.Add(x, 0.5),
}


def test_fault_22_all_missing_operators_at_once_and_a_table_makes_them_work(out: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3), Needle()).eval()
    message = refused(LoweringError, "2 operators have no ONNX translation", model, out, X)
    for name in ("knit", "purl"):
        assert f"fxexport_faults.{name}.default  used in 1" in message
        assert f"def fxexport_faults_{name}(*args):" in message
    artifact = export(model, out, X, custom_translation_table=TABLE, dynamic={"input": {0: "n"}})
    torch.testing.assert_close(artifact(X), model(X).detach())


def test_fault_22_a_wrong_translation_is_found_out(out: Path) -> None:
    wrong = TABLE | {torch.ops.fxexport_faults.purl.default: lambda x: opset20.Add(x, 0.25)}
    with pytest.raises(fxexport.ValidationError, match="does not agree with the eager model"):
        export(Needle(), out, X, custom_translation_table=wrong)
    assert not out.exists()


def test_fault_50_dimension_names_are_stable(out: Path) -> None:
    """Neither torch's symbols nor a name for two sizes."""
    export(Conv(), out, EXAMPLE, dynamic={"x": [0, 2], "y": [0, 2]})
    assert [d.dim_param for d in onnx.load(out).graph.input[0].type.tensor_type.shape.dim] == [
        "batch",
        "",
        "x_dim_2",
    ]
    exported = torch.export.export(
        Free(lambda x: x * 2), (X,), dynamic_shapes={"x": {0: torch.export.Dim.AUTO}}, strict=False
    )
    assert export(exported, out).inputs[0].axes == ("batch", 3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="equal names mean equal sizes"):
        export(Conv(), out, EXAMPLE, dynamic={"x": {0: "B", 1: "B"}})


def test_a_capture_error_is_a_single_family(out: Path) -> None:
    with pytest.raises(fxexport.ExportError) as caught:
        export(Free(lambda x: sum(x * k for k in range(1 + int(x.abs().sum())))), out, X)
    assert isinstance(caught.value, CaptureError)
    assert isinstance(caught.value.__cause__, Exception), "torch's own error is kept as the cause"
