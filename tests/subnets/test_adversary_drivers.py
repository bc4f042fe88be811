"""Drivers and parts that nobody designed for."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxexport
from fxexport.errors import InputError


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.Linear(10, 4), nn.Linear(4, 5)

    def forward(self, f: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = torch.tanh(self.cell(torch.cat([f, torch.nan_to_num(h)], -1)))
        return self.out(h), h


class Model(nn.Module):
    def __init__(self, decoder: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enc, self.dec = Encoder(), decoder or Decoder()

    def list_export_subnets(self) -> list[str]:
        return ["enc", "dec"]


def loop(model: Any, x: torch.Tensor, fill: float = 0.0) -> torch.Tensor:
    encoded, h = model.enc(x), torch.full((x.size(0), 4), fill, dtype=x.dtype)
    for t in range(3):
        y, h = model.dec(encoded[:, t], h)
    return y


def export(path: Path, driver: Callable[..., Any] = loop, model: nn.Module | None = None, x: Any = None) -> Any:
    example = torch.randn(3, 5, 4) if x is None else x
    return fxexport.compile((model or Model()).eval(), path, example, driver=driver)


def test_random_numbers_written_into_a_fresh_tensor(tmp_path: Path) -> None:
    def noisy(model: Any, x: torch.Tensor) -> torch.Tensor:
        encoded, h = model.enc(x), torch.zeros(x.size(0), 4)
        for t in range(3):
            y, h = model.dec(encoded[:, t] + torch.empty(x.size(0), 6).uniform_(), h)
        return y

    pipeline = export(tmp_path / "m.onnx", noisy)
    assert pipeline.report.check.passed
    assert len(pipeline.report.check.points) > 4


@pytest.mark.parametrize("suffix", ["pt", "pt2"])
def test_bfloat16_parts_are_checked_together(tmp_path: Path, suffix: str) -> None:
    pipeline = export(tmp_path / f"m.{suffix}", model=Model().bfloat16(), x=torch.randn(3, 5, 4).bfloat16())
    assert pipeline.report.check.passed
    assert {port.dtype for part in pipeline.spec.parts for port in part.outputs} == {"bfloat16"}


def test_a_state_that_begins_as_nan_is_a_state(tmp_path: Path) -> None:
    export(tmp_path / "m.onnx", lambda model, x: loop(model, x, float("nan")))
    (state,) = fxexport.Pipeline.load(tmp_path).spec.states
    fill = state.initial.fill
    assert isinstance(fill, float)
    assert fill != fill


def test_a_complex_state_begins_as_zero_and_any_other_value_is_an_input(tmp_path: Path) -> None:
    class Rotate(nn.Module):
        def forward(self, f: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            z = h + torch.view_as_complex(f[:, :2])
            return z.abs(), z

    def turning(first: complex) -> Callable[..., Any]:
        def run(model: Any, x: torch.Tensor) -> torch.Tensor:
            encoded, h = model.enc(x), torch.full((x.size(0),), first, dtype=torch.complex64)
            for t in range(3):
                y, h = model.dec(encoded[:, t], h)
            return y

        return run

    (state,) = export(tmp_path / "m.pt", turning(0), Model(Rotate())).spec.states
    assert state.initial.fill == 0
    assert state.initial.dtype == "complex64"
    assert not export(tmp_path / "m.pt", turning(1j), Model(Rotate())).spec.states
    assert fxexport.Pipeline.load(tmp_path).spec.states == ()


def test_the_order_of_a_dict_of_states_may_change_between_calls(tmp_path: Path) -> None:
    class Pair(nn.Module):
        def forward(self, f: torch.Tensor, st: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            return st["a"] - 2 * st["b"], {"b": st["b"] + 1, "a": st["a"] + f}

    def run(model: Any, x: torch.Tensor) -> torch.Tensor:
        encoded, st = model.enc(x), {"a": torch.zeros(x.size(0), 6), "b": torch.ones(x.size(0), 6)}
        for t in range(4):
            y, st = model.dec(encoded[:, t], st)
        return y

    pipeline = export(tmp_path / "m.onnx", run, Model(Pair()))
    wired = {state.input.name: state.output.name for state in pipeline.spec.states}
    assert wired == {"st_a": "output_1_a", "st_b": "output_1_b"}


def test_a_driver_may_copy_the_model(tmp_path: Path) -> None:
    def copying(model: Any, x: torch.Tensor) -> torch.Tensor:
        copy.deepcopy(model)
        return loop(model, x)

    assert export(tmp_path / "m.onnx", copying).report.check.passed
    with pytest.raises(InputError, match="called none of enc, dec"):
        export(tmp_path / "m.onnx", lambda model, x: loop(copy.deepcopy(model), x))


def test_another_export_that_came_in_between_is_not_overwritten(tmp_path: Path) -> None:
    """As when two processes export to one directory: the other is done before this one gets the lock."""

    def meanwhile(model: Any, x: torch.Tensor) -> torch.Tensor:
        (tmp_path / "pipeline.json").write_text(json.dumps({"name": "other.onnx"}))
        return loop(model, x)

    with pytest.raises(InputError, match=r"describes the pipeline of other\.onnx"):
        export(tmp_path / "m.onnx", meanwhile)
    assert os.listdir(tmp_path) == ["pipeline.json"]


def test_a_random_part_does_not_excuse_others_whose_outputs_have_the_same_name(tmp_path: Path) -> None:
    """The encoder is random, the decoder is not: what eager drew flows on, and the decoder is compared with eager."""

    class Noisy(Encoder):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x) + torch.rand(6)

    class Plain(nn.Module):
        factor = 2.0

        def forward(self, f: torch.Tensor) -> torch.Tensor:
            return f * self.factor

    model = Model(Plain())
    model.enc = Noisy()
    model.eval()

    def run(model: Any, x: torch.Tensor) -> torch.Tensor:
        return model.dec(model.enc(x))

    x = torch.randn(3, 5, 4)
    pipeline = fxexport.compile(model, tmp_path / "m.onnx", x, driver=run, allow_random=True)
    assert pipeline.report.check.passed

    def lying(model: Any, x: torch.Tensor) -> torch.Tensor:
        model.dec.factor = 3.0  # not what is exported
        return run(model, x)

    with pytest.raises(fxexport.ValidationError, match="call 1 of dec: 'output'"):
        fxexport.compile(model, tmp_path / "m.onnx", x, driver=lying, allow_random=True)
