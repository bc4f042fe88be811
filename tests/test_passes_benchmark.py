"""The benchmark of the passes: its ratios, its count of nodes, and a whole run on a small model."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
ZOO = """
from types import SimpleNamespace

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv1d(4, 8, 3), nn.BatchNorm1d(8), nn.Dropout(), nn.Conv1d(8, 4, 1))

    def forward(self, x, mask):
        return self.layers(x * mask[:, None])


def cases():
    yield SimpleNamespace(
        name="net", build=lambda: Net().eval(), dynamic={0: {0: "batch"}, 1: {0: "batch"}}, seq_dynamic=None,
        example_inputs=lambda: ((torch.randn(2, 4, 9), torch.tensor([[1.0] * 9, [0.0] * 9])), {}),
    )
"""


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("passes_benchmark", BENCHMARKS / "passes.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_a_run_writes_every_pass_and_the_assumption(benchmark: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "bench_zoo.py").write_text(ZOO)
    words = ["--zoo", tmp_path / "bench_zoo.py", "--models", "net", "--assume", "mask=ones", "--rounds", 5]
    words += ["--least", 0.0001, "--passes", "fold-batchnorm,replace-rms-norm,remove-dropout"]
    out = tmp_path / "out" / "passes.json"
    result = CliRunner().invoke(benchmark.main, [*map(str, words), "--output", str(out)])
    assert result.exit_code == 0, result.output
    rows = {row["what"]: row for row in json.loads(out.read_text())["rows"]}
    assert list(rows) == ["remove-dropout", "replace-rms-norm", "fold-batchnorm", "assume mask=ones"]
    assert rows["replace-rms-norm"] == {"model": "net", "what": "replace-rms-norm", "rewritten": 0}
    fold = rows["fold-batchnorm"]
    assert fold["rewritten"] == 1
    assert fold["aten"] == [5, 4], "unsqueeze, mul, conv, (batch_norm,) conv"
    assert fold["onnx"] == [4, 4], "what writes ONNX folds this one by itself"
    assert fold["ratio"]["low"] <= fold["ratio"]["value"] <= fold["ratio"]["high"]
    assert {name: len(values) for name, values in fold["ms"].items()} == {"with": 5, "control": 5, "without": 5}
    assert rows["assume mask=ones"]["aten"] == [4, 2], "the mask is gone"
    assert "nothing rewritten by replace-rms-norm" in result.output


def test_the_interval_holds_a_ratio_that_is_there_and_1_for_the_control(benchmark: ModuleType) -> None:
    random = np.random.default_rng(0)
    slow_rounds = random.uniform(1, 5, size=(60, 1))  # what hits a round hits all sessions
    times = slow_rounds * np.array([1.0, 1.0, 1.5]) * random.normal(1, 0.02, size=(60, 3))
    found, control = benchmark.ratio(times, 2, 0), benchmark.ratio(times, 1, 0)
    assert 1.3 < found.low <= found.value <= found.high < 1.7
    assert control.low <= 1.0 <= control.high


def test_nodes_of_branches_and_functions_count(benchmark: ModuleType, tmp_path: Path) -> None:
    make = onnx.helper
    branches = {
        key: make.make_graph(
            [make.make_node("Relu", ["x"], ["y"])],
            key,
            [],
            [make.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])],
        )
        for key in ("then_branch", "else_branch")
    }
    nodes = [make.make_node("If", ["c"], ["z"], **branches), make.make_node("Twice", ["z"], ["w"], domain="own")]
    twice = make.make_function(
        "own", "Twice", ["a"], ["b"], [make.make_node("Add", ["a", "a"], ["b"])], [make.make_opsetid("", 18)]
    )
    model = make.make_model(make.make_graph(nodes, "main", [], []), functions=[twice])
    onnx.save(model, str(tmp_path / "m.onnx"))
    assert benchmark._onnx_nodes(tmp_path / "m.onnx") == 5


def test_an_assumption_must_be_ones_or_zeros(benchmark: ModuleType) -> None:
    result = CliRunner().invoke(benchmark.main, ["--assume", "mask=half"])
    assert result.exit_code == 2
    assert "'mask=half' is not INPUT=ones, zeros or full" in result.output


def test_a_pass_that_is_no_default_is_refused(benchmark: ModuleType) -> None:
    result = CliRunner().invoke(benchmark.main, ["--passes", "fold-batchnorm,fold-nothing"])
    assert result.exit_code == 2
    assert "not among the default passes: fold-nothing" in result.output
