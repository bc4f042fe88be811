"""Rows of the fault table about what goes in: examples, modes, state, numbers and branches."""

from __future__ import annotations

import inspect
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from conftest import Untouched
from torch import nn

import fxexport
from fxexport import CaptureError, ExportError, InputError

X = torch.randn(2, 3)


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.linear(x)
        return result


class Free(nn.Module):
    def __init__(self, forward: Any) -> None:
        super().__init__()
        self.forward = forward


def export(model: nn.Module, out: Path, *example: Any, **options: Any) -> fxexport.Artifact:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return fxexport.compile(model, out, *example, **{"passes": "none", **options})


def refused(kind: type[Exception], message: str, model: nn.Module, out: Path, *example: Any, **options: Any) -> str:
    """The compilation fails with this message (a pattern) and leaves an empty directory behind."""
    with pytest.raises(kind, match=message) as caught:
        export(model, out, *example, **options)
    assert not list(out.parent.iterdir()), "something was left on the disk"
    return str(caught.value)


# ---------------------------------------------------------------- examples


def test_fault_04_example_does_not_fit_the_signature(out: Path, untouched: Untouched) -> None:
    model = Linear().train()
    with untouched(model):
        for example, kwargs in (((X, X), None), ((), None), ((X,), {"y": X})):
            message = refused(InputError, "do not fit forward", model, out, example, kwargs)
            assert "signature: forward(x: 'torch.Tensor')" in message
            assert "given:" in message
        assert "y=Tensor[2, 3] float32" in message  # of the last one


def test_fault_05_the_users_own_error_comes_out_unwrapped(out: Path, untouched: Untouched) -> None:
    model = Linear()
    line = inspect.getsourcelines(Linear.forward)[1] + 1
    wide = torch.randn(2, 5)
    with untouched(model):
        for example, message in ((wide, "cannot be multiplied"), (X.double(), "same dtype")):
            with pytest.raises(RuntimeError, match=message) as caught:
                export(model, out, example)
            assert not isinstance(caught.value, ExportError)
            (note,) = caught.value.__notes__
            assert "the model's own error on the example inputs" in note
            assert f"test_compile_faults.py:{line}: result: torch.Tensor = self.linear(x)" in note


def test_fault_05_tensors_without_values(out: Path) -> None:
    refused(InputError, "'meta' device, which hold no values", Linear(), out, torch.randn(2, 3, device="meta"))
    refused(InputError, "'meta' device, which hold no values", Linear().to("meta"), out, X)


def test_fault_06_no_example_takes_the_hook(out: Path) -> None:
    class Hooked(Linear):
        def input_example(self) -> Any:
            return torch.randn(7, 3)

    assert export(Hooked(), out).inputs[0].axes == (7, 3)


def test_fault_06_no_example_and_no_hook(out: Path) -> None:
    refused(InputError, "Linear has no input_example", Linear(), out)
    refused(InputError, "missing a required argument: 'x'", Linear(), out, ())
    refused(InputError, "got str", Linear(), out, "image.png")

    class Silent(Linear):
        def input_example(self) -> Any:
            return None

    refused(InputError, "input_example.. returned None", Silent(), out)


def test_fault_06_nothing_is_enough_for_a_forward_that_takes_nothing(out: Path) -> None:
    artifact = export(Free(lambda: torch.arange(3)), out)
    assert artifact.inputs == ()
    assert artifact().tolist() == [0, 1, 2]


def test_fault_06_a_bare_tensor_is_one_argument_and_not_its_rows(out: Path) -> None:
    assert [spec.axes for spec in export(Linear(), out, X).inputs] == [(2, 3)]


def test_fault_07_a_last_argument_that_is_a_dict_of_states(out: Path) -> None:
    artifact = export(Free(lambda x, st: x + st["h"]), out, (X, {"h": X}))
    assert [spec.name for spec in artifact.inputs] == ["x", "st_h"]
    torch.testing.assert_close(artifact(X, {"h": X + 1}), X + X + 1)


def test_fault_07_ambiguity_is_an_error_and_kwargs_resolves_it(out: Path) -> None:
    model = Free(lambda x, st=None, h=None: x + (h if st is None else 2 * st["h"]))
    refused(
        InputError,
        r"kwargs=\{\} makes it positional, kwargs=\{...\} gives keywords",
        model,
        out,
        (X, {"h": X}),
    )
    positional, keyword = export(model, out, (X, {"h": X}), {}), export(model, out, (X,), {"h": X})
    assert [spec.path for spec in positional.inputs] == ["x", "st['h']"]
    assert [spec.path for spec in keyword.inputs] == ["x", "h"]


def test_fault_08_python_values_are_fixed_and_said_to_be(out: Path) -> None:
    def forward(x: torch.Tensor, mask: Any, k: int = 1, flag: bool = True) -> torch.Tensor:
        return x * k if flag and mask is None else x

    artifact = export(Free(forward), out, (X, None, 3))
    assert [spec.name for spec in artifact.inputs] == ["x"]
    assert {"mask = None is fixed in the artifact", "k = 3 is fixed in the artifact"} <= set(artifact.report.notes)
    torch.testing.assert_close(artifact(X, None, 3), X * 3)
    with pytest.raises(InputError, match="k is fixed at 3 in the artifact, got 4"):
        artifact(X, None, 4)


def test_fault_08_a_number_becomes_an_input_on_request(out: Path) -> None:
    def forward(x: torch.Tensor, k: int, scale: float) -> torch.Tensor:
        return x * k + scale

    artifact = export(Free(forward), out, (X, 3, 0.5), as_input=["k", "scale"])
    assert [(s.name, s.dtype, s.axes) for s in artifact.inputs[1:]] == [
        ("k", torch.int64, ()),
        ("scale", torch.float32, ()),
    ]
    assert "fixed" not in " ".join(artifact.report.notes)
    torch.testing.assert_close(artifact(X, 7, -1.5), X * 7 - 1.5)
    with pytest.raises(InputError, match=r"as_input names \['z'\]"):
        export(Free(forward), out, (X, 3, 0.5), as_input=["z"])


# ---------------------------------------------------------------- modes and state


class Trained(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(3), nn.Dropout(0.5)
        self.frozen = nn.Linear(3, 3).requires_grad_(False).eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.drop(self.norm(self.frozen(x)))
        return result


def test_fault_09_training_mode_is_captured_in_eval_mode_and_said_to_be(out: Path, untouched: Untouched) -> None:
    model = Trained().train()
    model.frozen.eval()
    with (
        untouched(model),
        pytest.warns(UserWarning, match="was in training mode: captured in eval mode") as caught,
    ):
        artifact = fxexport.compile(model, out, X)
    assert caught[0].filename == __file__, "the warning points at the user's call"
    assert any("captured in eval mode" in note for note in artifact.report.notes)
    assert "captured in eval mode" in str(artifact)
    torch.testing.assert_close(artifact(X), model.eval()(X).detach(), rtol=1e-4, atol=1e-5)


def test_fault_09_training_is_refused_before_the_model_is_touched(out: Path, untouched: Untouched) -> None:
    model = Trained().train()
    with untouched(model):
        refused(InputError, "training=True: an artifact computes inference", model, out, X, training=True)


class Stateful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros(1))
        self.cache: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.steps += 1
        self.cache.append(x * 2)
        return torch.cat(self.cache) + self.steps


def test_fault_10_state_is_reported_and_the_model_unchanged(out: Path, untouched: Untouched) -> None:
    model = Stateful().eval()
    with untouched(model):
        artifact = export(model, out, X, dynamic={"x": ["n", None]})
    assert any("state 'steps' is updated by forward" in note for note in artifact.report.notes)
    assert any("keeps state" in note for note in artifact.report.notes)
    for _ in range(2):
        torch.testing.assert_close(artifact(X), X * 2 + 1)


def test_fault_11_a_write_into_the_input_leaves_the_example_alone(out: Path) -> None:
    def forward(image: torch.Tensor) -> torch.Tensor:
        image.mul_(2)
        image[:, 0] = 0
        return image + 1

    example = X.clone()
    artifact = export(Free(forward), out, example)
    assert torch.equal(example, X)
    assert any("input 'image' is written to by forward" in note for note in artifact.report.notes)
    array = X.numpy().copy()
    artifact(array)
    np.testing.assert_array_equal(array, X.numpy())


def test_fault_12_shared_strided_and_view_weights(out: Path, untouched: Untouched) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(300, 64), nn.Linear(64, 300, bias=False)
            self.head.weight = self.embed.weight
            self.strided = nn.Parameter(torch.randn(64, 64).t())
            self.view = nn.Parameter(torch.randn(5000, 64)[:2])

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.head(self.embed(ids) @ self.strided + self.view.sum(0))
            return result

    model = Tied().eval()
    with untouched(model):
        export(model, out, torch.arange(6)[None], dynamic={"ids": ["n", "t"]}, passes="default")
    sizes = sorted((int(np.prod(i.dims)) for i in onnx.load(out).graph.initializer), reverse=True)
    assert sizes[:2] == [300 * 64, 64 * 64]
    assert sum(sizes[2:]) < 1000, "nothing is stored twice"


def test_fault_13_one_module_called_several_times(out: Path) -> None:
    """Folding a batchnorm into a convolution that is used elsewhere too must not change the other use."""

    class Reused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv1d(3, 3, 1), nn.BatchNorm1d(3)
            self.norm.running_mean.uniform_(1, 2)
            self.norm.running_var.uniform_(2, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.norm(self.conv(self.norm(self.conv(x)) + self.conv(x)))
            return result

    model = Reused().eval()
    artifact = export(model, out, torch.randn(2, 3, 4), passes="default", dynamic={"x": {0: "n"}})
    example = torch.randn(5, 3, 4)
    torch.testing.assert_close(artifact(example), model(example).detach(), rtol=1e-4, atol=1e-5)


def test_fault_14_hooks_weight_norm_and_torch_compile(out: Path, untouched: Untouched) -> None:
    inner = nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 3)), nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)))
    inner[1].register_forward_hook(lambda module, args, output: output * 2)
    inner.eval()
    expected = inner(X).detach()
    model = torch.compile(inner)
    with untouched(inner):
        artifact = export(model, out, X, passes="default")
    torch.testing.assert_close(artifact(X), expected, rtol=1e-4, atol=1e-5)
    notes = " ".join(artifact.report.notes)
    assert "wrapper OptimizedModule taken off" in notes
    assert "forward hooks of 0, 1 are captured" in notes


def test_fault_14_an_unknown_wrapper_is_refused_by_name(out: Path) -> None:
    class DeepSpeedEngine(nn.Sequential):
        pass

    refused(CaptureError, "the model is wrapped in DeepSpeedEngine", DeepSpeedEngine(nn.ReLU()), out, X)
    refused(CaptureError, "is a TorchScript module", torch.jit.script(nn.ReLU()), out, X)
    refused(InputError, "must be an nn.Module.*got function", lambda x: x, out, X)  # type: ignore[arg-type]


# ---------------------------------------------------------------- numbers


class LogOfNegative(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.log(-x.abs() - 1)


def test_fault_15_nan_is_refused_and_its_birth_named(out: Path) -> None:
    line = inspect.getsourcelines(LogOfNegative.forward)[1] + 1
    model = nn.Sequential(nn.Linear(3, 3), LogOfNegative(), nn.ReLU())
    message = refused(CaptureError, "eager itself returns NaN", model, out, X)
    assert f"born in aten.log.default of module '1' at {__file__}:{line}" in message
    assert "allow_nan=True" in message


def test_fault_15_nan_is_compared_by_position_on_request(out: Path) -> None:
    refused(InputError, "forward of Free has no signature to read", Free(torch.sqrt), out, X)
    artifact = export(Free(lambda x: torch.sqrt(x)), out, torch.tensor([1.0, -1.0]), allow_nan=True)
    assert torch.isnan(artifact(torch.tensor([-4.0, 4.0]))).tolist() == [True, False]
    assert artifact.report.validation.passed


def test_fault_15_inf_is_compared_and_noted(out: Path) -> None:
    artifact = export(Free(lambda x: x.masked_fill(x > 0, float("-inf"))), out, X)
    assert any("Inf in ['output']" in note for note in artifact.report.notes)


def test_fault_16_randomness_is_refused_unless_declared(out: Path) -> None:
    for forward in (lambda x: x + torch.rand_like(x), lambda x: F.dropout(x, 0.5)):
        refused(
            CaptureError,
            "output differs from run to run in eager: the model draws random",
            Free(forward),
            out,
            X,
        )
    model = Free(lambda x: (x + torch.rand_like(x), x * 2))
    refused(CaptureError, r"output\[0\] differs", model, out, X)
    # onnxruntime has no kernel yet for the RandomUniformLike of opset 22.
    artifact = export(model, out, X, allow_random=True, opset_version=20)
    assert any(note == "output[0] is random: values not compared (allow_random)" for note in artifact.report.notes)


def test_fault_17_integers_are_exact(out: Path) -> None:
    def forward(x: torch.Tensor, lengths: torch.Tensor, mask: torch.Tensor) -> Any:
        return lengths + 1, mask & (x > 0.5), (x * 255).to(torch.uint8)

    example = (torch.rand(2), torch.tensor([2**53 + 1, -5]), torch.tensor([True, False]))
    artifact = export(Free(forward), out, example, dynamic={n: {0: "n"} for n in ("x", "lengths", "mask")})
    for got, want in zip(artifact(*example), forward(*example), strict=True):
        assert got.dtype == want.dtype
        assert torch.equal(got, want)
    compared = [output for point in artifact.report.validation.points for output in point.outputs]
    assert {output.rtol for output in compared} == {0.0}


def test_fault_19_a_declared_axis_that_gets_fixed_names_the_line(out: Path) -> None:
    def forward(x: torch.Tensor) -> torch.Tensor:
        return x * 2 + torch.zeros(4, 1)

    line = inspect.getsourcelines(forward)[1] + 1
    refused(
        CaptureError,
        rf"dimension 0 of 'x' \('n'\) was declared dynamic, but the model fixes it at 4 at .*:{line}: return",
        Free(forward),
        out,
        torch.randn(4, 3),
        dynamic={"x": {0: "n"}},
    )


def test_fault_20_a_branch_on_data_is_right_on_both_sides(out: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def forward(x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        if y.sum() > 0:
            return y
        return x

    line = inspect.getsourcelines(forward)[1] + 2
    artifact = export(Free(forward), out, X)
    told = f"'if y.sum() > 0:' at faults/test_compile_faults.py:{line} depends on the data: both sides are"
    assert [note for note in artifact.report.notes if note.startswith(told)]
    for x in (X.abs(), -X.abs(), torch.zeros_like(X)):
        torch.testing.assert_close(artifact(x), forward(x))
    assert capfd.readouterr() == ("", "")


def test_fault_20_sides_that_do_not_fit_are_refused_with_the_line(out: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def forward(x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            return x * 2
        return x.sum(1)

    line = inspect.getsourcelines(forward)[1] + 1
    place = f"'if x.sum() > 0:' at faults/test_compile_faults.py:{line}"
    message = refused(CaptureError, f"decides on data, {re.escape(place)}", Free(forward), out, X.abs())
    assert "returns tensors of other number, rank or dtype" in message
    assert 'assume="as in the examples"' in message
    assert capfd.readouterr() == ("", ""), "torch prints the graph so far; the message says it all"
    artifact = export(Free(forward), out, X.abs(), assume={f"test_compile_faults.py:{line}": True})
    assert f"{place} depends on the data: assumed to be True as the caller says" in artifact.report.notes
    torch.testing.assert_close(artifact(X.abs() + 1), X.abs() * 2 + 2)


def test_fault_20_a_loop_that_counts_in_python_is_refused_with_its_line(out: Path) -> None:
    def forward(x: torch.Tensor) -> torch.Tensor:
        steps = 0
        while x.abs().max() > 0.01:
            x, steps = x * 0.5, steps + 1
        return x * steps  # every number of steps is another graph

    line = inspect.getsourcelines(forward)[1] + 2
    place = rf"test_compile_faults.py:{line}: while x.abs\(\).max\(\) > 0.01"
    message = refused(CaptureError, rf"(?s)in too many ways to capture them all.*{place}", Free(forward), out, X * 1e25)
    assert "torch.while_loop" in message


def test_fault_20_a_loop_over_data_is_not_baked(out: Path) -> None:
    def forward(x: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
        for _ in range(int(n)):
            x = x + 1
        return x

    refused(CaptureError, r"test_compile_faults.py:\d+: for _ in range", Free(forward), out, (X, torch.tensor(3)))


def test_fault_20_a_branch_on_a_constant_is_none(out: Path) -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.tensor(2.5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for k in torch.tensor([1, 2]).tolist():
                x = x + k
            return x[:, : int(torch.tensor(2))] * self.scale.item()

    artifact = export(Constant(), out, X, dynamic={"x": {0: "n"}})
    torch.testing.assert_close(artifact(X), (X[:, :2] + 3) * 2.5)


def test_fault_23_none_numbers_and_text_among_the_outputs(out: Path) -> None:
    model = Free(lambda x: {"a": None, "y": x * 2, "n": 3, "f": 0.5, "ok": True, "more": (None, x.shape[0])})
    artifact = export(model, out, X, dynamic={"x": {0: "n"}})
    assert [spec.name for spec in artifact.outputs] == ["y", "n", "f", "ok", "more_1"]
    notes = artifact.report.notes
    assert "output['a'] is None: it is left out of the artifact's outputs" in notes
    assert "output['n'] is a Python number: it becomes a 0-d tensor" in notes
    result = artifact(torch.randn(5, 3))
    assert (result["a"], result["n"].item(), result["f"].item(), result["ok"].item()) == (None, 3, 0.5, True)
    assert result["more"] == (None, torch.tensor(5))
    assert list(result) == ["a", "y", "n", "f", "ok", "more"]


def test_fault_23_a_text_output_is_refused_by_name(out: Path) -> None:
    message = r"forward returns a str at output\['label'\] \('cat'\), which no artifact can hold"
    refused(CaptureError, message, Free(lambda x: {"y": x, "label": "cat"}), out, X)
