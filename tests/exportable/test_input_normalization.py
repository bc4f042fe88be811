"""S24, S32: normalization of the input: its options, put in front of a model that has none, chosen by the config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import fxexport
from fxexport import InputNormalization
from fxexport.cli import main
from fxexport.errors import InputError

WHOLE = {"image": torch.rand(3, 2, 5, 4) * 7 - 3}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)

    def forward(self, image: Tensor, gain: Tensor | None = None) -> Tensor:
        y = self.conv(image)
        return y if gain is None else y * gain


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


# ---------------------------------------------------------------- options of the layer


def normalizer(data: Tensor, kind: str, centered: bool, norm: str, dims: tuple[int, int]) -> Tensor:
    """ATOMMIC 1.0.1, Normalizer.forward with apply_backward_transform, in transforms.py, on pairs; fft2 in fft.py."""

    def transform(x: Tensor, function: Any) -> Tensor:
        x = torch.fft.ifftshift(x, dims) if centered else x
        x = function(x, dim=dims, norm=norm if norm != "none" else None)
        return torch.fft.fftshift(x, dims) if centered else x

    x = transform(torch.view_as_complex(data), torch.fft.ifft2)
    if kind == "max":
        x = x / torch.max(torch.abs(x))
    elif kind == "minmax":
        least = torch.min(torch.abs(x))
        x = (x - least) / (torch.max(torch.abs(x)) - least)
    elif kind in ("mean_std", "mean_var"):
        x = x - torch.mean(torch.abs(x))
        x = x / (torch.std(torch.abs(x)) if kind == "mean_std" else torch.var(torch.abs(x)))
    elif kind == "grayscale":
        x = x - torch.min(torch.abs(x))
        x = x / torch.max(torch.abs(x)) * 255
    return torch.view_as_real(transform(x, torch.fft.fft2))


@pytest.mark.parametrize("kind", ["max", "minmax", "mean_std", "mean_var", "grayscale", "fft"])
@pytest.mark.parametrize(("centered", "norm", "dims"), [(True, "ortho", (-2, -1)), (False, "none", (1, 2))])
def test_kspace_is_normalized_as_the_image(kind: str, centered: bool, norm: str, dims: tuple[int, int]) -> None:
    torch.manual_seed(1)
    x = torch.randn(2, 5, 4, 2, dtype=torch.float64)
    options: dict[str, Any] = {"fft_centered": centered, "fft_normalization": norm, "spatial_dims": dims}
    got = InputNormalization(kind, kspace=True, complex_pairs=True, **options)(x)
    torch.testing.assert_close(got, normalizer(x, kind, centered, norm, dims))
    again = InputNormalization(kind, kspace=True, **options)(torch.view_as_complex(x))
    torch.testing.assert_close(torch.view_as_real(again), got)


@pytest.mark.parametrize("kind", ["max", "minmax", "mean_std", "mean_var", "grayscale"])
@pytest.mark.parametrize("form", ["real", "pairs", "complex", "kspace"])
def test_each_sample_by_its_own_numbers(kind: str, form: str) -> None:
    torch.manual_seed(2)
    x = torch.randn(3, 5, 4, 2, dtype=torch.float64) * torch.tensor([1.0, 10, 100])[:, None, None, None]
    x = torch.view_as_complex(x) if form == "complex" else x
    options = {"complex_pairs": form in ("pairs", "kspace"), "kspace": form == "kspace"}
    whole, each = InputNormalization(kind, **options), InputNormalization(kind, per="sample", **options)
    torch.testing.assert_close(each(x), torch.cat([whole(x[i : i + 1]) for i in range(3)]))
    assert not torch.allclose(each(x), whole(x))


def test_what_does_not_fit_is_told() -> None:
    with pytest.raises(InputError, match="per must be 'batch' or 'sample'"):
        InputNormalization("max", per="image")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="fft_normalization must be one of backward"):
        InputNormalization("max", fft_normalization="sqrt")
    with pytest.raises(InputError, match="last axis is no pair"):
        InputNormalization("max", complex_pairs=True)(torch.rand(2, 3))
    with pytest.raises(InputError, match="needs complex data"):
        InputNormalization("max", kspace=True)(torch.rand(2, 3))
    with pytest.raises(InputError, match="axes besides the one of the samples"):
        InputNormalization("max", per="sample")(torch.rand(2))


# ---------------------------------------------------------------- in front of a model


@pytest.mark.parametrize("name", ["m.onnx", "m.pt", "m.pt2"])
def test_inserted_in_every_format(name: str, net: Net, tmp_path: Path) -> None:
    before = dict(vars(net))
    layer = InputNormalization("minmax", per="sample")
    artifact = fxexport.compile(
        net, tmp_path / name, WHOLE, dynamic={"image": {0: "batch"}}, normalize_inputs={"image": layer}
    )
    other = torch.rand(2, 2, 5, 4) * 100
    torch.testing.assert_close(torch.as_tensor(artifact(other)), net(layer(other)).detach(), rtol=1e-4, atol=1e-5)
    told = "the input 'image' is normalized inside (InputNormalization('minmax', per='sample')): it takes raw data"
    assert artifact.report is not None
    assert told in artifact.report.notes
    assert told in artifact.metadata["notes"]
    assert vars(net) == before


def test_integers_are_made_numbers_first(net: Net, tmp_path: Path) -> None:
    image = torch.randint(0, 256, (2, 2, 5, 4), dtype=torch.uint8)
    artifact = fxexport.compile(net, tmp_path / "m.onnx", (image,), normalize_inputs={"image": "minmax"})
    expected = net((image.float() - image.min()) / (image.max() - image.min()).float())
    torch.testing.assert_close(torch.as_tensor(artifact(image)), expected.detach(), rtol=1e-4, atol=1e-5)
    assert artifact.report is not None
    assert any("'image' is torch.uint8: converted to torch.float32" in note for note in artifact.report.notes)
    assert onnx.load(artifact.path).graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8


class Complex(nn.Module):
    def forward(self, kspace: Tensor) -> Tensor:
        return torch.fft.ifft2(kspace, norm="ortho").abs()


@pytest.mark.parametrize("pairs", [False, True], ids=["complex", "pairs"])
def test_complex_data(pairs: bool, tmp_path: Path) -> None:
    torch.manual_seed(3)
    x = torch.randn(2, 4, 4, dtype=torch.complex64)
    layer = InputNormalization(
        "mean_std", kspace=True, fft_centered=True, fft_normalization="ortho", complex_pairs=pairs
    )
    model: nn.Module = Complex()
    if pairs:
        model = nn.Sequential(nn.Linear(2, 2))
    given = torch.view_as_real(x) if pairs else x
    name = "input" if pairs else "kspace"
    artifact = fxexport.compile(model.eval(), tmp_path / "m.onnx", (given,), normalize_inputs={name: layer})
    assert artifact.report is not None
    assert artifact.report.validation.passed


def test_arguments_by_position_by_name_and_further_ones(net: Net) -> None:
    from fxexport.exportable.inserting import normalize_inputs

    image, gain, layer = WHOLE["image"], torch.tensor(2.0), InputNormalization("max")
    expected = net(layer(image), gain)
    assert normalize_inputs(net, {"image": "max"}) == normalize_inputs(net, {"image": layer})
    for call in (lambda: net(image, gain), lambda: net(image=image, gain=gain), lambda: net(gain=gain, image=image)):
        torch.testing.assert_close(call(), expected)
    with pytest.raises(InputError, match="no parameter 'imagr'; did you mean 'image'"):
        normalize_inputs(net, {"imagr": "max"})
    normalize_inputs(net, {"gain": "max"})
    with pytest.raises(InputError, match="'gain' must be a tensor to be normalized; in this call it is not given"):
        net(image)
    torch.testing.assert_close(net(image, gain), net.conv(layer(image)))


def test_refusals_of_the_option(net: Net, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    for wrong, message in (
        ({"image": "zscore"}, "'zscore' is unknown"),
        ({"image": 3}, "must be a kind such as 'minmax' or a module"),
        ("minmax", "must be a dict"),
        ({"picture": "max"}, "no parameter 'picture'"),
    ):
        with pytest.raises(InputError, match=message):
            fxexport.compile(net, path, WHOLE, normalize_inputs=wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"needs an nn\.Module"):
        fxexport.compile(torch.export.export(net, (WHOLE["image"],)), path, normalize_inputs={"image": "max"})
    assert not path.exists()


# ---------------------------------------------------------------- hooks and config


class Plain(nn.Module, fxexport.Exportable):
    """An exportable model without a normalization of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def input_example(self, *_: Any) -> Any:
        return WHOLE["image"]

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.net(image)
        return out


class Inserting(Plain):
    def _prepare_for_export(self, **kwargs: Any) -> None:
        fxexport.replace_for_export(self, kwargs.get("normalization_type"), inputs=("image",))


class Configured(Plain):
    """Its layer is chosen by the config, without a hook."""

    def __init__(self) -> None:
        super().__init__()
        self.normalize = InputNormalization("none")

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.net(self.normalize(image))
        return out


def exported(model: nn.Module, path: Path, **options: Any) -> Tensor:
    with pytest.warns(UserWarning, match="change"):
        return torch.as_tensor(fxexport.compile(model.eval(), path, **options)(WHOLE["image"]))


@pytest.mark.parametrize("kind", [Inserting, Configured])
def test_the_config_chooses_and_the_argument_wins(kind: type[Plain], tmp_path: Path) -> None:
    torch.manual_seed(4)
    model, image = kind().eval(), WHOLE["image"]
    model.set_export_config({"normalization_type": "minmax"})
    got = exported(model, tmp_path / "m.onnx")
    torch.testing.assert_close(got, model.net(InputNormalization("minmax")(image)).detach(), rtol=1e-4, atol=1e-5)
    got = exported(model, tmp_path / "n.onnx", export_config={"normalization_type": "max"})
    torch.testing.assert_close(got, model.net(InputNormalization("max")(image)).detach(), rtol=1e-4, atol=1e-5)
    if kind is Inserting:
        got = exported(model, tmp_path / "o.onnx", prepare={"normalization_type": "mean_std"})
        wanted = model.net(InputNormalization("mean_std")(image)).detach()
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_a_config_without_effect_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no normalization of its input.*normalize_inputs=\{'image'"):
        fxexport.compile(Plain().eval(), tmp_path / "m.onnx", export_config={"normalization_type": "minmax"})
    with pytest.raises(InputError, match="needs a normalization_type"):
        fxexport.replace_for_export(Plain(), inputs=("image",))


# ---------------------------------------------------------------- command line

FACTORY = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)
    def forward(self, image):
        return self.linear(image)

def factory():
    return Net().eval(), (torch.rand(2, 4) * 9,)
"""


def test_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "normalized_net.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    normalize = ["--normalize-input", "image=minmax"]
    target = "normalized_net:factory"
    result = CliRunner().invoke(main, ["compile", target, "-o", "m.onnx", *normalize])
    assert result.exit_code == 0, result.output
    assert "is normalized inside" in result.output
    assert CliRunner().invoke(main, ["verify", "m.onnx", "--model", target, *normalize]).exit_code == 0
    assert CliRunner().invoke(main, ["verify", "m.onnx", "--model", target]).exit_code == 1
