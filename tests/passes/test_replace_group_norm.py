"""Normalization of reshaped channels becomes group normalization."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
import torch.nn.functional as F
from norm_spellings import normalized
from torch import Tensor, nn

import fxexport
from fxexport.passes import ReplaceGroupNorm, ReplaceInstanceNorm, ReplaceLayerNorm
from fxexport.testing import assert_rewrites, assert_unchanged

IMAGE = torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(1))
AXES = {"x": ["batch", None, "height", "width"]}
FIRST = (ReplaceInstanceNorm(), ReplaceLayerNorm())


def groups_flat(x: Tensor) -> Tensor:
    return normalized(x.view(x.shape[0], 2, -1), -1).view(x.shape)


def groups_apart(x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    return normalized(x.reshape(batch, 2, channels // 2, height, width), (2, 3, 4)).reshape(x.shape)


def groups_with_batch(x: Tensor) -> Tensor:
    return normalized(x.reshape(x.shape[0] * 2, -1), -1).view_as(x)


def by_instance_norm(x: Tensor) -> Tensor:
    return F.instance_norm(x.view(x.shape[0], 2, -1)).view(x.shape)


@pytest.mark.parametrize("model", [groups_flat, groups_apart, groups_with_batch, by_instance_norm])
def test_of_two_groups(model) -> None:
    assert_rewrites(ReplaceGroupNorm(), model, lambda x: F.group_norm(x, 2), (IMAGE,), first=FIRST)


@pytest.mark.parametrize("model", [groups_flat, groups_apart, by_instance_norm])
def test_at_dynamic_sizes(model) -> None:
    assert_rewrites(ReplaceGroupNorm(), model, lambda x: F.group_norm(x, 2), (IMAGE,), first=FIRST, dynamic=AXES)


def test_a_group_for_each_channel() -> None:
    model = lambda x: normalized(x.flatten(2), -1).view(x.shape)  # noqa: E731
    assert_rewrites(ReplaceGroupNorm(), model, lambda x: F.instance_norm(x), (IMAGE,), first=FIRST)


def reshaped_otherwise(x: Tensor) -> Tensor:
    return normalized(x.reshape(2, 2, 60), -1).reshape(2, 2, 10, 6)


def with_weights(x: Tensor) -> Tensor:
    return F.layer_norm(x.reshape(2, 2, 60), [60], torch.arange(60.0)).reshape(x.shape)


def read_twice(x: Tensor) -> Tensor:
    y = normalized(x.reshape(2, 2, 60), -1)
    return y.reshape(x.shape) + y.sum()


STAYS = {
    "another shape": (reshaped_otherwise, ""),
    "weights": (with_weights, "weights"),
    "read elsewhere": (read_twice, "is read elsewhere"),
    "rows of groups": (lambda x: normalized(x.reshape(2, 4, 5, 6).reshape(8, 5, 6), -1).reshape(x.shape), ""),
    "no divisor": (lambda x: normalized(x.reshape(2, 8, 15), -1).reshape(x.shape), ""),
}


@pytest.mark.parametrize("name", STAYS)
def test_what_is_no_group_norm_stays(name: str) -> None:
    model, reason = STAYS[name]
    assert_unchanged(ReplaceGroupNorm(), model, (IMAGE,), first=FIRST, reason=reason)


class Groups(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(1, 4, 1, 1)), nn.Parameter(torch.rand(1, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return groups_apart(x) * self.weight + self.bias


@pytest.mark.parametrize("opset", [20, 23])
def test_in_a_file(opset: int, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    fxexport.compile(Groups().eval(), path, (IMAGE,), dynamic=AXES, opset_version=opset)
    operators = [node.op_type for node in onnx.load(path).graph.node]
    assert operators == ["Reshape", "InstanceNormalization", "Shape", "Reshape", "BatchNormalization"]
