"""The user's model is copied before anything runs, whatever it carries, and never changes."""

from __future__ import annotations

import logging
import random
import threading
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ProveEverywhere, Untouched
from torch import nn

from fxexport.capture.pipeline import capture_model
from fxexport.capture.private_copy import preserved_process_state, private_copy, seed_everything, unwrap
from fxexport.errors import CaptureError

X = torch.randn(2, 3)


class Baggage(nn.Module):
    """What models carry around and ``copy.deepcopy`` stumbles over."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.lock = threading.Lock()
        self.log = logging.getLogger("baggage")
        self.rng = torch.Generator()
        self.shift = lambda t: t + 1
        self.pending = (i for i in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with self.lock:
            self.log.debug("called")
            result: torch.Tensor = self.shift(self.linear(x))
            return result


def test_what_cannot_be_copied_is_shared_and_named(prove: ProveEverywhere, untouched: Untouched) -> None:
    model = Baggage().eval()
    with untouched(model):
        notes = prove(model, X, formats=["pt"]).program.notes
    assert "lock (lock) cannot be copied: shared with your model" in notes
    assert "pending (generator) cannot be copied: shared with your model" in notes
    assert not any("linear" in note or "shift" in note for note in notes)


def test_a_model_that_refuses_to_be_copied_is_an_error() -> None:
    class Refuses(nn.Linear):
        def __deepcopy__(self, memo: Any) -> Any:
            raise RuntimeError("no copies of me")

    with pytest.raises(CaptureError, match=r"Refuses cannot be deep-copied \(RuntimeError: no copies of me\)"):
        private_copy(Refuses(3, 3))


def test_weight_norm_of_both_kinds(prove: ProveEverywhere, untouched: Untouched) -> None:
    model = nn.Sequential(
        nn.utils.weight_norm(nn.Linear(3, 3)),
        nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)),
        nn.utils.spectral_norm(nn.Linear(3, 3)),
        nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)),
    ).eval()
    with untouched(model):
        prove(model, X)


def test_parameters_with_gradients_and_under_autograd(prove: ProveEverywhere, untouched: Untouched) -> None:
    model = nn.Linear(3, 4).eval()
    model(X).sum().backward()
    gradient = model.weight.grad
    with torch.enable_grad(), untouched(model):
        prove(model, (X.clone().requires_grad_() * 2), formats=["pt"])
    assert model.weight.grad is gradient


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_under_the_grad_modes(mode: Any, prove: ProveEverywhere, untouched: Untouched) -> None:
    model = nn.Linear(3, 4).eval()
    with mode():
        example = torch.randn(2, 3)
        with untouched(model):
            prove(model, example, formats=["pt"])


def test_hooks_are_captured_and_said_to_be(prove: ProveEverywhere) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU()).eval()
    model[0].register_forward_hook(lambda module, args, output: output * 3)
    model[1].register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    captured = prove(model, X, formats=["pt"])
    assert "forward hooks of 0, 1 are captured with the model" in captured.program.notes
    torch.testing.assert_close(captured.expected[0], torch.relu(3 * model[0].forward(X) + 1))


def test_torch_compile_is_taken_off(prove: ProveEverywhere) -> None:
    model = nn.Linear(3, 4).eval()
    captured = prove(torch.compile(model), X, formats=["pt"])
    assert "wrapper OptimizedModule taken off: the module inside it was captured" in captured.program.notes
    torch.testing.assert_close(captured.expected[0], model(X).detach())


def test_data_parallel_is_taken_off() -> None:
    inner = nn.Linear(3, 4)
    assert unwrap(nn.DataParallel(inner))[0] is inner


def test_wrappers_that_spread_a_model_are_refused_by_name() -> None:
    class FullyShardedDataParallel(nn.Module):
        pass

    model = nn.Sequential(nn.Linear(3, 3), FullyShardedDataParallel())
    with pytest.raises(CaptureError, match="1 is wrapped in FullyShardedDataParallel"):
        unwrap(model)
    with pytest.raises(CaptureError, match="the model is a TorchScript module"):
        capture_model(torch.jit.script(nn.Linear(3, 3)), X)


def test_process_state_is_as_before_however_the_block_ends() -> None:
    def drawn() -> tuple[Any, ...]:
        return torch.rand(2).tolist(), random.random(), np.random.rand()

    seed_everything(5)
    first = drawn()
    seed_everything(5)

    def disturb() -> None:
        with preserved_process_state():
            seed_everything(9)
            drawn()
            torch.set_grad_enabled(False)
            torch.set_default_dtype(torch.float64)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        disturb()
    assert drawn() == first
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32


def test_only_one_thread_at_a_time_has_the_process() -> None:
    inside = threading.Event()
    order: list[str] = []

    def other() -> None:
        inside.wait()
        with preserved_process_state():
            order.append("other")

    thread = threading.Thread(target=other)
    thread.start()
    with preserved_process_state(), preserved_process_state():  # and one thread may nest
        inside.set()
        thread.join(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "other"]
