"""Rows S6-S15 of the seed: the arguments of ``export`` and ``compile``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnxscript import opset20
from seed_models import (
    Affine,
    ExportableRecognizer,
    Recognizer,
    assert_close,
    exported,
    onnx_io,
    operators,
    run_onnx,
)
from torch import nn
from torch.export import Dim

from fxexport import Exportable, InputError, Tensor, ValidationError

AUDIO, LENGTH = torch.randn(3, 5, 8), torch.tensor([5, 2, 3])


# ---------------------------------------------------------------- S6


@pytest.mark.parametrize(
    "example",
    [
        (AUDIO, LENGTH),
        (AUDIO, {"length": LENGTH}),
        ({"audio": AUDIO, "length": LENGTH},),
        {"length": LENGTH, "audio": AUDIO},
    ],
    ids=["positional", "last-is-a-dict", "only-a-dict", "bare-dict"],
)
@pytest.mark.parametrize("entry", ["export", "compile"])
def test_s06_input_example_as_a_tuple_with_or_without_a_dict(example: Any, entry: str, out: Path) -> None:
    model = ExportableRecognizer().eval()
    if entry == "export":
        model.export(out, input_example=example)
    else:
        exported(model, out, input_example=example)
    assert onnx_io(out)[0] == {"audio": ["batch", "time", 8], "length": ["batch"]}
    audio, length = torch.randn(2, 7, 8), torch.tensor([1, 7])
    assert_close(run_onnx(out, audio=audio, length=length), model(audio, length))


@pytest.mark.parametrize("suffix", ["pt", "ts"])
def test_s06_dict_inputs_work_for_torchscript_too(suffix: str, tmp_path: Path) -> None:
    class Batch(nn.Module):
        def forward(self, batch: dict[str, torch.Tensor], *, scale: torch.Tensor) -> torch.Tensor:
            return batch["image"] * scale + batch["bias"]

    values = {"image": torch.randn(2, 3), "bias": torch.randn(3)}
    artifact = exported(Batch(), tmp_path / f"m.{suffix}", ({**values},), {"scale": torch.tensor(2.0)})
    image, bias, scale = torch.randn(2, 3), torch.randn(3), torch.tensor(-1.0)
    want = image * scale + bias
    assert_close(artifact({"bias": bias, "image": image}, scale=scale), want)
    names = [spec.name for spec in artifact.inputs]
    given = {"batch_image": image, "batch_bias": bias, "scale": scale}
    assert_close(torch.jit.load(artifact.path)(*(given[name] for name in names)), want)

    model = Recognizer().eval()
    path = tmp_path / f"keywords.{suffix}"
    exported(model, path, input_example={"audio": AUDIO, "length": LENGTH})
    audio, length = torch.randn(2, 7, 8), torch.tensor([1, 7])
    assert_close(torch.jit.load(path)(audio, length), model(audio, length))


def test_s06_none_takes_the_hook_of_the_input_module(out: Path) -> None:
    class Wrapper(nn.Module, Exportable):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = Recognizer()

        @property
        def input_module(self) -> nn.Module:
            return self.encoder

        def forward(self, audio: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
            return self.encoder(audio, length)[0] + 1

    exported(Wrapper(), out)
    assert onnx_io(out)[0] == {"audio": ["batch", "time", 8], "length": ["batch"]}


def test_s06_of_a_model_without_hooks_too(out: Path) -> None:
    class Plain(nn.Module):
        def forward(self, audio: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
            return audio.sum(2) * length[:, None]

    exported(Plain(), out, input_example=(AUDIO, {"length": LENGTH}))
    assert onnx_io(out)[0] == {"audio": [3, 5, 8], "length": [3]}


# ---------------------------------------------------------------- S7


def test_s07_verbose_shows_capture_passes_and_lowering(out: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ExportableRecognizer().eval().export(out)
    assert capfd.readouterr() == ("", "")
    ExportableRecognizer().eval().export(out, verbose=True)
    stages = [line.split(": ")[1] for line in capfd.readouterr().err.splitlines() if line.startswith("fxexport: ")]
    assert [stage for stage in dict.fromkeys(stages) if stage != "hooks"] == [
        "capture",
        "passes",
        "lowering",
        "validation",
        "publishing",
    ]


# ---------------------------------------------------------------- S8


class OverConstants(nn.Module):
    """Exp and Sqrt have constants for inputs only."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.rand(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.table.exp().sqrt()


@pytest.mark.parametrize(("fold", "nodes"), [(True, {"Mul": 1}), (False, {"Exp": 1, "Sqrt": 1, "Mul": 1})])
def test_s08_do_constant_folding_is_honoured_in_both_states(fold: bool, nodes: dict[str, int], out: Path) -> None:
    model, x = OverConstants(), torch.randn(2, 4)
    exported(model, out, x, do_constant_folding=fold, passes="none")
    assert operators(out) == nodes
    assert_close(run_onnx(out, x=x), model(x))


# ---------------------------------------------------------------- S9


@pytest.mark.parametrize("opset", [18, 20, 23])
@pytest.mark.parametrize("spelling", ["onnx_opset_version", "opset_version"])
def test_s09_the_file_has_exactly_the_opset_asked_for(opset: int, spelling: str, out: Path) -> None:
    exported(Affine().eval(), out, torch.randn(2, 3), **{spelling: opset})
    assert {each.domain: each.version for each in onnx.load(out).opset_import}[""] == opset


@pytest.mark.parametrize("opset", [9, 99])
def test_s09_or_it_is_an_error(opset: int, out: Path) -> None:
    with pytest.raises(InputError, match=f"{opset}"):
        ExportableRecognizer().export(out, onnx_opset_version=opset)
    with pytest.raises(InputError, match=r"opset_version is for \.onnx files; model\.pt is torchscript"):
        ExportableRecognizer().export(out.with_suffix(".pt"), onnx_opset_version=20)
    assert not list(out.parent.iterdir())


def test_s09_the_default_is_a_recent_one(out: Path) -> None:
    exported(Affine().eval(), out, torch.randn(2, 3))
    assert 18 <= onnx.load(out).opset_import[0].version <= onnx.defs.onnx_opset_version()


# ---------------------------------------------------------------- S10, S11


@torch.library.custom_op("seed_rows::steep", mutates_args=())
def steep(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@steep.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


class Steep(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.seed_rows.steep(x)


def clipped(x: Any) -> Any:
    """Right up to 1000 only."""
    return opset20.Mul(opset20.Min(x, opset20.Constant(value_float=1000.0)), opset20.Constant(value_float=2.0))


def rough(x: Any) -> Any:
    """Wrong by one in a thousand."""
    return opset20.Mul(x, opset20.Constant(value_float=2.002))


def steep_as(translation: Callable[..., Any]) -> dict[str, Any]:
    return {"custom_translation_table": {torch.ops.seed_rows.steep.default: translation}, "opset_version": 20}


def test_s10_check_trace_compares_on_every_example_of_the_list(out: Path) -> None:
    artifact = exported(Steep(), out, torch.rand(3), **steep_as(clipped))  # wrong, and nothing shows it
    assert artifact.report is not None
    before = out.read_bytes()
    with pytest.raises(ValidationError, match=r"check_trace\[1\]"):
        exported(Steep(), out, torch.rand(3), check_trace=[torch.ones(3), torch.full((3,), 5e3)], **steep_as(clipped))
    assert out.read_bytes() == before


def test_s10_check_trace_widens_what_is_reported(out: Path) -> None:
    further = [(torch.randn(1, 4, 8), torch.tensor([4])), (torch.randn(5, 2, 8), {"length": torch.ones(5).long()})]
    files, _ = ExportableRecognizer().eval().export(out, check_trace=further)
    assert files == [str(out)]
    artifact = exported(ExportableRecognizer().eval(), out, check_trace=further)
    assert artifact.report is not None
    assert artifact.report.validation is not None
    labels = [point.label for point in artifact.report.validation.points if not point.skipped]
    assert {"check_trace[0]", "check_trace[1]"} <= set(labels)


def test_s10_an_example_that_does_not_fit_is_refused(out: Path) -> None:
    for wrong, message in (
        (torch.randn(4, 3), r"check_trace\[0\] gives 'x' .*\[4, 3\].*captured as .*\[2, 3\].*make that axis dynamic"),
        (torch.randn(2, 3).double(), r"check_trace\[0\] gives 'x' as torch.float64"),
        ((torch.randn(2, 3), torch.randn(2, 3)), r"do not fit forward"),
    ):
        with pytest.raises(InputError, match=message):
            exported(Affine().eval(), out, torch.randn(2, 3), check_trace=[wrong])
    with pytest.raises(InputError, match="check_trace is True, False or a list"):
        exported(Affine().eval(), out, torch.randn(2, 3), check_trace=torch.randn(2, 3))
    assert not list(out.parent.iterdir())


def test_s10_true_checks_the_example_as_always(out: Path) -> None:
    for check in (True, False):
        with pytest.raises(ValidationError):
            exported(Steep(), out, torch.rand(3), check_trace=check, **steep_as(rough))


def test_s11_check_tolerance_sets_rtol_and_atol_and_the_default_is_tighter(out: Path) -> None:
    with pytest.raises(ValidationError):
        exported(Steep(), out, torch.rand(3), **steep_as(rough))
    with pytest.raises(ValidationError):
        exported(Steep(), out, torch.rand(3), check_tolerance=1e-5, **steep_as(rough))
    artifact = exported(Steep(), out, torch.rand(3), check_tolerance=0.01, **steep_as(rough))
    assert artifact.report is not None
    assert artifact.report.validation is not None
    used = [result for point in artifact.report.validation.points for result in point.outputs]
    assert used
    assert {(result.rtol, result.atol_eff) for result in used} == {(0.01, 0.01)}


def test_s11_one_of_two_spellings_only(out: Path) -> None:
    with pytest.raises(InputError, match="rtol and check_tolerance are names for one argument"):
        exported(Affine(), out, torch.randn(2, 3), rtol=1e-3, check_tolerance=1e-3)


# ---------------------------------------------------------------- S12


class TwoTimes(nn.Module):
    """[batch, time] and [batch, words] -> [batch, time + words]."""

    def forward(self, audio: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return torch.cat([audio, text], 1)


class TypedTwoTimes(TwoTimes, Exportable):
    input_types: ClassVar[Any] = {"audio": Tensor("batch", "time"), "text": Tensor("batch", "words")}
    output_types: ClassVar[Any] = {"both": Tensor("batch", "any")}


PAIR = (torch.randn(2, 3), torch.randn(2, 4))


def test_s12_none_infers_dynamic_axes_from_the_types(out: Path) -> None:
    exported(TypedTwoTimes(), out, PAIR)
    inputs, outputs = onnx_io(out)
    assert inputs == {"audio": ["batch", "time"], "text": ["batch", "words"]}
    assert list(outputs) == ["both"]
    assert outputs["both"][0] == "batch"
    assert isinstance(outputs["both"][1], str)
    assert "time" in outputs["both"][1]
    assert "words" in outputs["both"][1]
    exported(TwoTimes(), out, PAIR)  # no types, nothing dynamic
    assert onnx_io(out)[0] == {"audio": [2, 3], "text": [2, 4]}


def test_s12_torch_s_form_with_labels_names_outputs_too(out: Path) -> None:
    axes = {"audio": {0: "rows", 1: "frames"}, "text": {0: "rows"}, "joined": {0: "rows", 1: "long"}}
    exported(TwoTimes(), out, PAIR, dynamic_axes=axes, output_names=["joined"])
    inputs, outputs = onnx_io(out)
    assert inputs == {"audio": ["rows", "frames"], "text": ["rows", 4]}
    assert outputs["joined"][0] == "rows"
    assert isinstance(outputs["joined"][1], str)
    assert run_onnx(out, audio=torch.ones(5, 6), text=torch.ones(5, 4))[0].shape == (5, 10)


def test_s12_torch_s_form_with_lists_of_axes(out: Path) -> None:
    exported(TwoTimes(), out, PAIR, dynamic_axes={"audio": [1], "text": [1]})
    (audio, text), (result,) = (list(side.values()) for side in onnx_io(out))
    assert audio[0] == text[0] == result[0] == 2
    assert isinstance(audio[1], str)
    assert isinstance(text[1], str)
    assert run_onnx(out, audio=torch.ones(2, 9), text=torch.ones(2, 1))[0].shape == (2, 10)


def test_s12_dynamic_axes_override_the_types(out: Path) -> None:
    TypedTwoTimes().export(out, input_example=PAIR, dynamic_axes={"audio": {1: "frames"}})
    assert onnx_io(out)[0] == {"audio": [2, "frames"], "text": [2, 4]}


@pytest.mark.parametrize("key", ["dynamic_shapes", "dynamic_axes"])
def test_s12_torch_export_s_form_overrides_the_types(key: str, out: Path) -> None:
    rows = Dim("rows")
    exported(TypedTwoTimes(), out, PAIR, **{key: {"audio": {0: rows}, "text": {0: rows}}})
    assert onnx_io(out)[0] == {"audio": ["rows", 3], "text": ["rows", 4]}


def test_s12_a_name_that_is_neither_input_nor_output_is_refused(out: Path) -> None:
    with pytest.raises(InputError, match=r"adio.*inputs are \['audio', 'text'\]"):
        exported(TwoTimes(), out, PAIR, dynamic_axes={"adio": {0: "rows"}})


# ---------------------------------------------------------------- S13


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(StackBlock() for _ in range(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class StackBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(torch.tanh(self.linear(x)) * torch.sigmoid(x) + x)


@pytest.mark.parametrize("classes", [True, {StackBlock}, {"StackBlock"}], ids=["all", "class", "name"])
def test_s13_repeated_modules_become_one_function(classes: Any, out: Path) -> None:
    model, x = Stack().eval(), torch.randn(2, 4)
    exported(model, out, x)
    inline, nodes = out.stat().st_size, sum(operators(out).values())
    exported(model, out, x, export_modules_as_functions=classes)
    proto = onnx.load(out)
    blocks = [each for each in proto.functions if "StackBlock" in each.name]
    assert len(blocks) == 1
    assert operators(out) == {blocks[0].name: 6}
    assert len(blocks[0].node) == nodes // 6
    assert out.stat().st_size < inline
    assert_close(run_onnx(out, x=x), model(x))


def test_s13_a_format_without_functions_refuses(out: Path) -> None:
    with pytest.raises(InputError, match=r"is for \.onnx files"):
        exported(Stack(), out.with_suffix(".pt2"), torch.randn(2, 4), export_modules_as_functions=True)


# ---------------------------------------------------------------- S14


@pytest.mark.parametrize("keep", [None, False, True])
def test_s14_keep_initializers_as_inputs(keep: bool | None, out: Path) -> None:
    model, x = Affine().eval(), torch.randn(2, 3)
    exported(model, out, x, keep_initializers_as_inputs=keep)
    graph = onnx.load(out).graph
    weights = {tensor.name for tensor in graph.initializer}
    assert {"linear.weight", "linear.bias"} <= weights
    assert {value.name for value in graph.input} == ({"x"} | weights if keep else {"x"})
    assert_close(run_onnx(out, x=x), model(x))
    if keep:
        session = ort.InferenceSession(out, providers=["CPUExecutionProvider"])
        fed = {"x": x.numpy(), "linear.bias": np.full(4, 100, np.float32)}
        want = x @ model.linear.weight.T + 100
        assert_close(session.run(None, fed), want)


# ---------------------------------------------------------------- S15


def test_s15_use_dynamo_is_accepted_without_effect(tmp_path: Path) -> None:
    files = set()
    for value in (None, True, False):
        ExportableRecognizer().eval().export(tmp_path / "m.onnx", use_dynamo=value)
        files.add((tmp_path / "m.onnx").read_bytes())
    assert len(files) == 1
