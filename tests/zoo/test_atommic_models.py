"""Whole models of ATOMMIC to files that are right at new values and other batch sizes: ``make test-zoo``."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

import fxexport

if find_spec("atommic") is None:
    pytest.skip("ATOMMIC is not installed; `make test-zoo` runs these tests", allow_module_level=True)

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CHOSEN = (
    "zf-sense", "cascadenet", "rim-mgu", "dunet-didn-gd", "jointicnet", "lpdnet-mwcnn-conv", "modl-cg", "unet",
    "varnet", "vsnet-conv", "qzf-joint", "qvarnet", "seg-lambda-unet-1", "seg-vnet-elu", "seg-unetr", "idslr",
    "recsegunet",
)  # fmt: skip
"""One model for each thing that its family needs from an exporter; all of them are in benchmarks/atommic_export.py."""


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from atommic_models import MODELS

    return MODELS


@pytest.mark.parametrize("suffix", [".onnx", ".pt"])
@pytest.mark.parametrize("name", CHOSEN)
def test_atommic_model(name: str, suffix: str, models: dict[str, Any], tmp_path: Path) -> None:
    entry = models[name]
    model, batches = entry.build(), (entry.only,) if entry.only else (2, 3, 1)
    shapes = None if entry.only else tuple(None if axis is None else {axis: "batch"} for axis in entry.batch_axes())
    artifact = fxexport.compile(model, tmp_path / f"model{suffix}", entry.example(), dynamic_shapes=shapes)
    for batch in batches:
        args = entry.example(batch, seed=7)
        agree(model(*(arg.clone() for arg in args)), artifact(*args), entry.unset)


def test_the_zoo_is_wide(models: dict[str, Any]) -> None:
    assert len(models) >= 50
    assert len({entry.path for entry in models.values()}) >= 28
    assert set(CHOSEN) <= set(models)


def agree(wanted: Any, given: Any, unset: tuple[int, ...]) -> None:
    """The same nesting and, up to rounding, the same numbers, but for outputs that were never set."""
    assert nesting(given) == nesting(wanted)
    pairs = zip(pytree.tree_leaves(wanted), pytree.tree_leaves(given), strict=True)
    for position, (want, have) in enumerate(pairs):
        if position not in unset:
            assert want.shape == have.shape
            scale = float(want.abs().max()) + 1e-6
            torch.testing.assert_close(have, want, rtol=0.0, atol=1e-4 * scale, equal_nan=True)


def nesting(value: Any) -> Any:
    """How ``value`` nests, without its leaves; an artifact returns lists as tuples."""
    if isinstance(value, dict):
        return {key: nesting(child) for key, child in value.items()}
    return tuple(map(nesting, value)) if isinstance(value, list | tuple) else None
