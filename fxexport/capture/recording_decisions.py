"""The decisions on tensor values that one eager run takes, in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from fxexport.capture.asked import asking_frame, number_kept, predicate, site_of
from fxexport.capture.reference import Reference, run_flat


def decisions_of(reference: Reference, inputs: Sequence[torch.Tensor]) -> list[tuple[str, bool]]:
    """``("models/net.py:41", True)`` for each decision that forward takes on a tensor when eager runs on ``inputs``.

    Decisions on ``t.item()`` are among them where the model also works with ``t`` itself. Raises whatever forward raises.
    """
    try:
        return _recorded(reference, inputs, numbers=True)
    except Exception:  # noqa: BLE001 - a tensor does not do for that number; what forward itself raises is raised below
        return _recorded(reference, inputs, numbers=False)


def _recorded(reference: Reference, inputs: Sequence[torch.Tensor], numbers: bool) -> list[tuple[str, bool]]:
    model, taken = reference.fresh(), list[tuple[str, bool]]()
    with _Recording(taken, numbers):
        run_flat(model, inputs, 0)
    return taken


class _Recording(TorchFunctionMode):
    def __init__(self, taken: list[tuple[str, bool]], numbers: bool) -> None:
        super().__init__()
        self._taken, self._numbers = taken, numbers

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        asked = predicate(func, args, kwargs)
        if asked is not None:
            self._taken.append((site_of(asking_frame())[0], bool(asked)))
        kept = number_kept(func, args) if self._numbers else None
        return func(*args, **kwargs) if kept is None else kept
