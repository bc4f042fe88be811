"""The table of ATOMMIC models: a file that is wrong anywhere is told from a right one. Needs no ATOMMIC."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import atommic_export
    import atommic_models

    return atommic_export, atommic_models


def double_them(*args: Tensor) -> list[Tensor]:
    return [2 * args[0], torch.view_as_complex(args[3]).conj()]


def entry(models: Any, **changes: Any) -> Any:
    return models.AtommicModel("double", "", {}, models.inputs.from_image, **changes)


def test_a_right_file_has_no_error_anywhere(benchmark: tuple[Any, Any]) -> None:
    export, models = benchmark
    errors = export._errors(entry(models), double_them, double_them, False)
    assert errors == {"fresh values": 0.0, "batch 3": 0.0, "batch 1": 0.0}


def test_complex_outputs_may_come_as_pairs(benchmark: tuple[Any, Any]) -> None:
    export, models = benchmark

    def pairs(*args: Tensor) -> list[Tensor]:
        doubled, conjugate = double_them(*args)
        return [doubled, torch.view_as_real(conjugate.resolve_conj())]

    assert export._errors(entry(models), double_them, pairs, True) == {"fresh values": 0.0}


def test_what_is_right_at_one_batch_only_shows(benchmark: tuple[Any, Any]) -> None:
    export, models = benchmark

    def frozen(*args: Tensor) -> list[Tensor]:
        doubled, conjugate = double_them(*args)
        return [doubled, conjugate * (1.0 if len(args[0]) == 2 else 1.001)]

    errors = export._errors(entry(models), double_them, frozen, False)
    assert errors["fresh values"] == 0.0
    assert errors["batch 3"] > export.TOLERANCE < errors["batch 1"]


def test_an_output_that_was_never_set_is_not_compared(benchmark: tuple[Any, Any]) -> None:
    export, models = benchmark

    def other(*args: Tensor) -> list[Tensor]:
        return [torch.randn(1), double_them(*args)[1]]

    with pytest.raises(AssertionError, match="has shape"):
        export._errors(entry(models), double_them, other, True)
    assert export._errors(entry(models, unset=(0,)), double_them, other, True) == {"fresh values": 0.0}


def test_the_table_counts_what_is_right(benchmark: tuple[Any, Any]) -> None:
    export, _ = benchmark
    runs = {
        ("unet", "onnx"): {"outcome": "right", "error": 2e-7, "seconds": 3.2, "fixed": False, "decisions": ["if x"]},
        ("modl", "onnx"): {"outcome": "failed", "seconds": 1.0, "reason": "no"},
        ("modl", "torchscript"): {"outcome": "wrong", "seconds": 1.0, "fixed": True},
    }
    page = io.StringIO()
    Console(width=120, file=page).print(export.table(runs, ["unet", "modl"], ["onnx", "torchscript"]))
    text = page.getvalue()
    assert "2e-07  3 s" in text
    assert "if x" in text
    assert "1 of 2" in text
    assert "0 of 2" in text


def test_every_family_has_inputs_with_a_batch(benchmark: tuple[Any, Any]) -> None:
    _, models = benchmark
    for model in models.MODELS.values():
        few, many = model.example(1), model.example(3)
        for one, three, axis in zip(few, many, model.batch_axes(), strict=True):
            assert axis is None or (one.shape[axis], three.shape[axis]) == (1, 3), model.name
            assert axis is not None or one.shape == three.shape, model.name
