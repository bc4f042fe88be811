"""Instance normalization spelled out becomes one operator, at dynamic sizes too."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from norm_spellings import normalized
from torch import Tensor, nn

import fxexport
from fxexport.passes import ReplaceInstanceNorm
from fxexport.testing import assert_preserves, assert_rewrites, assert_unchanged, programs

aten = torch.ops.aten
IMAGE = torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(1))
AXES = {"x": ["batch", None, "height", "width"]}


@pytest.mark.parametrize("dynamic", [None, AXES], ids=["fixed", "dynamic"])
def test_over_the_image(dynamic) -> None:
    assert_rewrites(
        ReplaceInstanceNorm(), lambda x: normalized(x, (2, 3)), lambda x: F.instance_norm(x), (IMAGE,), dynamic=dynamic
    )


def test_of_a_volume_and_a_signal() -> None:
    volume = torch.randn(2, 3, 2, 4, 3)
    assert_rewrites(
        ReplaceInstanceNorm(), lambda x: normalized(x, (-1, -2, -3)), lambda x: F.instance_norm(x), (volume,)
    )
    signal = {"x": ["batch", None, "time"]}
    assert_rewrites(
        ReplaceInstanceNorm(),
        lambda x: normalized(x, 2),
        lambda x: F.instance_norm(x),
        (torch.randn(2, 3, 7),),
        dynamic=signal,
    )


def test_over_channels_too_at_dynamic_sizes() -> None:
    assert_rewrites(
        ReplaceInstanceNorm(), lambda x: normalized(x, (1, 2, 3)), lambda x: F.group_norm(x, 1), (IMAGE,), dynamic=AXES
    )


def test_the_last_axis_of_three_is_left_to_layer_norm() -> None:
    assert_unchanged(ReplaceInstanceNorm(), lambda x: normalized(x, 2), (torch.randn(2, 3, 7),))


def test_unbiased_variance_stays() -> None:
    def model(x: Tensor) -> Tensor:
        return (x - x.mean((2, 3), keepdim=True)) / torch.sqrt(x.var((2, 3), keepdim=True) + 1e-5)

    assert_unchanged(ReplaceInstanceNorm(), model, (IMAGE,), reason="unbiased")


def test_a_dynamic_number_of_channels_stays() -> None:
    axes = {"x": [None, "channels", None, "width"]}
    assert_unchanged(
        ReplaceInstanceNorm(), lambda x: normalized(x, (2, 3)), (IMAGE,), dynamic=axes, reason="channels is dynamic"
    )


class Style(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(1, 4, 1, 1)), nn.Parameter(torch.rand(1, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return normalized(x, (2, 3)) * self.weight + self.bias


def test_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    fxexport.compile(Style().eval(), path, (IMAGE,), dynamic=AXES)
    assert [node.op_type for node in onnx.load(path).graph.node] == ["InstanceNormalization"]


@settings(max_examples=6, deadline=None, derandomize=True, database=None)
@given(programs())
def test_never_changes_numbers(sample) -> None:
    assert_preserves(ReplaceInstanceNorm(), sample)
