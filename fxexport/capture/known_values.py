"""Values that are known during capture: constants, what the model holds, sizes, and what forward computes from them.

``if torch.sum(torch.tensor(padding)) != 0``, ``range(int(self.steps))``, ``x.size(2) > self.max_len`` and
``self.window.numpy()`` look to ``torch.export`` as if the data decided. Nothing of it depends on data. A tensor made of
numbers has these values; an artifact computes one call from the state that the model is in, so a tensor of the model that
a call leaves as it is is a constant. Operations on known tensors are computed along with the capture, so Python gets its
answers exactly, and a decision on sizes becomes a guard on them. Whatever is not certain is not known.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.fx.experimental.symbolic_shapes import uninteresting_files

from fxexport.capture.flat_model import FlatModel
from fxexport.capture.known_decisions import Learnt
from fxexport.capture.known_mode import KnownValues
from fxexport.capture.known_sizes import is_symbolic
from fxexport.capture.known_tensors import KnownTensors, state_of
from fxexport.capture.known_text import numbers_as_text
from fxexport.capture.reference import Reference

_OWN_FILES = {str(path) for path in Path(__file__).parent.glob("known_*.py")}


@contextmanager
def known_values(flat: FlatModel, reference: Reference) -> Iterator[list[str]]:
    """While the block runs, ``flat.forward`` gets the values that are known whenever Python asks a tensor for them.

    Yields the notes, filled when the block ends: what is fixed as the model holds it now, and at which line. ``flat`` is a
    private copy: it is given an attribute, which is taken away again.

    Raises CaptureError from ``flat.forward`` where numpy gets values that depend on inputs, and where forward writes into
    what it decided on.
    """
    forward, notes, learnt = flat.forward, list[str](), Learnt()
    state = state_of(flat.model, [reference.model, reference.after_a_call])

    def forward_by_value(*tensors: torch.Tensor) -> Any:
        # Entered here: capture has put other tensors in the place of buffers, and its own modes would ask first.
        mode = KnownValues(KnownTensors(flat.model, state), learnt)
        with mode, _sizes_in_new_tensors(), numbers_as_text(learnt.told):
            result = forward(*tensors)
        mode.check()
        return result

    flat.__dict__["forward"] = forward_by_value
    between = uninteresting_files()  # frames that torch looks past when it says which line asked
    added = _OWN_FILES - between
    between |= added
    try:
        yield notes
        notes += learnt.notes()
    finally:
        between -= added
        flat.__dict__.pop("forward", None)


@contextmanager
def _sizes_in_new_tensors() -> Iterator[None]:
    """``torch.Tensor([height, width])`` keeps sizes as ``torch.tensor`` does; by itself it fixes them as they are."""

    def new(cls: Any, *args: Any, **kwargs: Any) -> Any:
        data = args[0] if len(args) == 1 and isinstance(args[0], list | tuple) else ()
        if cls is torch.Tensor and any(is_symbolic(element) for element in data):
            return torch.tensor(data, dtype=torch.get_default_dtype())
        return torch._C.TensorBase.__new__(cls, *args, **kwargs)

    torch.Tensor.__new__ = staticmethod(new)  # type: ignore[method-assign]
    try:
        yield
    finally:
        del torch.Tensor.__new__
