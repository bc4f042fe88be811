"""The whole road on real architectures: every model, every format, with what may change left dynamic."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn
from zoo import BATCH, LENGTH, ZOO, Zoo

import fxexport

FORMATS = (".onnx", ".pt", ".pt2")
NEW_BATCH, NEW_LENGTH = 6, 10


@functools.cache
def model_of(name: str) -> nn.Module:
    """One instance for all tests, which must leave it as it is."""
    return ZOO[name].build()


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("name", ZOO)
def test_real_model(name: str, suffix: str, tmp_path: Path) -> None:
    entry, model = ZOO[name], model_of(name)
    before, random = snapshot(model), torch.get_rng_state()
    path = tmp_path / f"{name}{suffix}"
    artifact = fxexport.compile(model, path, kwargs=entry.example(), dynamic=entry.dynamic)
    assert_untouched(model, before)
    assert torch.equal(torch.get_rng_state(), random), "the random generator moved"
    assert set(entry.outputs) <= {spec.name for spec in artifact.outputs}
    assert_dynamic(artifact, entry)
    assert_points(artifact, entry)
    assert_simplified(artifact, model)
    assert_right_elsewhere(artifact, entry, model)


def test_the_zoo_is_wide() -> None:
    assert len(ZOO) >= 10
    assert len({entry.kind for entry in ZOO.values()}) >= 8
    assert sum(entry.length for entry in ZOO.values()) >= 5


def test_loaded_again_it_is_the_same(tmp_path: Path) -> None:
    entry, model = ZOO["bert"], model_of("bert")
    path = tmp_path / "bert.onnx"
    artifact = fxexport.compile(model, path, kwargs=entry.example(), dynamic=entry.dynamic)
    again, inputs = fxexport.Artifact.load(path), entry.example(NEW_BATCH, NEW_LENGTH, seed=3)
    assert again.inputs == artifact.inputs
    assert again.outputs == artifact.outputs
    for name, value in artifact(**inputs).items():
        assert torch.equal(again(**inputs)[name], value)


# ---------------------------------------------------------------- what is checked


def snapshot(model: nn.Module) -> dict[str, tuple[Any, Tensor, bool]]:
    """Every parameter and buffer: the object, a copy of its values, whether it wants a gradient."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: (tensor, tensor.detach().clone(), tensor.requires_grad) for name, tensor in tensors.items()}


def assert_untouched(model: nn.Module, before: dict[str, tuple[Any, Tensor, bool]]) -> None:
    after = snapshot(model)
    assert list(after) == list(before)
    for name, (tensor, values, gradient) in before.items():
        assert after[name][0] is tensor, f"{name} is another tensor"
        assert after[name][2] == gradient, f"requires_grad of {name}"
        assert torch.equal(bits(after[name][1]), bits(values)), f"{name} was written to"
    assert not any(module.training for module in model.modules())


def bits(tensor: Tensor) -> Tensor:
    """Its bytes, so that NaN equals itself and -0.0 does not equal 0.0."""
    return tensor.reshape(-1).view(torch.uint8)


def assert_dynamic(artifact: fxexport.Artifact, entry: Zoo) -> None:
    """The axes of the inputs are the ones asked for; every output depends on the batch."""
    for spec in artifact.inputs:
        asked = dict(enumerate(entry.dynamic.get(spec.name, ())))
        assert spec.dynamic_axes == {i: axis for i, axis in asked.items() if axis}
    assert all(any("batch" in axis for axis in spec.dynamic_axes.values()) for spec in artifact.outputs)


def assert_points(artifact: fxexport.Artifact, entry: Zoo) -> None:
    """Validation compared every output at other sizes of each dimension."""
    assert artifact.report is not None
    validation = artifact.report.validation
    assert validation is not None
    assert validation.passed
    compared = [point for point in validation.points if len(point.outputs) == len(artifact.outputs)]
    names = {axis for axes in entry.dynamic.values() for axis in axes if axis}
    for name in names:
        assert len({point.sizes[name] for point in compared}) >= 3, f"{name} was tried at too few sizes"
    assert {1, BATCH} < {point.sizes["batch"] for point in compared}
    assert NEW_BATCH not in {point.sizes["batch"] for point in validation.points}


def assert_simplified(artifact: fxexport.Artifact, model: nn.Module) -> None:
    """No dropout is left, and no batch normalization: each is in a layer, or a multiply and an add."""
    assert artifact.report is not None
    counts = {record.name: record.count for record in artifact.report.passes}
    norms = sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    assert counts["fold-batchnorm"] == norms
    left = {name.lower().replace("_", "") for name in operators(artifact)}
    assert not {name for name in left if "dropout" in name}
    if norms:  # else it is how the affine part of a group normalization is written in ONNX
        assert not {name for name in left if "batchnorm" in name}


def operators(artifact: fxexport.Artifact) -> set[str]:
    """The operators that the file itself contains."""
    if artifact.format == "onnx":
        graph = onnx.load(artifact.path).graph
        return {node.op_type for node in graph.node}
    if artifact.format == "torchscript":
        graph = torch.jit.load(artifact.path).inlined_graph  # type: ignore[no-untyped-call]
        return {node.kind() for node in graph.nodes()}
    nodes = torch.export.load(artifact.path).graph.nodes
    return {str(node.target) for node in nodes if node.op == "call_function"}


def assert_right_elsewhere(artifact: fxexport.Artifact, entry: Zoo, model: nn.Module) -> None:
    """At sizes and values that validation has not seen, called as the model is called."""
    inputs = entry.example(NEW_BATCH, NEW_LENGTH if entry.length else LENGTH, seed=7)
    with torch.no_grad():
        expected = model(**inputs)
    assert_same(artifact(**inputs), expected, "output")


def assert_same(got: Any, expected: Any, place: str) -> None:
    """Equal nesting, shapes and dtypes; values within 1e-4 of the output's scale."""
    if isinstance(expected, Mapping):
        assert set(got) == set(expected), place
        for key, value in expected.items():
            assert_same(got[key], value, f"{place}.{key}")
    elif isinstance(expected, tuple):
        assert len(got) == len(expected), place
        for index, value in enumerate(expected):
            assert_same(got[index], value, f"{place}[{index}]")
    else:
        assert got.shape == expected.shape, place
        assert got.dtype == expected.dtype, place
        scale = expected.abs().max().item()
        assert math.isfinite(scale), place
        assert scale > 1e-3, f"{place} is all but zero, which proves nothing"
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * scale, msg=lambda m: f"{place}: {m}")
