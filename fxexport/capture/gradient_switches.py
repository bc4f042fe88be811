"""``with torch.enable_grad():`` and ``torch.no_grad()`` inside of forward, which say nothing to an artifact.

``torch.export`` records each switch, cuts the graph there, and joins it again piece by piece, in time that grows with the
square of their number. ``torch.autograd.Function.apply`` alone switches twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


@contextmanager
def unrecorded_gradient_switches(model: nn.Module) -> Iterator[None]:
    """While the block runs, switches of the gradient mode in the forward of ``model`` take effect and are not recorded.

    ``model`` is a private copy: it is given an attribute, which is taken away again.
    """
    forward = model.forward
    known = model.__dict__.get("forward")

    def forward_unrecorded(*tensors: Tensor) -> Any:
        with _Unrecorded():  # inside the modes of torch.export, which record
            return forward(*tensors)

    model.__dict__["forward"] = forward_unrecorded
    try:
        yield
    finally:
        model.__dict__.pop("forward")
        if known is not None:
            model.__dict__["forward"] = known


class _Unrecorded(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch._C._set_grad_enabled:
            with torch._C.DisableTorchFunction():
                return func(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))
