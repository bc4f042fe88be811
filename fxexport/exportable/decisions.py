"""What a module returns on tensors without values, on every path that its decisions on their values can take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode_temporarily

_MAX_DECISIONS, _MAX_PATHS = 32, 256


class TooManyPathsError(Exception):
    """The decisions do not come to an end, or there are more of them than can be tried."""


def on_every_path(run: Callable[[], Any]) -> list[Any]:
    """The results of ``run`` for all answers to its ``bool(tensor)`` decisions, ``[run()]`` where it takes none.

    Only decisions on fake tensors whose value is not known are answered; any other use of a value in Python raises what
    PyTorch raises for it.

    Raises TooManyPathsError after 32 decisions in a row (a loop until a value is reached) or 256 paths.
    """
    results, waiting = [], [list[bool]()]
    while waiting:
        known = waiting.pop()
        with _no_other_modes(), _Answers(known) as answers:
            results.append(run())
        taken = answers.taken
        waiting += [[*taken[:at], False] for at in range(len(known), len(taken))]
        if len(results) + len(waiting) > _MAX_PATHS:
            raise TooManyPathsError(f"there are more than {_MAX_PATHS} paths")
    return results


class _Answers(TorchFunctionMode):
    """Answers decisions by the list ``known``, and True from its end on; ``taken`` are all answers of the run."""

    def __init__(self, known: list[bool]) -> None:
        super().__init__()
        self._known = known
        self.taken: list[bool] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") != "__bool__" or not _is_open(args[0]):
            return func(*args, **(kwargs or {}))
        if len(self.taken) == _MAX_DECISIONS:
            raise TooManyPathsError(f"a loop may take more than {_MAX_DECISIONS} decisions")
        at = len(self.taken)
        self.taken.append(self._known[at] if at < len(self._known) else True)
        return self.taken[-1]


def _is_open(tensor: torch.Tensor) -> bool:
    return isinstance(tensor, FakeTensor) and tensor.constant is None and tensor.numel() == 1


@contextmanager
def _no_other_modes() -> Iterator[None]:
    """torch.export's own modes would record what runs here as a part of the graph."""
    with ExitStack() as stack:
        for _ in _get_current_function_mode_stack():  # type: ignore[no-untyped-call]
            stack.enter_context(_pop_mode_temporarily())
        yield
