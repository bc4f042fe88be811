"""The package under tests/sample_plugin adds its passes to fxexport through the entry point, as anybody's would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest
import torch
from torch import nn

import fxexport
from fxexport.errors import PassError
from fxexport.rewrite import available, resolve
from fxexport.rewrite.ordering import moves
from fxexport.rewrite.registry import requested

NAMES = ["sample-replace-logistic", "sample-fuse-silu"]


@pytest.fixture(autouse=True)
def _installed() -> None:
    if not list(distributions(name="fxexport-sample-passes")):
        pytest.fail("the package tests/sample_plugin is not installed; run `make setup`", pytrace=False)


def cli(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-m", "fxexport", *words], capture_output=True, text=True, timeout=120, env=environment
    )


def test_its_passes_are_available_but_not_in_the_default() -> None:
    assert [name for name in available() if name.startswith("sample-")] == NAMES
    assert {cls.__module__ for name, cls in available().items() if name in NAMES} == {"fxexport_sample_passes"}
    assert not any(pass_.name in NAMES for pass_ in resolve("default"))


def test_its_options_are_read_from_text() -> None:
    (fuse,) = resolve("sample-fuse-silu{skip=head|'a, b'}")
    assert type(fuse) is available()["sample-fuse-silu"]
    assert fuse.skip == ("head", "a, b")
    assert resolve("fxexport_sample_passes:FuseSilu{skip=head}") == [type(fuse)(skip=("head",))]


def test_its_order_constraints_take_effect() -> None:
    text = "sample-fuse-silu,sample-replace-logistic,default"
    names = [pass_.name for pass_ in resolve(text)]
    assert sorted(names) == sorted(pass_.name for pass_ in requested(text))
    assert names.index("remove-noops") < names.index("sample-replace-logistic") < names.index("sample-fuse-silu")
    assert [name for name in names if name not in NAMES] == [pass_.name for pass_ in resolve("default")]
    assert moves(requested(text)) == [
        "remove-noops runs before sample-replace-logistic: sample-replace-logistic.after names it",
        "sample-replace-logistic runs before sample-fuse-silu: sample-replace-logistic.before names sample-fuse-silu",
    ]


def test_the_command_line_lists_it_with_its_distribution() -> None:
    done = cli("passes", "--json")
    assert done.returncode == 0, done.stderr
    found = {each["name"]: each for each in json.loads(done.stdout)["passes"]}
    logistic, fuse = (found[name] for name in NAMES)
    assert logistic["origin"] == fuse["origin"] == "fxexport-sample-passes 1.0"
    assert (logistic["after"], logistic["before"]) == (["remove-noops"], ["sample-fuse-silu"])
    assert fuse["options"] == {"skip": ""}
    assert (logistic["default"], fuse["rewrite"]) == (False, "x * sigmoid(x) -> silu(x)")
    text = cli("passes").stdout
    assert "fxexport-sample-passes 1.0" in text
    assert "remove-noops;" in text  # "after remove-noops; before sample-fuse-silu", in lines of its column


class Spelled(nn.Module):
    """SiLU in two spellings, one of which needs both passes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x / (1 + torch.exp(-x))
        x = self.head(x)
        return x * x.sigmoid()


def test_a_model_is_compiled_with_it(out: Path) -> None:
    passes = "sample-fuse-silu,default,sample-replace-logistic"
    artifact = fxexport.compile(Spelled().eval(), out, torch.randn(3, 4), dynamic={"x": ["batch", None]}, passes=passes)
    assert artifact.report is not None
    counts = {record.name: record.count for record in artifact.report.passes}
    assert list(counts) == [pass_.name for pass_ in resolve(passes)]
    assert (counts["sample-replace-logistic"], counts["sample-fuse-silu"]) == (1, 2)


def test_another_distribution_that_claims_its_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installed as pip leaves it: a module and a dist-info directory on the path."""
    source = "from fxexport_sample_passes import FuseSilu\nclass Mine(FuseSilu):\n    pass\n"
    (tmp_path / "rival_passes.py").write_text(source)
    info = tmp_path / "rival-2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rival\nVersion: 2.0\n")
    (info / "entry_points.txt").write_text("[fxexport.passes]\nmine = rival_passes:Mine\n")
    monkeypatch.syspath_prepend(tmp_path)
    for ask in (available, lambda: resolve("sample-fuse-silu")):
        with pytest.raises(PassError, match="2 passes are named 'sample-fuse-silu'") as caught:
            ask()
        for named in ("rival_passes.Mine", "'rival'", "fxexport_sample_passes.FuseSilu", "'fxexport-sample-passes'"):
            assert named in str(caught.value)
    assert [pass_.name for pass_ in resolve("sample-replace-logistic")] == ["sample-replace-logistic"]
