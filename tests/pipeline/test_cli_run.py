"""``fxexport run``: pipelines and single files on inputs from an .npz."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from sample_pipelines import transducer, transducer_spec, write
from torch import nn

import fxexport
from fxexport.cli import main
from fxexport.cli_run import numbers, run_command

AUDIO = np.arange(40, dtype=np.float32).reshape(2, 4, 5)
INPUTS = {"audio": AUDIO, "length": np.array([5, 3]), "targets": np.array([[1], [2]], np.int32)}


def run(*words: object) -> Result:
    return CliRunner().invoke(type(main)(commands=[run_command]), ["run", *map(str, words)])


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    """A pipeline that a single call can run, and ``x.npz`` beside it."""
    spec = transducer_spec(tmp_path)
    np.savez(tmp_path / "x.npz", **INPUTS)
    return write(tmp_path, replace(spec, wires=(replace(spec.wires[0], chosen=False),)))


def test_outputs_are_a_table_and_a_file(pipeline: Path) -> None:
    result = run(pipeline, "--inputs", pipeline.parent / "x.npz", "--output", pipeline.parent / "y.npz")
    assert result.exit_code == 0, result.output
    header, _, *rows = result.stdout.splitlines()
    assert header.split() == ["name", "dtype", "shape", "min", "max", "mean"]
    assert rows[0].split() == ["encoded_lengths", "int64", "[2]", "3", "5", "4"]
    found = np.load(pipeline.parent / "y.npz")
    np.testing.assert_array_equal(found["logits"], 2 * AUDIO[:, :, 0] + INPUTS["targets"])
    assert set(found.files) == {"encoded_lengths", "logits"}
    assert not list(pipeline.parent.glob(".*")), "nothing is left beside it"


def test_json_and_steps(pipeline: Path) -> None:
    result = run(pipeline.parent, "--inputs", pipeline.parent / "x.npz", "--steps", 3, "--json")
    assert result.exit_code == 0, result.output
    (logits,) = json.loads(result.stdout)["outputs"]
    expected = 2 * AUDIO[:, :, 0] + INPUTS["targets"] + 6 * (INPUTS["targets"] + 1)
    assert logits == {
        "name": "logits",
        "dtype": "float32",
        "shape": [2, 4],
        "min": expected.min(),
        "max": expected.max(),
        "mean": expected.mean(),
    }


def test_one_file_runs_too(pipeline: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "e.npz", audio=AUDIO, length=INPUTS["length"])
    result = run(tmp_path / "encoder-m.onnx", "--inputs", tmp_path / "e.npz", "--json")
    assert result.exit_code == 0, result.output
    assert [one["name"] for one in json.loads(result.stdout)["outputs"]] == ["outputs", "encoded_lengths"]
    wrong = run(tmp_path / "encoder-m.onnx", "--inputs", tmp_path / "x.npz")
    assert wrong.exit_code == 2
    assert "no input 'targets'" in wrong.stderr


@pytest.mark.parametrize("suffix", [".pt", ".pt2"])
def test_a_torch_file_runs_by_the_names_in_it(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"m{suffix}"
    fxexport.compile(nn.ReLU(), file, (torch.randn(2, 3),))
    np.savez(tmp_path / "x.npz", input=np.float32([[-1, 2, 0], [1, 1, -1]]))
    result = run(file, "--inputs", tmp_path / "x.npz", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["outputs"][0] | {"name": ""} == {
        "name": "", "dtype": "float32", "shape": [2, 3], "min": 0.0, "max": 2.0, "mean": pytest.approx(4 / 6),
    }  # fmt: skip


def test_what_cannot_be_run_is_bad_input(pipeline: Path, tmp_path: Path) -> None:
    inputs = tmp_path / "x.npz"
    (tmp_path / "text.npz").write_text("no zip")
    (tmp_path / "text.onnx").write_text("no model")
    np.save(tmp_path / "one.npy", AUDIO)
    np.savez(tmp_path / "objects.npz", audio=np.array([{}], object))
    np.savez(tmp_path / "half.npz", **INPUTS | {"audio": AUDIO.astype(np.float16)})
    for words, message in [
        ((pipeline, "--inputs", tmp_path / "none.npz"), "none.npz does not exist"),
        ((pipeline, "--inputs", tmp_path / "text.npz"), "cannot be read as an .npz"),
        ((pipeline, "--inputs", tmp_path / "one.npy"), "one array without a name"),
        ((pipeline, "--inputs", tmp_path / "objects.npz"), "cannot be read as an .npz"),
        ((pipeline, "--inputs", tmp_path / "half.npz"), "'audio' is float32, got float16"),
        ((tmp_path / "none.onnx", "--inputs", inputs), "none.onnx does not exist"),
        ((tmp_path / "text.onnx", "--inputs", inputs), "no complete ONNX file"),
        ((tmp_path / "none.json", "--inputs", inputs), "none.json does not exist"),
        ((pipeline, "--inputs", inputs, "--provider", "Abacus"), "provider Abacus is missing"),
        ((pipeline, "--inputs", inputs, "--output", tmp_path / "y.txt"), "unknown suffix '.txt'"),
    ]:
        result = run(*words)
        assert result.exit_code == 2, (words, result.output)
        assert message in result.stderr


def test_a_value_that_the_caller_must_cut_is_told(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **INPUTS)
    result = run(transducer(tmp_path), "--inputs", tmp_path / "x.npz", "--output", tmp_path / "y.npz")
    assert result.exit_code == 2
    assert "decoder_joint.encoder_outputs" in result.stderr
    assert not (tmp_path / "y.npz").exists()


def test_numbers_of_any_array() -> None:
    assert numbers(np.array([True, False])) == (0.0, 1.0, 0.5)
    assert numbers(np.array([2**62 + 1])) == (2**62 + 1, 2**62 + 1, float(2**62))
    assert numbers(np.array([1.0, np.inf])) == (1.0, "inf", "inf")
    assert numbers(np.zeros((0, 3))) == (None, None, None)
    assert numbers(np.array([1j])) == (None, None, None)
