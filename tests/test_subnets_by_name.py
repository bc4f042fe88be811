"""Subnets asked for by name, on a model that has no hooks at all; and the commands that look at subnets and pipelines."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import Untouched
from torch import nn

import fxexport
from fxexport import InputError, Pipeline
from fxexport.cli import main


class Heads(nn.Module):
    """One backbone, two heads in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.1), nn.ReLU())
        self.heads = nn.ModuleDict({"size": nn.Linear(8, 2), "kind": nn.Linear(8, 3)})

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.backbone(x)
        return {name: head(y) for name, head in self.heads.items()}


PARTS = ["backbone", "heads.size", "heads.kind"]


def test_subnets_are_paths_of_submodules(tmp_path: Path, untouched: Untouched) -> None:
    model, example = Heads().eval(), torch.randn(2, 4)
    with untouched(model):
        pipeline = fxexport.compile(model, tmp_path / "m.onnx", example, subnets=PARTS)
    assert isinstance(pipeline, Pipeline)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "backbone-m.onnx",
        "heads.kind-m.onnx",
        "heads.size-m.onnx",
        "pipeline.json",
    ]
    x = torch.randn(
        5, 4
    )  # the batch was 2, and nothing was declared: a run with one row more showed that it may change
    got = pipeline(x=x)
    for name, want in model(x).items():
        np.testing.assert_allclose(got[f"heads.{name}.output"], want.detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("subnets", "message"),
    [
        (["backbone", "tail"], "subnet 'tail': Heads has no attribute 'tail'; its modules are: backbone, heads"),
        (["heads.none"], "subnet 'heads.none'"),
        ("backbone", "subnets must be a list of names, got 'backbone'"),
        ([], "subnets must be a list of names"),
        (["backbone", "backbone"], "backbone"),
    ],
)
def test_names_that_lead_nowhere_are_refused(subnets: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        fxexport.compile(Heads().eval(), tmp_path / "m.onnx", torch.randn(2, 4), subnets=subnets)
    assert not list(tmp_path.iterdir())


def test_commands_show_and_run_a_pipeline_and_look_into_a_subnet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = ModuleType("models_by_name")
    models.heads = lambda: (Heads().eval(), torch.randn(2, 4))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "models_by_name", models)
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke
    done = run(main, ["compile", "models_by_name:heads", "-o", "m.onnx", "--subnets", ",".join(PARTS)])
    assert done.exit_code == 0, done.output
    assert "backbone.output -> heads.size.input" in done.output
    shown = run(main, ["show", "pipeline.json"])
    assert "heads.kind-m.onnx" in shown.output
    assert json.loads(run(main, ["show", ".", "--json"]).output)["format"] == "onnx"
    np.savez("x.npz", x=np.ones((3, 4), np.float32))
    ran = run(main, ["run", "pipeline.json", "--inputs", "x.npz"])
    assert ran.exit_code == 0, ran.output
    assert "heads.size.output" in ran.output
    explained = run(main, ["explain", "models_by_name:heads", "--pass", "remove-dropout", "--subnet", "backbone"])
    assert "remove-dropout: 1 rewritten" in explained.output, explained.output
