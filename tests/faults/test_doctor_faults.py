"""Rows of the fault table that the doctor answers for: it names what the other tools keep silent about."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from conftest import Untouched
from torch import nn

import fxexport
from fxexport import Diagnosis

X = torch.randn(2, 3)
LIBRARY = torch.library.Library("doctor_faults", "DEF")
for _name in ("twice", "thrice"):
    LIBRARY.define(f"{_name}(Tensor x) -> Tensor")
    LIBRARY.impl(_name, lambda x: x * 2, "CPU")
    LIBRARY.impl(_name, torch.empty_like, "Meta")


class Free(nn.Module):
    def __init__(self, forward: Any) -> None:
        super().__init__()
        self.forward = forward


def lines(diagnosis: Diagnosis, kind: str) -> list[str]:
    return [finding.site.source for finding in diagnosis if finding.kind == kind and finding.site]


def test_fault_09_training_mode_is_a_finding_with_the_layers_it_switches_on(untouched: Untouched) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(), nn.BatchNorm1d(3)).train()
    with untouched(model):
        diagnosis = fxexport.doctor(model, X)
    (finding,) = [each for each in diagnosis if each.kind == "training"]
    assert finding.severity == "changes"
    assert finding.modules == ("1", "2")
    assert not fxexport.doctor(model.eval(), X).of("changes")


def test_fault_10_state_is_a_finding_with_its_line(untouched: Untouched) -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen += 1
            return x * self.seen

    model = Counter().eval()
    with untouched(model):
        diagnosis = fxexport.doctor(model, X)
    assert lines(diagnosis, "state") == ["self.seen += 1"]
    assert 'state="explicit"' in diagnosis.of("changes")[0].way_out


def test_fault_11_a_write_into_an_input_is_a_finding_also_through_a_view() -> None:
    def forward(x: torch.Tensor) -> torch.Tensor:
        y = x * 1
        y.add_(1)
        rows = x.unbind(0)
        rows[0].zero_()
        return x + y

    example = X.clone()
    diagnosis = fxexport.doctor(Free(forward).eval(), example)
    assert lines(diagnosis, "input-write") == ["rows[0].zero_()"]
    assert torch.equal(example, X)


def test_fault_16_random_operators_are_named_with_their_lines() -> None:
    def forward(x: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.dropout(x)
        return x + torch.randn_like(x)

    diagnosis = fxexport.doctor(Free(forward).eval(), X)
    assert lines(diagnosis, "random") == ["x = torch.nn.functional.dropout(x)", "return x + torch.randn_like(x)"]
    assert all("allow_random" in each.way_out for each in diagnosis.blockers)


@pytest.mark.parametrize("way", ["doctor", "compile"])
def test_fault_20_every_decision_on_data_is_listed_at_once(way: str, out: Any) -> None:
    def forward(x: torch.Tensor) -> torch.Tensor:
        first = float(x.sum().numpy().tolist())
        second = hash(x.numpy().tobytes())
        return x * first + second

    source, start = inspect.getsourcelines(forward)
    if way == "doctor":
        assert {each.site.line - start for each in fxexport.doctor(Free(forward), X).blockers if each.site} >= {1, 2}
    else:
        with pytest.raises(fxexport.CaptureError) as caught:
            fxexport.compile(Free(forward).eval(), out, X)
        assert f"{__file__}:{start + 1}" in str(caught.value)
        assert f"test_doctor_faults.py:{start + 2}: `{source[2].strip()}`" in str(caught.value)


def test_fault_22_all_operators_without_a_translation_are_named_with_their_lines() -> None:
    def forward(x: torch.Tensor) -> torch.Tensor:
        y = torch.ops.doctor_faults.twice(x)
        return y + torch.ops.doctor_faults.thrice(x)

    diagnosis = fxexport.doctor(Free(forward).eval(), X)
    found = [each.what for each in diagnosis.blockers]
    assert [what.split(".default")[0] for what in found] == ["doctor_faults.twice", "doctor_faults.thrice"]
    assert all("pt2 files hold no operators of other libraries" in what for what in found)
    assert len(lines(diagnosis, "operator")) == 2
