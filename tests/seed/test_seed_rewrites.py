"""Rows S24 and S30-S34 of the seed: the rewrites it names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from conftest import Untouched
from seed_models import Listener, assert_close, exported, onnx_io, operators, run_onnx
from torch import nn

import fxexport
from fxexport import Exportable, InputError, Pipeline, Tensor

# ---------------------------------------------------------------- S24


class FusedLayerNorm(nn.Module):
    """The interface of Apex's, without a forward that runs on a CPU."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.normalized_shape, self.eps, self.elementwise_affine = torch.Size([size]), 1e-3, True
        self.weight, self.bias = nn.Parameter(torch.rand(size)), nn.Parameter(torch.rand(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("a CUDA kernel")


class MinMaxNormalization(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - x.abs().amin()) / (x.abs().amax() - x.abs().amin())


class MaskedConv1d(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.use_mask = nn.Conv1d(channels, channels, 3, padding=1), True

    def forward(self, x: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        if self.use_mask:
            x = x * (torch.arange(x.size(2)) < length[:, None])[:, None]
        return self.conv(x)


class Replacing(nn.Module, Exportable):
    """As the documentation of the toolboxes writes the hook."""

    input_types: ClassVar[Any] = {"x": Tensor("batch", 4)}

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.first, self.norm, self.linear = MinMaxNormalization(), FusedLayerNorm(4), nn.Linear(4, 4)

    def _prepare_for_export(self, **kwargs: Any) -> None:
        normalization_type = kwargs.pop("normalization_type", "minmax")
        fxexport.replace_for_export(self, normalization_type, **kwargs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.norm(self.first(x)))


@pytest.mark.parametrize("kind", ["minmax", "max", "none"])
def test_s24_replace_for_export_in_the_hook_with_the_normalization_asked(
    kind: str, out: Path, untouched: Untouched
) -> None:
    model, example = Replacing().eval(), torch.randn(3, 4)
    with untouched(model):
        model.export(out, input_example=example, normalization_type=kind, onnx_opset_version=20)
    assert operators(out)["LayerNormalization"] == 1
    x = torch.randn(2, 4) * 5
    a = x.abs()
    normalized = {"minmax": (x - a.min()) / (a.max() - a.min()), "max": x / a.max(), "none": x}[kind]
    norm = torch.nn.functional.layer_norm(normalized, [4], model.norm.weight, model.norm.bias, 1e-3)
    assert_close(run_onnx(out, x=x), model.linear(norm))


def test_s24_masks_are_disabled_where_the_hook_asks(out: Path) -> None:
    class Unmasked(nn.Module, Exportable):
        def __init__(self) -> None:
            super().__init__()
            self.masked = MaskedConv1d(4)

        def _prepare_for_export(self, **kwargs: Any) -> None:
            fxexport.replace_for_export(self, disable_masks=True)

        def forward(self, x: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
            return self.masked(x, length)

    model, x = Unmasked().eval(), torch.randn(2, 4, 6)
    exported(model, out, (x, torch.tensor([6, 6])))
    assert operators(out) == {"Conv": 1}
    assert_close(run_onnx(out, x=x), model.masked.conv(x))


# ---------------------------------------------------------------- S30


class Normalized(nn.Module):
    """Convolution, transposed convolution and linear layer, each with its batch normalization; hooks of its own."""

    input_types: ClassVar[Any] = {"x": Tensor("batch", 3, 7)}

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.conv, self.up, self.linear = nn.Conv1d(3, 4, 3), nn.ConvTranspose1d(4, 4, 2), nn.Linear(6, 5)
        self.norms = nn.ModuleList([nn.BatchNorm1d(4), nn.BatchNorm1d(4), nn.BatchNorm1d(5)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norms[1](self.up(self.norms[0](self.conv(x))))
        return self.norms[2](self.linear(x.mean(1)))


def randomized(model: nn.Module) -> nn.Module:
    """With statistics that a wrong fold would show."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                assert tensor is not None
                nn.init.uniform_(tensor, 0.5, 2.0)
    return model.eval()


def test_s30_batch_normalization_is_folded_into_its_neighbours(out: Path) -> None:
    model = randomized(Normalized())
    exported(model, out, torch.randn(2, 3, 7))
    found = operators(out)
    assert not found.keys() & {"BatchNormalization", "Mul", "Add", "Sub", "Div", "Sqrt"}
    assert (found["Conv"], found["ConvTranspose"]) == (1, 1)
    x = torch.randn(4, 3, 7)
    assert_close(run_onnx(out, x=x), model(x))


class Reused(nn.Module):
    """One convolution before two batch normalizations, and one of these after another convolution too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(8)
        self.conv, self.other = nn.Conv1d(3, 3, 1), nn.Conv1d(3, 3, 1)
        self.first, self.second = nn.BatchNorm1d(3), nn.BatchNorm1d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.first(self.conv(x)) + self.second(self.conv(x * 2)) + self.first(self.other(x))


def test_s30_reused_modules_are_folded_right(out: Path) -> None:
    model, x = randomized(Reused()), torch.randn(2, 3, 5)
    exported(model, out, x)
    assert "BatchNormalization" not in operators(out)
    assert_close(run_onnx(out, x=x), model(x))


def test_s30_one_that_has_no_neighbour_is_one_multiply_add(out: Path) -> None:
    model, x = randomized(nn.Sequential(nn.ReLU(), nn.BatchNorm1d(3))), torch.randn(2, 3, 5)
    exported(model, out, x)
    assert operators(out) == {"Relu": 1, "Mul": 1, "Add": 1}
    assert_close(run_onnx(out, input=x), model(x))


# ---------------------------------------------------------------- S31


class MaskedSpeech(nn.Module, Exportable):
    """Masks everywhere, which the hook turns off; ``length`` then is of no use."""

    input_types: ClassVar[Any] = {"audio": Tensor("batch", 4, "time"), "length": Tensor("batch", dtype=torch.int64)}
    output_types: ClassVar[Any] = {"scores": Tensor("batch", 4, "time")}

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(9)
        self.layers = nn.ModuleList(MaskedConv1d(4) for _ in range(2))

    def input_example(self) -> Any:
        return torch.randn(2, 4, 6), torch.tensor([6, 6])

    def _prepare_for_export(self, **kwargs: Any) -> None:
        for layer in self.layers:
            layer.use_mask = False

    def forward(self, audio: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            audio = layer(audio, length)
        return audio


def test_s31_masks_that_the_hook_disables_vanish_with_the_input_that_fed_them(out: Path, untouched: Untouched) -> None:
    model = MaskedSpeech().eval()
    with untouched(model):
        artifact = exported(model, out)
    assert onnx_io(out)[0] == {"audio": ["batch", 4, "time"]}
    assert operators(out) == {"Conv": 2}
    assert artifact.report is not None
    assert "nothing reads the input 'length': it is no input of the artifact" in artifact.report.notes
    assert any("length" in note for note in fxexport.Artifact.load(out).metadata["notes"])
    audio = torch.randn(3, 4, 9)
    assert_close(run_onnx(out, audio=audio), model(audio, torch.tensor([9, 9, 9])))
    assert_close(artifact(audio, torch.tensor([9, 9, 9])), model(audio, torch.tensor([9, 9, 9])))


def test_s31_inputs_on_which_it_is_not_exact_are_told(out: Path) -> None:
    model = MaskedSpeech().eval()
    ragged = (torch.randn(2, 4, 6), torch.tensor([6, 3]))
    with pytest.warns(UserWarning, match="_prepare_for_export"):
        exported(model, out, ragged)
    out.unlink()
    with pytest.raises(fxexport.ValidationError, match="exact_prepare"):
        exported(model, out, ragged, exact_prepare=True)
    assert not out.exists()


def test_s31_without_the_hook_the_masks_stay(out: Path) -> None:
    class Masked(MaskedSpeech):
        def _prepare_for_export(self, **kwargs: Any) -> None:
            pass

    model = Masked().eval()
    exported(model, out)
    audio, length = torch.randn(2, 4, 6), torch.tensor([6, 3])
    assert_close(run_onnx(out, audio=audio, length=length), model(audio, length))


# ---------------------------------------------------------------- S32


def test_s32_a_fused_normalization_becomes_the_standard_operator(out: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), FusedLayerNorm(4))

    def plain(fused: nn.Module) -> nn.Module:
        norm = nn.LayerNorm(fused.normalized_shape, eps=fused.eps)
        norm.load_state_dict(fused.state_dict())
        return norm

    exported(model.eval(), out, torch.randn(2, 4), replacements={"FusedLayerNorm": plain})
    assert operators(out)["LayerNormalization"] == 1
    x = torch.randn(2, 4)
    fused = model[1]
    want = nn.functional.layer_norm(model[0](x), [4], fused.weight, fused.bias, fused.eps)
    assert_close(run_onnx(out, input=x), want)


# ---------------------------------------------------------------- S33


def test_s33_subnets_and_the_wires_between_them(tmp_path: Path) -> None:
    model = Listener().eval()
    pipeline = fxexport.compile(model, tmp_path / "m.onnx")
    assert isinstance(pipeline, Pipeline)
    spec = json.loads((tmp_path / "pipeline.json").read_text())
    assert [part["name"] for part in spec["parts"]] == ["encoder", "decoder"]
    wires = {(str(wire.source), str(wire.target)) for wire in pipeline.spec.wires}
    assert wires == {("encoder.encoded", "decoder.frame")}
    states = {(str(state.input), str(state.output)) for state in pipeline.spec.states}
    assert states == {("decoder.state", "decoder.next_state")}
    assert set(pipeline.graph.nodes) >= {"encoder", "decoder"}


def test_s33_the_pipeline_gives_the_numbers_of_eager_step_by_step(tmp_path: Path) -> None:
    model = Listener().eval()
    fxexport.compile(model, tmp_path / "m.onnx")
    pipeline, audio = Pipeline.load(tmp_path / "pipeline.json"), torch.randn(3, 8, 6)
    encoded = pipeline.run("encoder", audio=audio.numpy())["encoded"]
    state, logits = torch.zeros(3, 5).numpy(), []
    for t in range(encoded.shape[2]):
        outputs = pipeline.run("decoder", frame=encoded[:, :, t], state=state)
        state = outputs["next_state"]
        logits.append(torch.from_numpy(outputs["logits"]))
    assert_close(torch.stack(logits, 1), model(audio))


# ---------------------------------------------------------------- S34


class Doubler(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Doubler(), Doubler()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


class Tripler(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 3


def test_s34_modules_are_replaced_by_class_name_on_the_private_copy(out: Path, untouched: Untouched) -> None:
    model, x = Tower().eval(), torch.ones(2)
    with untouched(model), pytest.warns(UserWarning, match="replacements|changed|differ"):
        artifact = exported(model, out, x, replacements={"Doubler": lambda module: Tripler()})
    assert_close(run_onnx(out, x=x), x * 9)
    assert artifact.report is not None
    assert "2 Doubler replaced" in artifact.report.notes
    with pytest.raises(InputError, match=r"Dubler.*close names: Doubler"):
        exported(model, out, x, replacements={"Dubler": lambda module: Tripler()})


def test_s34_a_factory_may_script_a_module_on_the_way_to_torchscript(tmp_path: Path) -> None:
    class Loop(nn.Module):
        """A loop over data, which only TorchScript keeps."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            count = 0
            while bool(x.sum() < 100) and count < 3:
                x, count = x * 2, count + 1
            return x

    class Looping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loop = Loop()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.loop(x) + 1

    model, path = Looping().eval(), tmp_path / "m.pt"
    exported(model, path, torch.ones(3), replacements={"Loop": torch.jit.script})
    for x in (torch.ones(3), torch.full((3,), 9.0), torch.full((3,), 200.0)):  # three, two and no turns
        assert_close(torch.jit.load(path)(x), model(x))
