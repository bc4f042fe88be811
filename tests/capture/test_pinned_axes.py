"""Declared axes that the model's code ties to one size: read otherwise, or refused by line; never only a note."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxexport import CaptureError
from fxexport.capture.pipeline import capture_model

X = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))


class Applied(nn.Module):
    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def captured(function: Callable[[Tensor], Any]) -> Any:
    return capture_model(Applied(function).eval(), (X,), dynamic_shapes={"x": {1: "t"}})


def times_int(x: Tensor) -> Tensor:
    return x * int(x.shape[1])


def times_float(x: Tensor) -> Tensor:
    return x / float(x.shape[1])


def positions(x: Tensor) -> Tensor:
    return x + torch.arange(int(x.shape[1]))[:, None]


@pytest.mark.parametrize("function", [times_int, times_float, positions], ids=lambda f: f.__name__)
def test_python_numbers_of_a_size_are_sizes_in_the_code(function: Callable[[Tensor], Tensor]) -> None:
    found = captured(function)
    assert found.program.signature.inputs[0].axes == (2, "t", 4)
    for length in (3, 6, 11):
        x = torch.randn(2, length, 4)
        torch.testing.assert_close(found.program.run(x)[0], function(x))


def by_two_conditions(x: Tensor) -> Tensor:
    if x.shape[1] // 2 == 3:
        x = x + 1
    if x.shape[1] % 2 == 0:
        x = x.sum(1, keepdim=True) + x
    return x


def by_rounding(x: Tensor) -> Tensor:
    return x.cumsum(1) if int(x.shape[1] / 2) == 3 and x.shape[1] % 2 == 0 else x.flip(1)


@pytest.mark.parametrize("function", [by_two_conditions, by_rounding], ids=lambda f: f.__name__)
def test_conditions_that_leave_one_size_fix_the_axis(function: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(
        CaptureError, match=r"(?s)dimension 1 of 'x' \('t'\) was declared dynamic.*test_pinned_axes.py:\d+"
    ):
        captured(function)


def padded_to_even(x: Tensor) -> Tensor:
    if x.shape[1] % 2:
        x = nn.functional.pad(x, (0, 0, 0, 1))
    return x * 2


def test_the_example_is_among_the_sizes_that_are_captured() -> None:
    program = captured(padded_to_even).program
    (guard,) = program.signature.guards
    assert guard.condition == "(t % 2) == 0"
    for length in (2, 6, 8):
        x = torch.randn(2, length, 4)
        torch.testing.assert_close(program.run(x)[0], padded_to_even(x))
