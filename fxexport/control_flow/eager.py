"""``torch.cond`` and its kin in eager PyTorch: run as Python would, and seen by the modes that watch operators."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from torch._higher_order_ops import utils
from torch._ops import HigherOrderOperator
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


@contextmanager
def eager_control_flow() -> Iterator[None]:
    """While the block runs, ``torch.cond`` calls one of its functions and ``torch.while_loop`` calls its two in turn.

    PyTorch would compile them first. That takes seconds, follows sizes that it need not (and fails at some), and, tried
    while a ``TorchDispatchMode`` is active, marks its own code as one that cannot be compiled for the life of the process.
    """

    def call(function: Callable[..., Any], args: Any, kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))

    with mock.patch.object(utils, "_hop_compile_and_call", call):
        yield


def run_watched(mode: TorchDispatchMode, target: HigherOrderOperator, args: Any, kwargs: Any = None) -> Any:
    """``target(*args, **kwargs)`` with ``mode`` active inside of the functions among the arguments.

    For the ``__torch_dispatch__`` of a mode with ``supports_higher_order_operators = True``, which PyTorch sets aside
    while it is asked: without this the mode would not see what a branch or a loop body runs.
    """

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*values: Any) -> Any:
            with mode:
                return function(*values)

        return call

    args, kwargs = pytree.tree_map(lambda leaf: watched(leaf) if callable(leaf) else leaf, (tuple(args), kwargs or {}))
    return target(*args, **kwargs)
