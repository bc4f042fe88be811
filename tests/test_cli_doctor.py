"""``fxexport doctor``: its page, its JSON, its exit status."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fxexport.cli import main

MODELS = """
import torch
from torch import nn

class Rows(nn.Module):
    def forward(self, x, scale: float = 2.0):
        print("printed by forward")
        return torch.stack([row * scale - x[0] for row in x])

def rows(): return Rows().eval(), torch.ones(3, 4)
def linear(): return nn.Linear(3, 2).eval(), torch.ones(4, 3)
"""


@pytest.fixture(autouse=True)
def _models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "doctor_zoo.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("doctor_zoo", None)
    yield
    sys.modules.pop("doctor_zoo", None)


def run(*words: str) -> Result:
    return CliRunner().invoke(main, ["doctor", *words], catch_exceptions=False)


def test_blockers_are_a_page_and_status_1() -> None:
    result = run("doctor_zoo:rows", "--dynamic", "x:batch,_")
    assert result.exit_code == 1
    assert result.stdout.startswith("Rows: 1 block, ")
    assert "doctor_zoo.py:8: a Python loop runs once for each element of 'batch'" in result.stdout
    assert "return torch.stack([row * scale - x[0] for row in x])" in result.stdout
    assert "printed by" not in result.stdout


def test_nothing_blocks_is_status_0_and_a_number_can_be_an_input() -> None:
    assert run("doctor_zoo:linear", "--dynamic", "all").exit_code == 0
    result = run("doctor_zoo:rows", "--quiet")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == ["Rows: nothing blocks, 0 change something, 1 for information"]


def test_json_is_one_object() -> None:
    result = run("doctor_zoo:rows", "--dynamic", "x:batch,_", "--json")
    data = json.loads(result.stdout)
    assert (data["target"], data["model"], data["captured"]) == ("doctor_zoo:rows", "Rows", False)
    (loop,) = [each for each in data["findings"] if each["kind"] == "loop"]
    assert (loop["severity"], loop["line"]) == ("blocks", 8)


def test_bad_input_is_status_2() -> None:
    result = run("doctor_zoo:nothing")
    assert result.exit_code == 2
    assert "there is no 'nothing'" in result.stderr
