"""A transducer end to end: ``encoder`` and ``decoder_joint`` with states, decoded greedily through the exported files."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import Untouched, state_of
from models import decoding
from models.transducer import (
    VOCABULARY,
    WIDTH,
    ConformerEncoder,
    ConvEncoder,
    Decoder,
    Joint,
    StatelessDecoder,
    Transducer,
    batch,
    greedy,
    make,
    transcribe,
)
from torch import Tensor

import fxexport
from fxexport.pipeline.spec import PipelineSpec
from fxexport.subnets import PartInterface, check_pipeline, wire

RAGGED = ((27, 14, 9, 1), (30,), (12, 5), (20, 20, 3))
Exported = tuple[Transducer, fxexport.Pipeline, Path]
PARTS = {"encoder-asr", "decoder_joint-asr"}


def export(model: Transducer, path: Path, *args: Any, **options: Any) -> fxexport.Pipeline:
    """A pipeline, and no trace on the model."""
    before = state_of(model)
    pipeline = fxexport.compile(model, path, *args, **options)
    assert state_of(model) == before
    assert isinstance(pipeline, fxexport.Pipeline)
    return pipeline


def agrees(pipeline: fxexport.Pipeline, model: Transducer, first: Callable[[int], Any] = lambda rows: None) -> None:
    """The same tokens as eager, row by row without padding, on ragged batches of several sizes."""
    for seed, lengths in enumerate(RAGGED):
        audio, length = batch(*lengths, seed=seed)
        got = decoding.transducer(pipeline, audio.numpy(), length.numpy(), VOCABULARY, first=first(len(lengths)))
        assert got == transcribe(model, audio, length), lengths


def agrees_without_torch(pipeline: fxexport.Pipeline, model: Transducer, folder: Path) -> None:
    """The same in a process where PyTorch cannot be imported."""
    batches = [batch(*lengths, seed=seed) for seed, lengths in enumerate(RAGGED)]
    named = {f"audio_signal_{i}": audio.numpy() for i, (audio, _) in enumerate(batches)}
    np.savez(folder / "inputs.npz", **named, **{f"length_{i}": length.numpy() for i, (_, length) in enumerate(batches)})
    options = json.dumps({"blank": VOCABULARY})
    command = [sys.executable, decoding.__file__, pipeline.path, "transducer", folder / "inputs.npz", options]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    want = [transcribe(model, *one) for one in batches]
    assert json.loads(result.stdout) == want
    assert len({token for rows in want for row in rows for token in row}) >= 3, "these tokens would hide a mistake"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Convolutional encoder and LSTM, exported with the user's decoding loop."""
    model, folder = make(ConvEncoder, Decoder), tmp_path_factory.mktemp("recorded")
    return model, export(model, folder / "asr.onnx", batch(20, 13, 9), driver=greedy), folder


@pytest.fixture(scope="module")
def hooked(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Convolutional encoder and stateless decoder, exported from the hooks alone."""
    model, folder = make(ConvEncoder, StatelessDecoder), tmp_path_factory.mktemp("hooked")
    return model, export(model, folder / "asr.onnx"), folder


# ---------------------------------------------------------------- names, files, wiring


def test_files_and_names_are_those_of_the_toolboxes(recorded: Exported) -> None:
    folder = recorded[2]
    assert {path.name for path in folder.iterdir()} == {f"{part}.onnx" for part in PARTS} | {"pipeline.json"}
    encoder, decoder = (onnx.load(folder / f"{part}-asr.onnx").graph for part in ("encoder", "decoder_joint"))
    assert [i.name for i in encoder.input] == ["audio_signal", "length"]
    assert [o.name for o in encoder.output] == ["outputs", "encoded_lengths"]
    states = ["states_1", "states_2"]
    names = ["encoder_outputs", "targets", "target_length", *(f"input_{state}" for state in states)]
    assert [i.name for i in decoder.input] == names
    assert [o.name for o in decoder.output] == ["outputs", "prednet_lengths", *(f"output_{state}" for state in states)]
    axes = [dim.dim_param or dim.dim_value for dim in encoder.output[0].type.tensor_type.shape.dim]
    assert axes == ["batch", WIDTH, "frames"]


def test_wires_and_states_are_those_of_the_loop(recorded: Exported) -> None:
    spec = recorded[1].spec
    assert spec.loop == ("decoder_joint",)
    (wired,) = spec.wires
    assert (str(wired.source), str(wired.target)) == ("encoder.outputs", "decoder_joint.encoder_outputs")
    assert wired.chosen
    assert [(s.output.name, s.input.name) for s in spec.states] == [
        ("output_states_1", "input_states_1"),
        ("output_states_2", "input_states_2"),
    ]
    assert [s.initial.fill for s in spec.states] == [0.0, 0.0]
    assert spec.states[0].initial.axes == (2, "batch", 12)
    assert {one.name for one in spec.inputs} == {"audio_signal", "length", "targets", "target_length"}


def test_the_report_says_what_was_proved(recorded: Exported) -> None:
    report = recorded[1].report
    assert report.check.passed
    runs = {point.label.rpartition(", call")[0] for point in report.check.points}
    assert len(runs) == 3, "the recorded sizes, smaller ones and larger ones"
    text = str(report)
    assert "pipeline.json: together verified" in text
    assert "encoder.outputs -> decoder_joint.encoder_outputs" in text
    assert report.to_json()["check"]["passed"] is True


# ---------------------------------------------------------------- tokens


def test_tokens_with_the_users_loop_where_pytorch_cannot_be_imported(recorded: Exported, tmp_path: Path) -> None:
    model, pipeline, _ = recorded
    agrees_without_torch(pipeline, model, tmp_path)


def test_tokens_from_hooks_alone(hooked: Exported) -> None:
    """States by their names; wires are not known, so frames are an input of each step."""
    model, pipeline, _ = hooked
    assert pipeline.spec.wires == ()
    assert [str(state.input) for state in pipeline.spec.states] == ["decoder_joint.input_states_1"]
    assert any("wires are not known; give driver=" in note for note in pipeline.report.notes)
    assert any("zero at first is assumed" in note for note in pipeline.report.notes)
    start = {"input_states_1": VOCABULARY}  # zero is assumed, and wrong for this decoder

    def first(rows: int) -> Any:
        return {name: np.full((rows, StatelessDecoder.CONTEXT), value) for name, value in start.items()}

    agrees(pipeline, model, first)


def test_a_conformer_with_a_stateless_decoder(tmp_path: Path) -> None:
    """The first labels of the state are the driver's, not zeros; positions end at a table's length."""
    model = make(ConformerEncoder, StatelessDecoder, seed=2)
    pipeline = export(model, tmp_path / "asr.onnx", batch(24, 13, 9), driver=greedy)
    (state,) = pipeline.spec.states
    assert state.initial.fill == VOCABULARY
    agrees_without_torch(pipeline, model, tmp_path)
    longest = 4 * ConformerEncoder.LONGEST
    assert any(f"'time' works from 5 up to {longest}" in note for note in pipeline.report.parts["encoder"].notes)


@pytest.mark.parametrize("suffix", ["pt", "pt2"])
def test_tokens_in_the_formats_of_pytorch(suffix: str, tmp_path: Path) -> None:
    model = make(ConvEncoder, Decoder if suffix == "pt2" else StatelessDecoder)
    export(model, tmp_path / f"asr.{suffix}", batch(20, 13, 9), driver=greedy)
    assert {path.name for path in tmp_path.iterdir()} == {f"{part}.{suffix}" for part in PARTS} | {"pipeline.json"}
    agrees(fxexport.Pipeline.load(tmp_path), model)


# ---------------------------------------------------------------- what is wrong must show


def run_part(pipeline: fxexport.Pipeline) -> Callable[[str, dict[str, Tensor]], dict[str, Tensor]]:
    def run(part: str, feed: dict[str, Tensor]) -> dict[str, Tensor]:
        outputs = pipeline.run(part, **{name: value.numpy() for name, value in feed.items()})
        return {name: torch.from_numpy(value) for name, value in outputs.items()}

    return run


def test_a_swapped_state_in_pipeline_json_fails_the_check(recorded: Exported) -> None:
    model, pipeline, _ = recorded
    recording = fxexport.record(model, greedy, batch(11, 6))
    interfaces = [PartInterface(name, each.signature) for name, each in pipeline.report.parts.items()]

    def failures(spec: PipelineSpec) -> list[str]:
        return [p.label for p in check_pipeline(run_part(pipeline), recording, spec, interfaces) if not p.passed]

    data = json.loads(pipeline.path.read_text())
    assert failures(PipelineSpec.from_json(data)) == []
    one, two = data["states"]
    one["output"], two["output"] = two["output"], one["output"]
    assert failures(PipelineSpec.from_json(data)) == ["run 1, call 2 of decoder_joint"]
    assert wire(recording, interfaces).states == pipeline.spec.states


def test_a_wrong_wire_is_refused_and_nothing_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, untouched: Untouched
) -> None:
    """Each part is right alone; only the proof of the chain can see that the states are crossed."""

    def crossed(*args: Any) -> Any:
        right = wire(*args)
        one, two = right.states
        return replace(right, states=(replace(one, output=two.output), replace(two, output=one.output)))

    monkeypatch.setattr("fxexport.pipeline_export.wire", crossed)
    model = make(ConvEncoder, Decoder)
    with untouched(model), pytest.raises(fxexport.ValidationError, match="but together, wired as recorded") as caught:
        fxexport.compile(model, tmp_path / "asr.onnx", batch(9, 5), driver=greedy)
    assert "call 2 of decoder_joint" in str(caught.value)
    assert not any(path.is_file() for path in tmp_path.iterdir())


class Undecided(Joint):
    """Returns another rank where a value says so, which no graph can hold."""

    def joint_after_projection(self, frames: Tensor, labels: Tensor) -> Tensor:
        scores = super().joint_after_projection(frames, labels)
        return scores if scores.sum() > 0 else scores.flatten(1)


@pytest.mark.parametrize("stage", ["capture", "validation"])
def test_all_files_or_none(stage: str, hooked: Exported, tmp_path: Path, untouched: Untouched) -> None:
    """Where the second part fails, early or late, the files of an earlier export stay as they were, byte for byte."""
    for path in hooked[2].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    model = make(ConvEncoder, StatelessDecoder)
    error, options = fxexport.ValidationError, {"custom_translation_table": {torch.ops.aten.tanh.default: _sine}}
    if stage == "capture":
        model.joint, error, options = Undecided().eval(), fxexport.CaptureError, {}
    with untouched(model), pytest.raises(error, match="decoder_joint"):
        fxexport.compile(model, tmp_path / "asr.onnx", passes="none", **options)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    fxexport.Pipeline.load(tmp_path)


def _sine(x: Any) -> Any:
    from onnxscript import opset18 as op

    return op.Sin(x)
