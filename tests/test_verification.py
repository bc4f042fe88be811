"""``verify`` on files of models with export hooks, and on the file of one subnet."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from click.testing import CliRunner
from conftest import Untouched
from torch import nn

import fxexport
from fxexport import Exportable, InputError, Tensor
from fxexport.cli import main
from fxexport.verification import verify


class Encoder(nn.Module):
    """Masked as it stands; exported without masks, so that ``length`` is no input of the file."""

    input_types: ClassVar[Any] = {"audio": Tensor("batch", 4, "time"), "length": Tensor("batch", dtype=torch.int64)}
    output_types: ClassVar[Any] = {"encoded": Tensor("batch", 3, "time"), "lengths": Tensor("batch", dtype=torch.int64)}
    disabled_deployment_output_names: ClassVar[Any] = {"lengths"}

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.use_mask = nn.Conv1d(4, 3, 3, padding=1), True

    def _prepare_for_export(self, **kwargs: Any) -> None:
        assert kwargs["do_constant_folding"] is True
        self.use_mask = False

    def forward(self, audio: torch.Tensor, length: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.use_mask:
            audio = audio * (torch.arange(audio.size(2)) < length[:, None])[:, None]
        return self.conv(audio), length


class Decoder(nn.Module):
    """Gets one frame at a time; without a hook for an example, only a recording has one."""

    input_types: ClassVar[Any] = {"frame": Tensor("batch", 3)}

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, frame: torch.Tensor) -> torch.Tensor:
        return self.linear(frame)


class Speech(nn.Module, Exportable):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.encoder, self.decoder = Encoder(), Decoder()

    def input_example(self, max_batch: int | None = None, max_dim: int | None = None) -> Any:
        return torch.randn(2, 4, 6), torch.tensor([6, 6])

    def list_export_subnets(self) -> list[str]:
        return ["encoder", "decoder"]

    def forward(self, audio: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        encoded, _ = self.encoder(audio, length)
        return torch.stack([self.decoder(encoded[:, :, t]) for t in range(encoded.size(2))], 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a ``Speech``, and of its encoder alone as TorchScript."""
    path = tmp_path_factory.mktemp("speech")
    fxexport.compile(Speech().eval(), path / "m.onnx")
    example = (torch.randn(2, 4, 6), torch.tensor([6, 6]))
    fxexport.compile(Speech().eval().encoder, path / "alone.pt", example)
    return path


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_the_file_of_one_subnet_is_compared_with_that_subnet(part: str, folder: Path, untouched: Untouched) -> None:
    model = Speech().eval()
    with untouched(model):
        report = verify(folder / f"{part}-m.onnx", model)
    assert report.passed
    assert len([point for point in report.points if point.outputs]) >= 3
    assert not verify(folder / f"{part}-m.onnx", Speech(seed=1).eval()).passed


def test_a_file_of_a_model_with_hooks_is_compared_with_the_prepared_model(folder: Path) -> None:
    example = (torch.randn(2, 4, 6), torch.tensor([6, 3]))  # ragged: the masked model itself would differ
    assert verify(folder / "alone.pt", Speech().eval().encoder, example).passed
    assert not verify(folder / "alone.pt", Speech(seed=1).eval().encoder, example).passed


def test_a_subnet_needs_a_model_that_has_it(folder: Path) -> None:
    with pytest.raises(InputError, match=r"encoder-m\.onnx holds the subnet 'encoder', but Linear has no export hooks"):
        verify(folder / "encoder-m.onnx", nn.Linear(4, 3), torch.randn(2, 4))
    with pytest.raises(InputError, match=r"encoder-m\.onnx holds 'encoder', but Encoder is exported as self"):
        verify(folder / "encoder-m.onnx", Encoder(), torch.randn(2, 4))


def test_state_that_is_explicit_is_recognised(tmp_path: Path) -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.count = self.count + x.sum()
            return x + self.count

    fxexport.compile(Counter(), tmp_path / "m.onnx", torch.randn(3), state="explicit")
    report = verify(tmp_path / "m.onnx", Counter(), torch.randn(3))
    assert report.passed
    assert {output.name for point in report.points for output in point.outputs} >= {"output_count"}


def test_options_of_the_export_reach_the_hooks(tmp_path: Path) -> None:
    class Scaled(nn.Module, Exportable):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.offset = 1.0, 0.0

        def set_export_config(self, args: Any) -> None:
            super().set_export_config(args)
            self.offset = float(args["offset"])

        def _prepare_for_export(self, scale: float = 1.0, **kwargs: Any) -> None:
            self.scale = scale

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.scale + self.offset

    x, options = torch.randn(3), {"prepare": {"scale": 2.0}, "export_config": {"offset": 5}}
    with pytest.warns(UserWarning, match="_prepare_for_export"):
        fxexport.compile(Scaled(), tmp_path / "m.onnx", x, **options)
    assert verify(tmp_path / "m.onnx", Scaled(), x, **options).passed
    assert not verify(tmp_path / "m.onnx", Scaled(), x).passed


def test_the_command_verifies_the_file_of_one_subnet(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    module = type(sys)("verified_model")
    module.good = lambda: Speech().eval()  # type: ignore[attr-defined]
    module.other = lambda: Speech(seed=1).eval()  # type: ignore[attr-defined]
    module.drive = lambda model, *example: model(torch.randn(2, 4, 5), torch.tensor([5, 5]))  # type: ignore
    monkeypatch.setitem(sys.modules, "verified_model", module)
    words = ["verify", "decoder-m.onnx", "-q", "--model"]
    for target, more, status in (("good", [], 0), ("other", [], 1), ("good", ["--driver", "verified_model:drive"], 0)):
        result = CliRunner().invoke(main, [*words, f"verified_model:{target}", *more])
        assert result.exit_code == status, result.output
