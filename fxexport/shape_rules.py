"""Shapes of recurrent layers without running them step by step.

PyTorch finds the output shape of ``lstm`` and ``gru`` on symbolic tensors by unrolling the layer over its time steps, which
fixes the number of steps and costs seconds. While :func:`shape_rules` is active their shapes come from a rule instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey

aten = torch.ops.aten
_COMPOSITE = DispatchKey.CompositeImplicitAutograd


def _outputs(input: Tensor, hidden: Tensor, bidirectional: bool) -> Tensor:
    """``[..., input size] -> [..., hidden size * directions]``; the layout of time and batch is kept."""
    return input.new_empty(*input.shape[:-1], hidden.shape[-1] * (2 if bidirectional else 1))


def _lstm(
    input: Tensor,
    hx: Sequence[Tensor],
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return _outputs(input, hx[0], bidirectional), torch.empty_like(hx[0]), torch.empty_like(hx[1])


def _recurrent(
    input: Tensor,
    hx: Tensor,
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, Tensor]:
    return _outputs(input, hx, bidirectional), torch.empty_like(hx)


_RULES: dict[Any, Callable[..., Any]] = {
    aten.lstm.input: _lstm,
    aten.gru.input: _recurrent,
    aten.rnn_tanh.input: _recurrent,
    aten.rnn_relu.input: _recurrent,
}


@contextmanager
def shape_rules() -> Iterator[None]:
    """While the block runs, recurrent operators on fake tensors have their shapes by rule. Real tensors are not
    affected. Blocks may nest; one thread at a time."""
    own = {operator: operator.py_kernels.get(_COMPOSITE) for operator in _RULES}
    _install(_RULES)
    try:
        yield
    finally:
        _install(own)


def _install(kernels: dict[Any, Any]) -> None:
    for operator, kernel in kernels.items():
        if kernel is None:
            operator.py_kernels.pop(_COMPOSITE, None)
        else:
            operator.py_kernels[_COMPOSITE] = kernel
        operator._dispatch_cache.clear()
