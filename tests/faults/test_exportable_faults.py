"""Rows of the fault table as models with export hooks, subnets and pipelines meet them."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from conftest import Untouched
from torch import nn

import fxexport
from fxexport import CaptureError, Exportable, InputError, Pipeline, Tensor, ValidationError
from fxexport.lowering import onnx_file

X = torch.randn(2, 3)


class Hooked(nn.Module, Exportable):
    """A ``forward`` and what its hooks give."""

    def __init__(self, forward: Any, example: Any = None, **hooks: Any) -> None:
        super().__init__()
        self.forward, self.example = forward, example
        for name, value in hooks.items():
            setattr(self, name, value)

    def input_example(self, max_batch: int | None = None, max_dim: int | None = None) -> Any:
        return self.example


def export(model: nn.Module, path: Path, *example: Any, **options: Any) -> fxexport.Artifact:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        artifact = fxexport.compile(model, path, *example, **options)
    assert isinstance(artifact, fxexport.Artifact)
    return artifact


def refused(kind: type[Exception], message: str, model: nn.Module, path: Path, *example: Any, **options: Any) -> str:
    """The compilation fails with this message (a pattern) and leaves the directory as it was."""
    before = contents(path.parent)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        with pytest.raises(kind, match=message) as caught:
            fxexport.compile(model, path, *example, **options)
    assert contents(path.parent) == before
    return str(caught.value)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def names(values: Iterable[Any]) -> list[str]:
    return [value.name for value in values]


def axes(path: Path) -> dict[str, list[int | str]]:
    graph = onnx.load(path, load_external_data=False).graph
    return {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }


# ---------------------------------------------------------------- 6: examples that are none


def test_fault_06_a_hook_that_gives_none_is_named(out: Path) -> None:
    refused(InputError, r"Hooked.input_example\(\) returned None; give example_inputs", Hooked(lambda x: x * 2), out)


@pytest.mark.parametrize("empty", [(), [], {}], ids=["tuple", "list", "dict"])
def test_fault_06_a_hook_that_gives_nothing(empty: Any, out: Path) -> None:
    refused(InputError, r"input_example\(\) does not fit forward", Hooked(lambda x: x * 2, empty), out)
    assert export(Hooked(lambda: torch.arange(3), empty), out)().tolist() == [0, 1, 2]


def test_fault_06_a_hook_that_gives_a_bare_tensor_gives_one_argument(out: Path) -> None:
    assert [spec.axes for spec in export(Hooked(lambda x: x * 2, X), out).inputs] == [(2, 3)]
    assert [spec.axes for spec in export(Hooked(lambda x: x * 2, [X]), out).inputs] == [(2, 3)]


@pytest.mark.parametrize("wrong", ["image.png", 3, {X}], ids=["text", "number", "set"])
def test_fault_06_a_hook_that_gives_something_else(wrong: Any, out: Path) -> None:
    refused(InputError, r"input_example\(\) must return a tensor, a tuple", Hooked(lambda x: x * 2, wrong), out)
    refused(InputError, f"got {type(wrong).__name__}", Hooked(lambda x: x * 2, X), out, wrong)


# ---------------------------------------------------------------- 7: a last dict that is a state


def test_fault_07_a_last_dict_that_is_a_state_is_an_argument(out: Path) -> None:
    def forward(x: torch.Tensor, st: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return x + st["h"]

    example = (X, {"h": X})
    for artifact in (
        export(Hooked(forward, example), out),
        export(Hooked(forward), out, example),
        export(Hooked(forward), out, input_example=example),
    ):
        assert names(artifact.inputs) == ["x", "st_h"]
        torch.testing.assert_close(artifact(X, {"h": X + 1}), X + X + 1)
    Hooked(forward).export(out, input_example=example)
    assert list(axes(out))[:2] == ["x", "st_h"]


def test_fault_07_one_argument_that_is_a_dict(out: Path) -> None:
    def forward(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return batch["a"] - batch["b"]

    example = {"a": X, "b": X}
    for artifact in (export(Hooked(forward, example), out), export(Hooked(forward), out, example)):
        assert names(artifact.inputs) == ["batch_a", "batch_b"]


def test_fault_07_keyword_arguments_are_told_from_it_by_the_signature(out: Path) -> None:
    def forward(x: torch.Tensor, *, h: torch.Tensor) -> torch.Tensor:
        return x - h

    for artifact in (export(Hooked(forward, (X, {"h": X})), out), export(Hooked(forward), out, (X, {"h": X}))):
        assert names(artifact.inputs) == ["x", "h"]


def test_fault_07_ambiguity_is_an_error_and_kwargs_resolves_it(out: Path) -> None:
    def forward(x: torch.Tensor, st: Any = None, h: Any = None) -> torch.Tensor:
        return x + (h if st is None else 2 * st["h"])

    example = (X, {"h": X})
    refused(InputError, r"kwargs=\{\} makes it positional", Hooked(forward), out, example)
    assert names(export(Hooked(forward), out, example, {}).inputs) == ["x", "st_h"]
    assert names(export(Hooked(forward), out, (X,), {"h": X}).inputs) == ["x", "h"]
    # Of a hook, and of export's input_example, the documentation says that a last dict holds keyword arguments.
    assert names(export(Hooked(forward, example), out).inputs) == ["x", "h"]
    Hooked(forward).export(out, input_example=example)
    assert list(axes(out))[:2] == ["x", "h"]


# ---------------------------------------------------------------- 8: None and numbers in the middle


class Speaker(nn.Module):
    """Text to speech in miniature; ``lengths`` is disabled, and the example still holds it."""

    input_types: ClassVar[Any] = {
        "text": Tensor("batch", 3),
        "lengths": Tensor("batch", dtype=torch.int64),
        "pitch": Tensor("batch", 3, optional=True),
        "pace": Tensor(optional=True),
        "volume": Tensor("batch", 3),
    }
    disabled_deployment_input_names: ClassVar[Any] = {"lengths"}

    def input_example(self) -> Any:
        return torch.randn(2, 3), torch.tensor([3, 3]), None, 2.0, torch.randn(2, 3)

    def forward(
        self,
        text: torch.Tensor,
        lengths: torch.Tensor | None = None,
        pitch: torch.Tensor | None = None,
        pace: Any = 1.0,
        volume: torch.Tensor | None = None,
    ) -> torch.Tensor:
        text = text if lengths is None else text * 0
        text = text if pitch is None else text + pitch
        return text / pace if volume is None else text / pace * volume


def test_fault_08_what_follows_a_none_or_a_number_keeps_its_name(out: Path) -> None:
    artifact = export(Speaker(), out)
    assert axes(out) == {"text": ["batch", 3], "volume": ["batch", 3], "output": ["batch", 3]}
    assert artifact.report is not None
    assert "pace = 2.0 is fixed in the artifact" in artifact.report.notes
    session = ort.InferenceSession(out, providers=["CPUExecutionProvider"])
    text, volume = torch.randn(4, 3), torch.randn(4, 3)
    got = session.run(None, {"volume": volume.numpy(), "text": text.numpy()})[0]
    np.testing.assert_allclose(got, (text / 2 * volume).numpy(), rtol=1e-5)


def test_fault_08_a_number_of_the_hook_becomes_an_input_on_request(out: Path) -> None:
    artifact = export(Speaker(), out, as_input=["pace"])
    assert names(artifact.inputs) == ["text", "pace", "volume"]
    text, volume = torch.randn(4, 3), torch.randn(4, 3)
    torch.testing.assert_close(artifact(text, pace=torch.tensor(4.0), volume=volume), text / 4 * volume)


# ---------------------------------------------------------------- 10: state of a subnet


class Cell(nn.Module):
    """Keeps what it has seen in a buffer."""

    input_types: ClassVar[Any] = {"x": Tensor("batch", 3)}
    output_types: ClassVar[Any] = {"y": Tensor("batch", 3)}

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = self.seen + x.mean(0)
        return x + self.seen


class Two(nn.Module, Exportable):
    """Two subnets, the second with a buffer that its forward updates."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.front, self.cell = nn.Linear(3, 3), Cell()
        self.front.input_types = self.front.output_types = None

    def input_example(self, max_batch: int | None = None, max_dim: int | None = None) -> Any:
        return torch.randn(2, 3)

    def list_export_subnets(self) -> list[str]:
        return ["front", "cell"]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.cell(self.front(x))


def test_fault_10_explicit_state_of_a_model_with_hooks_goes_in_and_out(out: Path, untouched: Untouched) -> None:
    cell = Cell().eval()
    with untouched(cell):
        artifact = export(cell, out, X, state="explicit", check_trace=[X * 2])
    assert axes(out) == {
        "x": ["batch", 3],
        "input_seen": [3],
        "y": ["batch", 3],
        "output_seen": [3],
    }
    result, state = artifact(X, state={"seen": torch.ones(3)})
    torch.testing.assert_close(state["seen"], 1 + X.mean(0))
    torch.testing.assert_close(result, X + 1 + X.mean(0))


def test_fault_10_explicit_state_of_a_subnet(tmp_path: Path, untouched: Untouched) -> None:
    model = Two().eval()
    with untouched(model):
        pipeline = fxexport.compile(model, tmp_path / "m.onnx", state="explicit")
    assert isinstance(pipeline, Pipeline)
    assert list(axes(tmp_path / "cell-m.onnx")) == ["x", "input_seen", "y", "output_seen"]
    assert {(str(state.input), str(state.output)) for state in pipeline.spec.states} == {
        ("cell.input_seen", "cell.output_seen")
    }
    state = None
    for _ in range(3):  # eager goes on from where it is, and so does the pipeline
        x = torch.randn(2, 3)
        outputs, state = pipeline.step(state, **{pipeline.spec.inputs[0].name: x.numpy()})
        np.testing.assert_allclose(outputs["y"], model(x).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_fault_10_explicit_state_of_a_subnet_that_is_called_again_and_again(tmp_path: Path) -> None:
    class Repeated(Two):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.front(x)
            return torch.stack([self.cell(x), self.cell(x)])

    model = Repeated().eval()
    model.cell.seen += 2.0  # a first value that is not zero
    pipeline = fxexport.compile(model, tmp_path / "m.onnx", state="explicit")
    assert isinstance(pipeline, Pipeline)
    assert pipeline.spec.loop == ("cell",)
    x = torch.randn(2, 3)
    state, got = pipeline.start(**{pipeline.spec.inputs[0].name: x.numpy()}), []
    for _ in range(2):
        outputs, state = pipeline.step(state)
        got.append(outputs["y"])
    np.testing.assert_allclose(np.stack(got), model(x).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_fault_10_frozen_state_of_a_subnet_is_said(tmp_path: Path, untouched: Untouched) -> None:
    model = Two().eval()
    with untouched(model):
        pipeline = fxexport.compile(model, tmp_path / "m.onnx")
    assert list(axes(tmp_path / "cell-m.onnx")) == ["x", "y"]
    assert any("seen" in note for note in pipeline.report.parts["cell"].notes)


# ---------------------------------------------------------------- 19: a declared axis that capture fixes


def _fixes_time(audio: torch.Tensor) -> torch.Tensor:
    return audio * 2 + torch.ones(5, 1)


def test_fault_19_a_typed_axis_that_the_model_fixes_names_operator_line_and_way_out(out: Path) -> None:
    types = {"audio": Tensor("batch", "time", 3)}
    line = inspect.getsourcelines(_fixes_time)[1] + 1
    message = refused(
        CaptureError, "declared dynamic", Hooked(_fixes_time, torch.randn(2, 5, 3), input_types=types), out
    )
    assert "dimension 1 of 'audio' ('time') was declared dynamic, but the model fixes it at 5" in message
    assert f"test_exportable_faults.py:{line}: return audio * 2 + torch.ones(5, 1)" in message
    assert "leave it out of the dynamic shapes, or change that line" in message


def test_fault_19_an_axis_that_is_only_allowed_to_change_is_a_note(out: Path) -> None:
    types = {"audio": Tensor("batch", "any", 3)}
    artifact = export(Hooked(_fixes_time, torch.randn(2, 5, 3), input_types=types), out)
    assert artifact.inputs[0].axes == ("batch", 5, 3)
    assert artifact.report is not None
    assert any("dimension 1 of 'audio'" in note and "fixed at 5" in note for note in artifact.report.notes)


def test_fault_19_in_a_subnet_its_name_is_said_and_nothing_is_written(tmp_path: Path) -> None:
    class Fixing(nn.Module, Exportable):
        def __init__(self) -> None:
            super().__init__()
            self.front = Hooked(lambda audio: audio + 1, input_types={"audio": Tensor("batch", "time", 3)})
            self.back = Hooked(_fixes_time, input_types={"audio": Tensor("batch", "time", 3)})

        def list_export_subnets(self) -> list[str]:
            return ["front", "back"]

        def forward(self, audio: torch.Tensor) -> torch.Tensor:
            return self.back(self.front(audio))

    message = refused(CaptureError, "'time'.* was declared dynamic", Fixing(), tmp_path / "m.onnx", torch.ones(2, 5, 3))
    assert "test_exportable_faults.py" in message


# ---------------------------------------------------------------- 21: sizes that depend on data


def test_fault_21_an_output_whose_size_depends_on_the_data(out: Path) -> None:
    types = {"x": Tensor("batch", 3)}
    found = {"rows": Tensor("hits", 2, dtype=torch.int64), "count": Tensor("batch")}
    model = Hooked(lambda x: (torch.nonzero(x > 0), x.sum(1)), X, input_types=types, output_types=found)
    artifact = export(model, out)
    assert axes(out) == {"x": ["batch", 3], "rows": ["hits", 2], "count": ["batch"]}
    x = torch.tensor([[1.0, -1.0, 2.0]])
    rows, count = artifact(x)
    assert rows.tolist() == [[0, 0], [0, 2]]
    assert count.tolist() == [2.0]
    assert artifact(-torch.ones(1, 3))[0].shape == (0, 2)
    assert "hits" in str(artifact)


# ---------------------------------------------------------------- 24: complex numbers at the border


def test_fault_24_complex_inputs_and_outputs_become_pairs_and_the_table_says_so(out: Path) -> None:
    types = {"kspace": Tensor("batch", "width")}
    example = torch.randn(2, 4, dtype=torch.complex64)
    artifact = export(Hooked(lambda kspace: kspace * 2, example, input_types=types), out)
    assert axes(out) == {"kspace": ["batch", "width", 2], "output": ["batch", "width", 2]}
    page = str(artifact)
    assert page.count("float32 pairs") == 2
    assert "kspace is complex: real in the file, with a last axis of real and imaginary part" in page
    assert "output is complex: real in the file" in page
    given = torch.randn(3, 7, dtype=torch.complex64)
    torch.testing.assert_close(artifact(given), given * 2)
    torch.testing.assert_close(artifact(kspace=torch.view_as_real(given)), given * 2)


def test_fault_24_subnets_give_each_other_complex_numbers(tmp_path: Path) -> None:
    class Imaging(nn.Module, Exportable):
        def __init__(self) -> None:
            super().__init__()
            self.mask, self.magnitude = Hooked(lambda x: x * 2), Hooked(lambda z: torch.view_as_real(z).square())

        def list_export_subnets(self) -> list[str]:
            return ["mask", "magnitude"]

        def forward(self, kspace: torch.Tensor) -> torch.Tensor:
            return self.magnitude(self.mask(kspace).permute(1, 0).unsqueeze(-1))

    example = torch.randn(2, 4, dtype=torch.complex64)
    fxexport.compile(Imaging().eval(), tmp_path / "m.onnx", example)
    found = Pipeline.load(tmp_path)(kspace=example.numpy())["output"]
    np.testing.assert_allclose(found, torch.view_as_real(2 * example.T[..., None]).square().numpy(), rtol=1e-6)


# ---------------------------------------------------------------- 30: too large for one file


def test_fault_30_large_subnets_get_data_files_by_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Large(nn.Module, Exportable):
        def __init__(self) -> None:
            super().__init__()
            self.front, self.back = nn.Linear(64, 64), nn.Linear(64, 8)

        def list_export_subnets(self) -> list[str]:
            return ["front", "back"]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.back(self.front(x))

    monkeypatch.setattr(onnx_file, "INLINE_LIMIT", 10_000)  # as if 2 GB were that much
    model, x = Large().eval(), torch.randn(2, 64)
    pipeline = fxexport.compile(model, tmp_path / "m.onnx", x)
    assert isinstance(pipeline, Pipeline)
    data = [file for file in tmp_path.iterdir() if file.suffix == ".data"]
    assert [file.name.split(".")[0] for file in data] == ["front-m"]  # the other one fits inside
    assert (tmp_path / "front-m.onnx").stat().st_size < 10_000 < data[0].stat().st_size
    assert pipeline.report.check is not None
    assert pipeline.report.check.passed
    moved = tmp_path.with_name("moved")
    tmp_path.rename(moved)  # verified from disk, and found again beside it
    loaded = Pipeline.load(moved / "pipeline.json")
    got = loaded(**{loaded.spec.inputs[0].name: x.numpy()})
    np.testing.assert_allclose(next(iter(got.values())), model(x).detach().numpy(), rtol=1e-4, atol=1e-5)
    moved.rename(tmp_path)


# ---------------------------------------------------------------- 49: names of subnets


class Parts(nn.Module, Exportable):
    """Any list of subnet names; ``broken`` fails in capture."""

    def __init__(self, *listed: str) -> None:
        super().__init__()
        self.listed = listed
        self.first, self.second = Hooked(lambda x: x + 1, X), Hooked(lambda x: x * 2)
        self.First = Hooked(lambda x: x + 3)
        self.broken = Hooked(lambda x: x if bool(x.sum() > 0) else x.sum())  # of another rank

    def list_export_subnets(self) -> list[str]:
        return list(self.listed)

    def get_export_subnet(self, subnet: str | None = None) -> Any:
        return self if subnet in (None, "self") else getattr(self, str(subnet).split("/")[-1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name in self.listed:
            if name != "self":
                x = self.get_export_subnet(name)(x)
        return x


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        (("a/first", "second"), r"Parts.list_export_subnets names the subnet 'a/first'.*path separator"),
        (("../first", "second"), r"'\.\./first'.*path separator"),
        (("first", "second", "first"), r"'first' and 'first': both would be written to one file"),
        (("first", "First"), r"'first' and 'First': both would be written to one file"),
        (("self", "self"), r"'self' and 'self'"),
        (("first", ""), r"'', which is empty"),
    ],
)
def test_fault_49_names_that_collide_or_leave_the_directory(
    listed: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    refused(InputError, message, Parts(*listed), folder / "m.onnx", X)
    assert [each.name for each in tmp_path.iterdir()] == ["out"]


def test_fault_49_self_keeps_the_name_beside_other_subnets(tmp_path: Path) -> None:
    fxexport.compile(Parts("self", "first"), tmp_path / "m.onnx", X)
    assert sorted(contents(tmp_path)) == ["first-m.onnx", "m.onnx", "pipeline.json"]


@pytest.mark.parametrize("old", [False, True], ids=["nothing-there", "an-export-there"])
def test_fault_49_all_files_appear_or_none(old: bool, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    if old:
        fxexport.compile(Parts("first", "second"), path, X)
    refused(CaptureError, "x.sum", Parts("first", "broken"), path, X)
    assert len(contents(tmp_path)) == (3 if old else 0)


def test_fault_49_every_path_is_checked_before_work_starts(tmp_path: Path) -> None:
    class Watched(Parts):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise AssertionError("work has started")

    (tmp_path / "second-m.onnx").mkdir()
    with pytest.raises(InputError, match=r"second-m\.onnx is a directory"):
        fxexport.compile(Watched("first", "second"), tmp_path / "m.onnx", X)
    assert [each.name for each in tmp_path.iterdir()] == ["second-m.onnx"]


def test_fault_49_the_pipeline_of_another_export_is_not_overwritten(tmp_path: Path) -> None:
    fxexport.compile(Parts("first", "second"), tmp_path / "a.onnx", X)
    refused(InputError, r'describes the pipeline of a\.onnx.*pipeline_file="another', Parts("first", "second"),
            tmp_path / "b.onnx", X)  # fmt: skip
    fxexport.compile(Parts("first", "second"), tmp_path / "b.onnx", X, pipeline_file="b.json")
    assert {"pipeline.json", "b.json", "first-b.onnx"} <= contents(tmp_path).keys()


def test_fault_49_a_wrong_part_leaves_the_old_files_intact(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    fxexport.compile(Parts("first", "second"), path, X)
    before = contents(tmp_path)

    def wrong(x: Any, y: Any, alpha: float = 1.0) -> Any:
        from onnxscript import opset20

        return opset20.Sub(x, y)

    table = {torch.ops.aten.mul.Tensor: wrong}
    with pytest.raises(ValidationError):
        fxexport.compile(Parts("first", "second"), path, X, custom_translation_table=table, opset_version=20)
    after = contents_of_files(tmp_path)
    assert {name: after[name] for name in before} == before


def contents_of_files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


# ---------------------------------------------------------------- 50: names of dimensions


def test_fault_50_typed_names_are_in_the_file_and_no_internal_ones(out: Path) -> None:
    types = {"audio": Tensor("batch", 3, "time"), "other": Tensor("batch", "words")}
    model = Hooked(
        lambda audio, other: (torch.cat([audio.sum(1), other], 1), audio[..., ::2], torch.nonzero(other)),
        (torch.randn(2, 3, 6), torch.randn(2, 4)),
        input_types=types,
    )
    export(model, out)
    proto = onnx.load(out)
    found = axes(out)
    assert found["audio"] == ["batch", 3, "time"]
    assert found["other"] == ["batch", "words"]
    values = (*proto.graph.input, *proto.graph.output, *proto.graph.value_info)
    labels = {d.dim_param for v in values for d in v.type.tensor_type.shape.dim if d.dim_param}
    words = {word for label in labels for word in label.replace("(", " ").replace(")", " ").replace("*", " ").split()}
    assert not [word for word in words if word[:1] in "su" and word[1:].isdigit()], labels


def test_fault_50_equal_names_with_different_sizes_are_an_error(out: Path) -> None:
    types = {"audio": Tensor("batch", "time"), "other": Tensor("batch", "time")}
    message = refused(
        InputError,
        "equal names mean equal sizes",
        Hooked(lambda audio, other: audio.sum() + other, (torch.randn(2, 6), torch.randn(2, 4)), input_types=types),
        out,
    )
    assert "Hooked.input_types" in message
    for word in ("'audio'", "'other'", "6", "4"):
        assert word in message


def test_fault_50_an_artifact_checks_equal_names_when_it_is_called(out: Path) -> None:
    types = {"audio": Tensor("batch", "time"), "other": Tensor("batch", "time")}
    example = (torch.randn(2, 6), torch.randn(2, 6))
    artifact = export(Hooked(lambda audio, other: audio.sum() + other, example, input_types=types), out)
    with pytest.raises(InputError, match="'time' is 6 in another input"):
        artifact(torch.randn(2, 6), torch.randn(2, 4))
