"""The judge: eager runs that start from the same state, leave no trace, and tell what cannot be judged."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import nn

from fxexport.capture import Reference, bind_example
from fxexport.capture.pipeline import capture_model
from fxexport.errors import CaptureError

X = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])


class Free(nn.Module):
    def __init__(self, forward: Any) -> None:
        super().__init__()
        self.forward = forward


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count += 1
        x += self.count * self.weight
        return x


def test_every_run_starts_from_the_same_state() -> None:
    model, example = Counter(), X.clone()
    reference = Reference(model, bind_example(model, example, None))
    for _ in range(2):
        torch.testing.assert_close(reference.run([example])[0], X + 1)
    first, second, _ = reference.run_twice([example])
    torch.testing.assert_close((first[0], second[0]), (X + 1, X + 2))
    assert model.count.item() == 0
    assert torch.equal(example, X)


def test_runs_share_the_parameters_and_not_the_buffers() -> None:
    model = Counter()
    reference = Reference(model, bind_example(model, X, None))
    fresh: Any = reference.fresh().model
    assert fresh.weight is model.weight
    assert fresh.count is not model.count


def test_double_runs_in_float64() -> None:
    model = nn.Linear(3, 2)
    (result,) = Reference(model, bind_example(model, X, None)).run([X], double=True)
    assert result.dtype == torch.float64
    assert model.weight.dtype == torch.float32
    torch.testing.assert_close(result, X.double() @ model.weight.double().T + model.bias.double())


def nan_message(model: nn.Module, example: torch.Tensor = X) -> str:
    with pytest.raises(CaptureError, match=r"eager itself returns NaN in \['output'\]") as caught:
        capture_model(model.eval(), example)
    return str(caught.value)


class Inner(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        masked = x.masked_fill(x > 2, float("-inf")).softmax(-1)  # Inf on purpose, and no NaN
        return masked + torch.log(-x)


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.inner(x[:1]).sum() + x
        return result


def test_nan_birth_names_operator_module_and_line() -> None:
    line = inspect.getsourcelines(Inner.forward)[1] + 2
    assert f"born in aten.log.default of module 'inner' at {__file__}:{line}, whose inputs are finite" in nan_message(
        Outer()
    )


def test_nan_birth_from_an_overflow_names_both() -> None:
    message = nan_message(Free(lambda x: torch.exp(x * 1000) - torch.exp(x * 1000)))
    assert "born in aten.sub.Tensor" in message
    assert "from an Inf that comes from aten.exp.default" in message


def test_nan_birth_from_a_fully_masked_row() -> None:
    message = nan_message(Free(lambda x: x.masked_fill(x > -9, float("-inf")).softmax(-1)))
    assert "born in aten.softmax.int" in message
    assert "whose inputs hold Inf" in message


def test_nan_in_a_weight_and_in_the_input() -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    assert "comes from parameter '0.weight', which holds NaN" in nan_message(model)
    assert "comes from the input input, which holds NaN" in nan_message(nn.ReLU(), X * float("nan"))


def test_nan_birth_unknown_where_capture_fails_too() -> None:
    message = nan_message(Free(lambda x: x * float("nan") if x.sum() > 0 else x))
    assert "not known, since the model cannot be captured either: the model takes a Python decision" in message


def test_nan_is_accepted_on_request_and_inf_is_noted() -> None:
    captured = capture_model(nn.ReLU().eval(), X * float("nan"), allow_nan=True)
    assert captured.expected[0].isnan().all()
    notes = capture_model(Free(lambda x: torch.log(x * 0)).eval(), X).program.notes
    assert notes == ["Inf in ['output'] for the example inputs: positions and signs are compared"]
