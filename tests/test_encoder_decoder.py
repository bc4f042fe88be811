"""Encoder-decoder models end to end: T5 with its key/value cache as a state, and a chain of two parts without a loop."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import state_of
from models import decoding
from models.encoder_decoder import (
    END,
    PAD,
    START,
    Chain,
    Listener,
    Translator,
    listen,
    sentences,
    t5,
    translate,
    whisper,
)
from torch import Tensor, nn

import fxexport
from fxexport.pipeline.spec import PipelineSpec
from fxexport.subnets import PartInterface, check_pipeline

SIZES = ((9, 6, 4), (5,), (12, 12), (3, 7, 1, 2))
TOKENS = {"start": START, "end": END, "pad": PAD}


def export(model: nn.Module, path: Path, *args: Any, **options: Any) -> fxexport.Pipeline:
    """A pipeline, and no trace on the model."""
    before = state_of(model)
    pipeline = fxexport.compile(model, path, *args, **options)
    assert state_of(model) == before
    assert isinstance(pipeline, fxexport.Pipeline)
    return pipeline


def generated(model: Any) -> list[list[list[int]]]:
    """The tokens of the library's own greedy search for each of ``SIZES``, without the start."""
    found = []
    for lengths in SIZES:
        ids, mask = sentences(*lengths, seed=1)
        tokens = model.generate(ids, attention_mask=mask, do_sample=False, num_beams=1, max_new_tokens=8)
        found.append(tokens[:, 1:].tolist())
    return found


# ---------------------------------------------------------------- T5


@pytest.fixture(scope="module")
def translator(
    transformers: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Translator, fxexport.Pipeline]:
    whole = t5()
    model = Translator(whole).eval()
    path = tmp_path_factory.mktemp("t5") / "t5.onnx"
    return whole, model, export(model, path, sentences(9, 6, 4), driver=translate)


def test_the_cache_is_a_state_and_the_cross_attention_a_wire(translator: Any) -> None:
    spec = translator[2].spec
    assert spec.loop == ("decoder",)
    numbers = range(1, 5)
    assert [str(wire) for wire in spec.wires] == [
        f"encoder.output_cross_{i} -> decoder.input_cross_{i}" for i in numbers
    ]
    carried = [(str(state.output), str(state.input)) for state in spec.states]
    assert carried == [(f"decoder.output_past_{i}", f"decoder.input_past_{i}") for i in numbers]
    assert [state.initial.axes for state in spec.states] == [("batch", 4, 0, 8)] * 4
    assert spec.part("decoder").outputs[1].axes[2] in ("one + past", "past + one")
    mask = next(one for one in spec.inputs if one.name == "attention_mask")
    assert {str(port) for port in mask.feeds} == {"encoder.attention_mask", "decoder.attention_mask"}


def test_tokens_are_those_of_generate_where_pytorch_cannot_be_imported(translator: Any, tmp_path: Path) -> None:
    whole, _, pipeline = translator
    batches = [sentences(*lengths, seed=1) for lengths in SIZES]
    named = {f"input_ids_{i}": ids.numpy() for i, (ids, _) in enumerate(batches)}
    np.savez(
        tmp_path / "in.npz", **named, **{f"attention_mask_{i}": mask.numpy() for i, (_, mask) in enumerate(batches)}
    )
    command = [sys.executable, decoding.__file__, pipeline.path, "translator", tmp_path / "in.npz", json.dumps(TOKENS)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    want = generated(whole)
    assert json.loads(result.stdout) == want
    rows = [row for batch in want for row in batch]
    assert any(END in row for row in rows), "no row ends early"
    assert len({token for row in rows for token in row}) > 4, "these tokens would hide a mistake"


def test_the_masks_are_kept(translator: Any) -> None:
    """What stands where a row is padded changes nothing; without the mask it would."""
    pipeline = translator[2]
    ids, mask = (tensor.numpy() for tensor in sentences(9, 4, seed=1))
    noisy = np.where(mask == 1, ids, 13)

    def first(ids: Any, mask: Any) -> Any:
        state = pipeline.start(input_ids=ids, attention_mask=mask)
        return pipeline.step(state, token=np.full((2, 1), START))[0]["logits"]

    np.testing.assert_allclose(first(noisy, mask), first(ids, mask), rtol=1e-4, atol=1e-5)
    assert abs(first(noisy, np.ones_like(mask)) - first(ids, np.ones_like(mask))).max() > 1e-2


@pytest.mark.parametrize("wrong", ["wires", "states"])
def test_what_is_swapped_in_pipeline_json_fails_the_check(translator: Any, wrong: str) -> None:
    """Two wires, and two states, of equal shapes: only their values tell them apart."""
    _, model, pipeline = translator
    recording = fxexport.record(model, translate, sentences(4, 2))
    interfaces = [PartInterface(name, each.signature) for name, each in pipeline.report.parts.items()]

    def run(part: str, feed: dict[str, Tensor]) -> dict[str, Tensor]:
        outputs = pipeline.run(part, **{name: value.numpy() for name, value in feed.items()})
        return {name: torch.from_numpy(value) for name, value in outputs.items()}

    def failures(spec: PipelineSpec) -> list[str]:
        return [point.label for point in check_pipeline(run, recording, spec, interfaces) if not point.passed]

    data = json.loads(pipeline.path.read_text())
    assert failures(PipelineSpec.from_json(data)) == []
    key, (one, two) = ("target", data["wires"][:2]) if wrong == "wires" else ("output", data["states"][1:3])
    one[key], two[key] = two[key], one[key]
    assert failures(PipelineSpec.from_json(data)) == [f"run 1, call {1 if wrong == 'wires' else 2} of decoder"]


# ---------------------------------------------------------------- Whisper


def test_whisper_tokens_are_those_of_generate(transformers: Any, tmp_path: Path) -> None:
    """Positions follow from the length of the cache, which ends where their table does."""
    whole = whisper()
    sound = torch.randn(5, 16, 40)
    pipeline = export(Listener(whole).eval(), tmp_path / "whisper.onnx", sound[:3], driver=listen)
    search = transformers.GenerationMixin.generate  # Whisper's own adds prompts and timestamps
    for rows in (sound, sound[1:3]):
        want = search(whole, input_features=rows, do_sample=False, num_beams=1, max_new_tokens=8, eos_token_id=None)
        state, token = pipeline.start(input_features=rows), np.full((len(rows), 1), START)
        found = [token]
        for _ in range(8):
            outputs, state = pipeline.step(state, token=token)
            token = outputs["logits"].argmax(-1)
            found.append(token)
        assert np.concatenate(found, 1).tolist() == want.tolist()
        assert len(want.unique()) >= 3, "these tokens would hide a mistake"
    assert any("'past' works up to 63" in note for note in pipeline.report.parts["decoder"].notes)


# ---------------------------------------------------------------- a chain without a loop


@pytest.mark.parametrize("suffix", ["onnx", "pt", "pt2"])
def test_a_chain_runs_as_one_function(suffix: str, tmp_path: Path) -> None:
    """No driver: the model itself is run. Arguments by keyword only, a dict as an argument."""
    model = Chain().eval()
    export(model, tmp_path / f"chain.{suffix}", kwargs=Chain.inputs(7, 5, 3))
    pipeline = fxexport.Pipeline.load(tmp_path)
    assert [str(wire) for wire in pipeline.spec.wires] == [
        "reader.hidden -> writer.hidden [permute(0, 2, 1)]",
        "reader.lengths -> writer.lengths",
    ]
    assert [one.name for one in pipeline.spec.inputs] == ["tokens", "mask", "prompt"]
    for seed, lengths in enumerate(((7, 5, 3), (4,), (11, 2), (1, 6, 6, 2))):
        inputs = Chain.inputs(*lengths, seed=seed)
        got = pipeline(**{name: tensor.numpy() for name, tensor in inputs.items()})
        want = model(**inputs)
        assert set(got) == set(want)
        for name, tensor in want.items():
            np.testing.assert_allclose(got[name], tensor.detach().numpy(), rtol=1e-4, atol=1e-5)


def test_a_table_that_both_parts_use_is_stored_once(tmp_path: Path) -> None:
    model = Chain().eval()
    pipeline = export(model, tmp_path / "chain.onnx", kwargs=Chain.inputs(7, 5, 3))
    table = 4 * Chain.TOKENS * Chain.WIDTH
    assert pipeline.report.shared == pytest.approx(table, rel=0.02)
    assert table < sum(path.stat().st_size for path in tmp_path.iterdir()) < 1.5 * table
    raw = model.reader.table.weight.detach().numpy().tobytes()
    assert sum(path.read_bytes().count(raw[:4096]) for path in tmp_path.iterdir()) == 1
    assert "that several subnets use are stored once" in str(pipeline.report)


def test_a_recording_reads_well() -> None:
    recording = fxexport.record(Chain().eval(), None, None, Chain.inputs(7, 5, 3))
    lines = str(recording).splitlines()
    assert lines[0] == "recording of Chain: 1 run"
    assert "  reader (Reader): called once" in lines
    assert "    in  batch['tokens']: int64 [3, 7]" in lines
    assert "    out output['scores']: float32 [3, 7, 5]" in lines


def test_a_wrong_chain_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wire that leaves out the transposition is found where both axes have one size."""
    import fxexport.pipeline_export as road

    right = road.wire
    monkeypatch.setattr(road, "wire", lambda *given: _straight(right(*given)))
    with pytest.raises(fxexport.ValidationError, match="run 1, call 1 of writer"):
        fxexport.compile(Chain().eval(), tmp_path / "chain.onnx", kwargs=Chain.inputs(Chain.WIDTH, 5))
    assert not any(path.is_file() for path in tmp_path.iterdir())


def _straight(wiring: Any) -> Any:
    return replace(wiring, wires=tuple(replace(wire, through=()) for wire in wiring.wires))
