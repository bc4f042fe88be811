"""``fxexport compile --assume``: the side that a decision on data takes."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from fxexport.cli import main

MODEL = """
import torch
from torch import nn

class Branch(nn.Module):
    def forward(self, x):
        return x * 2 if x.sum() > 0 else -x

def branch(): return Branch().eval(), torch.ones(4, 3)
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("assume_zoo.py").write_text(MODEL)


@pytest.mark.parametrize(("said", "value"), [("examples", True), ("assume_zoo.py:7=true", True)])
def test_assume(said: str, value: bool) -> None:
    words = ["compile", "assume_zoo:branch", "-o", "one.pt", "-q", "--assume", said]
    assert CliRunner().invoke(main, words, catch_exceptions=False).exit_code == 0
    shown = CliRunner().invoke(main, ["show", "one.pt", "--json"], catch_exceptions=False)
    decisions = json.loads(shown.stdout)["metadata"]["decisions"]
    assert [(d["form"], d["value"]) for d in decisions] == [("assumed", value)]


def test_assume_is_checked() -> None:
    words = ["compile", "assume_zoo:branch", "-o", "one.pt", "-q", "--assume"]
    assert CliRunner().invoke(main, [*words, "always"]).exit_code == 2
    assert CliRunner().invoke(main, [*words, "other.py:3=true"]).exit_code == 2
    assert not Path("one.pt").exists()
