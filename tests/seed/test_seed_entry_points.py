"""Rows S1-S5 of the seed: how an export is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import onnx
import pytest
import torch
from conftest import Untouched
from seed_models import (
    Affine,
    ExportableRecognizer,
    Listener,
    Recognizer,
    assert_close,
    exported,
    onnx_io,
    run_onnx,
)
from torch import nn

import fxexport
from fxexport import InputError


def test_s01_compile_any_module_with_an_example_and_nothing_else(out: Path, untouched: Untouched) -> None:
    model, x = Affine().eval(), torch.randn(2, 3)
    with untouched(model):
        exported(model, out, x)
    fresh = torch.randn(2, 3)
    assert_close(run_onnx(out, x=fresh), model(fresh))
    assert [file.name for file in out.parent.iterdir()] == ["model.onnx"]


def test_s01_compile_a_model_with_hooks_and_no_argument_at_all(out: Path, untouched: Untouched) -> None:
    model = Recognizer().eval()
    with untouched(model):
        exported(model, out)
    inputs, outputs = onnx_io(out)
    assert inputs == {"audio": ["batch", "time", 8], "length": ["batch"]}
    assert outputs == {"scores": ["batch", "time", 4], "lengths": ["batch"]}
    audio, length = torch.randn(3, 9, 8), torch.tensor([9, 1, 5])  # neither size is the example's
    assert_close(run_onnx(out, audio=audio, length=length), model(audio, length))


def test_s02_export_of_the_mix_in_gives_files_and_descriptions(out: Path, untouched: Untouched) -> None:
    model = ExportableRecognizer().eval()
    with untouched(model):
        files, descriptions = model.export(str(out))
    assert files == [str(out)]
    assert descriptions == ["seed_models.ExportableRecognizer exported to ONNX"]
    audio, length = torch.randn(1, 2, 8), torch.tensor([1])
    assert_close(run_onnx(out, audio=audio, length=length), model(audio, length))


def test_s02_export_gives_one_entry_for_each_subnet(out: Path) -> None:
    files, descriptions = Listener().eval().export(out)
    assert [Path(file).name for file in files] == ["encoder-model.onnx", "decoder-model.onnx"]
    assert all(Path(file).is_file() for file in files)
    assert descriptions == ["seed_models.Encoder exported to ONNX", "seed_models.Decoder exported to ONNX"]


def test_s02_export_is_the_same_engine_as_compile(tmp_path: Path) -> None:
    model = ExportableRecognizer().eval()
    model.export(tmp_path / "a.onnx")
    exported(model, tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


class ToolboxExportable:
    """The mix-in of a toolbox: its own ``export`` must not run, and its defaults say nothing."""

    @property
    def input_module(self) -> Any:
        return self

    @property
    def output_module(self) -> Any:
        return self

    @property
    def input_types_for_export(self) -> Any:
        return self.input_types  # type: ignore[attr-defined]

    @property
    def disabled_deployment_input_names(self) -> Any:
        return []

    def list_export_subnets(self) -> list[str]:
        return ["self"]

    def get_export_subnet(self, subnet: str | None = None) -> Any:
        return self if subnet in (None, "self") else getattr(self, subnet)

    def export(self, output: str, **options: Any) -> Any:
        raise AssertionError("the toolbox's own export ran")

    def _prepare_for_export(self, **kwargs: Any) -> None:
        if "noreplace" not in kwargs:
            return None

    def _export_teardown(self) -> None:
        pass


class ToolboxRecognizer(Recognizer, ToolboxExportable):
    pass


def test_s03_hooks_of_a_toolbox_and_of_no_base_class_are_served_alike(tmp_path: Path, untouched: Untouched) -> None:
    files = []
    for kind in (Recognizer, ToolboxRecognizer, ExportableRecognizer):
        model = kind().eval()
        with untouched(model):
            exported(model, tmp_path / f"{kind.__name__}.onnx")
        files.append(onnx_io(tmp_path / f"{kind.__name__}.onnx"))
    assert files[0] == files[1] == files[2]
    assert list(files[0][0]) == ["audio", "length"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("m.onnx", "onnx"),
        ("m.ONNX", "onnx"),
        ("m.pt", "torchscript"),
        ("m.Ts", "torchscript"),
        ("m.Pt2", "pt2"),
    ],
)
def test_s04_extension_decides_the_format_whatever_its_case(name: str, kind: str, tmp_path: Path) -> None:
    model, x = Affine().eval(), torch.randn(2, 3)
    path = tmp_path / name
    assert exported(model, path, x).format == kind
    fresh = torch.randn(2, 3)
    if kind == "onnx":
        onnx.checker.check_model(onnx.load(path))
        got: Any = run_onnx(path, x=fresh)
    elif kind == "torchscript":
        got = torch.jit.load(path)(fresh)
    else:
        got = torch.export.load(path).module()(fresh)
    assert_close(got, model(fresh))


@pytest.mark.parametrize("name", ["m.bin", "m", "m.onnx.zip", "m.pth"])
def test_s04_another_extension_is_refused_before_work_starts(name: str, tmp_path: Path) -> None:
    ran: list[str] = []

    class Watched(Recognizer):
        def input_example(self) -> Any:
            ran.append("input_example")
            return super().input_example()

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            ran.append("forward")
            return super().forward(*args, **kwargs)

    with pytest.raises(InputError, match=r"suffix.*\.onnx, \.pt, \.ts, \.pt2"):
        fxexport.compile(Watched(), tmp_path / name)
    assert not ran
    assert not list(tmp_path.iterdir())


class Pretrained(Affine):
    @classmethod
    def from_pretrained(cls, path: Path) -> Pretrained:
        model = cls()
        model.load_state_dict(torch.load(path, weights_only=True))
        return model


def test_s05_from_pretrained_then_eval_then_to_device(out: Path) -> None:
    trained = nn.Linear(3, 4)
    torch.save({f"linear.{name}": value for name, value in trained.state_dict().items()}, out.parent / "weights.pth")
    model = Pretrained.from_pretrained(out.parent / "weights.pth").eval().to("cpu")
    exported(model, out, torch.randn(2, 3))
    fresh = torch.randn(2, 3)
    assert_close(run_onnx(out, x=fresh), torch.relu(trained(fresh)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("suffix", ["onnx", "pt", "pt2"])
def test_s05_a_model_on_the_gpu_is_captured_there_and_runs_on_both(suffix: str, tmp_path: Path) -> None:
    model = Recognizer().eval().to("cuda")
    audio = torch.randn(2, 6, 8)

    class OnDevice(nn.Module):
        devices: ClassVar[Any] = set()

        def __init__(self) -> None:
            super().__init__()
            self.linear = model.linear

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.devices.add(x.device.type)
            return self.linear(x)

    artifact = exported(OnDevice(), tmp_path / f"m.{suffix}", audio.cuda(), dynamic=True)
    assert OnDevice.devices == {"cuda"}
    assert next(model.parameters()).is_cuda
    want = model.linear(audio.cuda()).cpu()
    assert_close(artifact(audio), want)
    if suffix == "pt":
        assert_close(torch.jit.load(artifact.path, map_location="cuda")(audio.cuda())[0].cpu(), want)
    if suffix == "pt2":
        loaded = torch.export.passes.move_to_device_pass(torch.export.load(artifact.path), "cuda").module()
        assert_close(loaded(audio.cuda()).cpu(), want)
