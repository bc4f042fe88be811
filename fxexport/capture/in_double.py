"""Running a model in float64 although its own code asks for float32."""

from __future__ import annotations

from typing import Any

import torch
from torch._ops import HigherOrderOperator
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fxexport.control_flow import run_watched


class InDouble(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Every float32 that code inside the block asks for is float64: ``x.float()``, ``x.to(torch.float32)``, ``dtype=``.

    Models cast to float32 where half precision would not do. On a float64 copy of the model, which is to say how exact
    float32 is, that cast would round to what is judged.
    """

    supports_higher_order_operators = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if isinstance(func, HigherOrderOperator):
            return run_watched(self, func, args, kwargs)
        args, kwargs = pytree.tree_map(_widened, (args, kwargs or {}))
        return func(*args, **kwargs)


def _widened(value: Any) -> Any:
    if not isinstance(value, torch.dtype):
        return value
    return {torch.float32: torch.float64, torch.complex64: torch.complex128}.get(value, value)
