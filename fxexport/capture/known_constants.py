"""Python decisions on constants: a second capture in which the values of small buffers are known.

``if self.initialized:`` or ``range(int(self.steps))`` on a buffer looks data-dependent to ``torch.export``,
since a buffer may change. An artifact computes one call from the state the model is in, so a buffer that the
call does not update is a constant, and a decision on it is none. Parameters and real-valued buffers stay what
they are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._subclasses import fake_tensor
from torch.fx.experimental import proxy_tensor

_SMALL = 64
"""Elements of a constant up to which its values are followed through capture."""


def fix_small_buffers(model: nn.Module, updated: Collection[str]) -> tuple[list[str], Callable[[], None]]:
    """Takes small integer and bool buffers out of ``model``: their names, and what to call first in forward.

    That call puts them back as tensors made on the spot, like ``torch.tensor([1, 2])`` in forward, which is
    what capture follows the values of. ``updated`` are buffers that forward changes: they stay.
    """
    taken: dict[str, tuple[nn.Module, str, torch.Tensor]] = {}
    for path, module in model.named_modules():
        for name, buffer in list(module._buffers.items()):
            qualified = f"{path}.{name}".lstrip(".")
            if buffer is not None and qualified not in updated and _is_small(buffer):
                taken[qualified] = module, name, module._buffers.pop(name)

    def put_back() -> None:
        for module, name, value in taken.values():
            module.__dict__[name] = torch.ops.aten.lift_fresh_copy.default(value)

    return list(taken), put_back


def _is_small(tensor: torch.Tensor) -> bool:
    real = tensor.is_floating_point() or tensor.is_complex()
    return not real and tensor.numel() <= _SMALL


@contextmanager
def known_values() -> Iterator[None]:
    """Capture follows the values of constants up to 64 elements, where torch by itself follows one."""
    places: tuple[Any, ...] = (fake_tensor, proxy_tensor)
    limits = [place.CONSTANT_NUMEL_LIMIT for place in places]
    try:
        for place in places:
            place.CONSTANT_NUMEL_LIMIT = _SMALL
        yield
    finally:
        for place, limit in zip(places, limits, strict=True):
            place.CONSTANT_NUMEL_LIMIT = limit
