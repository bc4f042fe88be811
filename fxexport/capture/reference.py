"""The judge: the user's eager model, copied before anything ran."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from fxexport.capture.binding import ExampleCall
from fxexport.capture.flat_model import FlatModel, ResultLayout
from fxexport.capture.in_double import InDouble
from fxexport.capture.private_copy import preserved_process_state, private_copy, seed_everything

Tensors = tuple[torch.Tensor, ...]


@dataclass
class Reference:
    """Runs the pristine private copy in eager PyTorch; every run starts from the same state and leaves no trace.

    ``model`` is never run itself: each run takes a copy of its buffers and Python state (parameters are shared).
    """

    model: nn.Module
    call: ExampleCall

    def fresh(self) -> FlatModel:
        """A model to run once, in the state the user's model was in."""
        copy, _ = private_copy(self.model, share_parameters=True)
        return FlatModel(copy, self.call)

    def run(self, inputs: Sequence[torch.Tensor], *, seed: int = 0, double: bool = False) -> Tensors:
        """The flat outputs for the flat ``inputs``; in float64 throughout with ``double``."""
        if double:
            copy, _ = private_copy(self.model)
            with InDouble():  # type: ignore[no-untyped-call]
                return run_flat(FlatModel(copy.double(), self.call), [_double(t) for t in inputs], seed)
        return run_flat(self.fresh(), inputs, seed)

    def results(self) -> tuple[ResultLayout, Tensors]:
        """The layout of what one call on the example returns, and its tensors."""
        model = self.fresh()
        outputs = run_flat(model, self.call.tensors, 0)
        assert model.results is not None
        return model.results, outputs

    def run_twice(self, inputs: Sequence[torch.Tensor]) -> tuple[Tensors, Tensors, ResultLayout]:
        """Outputs of two calls of *one* model, the second with other random seeds, and the layout of the result."""
        model = self.fresh()
        first, second = run_flat(model, inputs, 0), run_flat(model, inputs, 1)
        assert model.results is not None
        return first, second, model.results

    def used(self) -> FlatModel:
        """A model as one call on the example leaves it."""
        model = self.fresh()
        run_flat(model, self.call.tensors, 0)
        return model

    def updated_buffers(self) -> dict[str, torch.Tensor]:
        """The buffers that one call on the example changes, with the values they have before it."""
        before, after = dict(self.model.named_buffers()), dict(self.used().model.named_buffers())
        return {name: value for name, value in before.items() if not _same(value, after.get(name))}


def run_flat(model: FlatModel, inputs: Sequence[torch.Tensor], seed: int) -> Tensors:
    """One eager call on copies of ``inputs``, whatever the model does to them; random state is given back."""
    with preserved_process_state(), torch.no_grad():
        seed_everything(seed)
        outputs: Tensors = model(*(t.detach().clone() for t in inputs))
    return tuple(t.detach() for t in outputs)


def _same(before: torch.Tensor, after: torch.Tensor | None) -> bool:
    if after is None or after.shape != before.shape or after.dtype != before.dtype:
        return False
    return bool(((before == after) | ((before != before) & (after != after))).all())


def _double(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor
