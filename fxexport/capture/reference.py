"""The judge: the user's eager model, copied before anything ran."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from fxexport.capture.binding import ExampleCall
from fxexport.capture.filled_memory import OTHERS, ZEROS, Filled
from fxexport.capture.flat_model import FlatModel, ResultLayout
from fxexport.capture.in_double import InDouble
from fxexport.capture.private_copy import preserved_process_state, private_copy, seed_everything
from fxexport.control_flow import eager_control_flow
from fxexport.errors import CaptureError

Tensors = tuple[torch.Tensor, ...]


@dataclass
class Reference:
    """Runs the pristine private copy in eager PyTorch; every run starts from the same state and leaves no trace.

    ``model`` is never run itself: each run takes a copy of its buffers and Python state (parameters are shared).
    ``unwritten_outputs``: positions of outputs that hold memory which the model takes and does not write (``torch.empty``);
    where there are any, such memory holds zeros in every run.
    """

    model: nn.Module
    call: ExampleCall
    unwritten_outputs: frozenset[int] = frozenset()

    def fresh(self) -> FlatModel:
        """A model to run once, in the state the user's model was in."""
        copy, _ = private_copy(self.model, share_parameters=True)
        return FlatModel(copy, self.call)

    def run(self, inputs: Sequence[torch.Tensor], *, seed: int = 0, double: bool = False) -> Tensors:
        """The flat outputs for the flat ``inputs``; in float64 throughout with ``double``."""
        memory = Filled(ZEROS) if self.unwritten_outputs else nullcontext()
        if double:
            copy, _ = private_copy(self.model)
            model = FlatModel(copy.double(), self.call)
            with memory, InDouble():  # type: ignore[no-untyped-call]
                return run_flat(model, [_double(t) for t in inputs], seed)
        model = self.fresh()
        with memory:
            return run_flat(model, inputs, seed)

    def unwritten(self, inputs: Sequence[torch.Tensor], outputs: Tensors) -> Tensors:
        """For each of ``outputs`` (of a run on ``inputs`` in which untouched memory held zeros) a bool tensor: which
        elements hold memory that the model did not write.

        Raises CaptureError where the shape of an output depends on such memory.
        """
        masks = [torch.zeros_like(output, dtype=torch.bool) for output in outputs]
        for filling in OTHERS:
            model = self.fresh()
            with Filled(filling):
                others = run_flat(model, inputs, 0)
            for output, other, mask in zip(outputs, others, masks, strict=True):
                if output.shape != other.shape:
                    raise CaptureError(
                        "the shape of an output depends on memory that the model takes and does not write "
                        "(torch.empty): use torch.zeros in the model"
                    )
                mask |= ~_close(output, other)
        return tuple(masks)

    def results(self) -> tuple[ResultLayout, Tensors]:
        """The layout of what one call on the example returns, and its tensors."""
        model = self.fresh()
        outputs = run_flat(model, self.call.tensors, 0)
        assert model.results is not None
        return model.results, outputs

    def run_twice(
        self, inputs: Sequence[torch.Tensor], memory: AbstractContextManager[Any] | None = None
    ) -> tuple[Tensors, Tensors, ResultLayout]:
        """Outputs of two calls of *one* model, the second with other random seeds, and the layout of the result. Both
        calls are made inside ``memory``."""
        model = self.fresh()
        with memory or nullcontext():
            first, second = run_flat(model, inputs, 0), run_flat(model, inputs, 1)
        assert model.results is not None
        return first, second, model.results

    def used(self) -> FlatModel:
        """A model as one call on the example leaves it."""
        model = self.fresh()
        run_flat(model, self.call.tensors, 0)
        return model

    @cached_property
    def after_a_call(self) -> nn.Module:
        """The user's model as one call on the example leaves it: to look at, not to run."""
        return self.used().model

    def updated_buffers(self) -> dict[str, torch.Tensor]:
        """The buffers that one call on the example changes, with the values they have before it."""
        before, after = dict(self.model.named_buffers()), dict(self.used().model.named_buffers())
        return {name: value for name, value in before.items() if not _same(value, after.get(name))}


def run_flat(model: FlatModel, inputs: Sequence[torch.Tensor], seed: int) -> Tensors:
    """One eager call on copies of ``inputs``, whatever the model does to them; random state is given back."""
    with preserved_process_state(), torch.no_grad(), eager_control_flow():
        seed_everything(seed)
        outputs: Tensors = model(*(t.detach().clone() for t in inputs))
    return tuple(t.detach() for t in outputs)


def _same(before: torch.Tensor, after: torch.Tensor | None) -> bool:
    if after is None or after.shape != before.shape or after.dtype != before.dtype:
        return False
    return bool(((before == after) | ((before != before) & (after != after))).all())


def _close(output: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    if output.is_floating_point() or output.is_complex():
        return torch.isclose(output, other, rtol=1e-5, atol=1e-7, equal_nan=True)
    return output == other


def _double(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_complex():
        return tensor.to(torch.complex128)
    return tensor.double() if tensor.is_floating_point() else tensor
