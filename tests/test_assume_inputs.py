"""``assume={"length": "full"}``: from the option to a file that was proved on inputs that meet it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import fxexport
from fxexport.cli import main
from fxexport.errors import InputError
from fxexport.exportable import Exportable
from fxexport.verification import verify

DYNAMIC = {"x": ["batch", None, "time"], "length": ["batch"]}


class Masked(nn.Module):
    """A strided convolution behind a mask; the lengths are returned too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 4, 5, 2, 2)

    def forward(self, x: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        mask = torch.arange(x.shape[2], device=x.device)[None] >= length[:, None]
        return self.conv(x.masked_fill(mask[:, None], 0.0)), (length - 1) // 2 + 1


class Hooked(Masked, Exportable):
    def input_example(self, max_batch: int = 2, max_dim: int = 20) -> tuple[Tensor, Tensor]:
        return torch.randn(max_batch, 4, max_dim), torch.randint(3, max_dim, (max_batch,))


def example(time: int = 20, length: int | None = None) -> tuple[Tensor, Tensor]:
    return torch.randn(2, 4, time), torch.full((2,), time if length is None else length)


def compiled(path: Path, **options: Any) -> Any:
    options = {"dynamic": DYNAMIC, "assume": {"length": "full"}, **options}
    return fxexport.compile(Masked().eval(), path, example(), **options)


@pytest.mark.parametrize("suffix", ["onnx", "pt", "pt2"])
def test_the_input_is_gone_and_said_so(tmp_path: Path, suffix: str) -> None:
    artifact = compiled(tmp_path / f"m.{suffix}")
    assert [spec.name for spec in artifact.report.signature.inputs] == ["x"]
    notes = "\n".join(artifact.report.notes)
    assert "'length' is assumed to be full: as long as axis 2 of 'x'" in notes
    assert "nothing reads the input 'length'" in notes
    assert "on ragged lengths in 'length' the file differs from eager by up to" in notes
    assert artifact.metadata["assumptions"] == [{"input": "length", "says": "full", "axis": ["x", 2]}]
    x, _ = example(31)
    y, length = artifact(x)
    assert y.shape == (2, 4, 16)
    assert length.tolist() == [16, 16]


def test_no_mask_is_left_in_the_file(tmp_path: Path) -> None:
    compiled(tmp_path / "m.onnx")
    graph = onnx.load(tmp_path / "m.onnx").graph
    assert [i.name for i in graph.input] == ["x"]
    assert not {"Where", "Range", "Less", "GreaterOrEqual", "Not"} & {node.op_type for node in graph.node}


def test_keep_inputs(tmp_path: Path) -> None:
    artifact = compiled(tmp_path / "m.onnx", keep_inputs=True)
    assert [spec.name for spec in artifact.report.signature.inputs] == ["x", "length"]
    assert [i.name for i in onnx.load(tmp_path / "m.onnx").graph.input] == ["x", "length"]
    assert artifact(*example())[0].shape == (2, 4, 10)


def test_without_an_assumption_the_mask_stays(tmp_path: Path) -> None:
    artifact = compiled(tmp_path / "m.onnx", assume=None)
    assert [spec.name for spec in artifact.report.signature.inputs] == ["x", "length"]
    assert "assumptions" not in artifact.metadata


def test_verify_meets_what_the_file_assumes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Masked().eval()
    fxexport.compile(model, tmp_path / "m.onnx", example(), dynamic=DYNAMIC, assume={"length": "full"})
    assert verify(tmp_path / "m.onnx", model, example()).passed
    with pytest.raises(InputError, match=r"does not meet what .* assumes"):
        verify(tmp_path / "m.onnx", model, example(length=7))


def test_an_example_that_breaks_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the example inputs do not meet that"):
        fxexport.compile(
            Masked().eval(), tmp_path / "m.onnx", example(length=7), dynamic=DYNAMIC, assume={"length": "full:x:2"}
        )
    with pytest.raises(InputError, match=r"check_trace\[0\] does not meet that"):
        compiled(tmp_path / "m.onnx", check_trace=[example(length=7)])
    assert not (tmp_path / "m.onnx").exists()


def test_a_hooks_example_is_made_to_meet_it(tmp_path: Path) -> None:
    model = Hooked().eval()
    artifact = fxexport.compile(model, tmp_path / "m.onnx", dynamic=DYNAMIC, assume={"length": "full"})
    assert [spec.name for spec in artifact.report.signature.inputs] == ["x"]
    assert any("the example did not hold length as assumed" in note for note in artifact.report.notes)
    files, _ = model.export(tmp_path / "again.onnx", dynamic=DYNAMIC, assume={"length": "full"})
    assert [i.name for i in onnx.load(files[0]).graph.input] == ["x"]


@pytest.mark.parametrize(
    ("assume", "message"),
    [
        ({"lenght": "full"}, "no input; did you mean 'length'"),
        ({"length": "fulll"}, "did you mean 'full'"),
        ({"x": "full:length:4"}, "names no axis"),
        ({"length": "full:x:7"}, "names no axis"),
        ({"length": "full", "other.py:3": True}, "decides nothing on data"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, assume: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        compiled(tmp_path / "m.onnx", assume=assume)
    assert not (tmp_path / "m.onnx").exists()


def test_full_is_for_lengths(tmp_path: Path) -> None:
    class Filled(nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return x.masked_fill(mask, 0.0)

    example = (torch.randn(2, 3), torch.zeros(2, 3, dtype=torch.bool))
    with pytest.raises(InputError, match="'full' is for lengths"):
        fxexport.compile(Filled(), tmp_path / "m.onnx", example, assume={"mask": "full"})
    artifact = fxexport.compile(Filled(), tmp_path / "m.onnx", example, assume={"mask": "zeros"})
    assert [spec.name for spec in artifact.report.signature.inputs] == ["x"]


def test_the_pass_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="passes must include disable-masks"):
        compiled(tmp_path / "m.onnx", passes="fold-batchnorm")


def test_what_nothing_can_use_is_told(tmp_path: Path) -> None:
    """The size of ``weight`` shows in no other input: it has to be read, and the report says where."""

    class Sums(nn.Module):
        def forward(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
            return x * 2, torch.sort(weight).values

    example = (torch.randn(2, 3), torch.ones(5))
    artifact = fxexport.compile(
        Sums(), tmp_path / "m.onnx", example, dynamic={"weight": ["own"]}, assume={"weight": "ones"}
    )
    (record,) = [each for each in artifact.report.passes if each.name == "disable-masks"]
    assert any("nothing in the graph becomes simpler by that" in note for note in record.notes)
    assert any("'weight' is still read: aten.sort" in note for note in record.notes)
    assert [spec.name for spec in artifact.report.signature.inputs] == ["x", "weight"]


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(4, 3)

    def forward(self, y: Tensor) -> Tensor:
        return self.out(y.transpose(1, 2))


class Parts(nn.Module, Exportable):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Masked(), Decoder()

    def forward(self, x: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        y, length = self.encoder(x, length)
        return self.decoder(y), length

    def list_export_subnets(self) -> list[str]:
        return ["encoder", "decoder"]


@pytest.mark.parametrize("length", [20, 7], ids=["full", "ragged"])
def test_subnets(tmp_path: Path, length: int) -> None:
    """The subnet that has the input loses it; together they are proved on a run that meets the assumption."""
    model, run = Parts().eval(), lambda model, x: model(x, torch.full((2,), length))
    made = fxexport.compile(model, tmp_path / "m.onnx", example()[:1], driver=run, assume={"length": "full"})
    inputs = [i.name for i in onnx.load(tmp_path / "encoder-m.onnx").graph.input]
    assert inputs == ["x"]
    told = str(made.report)
    assert ("proved alone, not together" in " ".join(told.split())) == (length == 7)
    with pytest.raises(InputError, match="which is no input"):
        fxexport.compile(model, tmp_path / "m.onnx", example()[:1], driver=run, assume={"mask": "ones"})


MODULE = """
import torch
from torch import nn

class Net(nn.Module):
    def forward(self, x, length):
        return x * (torch.arange(x.shape[1])[None] < length[:, None])

def net(): return Net().eval(), (torch.randn(2, 6), torch.full((2,), 6))
"""


def test_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("assume_inputs_zoo.py").write_text(MODULE)
    words = ["compile", "assume_inputs_zoo:net", "-o", "m.pt", "-q", "--assume", "length=full"]
    assert CliRunner().invoke(main, words, catch_exceptions=False).exit_code == 0
    shown = CliRunner().invoke(main, ["show", "m.pt", "--json"], catch_exceptions=False)
    metadata = json.loads(shown.stdout)["metadata"]
    assert [spec["name"] for spec in metadata["signature"]["inputs"]] == ["x"]
    assert metadata["assumptions"][0]["says"] == "full"
    kept = [*words[:3], "kept.pt", *words[4:], "--keep-inputs"]
    assert CliRunner().invoke(main, kept, catch_exceptions=False).exit_code == 0
    assert CliRunner().invoke(main, [*words[:-1], "length=long"]).exit_code == 2
