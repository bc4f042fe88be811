"""Dynamic dimensions: every spelling, what stays open through capture, and what is said where it does not."""

from __future__ import annotations

import inspect
from collections import namedtuple
from typing import Any

import pytest
import torch
from conftest import ProveEverywhere
from torch import nn
from torch.export import Dim

from fxexport.capture import bind_example
from fxexport.capture.dynamic import AxisRequest, read_dynamic
from fxexport.capture.pipeline import capture_model
from fxexport.errors import CaptureError, InputError
from fxexport.validation.sweep import evaluate

X = torch.randn(2, 3)
State = namedtuple("State", "h c")


class Double(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


class Free(nn.Module):
    def __init__(self, forward: Any) -> None:
        super().__init__()
        self.forward = forward


def axes_of(model: nn.Module, example: Any, **options: Any) -> list[tuple[Any, ...]]:
    return [spec.axes for spec in capture_model(model.eval(), example, **options).program.signature.inputs]


@pytest.mark.parametrize(
    ("spec", "axes"),
    [
        (None, (2, 3)),
        (True, ("batch", "x_dim_1")),
        ({"x": {0: "n"}}, ("n", 3)),
        ({"x": {-2: "n"}}, ("n", 3)),
        ({"x": ["n", None]}, ("n", 3)),
        ({"x": [None, "t"]}, (2, "t")),
        ({"x": [0]}, ("batch", 3)),
        ({"x": [0, 1]}, ("batch", "x_dim_1")),
        (({0: "n"},), ("n", 3)),
        (({0: Dim.AUTO},), ("batch", 3)),
        ({"x": {0: Dim.DYNAMIC, 1: Dim.STATIC}}, ("batch", 3)),
        ({"x": {0: Dim("rows")}}, ("rows", 3)),
        ({"x": None}, (2, 3)),
    ],
)
@pytest.mark.parametrize("argument", ["dynamic", "dynamic_shapes"])
def test_every_spelling(spec: Any, axes: tuple[Any, ...], argument: str) -> None:
    assert axes_of(Double(), X, **{argument: spec}) == [axes]


def test_given_input_names_are_keys_too() -> None:
    assert axes_of(Double(), X, input_names=["image"], dynamic={"image": {0: "n"}}) == [("n", 3)]


def test_nested_arguments_by_structure_and_by_flat_name() -> None:
    model = Free(lambda batch, st: batch["a"] + st.h + st.c[0])
    example = ({"a": X}, State(X, [X]))
    nested = {"batch": {"a": ["n", None]}, "st": {"h": ["n", None], "c": [["n", None]]}}
    by_place = {"batch": {"a": ["n", None]}, "st": (["n", None], [["n", None]])}
    flat = {"batch_a": ["n", None], "st_h": ["n", None], "st_c_0": ["n", None]}
    for spec in (nested, by_place, flat):
        assert axes_of(model, example, dynamic=spec) == [("n", 3)] * 3


def test_varargs_and_keywords() -> None:
    def forward(*xs: torch.Tensor, **more: torch.Tensor) -> torch.Tensor:
        return sum(xs) + more["bias"]  # type: ignore[return-value]

    call = bind_example(Free(forward), (X, X), {"bias": X})
    for key in ({"bias": {0: "n"}}, {"more": {"bias": {0: "n"}}}):
        found = read_dynamic(call, None, {"xs": [{0: "n"}, None], **key})
        assert found == [{0: AxisRequest("n")}, {}, {0: AxisRequest("n")}]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"z": {0: "n"}}, r"name 'z', which is no input; the inputs are \['x'\]"),
        ({"x": "n"}, "not the single text 'n'"),
        ({"x": {5: "n"}}, "5 is no dimension"),
        ({"x": {0: "a b"}}, "must be an identifier"),
        ({"x": {0: 1.5}}, "give a name, a torch.export.Dim or None"),
        ({"x": ["n"]}, "have 1 axes, the example has 2"),
        ({"x": ("n", "n")}, r"'n' is 2 in x.shape\[0\] and 3 in x.shape\[1\]; equal names mean equal sizes"),
        (({0: "n"}, {0: "n"}), "2 entries for 1 arguments"),
        (7, "must be True, a dict or a tuple"),
    ],
)
def test_a_wrong_spec_is_refused(spec: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        axes_of(Double(), X, dynamic=spec)


@pytest.mark.parametrize("size", [0, 1])
def test_an_example_of_size_0_or_1_stays_dynamic(size: int, prove: ProveEverywhere) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Flatten(2)).eval()
    captured = prove(model, torch.randn(size, 1, 4, 4), dynamic={"input": {0: "batch"}})
    assert captured.program.signature.inputs[0].axes == ("batch", 1, 4, 4)
    assert captured.examples[0].shape == (size, 1, 4, 4), "the user's example is the one that is compared"


def test_dynamic_true_finds_what_may_change(prove: ProveEverywhere) -> None:
    """The channel of size 1 cannot grow: the convolution fixes it, and the report says so."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU()).eval()
    captured = prove(model, torch.randn(1, 1, 6, 6), dynamic=True, formats=["pt"])
    signature = captured.program.signature
    assert signature.inputs[0].axes == ("batch", 1, "input_dim_2", "input_dim_3")
    assert signature.outputs[0].axes == ("batch", 2, "input_dim_2", "input_dim_3")
    assert not any(d.declared for d in signature.dimensions)


def test_dynamic_true_says_what_is_fixed() -> None:
    program = capture_model(nn.Linear(3, 4).eval(), X, dynamic=True).program
    assert program.signature.inputs[0].axes == ("batch", 3)
    assert "dimension 1 of 'input' is fixed at 3" in program.notes


def test_formulas_in_outputs(prove: ProveEverywhere) -> None:
    model = Free(lambda x: (nn.functional.pad(torch.cat([x, x]), (0, 0, 0, 1)), x[::2], x[1:], x.reshape(-1)))
    outputs = prove(model.eval(), torch.randn(5, 3), dynamic={"x": ["t", None]}).program.signature.outputs
    assert all("t" in str(spec.axes[0]) for spec in outputs)
    for t in (5, 8):
        assert [evaluate(spec.axes[0], {"t": t}) for spec in outputs] == [
            2 * t + 1,
            (t + 1) // 2,
            t - 1,
            3 * t,
        ]


def test_a_size_that_is_1_by_accident_does_not_fix_the_axis(prove: ProveEverywhere) -> None:
    """``x[1:]`` has length 1 on this example, for which torch.export fixes the length at 2."""
    captured = prove(Free(lambda x: x[1:] * 2).eval(), X, dynamic={"x": ["t", None]}, formats=["pt"])
    assert captured.program.signature.inputs[0].axes == ("t", 3)


def test_sizes_tied_by_the_model_are_said_to_be() -> None:
    model = Free(lambda x, y: (x.repeat_interleave(2, 1) + y, x + y[:, ::2]))
    program = capture_model(model.eval(), (X, torch.randn(2, 6)), dynamic={"x": ["n", "t"], "y": ["m", "t2"]}).program
    assert [spec.axes for spec in program.signature.inputs] == [("n", "t"), ("n", "2*t")]
    assert "dimensions ['n', 'm'] are one and the same size to the model: named 'n'" in program.notes
    assert "dimension 1 of 'y' ('t2') is always 2*t: the model's code ties them" in program.notes


def test_bounds_of_the_user_are_kept() -> None:
    captured = capture_model(Double().eval(), X, dynamic_shapes={"x": {0: Dim("rows", min=2, max=64)}})
    (dimension,) = captured.program.signature.dimensions
    assert (dimension.minimum, dimension.maximum) == (2, 64)
    assert not captured.program.notes, "bounds that the user gave are no news"


def test_bounds_of_the_model_are_reported() -> None:
    model = Free(lambda x: x[:, :4] * 2 if x.shape[1] < 10 else x)
    program = capture_model(model.eval(), torch.randn(2, 8), dynamic={"x": [None, "t"]}).program
    (dimension,) = program.signature.dimensions
    assert dimension.maximum == 9
    assert any("'t' works in the range 4..9: the model's code bounds it" in note for note in program.notes)


def test_a_declared_axis_that_the_model_fixes_is_an_error_with_its_line() -> None:
    def forward(x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        return y + torch.ones(4, 1)

    line = inspect.getsourcelines(forward)[1] + 2
    with pytest.raises(
        CaptureError, match=rf"\('t'\) was declared dynamic.*fixes it at 4 at .*test_dynamic.py:{line}: "
    ):
        capture_model(Free(forward).eval(), torch.randn(4, 3), dynamic={"x": ["t", None]})


def test_one_tensor_for_two_inputs_is_two_inputs(prove: ProveEverywhere) -> None:
    captured = prove(Free(lambda x, y: x - 2 * y).eval(), (X, X), dynamic=True, formats=["pt"])
    assert [spec.name for spec in captured.program.signature.inputs] == ["x", "y"]
