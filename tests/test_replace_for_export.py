"""S24: ``replace_for_export``, the common replacements of a ``_prepare_for_export`` hook, and what they put in place."""

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

import fxexport
from fxexport.errors import InputError
from fxexport.exportable.input_normalization import KINDS, InputNormalization
from fxexport.exportable.plain_modules import UnsplitLinear
from fxexport.exportable.standard_replacements import replace_for_export


class Fused(nn.Module):
    """What the fused classes have in common: no forward that runs on a CPU."""

    def forward(self, *args: Tensor) -> Tensor:
        raise RuntimeError("a CUDA kernel")


class FusedLayerNorm(Fused):
    def __init__(self, size: int, affine: bool = True) -> None:
        super().__init__()
        self.normalized_shape, self.eps, self.elementwise_affine = torch.Size([size]), 1e-3, affine
        self.weight = nn.Parameter(torch.rand(size)) if affine else None
        self.bias = nn.Parameter(torch.rand(size)) if affine else None


class MixedFusedLayerNorm(FusedLayerNorm):
    """Megatron's form: the weight is kept less one."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.zero_centered_gamma = True


class FastLayerNorm(Fused):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.epsilon = 1e-2
        self.weight, self.bias = nn.Parameter(torch.rand(size)), nn.Parameter(torch.rand(size))


class MixedFusedRMSNorm(Fused):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.normalized_shape, self.eps, self.elementwise_affine = (size,), 1e-4, True
        self.weight = nn.Parameter(torch.rand(size))


class LigerRMSNorm(Fused):
    """Gemma's: what is kept is the weight less ``offset``."""

    def __init__(self, size: int, offset: float) -> None:
        super().__init__()
        self.variance_epsilon, self.offset, self.casting_mode = 1e-3, offset, "gemma"
        self.weight = nn.Parameter(torch.rand(size))


class FusedScaleMaskSoftmax(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scaled_masked_softmax_fusion, self.scale = True, 0.5

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        if self.scaled_masked_softmax_fusion:
            raise RuntimeError("a CUDA kernel")
        return self.forward_torch_softmax(x, mask)

    def forward_torch_softmax(self, x: Tensor, mask: Tensor) -> Tensor:
        return torch.softmax((x * self.scale).masked_fill(mask, -10000.0), -1)


class RowParallelLinear(Fused):
    def __init__(self, rows: int, columns: int, skip: bool) -> None:
        super().__init__()
        self.input_size, self.output_size, self.skip_bias_add = columns, rows, skip
        self.weight, self.bias = nn.Parameter(torch.rand(rows, columns)), nn.Parameter(torch.rand(rows))


class Megatron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(FusedLayerNorm(4), MixedFusedLayerNorm(4), FastLayerNorm(4), MixedFusedRMSNorm(4))
        self.again = self.inner[0]
        self.plain, self.softmax = FusedLayerNorm(4, affine=False), FusedScaleMaskSoftmax()
        self.row = RowParallelLinear(4, 4, skip=True)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y, bias = self.row(self.plain(self.again(self.inner(x))))
        return self.softmax(y + bias, mask)


def by_hand(model: Megatron, x: Tensor, mask: Tensor) -> Tensor:
    def layer(x: Tensor, weight: Any, bias: Any, eps: float) -> Tensor:
        y = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + eps).sqrt()
        return y if weight is None else y * weight + bias

    a, b, c, d = model.inner
    x = layer(x, a.weight, a.bias, 1e-3)
    x = layer(x, b.weight + 1, b.bias, 1e-3)
    x = layer(x, c.weight, c.bias, 1e-2)
    x = x / (x.square().mean(-1, keepdim=True) + 1e-4).sqrt() * d.weight
    x = layer(layer(x, a.weight, a.bias, 1e-3), None, None, 1e-3)
    return model.softmax.forward_torch_softmax(x @ model.row.weight.T + model.row.bias, mask)


def test_S24_fused_modules_become_plain_ones_with_the_same_parameters(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x, mask = Megatron().eval(), torch.randn(3, 4), torch.rand(3, 4) > 0.7
    expected = by_hand(model, x, mask)
    shared, first_weight = model.inner[0], model.inner[0].weight
    changes = replace_for_export(model)
    torch.testing.assert_close(model(x, mask), expected)
    assert model.inner[0] is model.again is not shared
    assert model.again.weight is first_weight
    assert [type(each) for each in model.inner] == [nn.LayerNorm, nn.LayerNorm, nn.LayerNorm, nn.RMSNorm]
    assert isinstance(model.row, UnsplitLinear)
    assert not any(module.training for module in model.modules())
    assert sorted(changes) == sorted(
        [
            "again: FusedLayerNorm -> LayerNorm",
            "inner.0: FusedLayerNorm -> LayerNorm",
            "inner.1: MixedFusedLayerNorm -> LayerNorm",
            "inner.2: FastLayerNorm -> LayerNorm",
            "inner.3: MixedFusedRMSNorm -> RMSNorm",
            "plain: FusedLayerNorm -> LayerNorm",
            "row: RowParallelLinear -> UnsplitLinear",
            "softmax: FusedScaleMaskSoftmax without fusion",
        ]
    )
    assert replace_for_export(model) == ["softmax: FusedScaleMaskSoftmax without fusion"]
    program = fxexport.capture(model, (x, mask))
    fxexport.lower(program, tmp_path / "m.onnx", opset_version=23)
    operators = [node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node]
    assert operators.count("LayerNormalization") == 5
    assert operators.count("RMSNormalization") == 1


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_the_offset_of_a_weight_is_added(offset: float) -> None:
    model, x = nn.Sequential(LigerRMSNorm(4, offset)), torch.randn(3, 4)
    weight = model[0].weight
    replace_for_export(model)
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt() * (weight + offset)
    torch.testing.assert_close(model(x), expected)
    assert (model[0].weight is weight) == (offset == 0.0)


def test_a_model_without_any_of_it_is_left_as_it_is() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    before = list(model.modules())
    assert replace_for_export(model) == []
    assert list(model.modules()) == before


def test_a_missing_attribute_is_told_with_place_and_way_out() -> None:
    model = nn.Sequential(nn.Identity(), FastLayerNorm(4))
    del model[1].epsilon
    with pytest.raises(InputError, match=r"1: .*FastLayerNorm cannot .* no attribute eps or epsilon.*replacements="):
        replace_for_export(model)


def test_a_softmax_without_a_plain_way_is_refused() -> None:
    model = nn.ModuleDict({"attention": FusedScaleMaskSoftmax()})
    del model["attention"].scaled_masked_softmax_fusion
    with pytest.raises(InputError, match=r"attention: .*scaled_masked_softmax_fusion"):
        replace_for_export(model)


def test_a_split_linear_layer_is_refused() -> None:
    model = nn.Sequential(RowParallelLinear(4, 4, skip=False))
    model[0].input_size = 8
    with pytest.raises(InputError, match=r"holds 4 of 8 .*input_size.*tensor parallel size of 1"):
        replace_for_export(model)


def test_the_model_itself_cannot_be_replaced_in_place() -> None:
    with pytest.raises(InputError, match="the model itself is a FusedLayerNorm"):
        replace_for_export(FusedLayerNorm(4))


# -------------------------------------------------------------------- masks


class MaskedConv1d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.use_mask = nn.Conv1d(1, 1, 1), True


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.use_mask = True


def test_S24_masks_are_disabled_only_when_asked_and_only_on_convolutions() -> None:
    model = nn.Sequential(MaskedConv1d(), Attention())
    assert replace_for_export(model) == []
    assert model[0].use_mask
    assert replace_for_export(model, disable_masks=True) == ["0: MaskedConv1d.use_mask = False"]
    assert model[0].use_mask is False
    assert model[1].use_mask is True
    with pytest.raises(InputError, match="no masked convolution"):
        replace_for_export(nn.Sequential(Attention()), disable_masks=True)


# -------------------------------------------------------------------- normalization of the input


class MinMaxNormalization(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x - x.amin()) / (x.amax() - x.amin())


class L2Normalization(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(x)


class Net(nn.Module):
    def __init__(self, first: nn.Module) -> None:
        super().__init__()
        self.first, self.linear, self.last = first, nn.Linear(4, 4), L2Normalization()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.linear(self.first(x)))


def reference(x: np.ndarray, kind: str) -> np.ndarray:
    """ATOMMIC 1.0.1, collections/common/parts/utils.py: normalize_inplace."""
    a = np.abs(x)
    if kind == "max":
        return x / a.max()
    if kind == "minmax":
        return (x - a.min()) / (a.max() - a.min())
    if kind in ("mean_std", "mean_var"):
        x = x - a.mean()
        return x / (np.abs(x).std(ddof=1) if kind == "mean_std" else np.abs(x).var(ddof=1))
    if kind == "grayscale":
        x = x - a.min()
        return x / np.abs(x).max() * 255.0
    return x


@pytest.mark.parametrize("kind", KINDS)
def test_S24_normalization_of_the_kind_asked(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model, x = Net(MinMaxNormalization()).eval(), torch.randn(3, 4) * 5
    assert replace_for_export(model, kind) == ["first: MinMaxNormalization -> InputNormalization"]
    assert isinstance(model.last, L2Normalization)
    np.testing.assert_allclose(model.first(x).numpy(), reference(x.double().numpy(), kind), rtol=1e-4, atol=1e-5)
    path = tmp_path / "m.onnx"
    fxexport.lower(fxexport.capture(InputNormalization(kind), (x,)), path)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    [got] = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(got, reference(x.numpy(), kind), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_complex_pairs_are_normalized_as_complex_numbers(kind: str) -> None:
    torch.manual_seed(2)
    x = torch.randn(3, 4, dtype=torch.complex128)
    got = torch.view_as_complex(InputNormalization(kind, complex_pairs=True)(torch.view_as_real(x)))
    np.testing.assert_allclose(got.numpy(), reference(x.numpy(), kind), rtol=1e-10)


class Scaled(nn.Module):
    """Chooses by a plain attribute, as ATOMMIC's models do."""

    def __init__(self) -> None:
        super().__init__()
        self.normalization_type: str | None = "max"
        self.linear = nn.Linear(2, 2)


def test_a_plain_attribute_is_set() -> None:
    model = nn.Sequential(Scaled(), InputNormalization("max"))
    changes = replace_for_export(model, normalization_type="grayscale")
    assert changes == ["0: normalization_type = 'grayscale'", "1: normalization_type = 'grayscale'"]
    assert model[0].normalization_type == model[1].normalization_type == "grayscale"
    assert math.isclose(float(model[1](torch.tensor([1.0, -3.0, 5.0])).abs().max()), 255.0)


def test_nothing_to_normalize_says_what_was_looked_for() -> None:
    with pytest.raises(
        InputError, match=r"looked for an attribute 'normalization_type'.*without parameters whose class"
    ):
        replace_for_export(nn.Sequential(nn.Linear(2, 2), L2Normalization()), "minmax")
    with pytest.raises(InputError, match="'zscore' is unknown; give one of minmax, max"):
        replace_for_export(Net(MinMaxNormalization()), "zscore")


# -------------------------------------------------------------------- as a hook calls it


def test_the_options_of_export_may_be_passed_on() -> None:
    model = nn.Sequential(FusedLayerNorm(4))
    twin = copy.deepcopy(model)
    options = {"verbose": False, "do_constant_folding": True, "check_trace": False, "onnx_opset_version": 17}
    assert replace_for_export(twin, **options, noreplace=True) == []
    assert isinstance(twin[0], FusedLayerNorm)
    assert replace_for_export(model, **options) == ["0: FusedLayerNorm -> LayerNorm"]
    with pytest.raises(InputError, match="does not know disable_mask;"):
        replace_for_export(model, disable_mask=True)
