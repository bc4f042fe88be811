"""The doctor: each kind of finding with its line, its tensor and a way out; and what is no finding."""

from __future__ import annotations

import inspect
import json
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Untouched
from torch import nn

import fxexport
from fxexport import CaptureError, Diagnosis, Finding, InputError
from fxexport.capture import Reference
from fxexport.capture.preparing import prepare
from fxexport.doctor import diagnose_failure
from fxexport.doctor.observing import observe

X = torch.linspace(-1, 2, 12).view(3, 4)


class Free(nn.Module):
    """A model of one function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.eval()

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


def line_of(function: Callable[..., Any], text: str) -> int:
    """The number of the line of ``function`` that contains ``text``."""
    source, first = inspect.getsourcelines(function)
    (offset,) = [i for i, line in enumerate(source) if text in line]
    return first + offset


def only(diagnosis: Diagnosis, kind: str) -> Finding:
    """The one finding of ``kind``."""
    found = [each for each in diagnosis if each.kind == kind]
    assert len(found) == 1, [each.in_words() for each in diagnosis]
    return found[0]


def at(finding: Finding, function: Callable[..., Any], text: str) -> bool:
    return finding.site is not None and finding.site.line == line_of(function, text) and __file__ == finding.site.file


# ---------------------------------------------------------------- values that Python reads


def counted(x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    longest = int(lengths.max())
    slope = np.polyfit(np.arange(4), x.numpy()[0], 1)[0]
    return x[:, :longest] * float(slope)


def test_every_blocker_is_listed_and_not_the_first_one_only() -> None:
    diagnosis = fxexport.doctor(Free(counted), (X, torch.tensor([2, 3, 1])))
    assert at(only(diagnosis, "value"), counted, "int(lengths")
    assert at(only(diagnosis, "numpy"), counted, "x.numpy()")
    assert only(diagnosis, "value").tensor == "int64[]"
    assert "torch operators" in only(diagnosis, "numpy").way_out
    assert diagnosis.failure
    assert {each.kind for each in diagnosis.blockers} == {"value", "numpy"}


def chosen(x: torch.Tensor) -> torch.Tensor:
    if x[0, 0] < 0:
        return x.numpy().sum() + x
    return x * 2


def test_a_branch_tells_whether_other_values_take_the_other_side() -> None:
    diagnosis = fxexport.doctor(Free(chosen), X)
    branch = only(diagnosis, "branch")
    assert at(branch, chosen, "if x[0, 0]")
    assert branch.tensor == "bool[]"
    assert "True on the example, the other way at other values" in branch.what


def on_data_through_python(x: torch.Tensor) -> torch.Tensor:
    number = x.sum().item()
    made = torch.full((2,), number)  # no operator leads from x to this tensor
    return x + 1 if made[0] > 0 else x


def test_data_that_went_through_a_python_number_is_still_data() -> None:
    branch = only(fxexport.doctor(Free(on_data_through_python), X), "branch")
    assert at(branch, on_data_through_python, "made[0] > 0")


def on_constants(x: torch.Tensor) -> torch.Tensor:
    padding = torch.tensor([x.shape[0] % 2, 1, 0])
    window = torch.from_numpy(np.hanning(4).astype(np.float32))
    if torch.sum(padding) != 0:
        x = x * window
    return x


def test_constants_and_sizes_block_nothing() -> None:
    findings = fxexport.doctor(Free(on_constants), X)
    window = [each for each in findings if each.kind == "numpy"]
    assert [each.severity for each in window] == ["information"]
    assert at(window[0], on_constants, "np.hanning")
    assert not [each for each in findings if each.kind in ("branch", "value")]


def printed(x: torch.Tensor) -> torch.Tensor:
    print(x)
    return x * 2


def test_printing_is_no_finding() -> None:
    assert [each.in_words() for each in fxexport.doctor(Free(printed), X)] == []


def listed(x: torch.Tensor) -> torch.Tensor:
    return torch.tensor([x[0, 0], x[1, 1]]) * x.tolist()[0][0]


def test_lists_of_elements_are_read_too() -> None:
    whats = [each.what for each in fxexport.doctor(Free(listed), X) if each.kind == "value"]
    assert len(whats) == 2
    assert any("torch.tensor copies the elements" in what for what in whats)
    assert any("tolist() makes a Python number" in what for what in whats)


class Inner(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        while x.abs().max() > 1:
            x = x / 2
        return x


def test_the_submodule_and_the_kind_of_statement_are_named() -> None:
    model = nn.Sequential(nn.Identity(), nn.ModuleDict({"deep": Inner()})["deep"]).eval()
    branch = only(fxexport.doctor(model, X), "branch")
    assert branch.modules == ("1",)
    assert "a while loop goes on or ends" in branch.what


# ---------------------------------------------------------------- state, writes, random numbers, memory


class Stateful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))
        self.norm = nn.BatchNorm1d(4)
        self.lock = threading.Lock()

    def forward(self, x: torch.Tensor, scale: float = 2.0, *, b: Any = None, a: Any = None) -> Any:
        x[0].mul_(scale)
        self.calls += x.sum()
        noise = torch.rand(4)
        return {"y": self.norm(x) + noise + a + b, "name": "text", "memory": torch.empty(2)}


def test_all_that_a_call_leaves_behind_and_draws(untouched: Untouched) -> None:
    model, example = Stateful(), X.clone()
    keywords = {"a": torch.ones(4), "b": torch.ones(4)}
    del model.lock  # the fixture pickles
    with untouched(model):
        diagnosis = fxexport.doctor(model, (example, 3.0), keywords)
    assert torch.equal(example, X)
    assert at(only(diagnosis, "input-write"), Stateful.forward, "x[0].mul_")
    state = only(diagnosis, "state")
    assert at(state, Stateful.forward, "self.calls +=")
    assert "calls" in state.what
    assert "norm" not in state.what
    assert at(only(diagnosis, "random"), Stateful.forward, "torch.rand(4)")
    assert only(diagnosis, "random").severity == "blocks"
    assert at(only(diagnosis, "uninitialised"), Stateful.forward, "torch.empty(2)")
    assert "output['name']" in only(diagnosis, "output-type").what
    assert "given as a, b; the file takes them as b, a" in only(diagnosis, "kwargs-order").what
    assert "batch statistics in 1 module" in only(diagnosis, "training").what
    assert only(diagnosis, "baked").what == "scale = 3.0 is fixed in the file"


def test_what_cannot_be_copied_is_named() -> None:
    finding = only(fxexport.doctor(Stateful().eval(), (X,), {"a": X, "b": X}), "uncopyable")
    assert finding.what.startswith("lock (lock) cannot be copied")


def unaffected(x: torch.Tensor) -> torch.Tensor:
    torch.rand(3)
    whole = torch.empty(3)
    whole.fill_(1)
    return x.sum() + whole


def test_random_numbers_and_memory_that_no_output_shows() -> None:
    diagnosis = fxexport.doctor(Free(unaffected), X)
    assert only(diagnosis, "random").severity == "information"
    assert [each.kind for each in diagnosis] == ["random"]


def roots(x: torch.Tensor) -> torch.Tensor:
    y = x + 1.5
    return torch.sqrt(y - 1.0)


def test_nan_with_the_line_that_makes_it() -> None:
    assert at(only(fxexport.doctor(Free(roots), X), "nan"), roots, "torch.sqrt")


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 2


def with_function(x: torch.Tensor) -> torch.Tensor:
    return torch.complex(Doubled.apply(x), x)  # type: ignore[no-untyped-call]


def test_autograd_functions_and_complex_results_are_told() -> None:
    before = torch.autograd.Function.__dict__["apply"]
    diagnosis = fxexport.doctor(Free(with_function), X)
    assert torch.autograd.Function.__dict__["apply"] is before
    assert at(only(diagnosis, "autograd-function"), with_function, "Doubled.apply")
    assert "complex output output" in only(diagnosis, "complex").what


# ---------------------------------------------------------------- sizes and loops


def looping(x: torch.Tensor) -> torch.Tensor:
    rows = []
    for _ in range(2):
        for row in x:
            for part in row.chunk(2):
                rows.append(part * 2)
    return torch.stack(rows)


def test_the_loop_over_the_dynamic_dimension_is_named_among_others() -> None:
    diagnosis = fxexport.doctor(Free(looping), X, dynamic={"args_0": ["batch", None]})
    loop = only(diagnosis, "loop")
    assert at(loop, looping, "for row in x")
    assert "once for each element of 'batch': 3 times at 3, 7 times at 7" in loop.what
    assert loop.severity == "blocks"
    assert not [each for each in fxexport.doctor(Free(looping), X) if each.kind == "loop"]


def test_loops_in_comprehensions_while_loops_and_called_functions() -> None:
    def one(row: torch.Tensor) -> torch.Tensor:
        return sum((row * k for k in range(3)), torch.zeros(()))

    def forward(x: torch.Tensor) -> torch.Tensor:
        i, total = 0, torch.zeros(4)
        while i < x.shape[0]:
            total = total + x[i]
            i += 1
        return torch.stack([one(row) for row in x]) + total

    found = [each for each in fxexport.doctor(Free(forward), X, dynamic={"args_0": ["n", None]}) if each.kind == "loop"]
    lines = {each.site.line for each in found if each.site}
    assert lines == {line_of(forward, "while i <"), line_of(forward, "one(row) for row")}


def fixed(x: torch.Tensor) -> torch.Tensor:
    return x.view(3, 4) * 2


def halved(x: torch.Tensor) -> torch.Tensor:
    return x.view(x.shape[0] // 2, 2, 4) * 2


def test_a_size_that_eager_itself_fixes_is_named_with_its_line() -> None:
    diagnosis = fxexport.doctor(Free(fixed), X, dynamic={"args_0": ["batch", None]})
    finding = only(diagnosis, "fixed-size")
    assert at(finding, fixed, "x.view(3, 4)")
    assert finding.severity == "blocks"
    assert "eager itself takes 'batch' at 3 only" in finding.what
    even = only(fxexport.doctor(Free(halved), X[:2], dynamic={"args_0": ["batch", None]}), "fixed-size")
    assert (even.severity, even.what[:33]) == ("information", "'batch' takes 4, but not 5: shape")


# ---------------------------------------------------------------- the diagnosis as a whole


def test_a_plain_model_has_no_findings_and_says_so() -> None:
    diagnosis = fxexport.doctor(nn.Linear(4, 2).eval(), X, dynamic={"input": ["batch", None]})
    assert (len(diagnosis), diagnosis.failure) == (0, "")
    assert str(diagnosis).startswith(
        "Linear: nothing blocks, 0 change something, 0 for information\ncapture succeeded: "
    )


def test_it_prints_as_a_page_and_as_plain_values() -> None:
    diagnosis = fxexport.doctor(Free(counted), (X, torch.tensor([2, 3, 1])))
    text = str(diagnosis)
    assert "Blocks: no file as things are" in text
    assert "longest = int(lengths.max())" in text
    assert f"tests/test_doctor.py:{line_of(counted, 'int(lengths')}" in text
    data = json.loads(json.dumps(diagnosis.to_json()))
    assert data["captured"] is False
    assert {"kind", "severity", "file", "line", "source", "way_out", "modules"} <= set(data["findings"][0])
    assert data["findings"][0]["file"] == __file__


def test_the_models_own_error_is_a_finding_and_what_was_seen_before_it_too() -> None:
    def forward(x: torch.Tensor) -> torch.Tensor:
        x.numpy()
        return x @ x

    diagnosis = fxexport.doctor(Free(forward), X)
    assert at(only(diagnosis, "eager"), forward, "x @ x")
    assert at(only(diagnosis, "numpy"), forward, "x.numpy()")


def test_bad_arguments_are_refused_as_by_compile() -> None:
    with pytest.raises(InputError, match="do not fit forward"):
        fxexport.doctor(nn.Linear(4, 2), (X, X))


def test_diagnose_failure_tells_the_others_and_never_raises() -> None:
    model = Free(counted)
    with pytest.raises(CaptureError) as caught:
        fxexport.capture(model, (X, torch.tensor([2, 3, 1])))
    told = diagnose_failure(caught.value, model, (X, torch.tensor([2, 3, 1])))
    stopped = [text for text in ("int(lengths", "x.numpy()") if f":{line_of(counted, text)}" in str(caught.value)]
    (other,) = {"int(lengths", "x.numpy()"} - set(stopped)
    assert f"test_doctor.py:{line_of(counted, other)}" in told
    assert stopped[0] not in told
    assert "InputError" in diagnose_failure(caught.value, nn.Linear(4, 2), None)


def test_every_run_leaves_the_reference_as_it_was() -> None:
    reference = Reference(*prepare(Stateful().eval(), (X,), {"a": X, "b": X}, (), []))
    first = observe(reference, reference.call.tensors)
    second = observe(reference, reference.call.tensors)
    assert first.changed_buffers == second.changed_buffers == ["calls"]
    assert float(reference.model.get_buffer("calls")) == 0
