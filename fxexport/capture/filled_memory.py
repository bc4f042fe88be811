"""Memory that a model takes and may never write (``torch.empty``): made the same on every run, and zeros in a graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode

from fxexport.control_flow import run_watched

_aten = torch.ops.aten
# Each with the operator that writes zeros there and takes the same leading arguments, and how many those are.
_WRITTEN = {
    _aten.empty.memory_format: (_aten.zeros.default, 1),
    _aten.empty_strided.default: (_aten.zeros.default, 1),
    _aten.empty_permuted.default: (_aten.zeros.default, 1),
    _aten.empty_like.default: (_aten.zeros_like.default, 1),
    _aten.new_empty.default: (_aten.new_zeros.default, 2),
    _aten.new_empty_strided.default: (_aten.new_zeros.default, 2),
}
_OPTIONS = ("dtype", "layout", "device", "pin_memory")


@dataclass(frozen=True)
class Filling:
    """What to write into memory by its dtype: numbers, integers (which may be used as an index), bools."""

    real: float
    integer: int
    boolean: bool


ZEROS = Filling(0.0, 0, False)
OTHERS = (Filling(1.5, 1, True), Filling(-7.25, 0, False))
"""Two fillings of which no two values agree: what they change was never written by the model."""


class Filled(TorchDispatchMode):
    """Every tensor that ``torch.empty`` and its kin make inside the block holds ``filling``. ``used``: there was one."""

    supports_higher_order_operators = True

    def __init__(self, filling: Filling) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.used = False
        self._filling = filling

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if isinstance(func, HigherOrderOperator):  # torch.cond: what it calls is watched like everything else
            return run_watched(self, func, args, kwargs)
        result = func(*args, **(kwargs or {}))
        if func in _WRITTEN and result.numel() and not result.is_quantized and result.device.type != "meta":
            self.used = True
            if result.dtype == torch.bool:
                result.fill_(self._filling.boolean)
            else:
                inexact = result.is_floating_point() or result.is_complex()
                result.fill_(self._filling.real if inexact else self._filling.integer)
        return result


def write_zeros(root: fx.GraphModule) -> None:
    """Zeros for memory that nothing may write, in a graph and the graphs inside it, so that every run is the same::

    y = aten.empty.memory_format([n, 3])   ->   y = aten.zeros.default([n, 3])
    """
    for module in root.modules():
        if not isinstance(module, fx.GraphModule):
            continue
        for node in module.graph.nodes:
            if node.op == "call_function" and node.target in _WRITTEN:
                node.target, count = _WRITTEN[node.target]
                node.args = node.args[:count]
                node.kwargs = {key: value for key, value in node.kwargs.items() if key in _OPTIONS}
