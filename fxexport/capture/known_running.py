"""Operations on the tensors that stand behind those of a capture: really computed, whatever modes are active."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._dispatch.python import no_python_dispatcher
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes


class RandomDrawn(Exception):
    """An operation drew random numbers: its result is not known."""


class _NoRandomness(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise RandomDrawn(str(func))
        return func(*args, **(kwargs or {}))


@contextmanager
def for_real() -> Iterator[None]:
    """While the block runs, PyTorch computes as in eager, although a capture is under way."""
    with torch._C.DisableTorchFunction(), no_python_dispatcher(), _disable_current_modes(), torch.no_grad():
        yield


def run_for_real(func: Any, args: Any, kwargs: Any) -> Any:
    """``func(*args, **kwargs)`` as eager computes it on real tensors.

    Raises RandomDrawn where that would draw a random number (before it is drawn), and whatever ``func`` raises.
    """
    with for_real(), _NoRandomness():  # type: ignore[no-untyped-call]
        return func(*args, **kwargs)


def same_memory(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether a write into one may show in the other."""
    return bool(torch._C._is_alias_of(a, b))  # type: ignore[attr-defined]


def words(text: str) -> frozenset[str]:
    """Names of operations, from a text."""
    return frozenset(text.split())
