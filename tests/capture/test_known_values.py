"""Values that are known during capture are used exactly; what may be anything else is not known."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ProveEverywhere, Untouched
from torch import nn

from fxexport.capture import Reference, bind_example
from fxexport.capture.dynamic import AxisRequest
from fxexport.capture.exporting import export_flat, is_data_dependent
from fxexport.capture.known_values import known_values
from fxexport.errors import CaptureError

X = torch.randn(4, 6)
Forward = Callable[[Any, torch.Tensor], Any]


class Holds(nn.Module):
    """Parameters, buffers and tensors in plain attributes; ``forward`` is what a test says."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.of = forward
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.register_buffer("window", torch.hann_window(5))
        self.register_buffer("flag", torch.tensor(True))
        self.register_buffer("count", torch.tensor(2))
        self.register_buffer("pads", torch.tensor([1, 2]))
        self.limit = torch.tensor(40)
        self.tables = {1: torch.tensor([5.0])}

    def forward(self, x: torch.Tensor) -> Any:
        return self.of(self, x)


def known(forward: Forward, *, dynamic: bool = False) -> tuple[Any, list[str]]:
    """The captured graph and the notes; raises what capture raises where something is not known."""
    model = Holds(forward).eval()
    reference = Reference(model, bind_example(model, X, None))
    flat = reference.fresh()
    requests = [{i: AxisRequest(None) for i in range(2)} if dynamic else {}]
    with known_values(flat, reference) as notes:
        exported = export_flat(flat, [X], requests)
    assert "forward" not in flat.__dict__
    return exported, notes


def agrees(exported: Any, forward: Forward, *sizes: tuple[int, int]) -> None:
    for size in sizes:
        x = torch.randn(size)
        torch.testing.assert_close(exported.module(check_guards=False)(x)[0], Holds(forward).eval()(x))


def loops(model: Any, x: torch.Tensor) -> torch.Tensor:
    if model.flag:
        x = x * model.window[0]
    for pad in model.pads:
        x = F.pad(x, (0, int(pad)))
    result: torch.Tensor = x[:, : int(model.count)] + model.count
    return result


def math_on_constants(model: Any, x: torch.Tensor) -> torch.Tensor:
    steps = torch.arange(3000).float() / 3000
    if f"{model.count:d}" == "2" and 2.0 in model.pads and torch.equal(model.pads, torch.tensor([1, 2])):
        x = x * math.sqrt(model.window[1]) + steps.mean().item()
    return x * sum(model.window.tolist()) if (steps < 1).all() and model.tables[1] > 3 else x


def follows_writes(model: Any, x: torch.Tensor) -> torch.Tensor:
    table = torch.zeros(4)
    view = table.view(2, 2)
    view[0, 0] = 1
    table += 1
    return x * 2 if view.sum() == 5 and torch.empty(3, 3).fill_(1.0).triu_(1).sum() == 3 else x


def shapes_from_values(model: Any, x: torch.Tensor) -> torch.Tensor:
    chosen = model.window[model.window > 0.2]
    total = x[:, torch.tensor([True, False, True, False, True, True])].sum()
    result: torch.Tensor = total * chosen + torch.arange(chosen.numel())
    return result


CONSTANTS: list[Forward] = [loops, math_on_constants, follows_writes, shapes_from_values]


@pytest.mark.parametrize("forward", CONSTANTS, ids=lambda f: f.__name__)
def test_python_gets_the_values_of_constants(forward: Forward) -> None:
    exported, _ = known(forward)
    agrees(exported, forward, (4, 6))
    assert all(
        isinstance(size, int) for spec in exported.graph.output_node().args[0] for size in spec.meta["val"].shape
    )


def test_decisions_on_the_model_are_noted_with_their_lines(prove: ProveEverywhere, untouched: Untouched) -> None:
    model = nn.Sequential(Holds(loops)).eval()
    with untouched(model):
        notes = prove(model, X, dynamic={"input": ["n", None]}).program.notes
    assert [note.split(" at ")[0] for note in notes] == [
        f"0.{name} is fixed as it is now: forward uses the value in Python" for name in ("flag", "pads", "count")
    ]
    assert all("capture/test_known_values.py:" in note for note in notes)


def test_decisions_on_parameters_are_noted() -> None:
    _, notes = known(lambda model, x: x * 2 if model.scale > 1 else x)
    assert len(notes) == 1
    assert notes[0].startswith("scale is fixed as it is now: forward uses the value in Python at capture/test_known")


def padded(model: Any, x: torch.Tensor) -> torch.Tensor:
    padding = [x.shape[0] % 1, (2 - x.shape[-1] % 2) % 2]
    return x * 2 if torch.sum(torch.tensor(padding)) != 0 else x * 3


def counted(model: Any, x: torch.Tensor) -> torch.Tensor:
    sizes = torch.Tensor([x.shape[0], x.shape[1]])
    widest = torch.stack([sizes, sizes + 1]).max().item()
    return x[:, : torch.ceil(torch.tensor(x.shape[1] / 2)).long().item()] * widest / sizes.prod().item()


def written_sizes(model: Any, x: torch.Tensor) -> torch.Tensor:
    table = torch.zeros(4)
    table[1] = x.shape[1] // 2
    return x * table.sum().item() if (torch.tensor(x.shape[-2:]) > 1).all() else x


@pytest.mark.parametrize("forward", [padded, counted, written_sizes], ids=lambda f: f.__name__)
def test_tensors_of_sizes_keep_the_sizes_open(forward: Forward) -> None:
    exported, notes = known(forward, dynamic=True)
    agrees(exported, forward, (4, 6), (3, 8), (7, 24))
    assert notes == []
    inputs = [node for node in exported.graph.nodes if node.name == "x" or node.target == "tensors_0"]
    assert all(isinstance(size, torch.SymInt) for size in inputs[-1].meta["val"].shape)


GUARDED: dict[str, Forward] = {
    "dim <= 40": lambda model, x: x * 2 if x.size(1) > model.limit else x,
    "dim % 2": lambda model, x: x * 2 if torch.tensor([x.size(1) % 2, 0]).any() else x,
    "math.ceil(dim / 4) <= 2": lambda model, x: x * 2 if torch.ceil(torch.tensor(x.size(1)) / 4) > 2 else x,
}


@pytest.mark.parametrize("condition", GUARDED)
def test_decisions_on_sizes_are_guards_in_plain_words(condition: str) -> None:
    from fxexport.capture.pipeline import capture_model

    program = capture_model(Holds(GUARDED[condition]).eval(), X, dynamic={"x": [None, "dim"]}).program
    guards = {guard.condition: guard.place for guard in program.signature.guards}
    (found,) = guards
    assert condition in found
    assert "test_known_values.py:" in guards[found]


def test_numbers_that_a_float_tensor_rounds_are_not_followed() -> None:
    """0.1 * 30 is 3 in float32 and more than 3 in Python."""
    refuse(lambda model, x: x * 2 if torch.ceil(torch.tensor(x.size(1)) * 0.1) > 2 else x, dynamic=True)
    refuse(lambda model, x: x * 2 if torch.tensor(x.size(1)) / 3 * 3 > 7 else x, dynamic=True)


def refuse(forward: Forward, *, dynamic: bool = False) -> None:
    with pytest.raises(CaptureError) as caught:
        known(forward, dynamic=dynamic)
    assert is_data_dependent(caught.value.__cause__), caught.value


def updated(model: Any, x: torch.Tensor) -> torch.Tensor:
    model.count += 1
    return x * 2 if model.count > 3 else x


def decided_before_update(model: Any, x: torch.Tensor) -> torch.Tensor:
    before = bool(model.count > 3)
    model.count += 1
    return x * 2 if before else x


def written_by_view(model: Any, x: torch.Tensor) -> torch.Tensor:
    table = torch.zeros(4)
    table.view(2, 2)[0, 0] = x.sum()
    return x * 2 if table.sum() > 0 else x


def written_by_data(model: Any, x: torch.Tensor) -> torch.Tensor:
    table = torch.zeros(4)
    table.data[0] = x.sum()
    return x * 2 if table.sum() > 0 else x


def written_attribute(model: Any, x: torch.Tensor) -> torch.Tensor:
    table = model.tables[1]
    table[0].copy_(x.sum())
    return x * 2 if table > 0 else x


def by_function(model: Any, x: torch.Tensor) -> torch.Tensor:
    mean, variance = torch.zeros(6), torch.ones(6)
    F.batch_norm(x, mean, variance, training=True)
    return x * 2 if mean.sum() > 0 else x


NOT_KNOWN: dict[str, Forward] = {
    **{f.__name__: f for f in (updated, decided_before_update, written_by_view, written_by_data, written_attribute)},
    "by_function": by_function,
    "input": lambda model, x: x * 2 if x.sum() > 0 else x,
    "mixed": lambda model, x: x * 2 if (model.scale * x[0, 0]) > 0 else x,
    "random": lambda model, x: x * 2 if torch.rand(3).sum() > -1 else x,
    "dropout": lambda model, x: x * 2 if F.dropout(torch.ones(3), 0.5, training=True).sum() > -1 else x,
    "unset": lambda model, x: x * 2 if torch.empty(3).sum() == 7 else x,
}


@pytest.mark.parametrize("name", NOT_KNOWN)
def test_what_may_be_anything_is_not_known(name: str) -> None:
    refuse(NOT_KNOWN[name])


def test_state_that_is_decided_on_and_written_to_is_refused() -> None:
    def keeps(model: Any, x: torch.Tensor) -> torch.Tensor:
        x = x * 2 if model.count > 3 else x
        model.count.copy_((x.sum() * 0).long() + 2)
        return x

    with pytest.raises(
        CaptureError, match=r"decision on the state 'count' at .*test_known_values.py:\d+ and writes to it"
    ):
        known(keeps)


ARRAYS: dict[str, Forward] = {
    "numpy": lambda model, x: x.sum() * torch.from_numpy(model.window.numpy() * 2),
    "asarray": lambda model, x: x.sum() * torch.as_tensor(np.asarray(model.window)),
    "ufunc": lambda model, x: x.sum() * np.sqrt(model.window),
    "detached": lambda model, x: x * float(np.abs(model.scale.detach().cpu().numpy())),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_numpy_on_constants_is_a_constant(name: str) -> None:
    exported, notes = known(ARRAYS[name])
    agrees(exported, ARRAYS[name], (4, 6))
    assert "what numpy computes at capture/test_known_values.py:" in notes[0]
    assert notes[0].endswith("is a constant of the artifact")


def test_numpy_windows_need_no_note() -> None:
    exported, notes = known(window := lambda model, x: x[:, :5] * torch.from_numpy(np.hanning(5)).float())
    agrees(exported, window, (4, 6))
    assert notes == []


@pytest.mark.parametrize("dynamic", [False, True])
def test_numpy_on_data_is_refused_by_line(dynamic: bool) -> None:
    with pytest.raises(
        CaptureError, match=r"numpy on values that depend on its inputs, at .*test_known_values.py:\d+: "
    ):
        known(lambda model, x: torch.from_numpy(np.polyfit(np.arange(4), x.numpy(), 1)), dynamic=dynamic)


def test_numpy_on_state_that_a_call_changes_is_refused() -> None:
    def counts(model: Any, x: torch.Tensor) -> torch.Tensor:
        model.count += 1
        return x * float(model.count.numpy())

    with pytest.raises(
        CaptureError, match=r"numpy on values of count, which a call of it changes, at .*known_values.py"
    ):
        known(counts)


def test_a_write_into_an_array_of_a_tensor_is_refused() -> None:
    def writes(model: Any, x: torch.Tensor) -> torch.Tensor:
        table = torch.ones(3)
        table.numpy()[0] = 5
        return x * table.sum()

    with pytest.raises(
        CaptureError, match=r"writes into the array that it got from a tensor at .*test_known_values.py"
    ):
        known(writes)


def test_torch_cond_is_left_alone() -> None:
    forward: Forward = lambda model, x: torch.cond(x.sum() > 0, lambda x: x * 2, lambda x: x * model.scale, (x,))  # noqa: E731
    exported, _ = known(forward)
    agrees(exported, forward, (4, 6))


def test_torch_is_left_as_it_was() -> None:
    from torch.fx.experimental.symbolic_shapes import uninteresting_files

    before = set(uninteresting_files())
    with pytest.raises(ZeroDivisionError):
        known(lambda model, x: 1 / 0 * x)
    assert "__new__" not in torch.Tensor.__dict__
    assert uninteresting_files() == before
