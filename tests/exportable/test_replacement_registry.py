"""Replacements by class that are registered once: ``replacements="default"``, and ``replace_for_export``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxexport
from fxexport.errors import InputError
from fxexport.exportable import replacement_registry


class FastGelu(nn.Module):
    """A fused kernel that no CPU has."""

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("a CUDA kernel")


class FusedLayerNorm(FastGelu):
    def __init__(self) -> None:
        super().__init__()
        self.normalized_shape, self.eps, self.elementwise_affine = (4,), 1e-3, False


class FusedScaleMaskSoftmax(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scaled_masked_softmax_fusion = True

    def forward(self, x: Tensor) -> Tensor:
        if self.scaled_masked_softmax_fusion:
            raise RuntimeError("a CUDA kernel")
        return self.forward_torch_softmax(x)

    def forward_torch_softmax(self, x: Tensor) -> Tensor:
        return x.softmax(-1)


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replacement_registry, "_REGISTERED", {})


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), FastGelu(), FusedLayerNorm(), FusedScaleMaskSoftmax()).eval()


def expected(net: nn.Module, x: Tensor) -> Tensor:
    gelu = nn.functional.gelu(net[0](x), approximate="tanh")
    return nn.functional.layer_norm(gelu, (4,), eps=1e-3).softmax(-1).detach()


@pytest.mark.parametrize(
    "replacements", ["default", {name: "default" for name in ("FastGelu", "FusedLayerNorm")}], ids=["all", "named"]
)
def test_registered_and_standard_ones_are_used(replacements: object, tmp_path: Path) -> None:
    fxexport.register_replacement("FastGelu", lambda module: nn.GELU("tanh"))
    net, x = model(), torch.randn(3, 4)
    if isinstance(replacements, dict):
        net[3].scaled_masked_softmax_fusion = False
    artifact = fxexport.compile(net, tmp_path / "m.onnx", (x,), replacements=replacements)  # type: ignore[arg-type]
    torch.testing.assert_close(torch.as_tensor(artifact(x)), expected(net, x), rtol=1e-4, atol=1e-5)
    assert artifact.report is not None
    assert {"1 FastGelu replaced", "1 FusedLayerNorm replaced"} <= set(artifact.report.notes)
    assert isinstance(net[1], FastGelu)
    assert fxexport.verification.verify(artifact.path, net, (x,), replacements=replacements).passed  # type: ignore[arg-type]


def test_replace_for_export_uses_them_and_the_last_registration_counts() -> None:
    fxexport.register_replacement("FastGelu", lambda module: nn.ReLU())
    fxexport.register_replacement(f"{__name__}.FastGelu", lambda module: nn.GELU("tanh"))
    fxexport.register_replacement("FastGelu", lambda module: nn.GELU("tanh"))
    fxexport.register_replacement("FusedLayerNorm", lambda module: nn.LayerNorm(4, eps=1e-3))
    net, x = model(), torch.randn(3, 4)
    assert "1: FastGelu -> GELU" in fxexport.replace_for_export(net)
    torch.testing.assert_close(net(x).detach(), expected(net, x))


def test_what_is_not_registered_is_told() -> None:
    net = model()
    for wrong, message in (
        ("standard", "replacements is 'standard'; give 'default'"),
        ({"FastGelu": "default"}, "no replacement is registered for that class; registered are .*FusedLayerNorm"),
        ({"FastGelu": "plain"}, "is 'plain'; give 'default'"),
    ):
        with pytest.raises(InputError, match=message):
            replacement_registry.chosen_replacements(net, wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="must be a function module -> module"):
        fxexport.register_replacement("FastGelu", "GELU")  # type: ignore[arg-type]
