"""Operators without an ONNX form that are one line in the words of others.

median and kthvalue by sorting, searchsorted by counting, hypot, copysign, aminmax, and rrelu as it is in inference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def _aminmax(x: Tensor, *, dim: int | None = None, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    dims = list(range(x.dim())) if dim is None else [dim]
    return x.amin(dims, keepdim), x.amax(dims, keepdim)


def _kthvalue(x: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    if not x.dim():
        return x, torch.zeros_like(x, dtype=torch.int64)
    values, places = x.sort(dim)
    chosen = tuple(each.narrow(dim, k - 1, 1) for each in (values, places))
    return chosen if keepdim else (chosen[0].squeeze(dim), chosen[1].squeeze(dim))  # type: ignore[return-value]


def _median(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """The lower of two middle values; NaN where there is one."""
    values, places = _kthvalue(x, (x.shape[dim] + 1) // 2 if x.dim() else 1, dim, keepdim)
    if x.is_floating_point() and x.dim():
        values = torch.where((x != x).any(dim, keepdim), float("nan"), values)
    return values, places


def _searchsorted(
    boundaries: Tensor,
    values: Tensor,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Tensor | None = None,
) -> Tensor:
    """How many boundaries come before each value: [..., n] and [..., m] -> [..., m]; memory for n * m numbers."""
    if sorter is not None:
        boundaries = boundaries.gather(-1, sorter)
    rows = boundaries.unsqueeze(-2) if boundaries.dim() > 1 else boundaries
    each = values.unsqueeze(-1)
    before = rows <= each if right or side == "right" else rows < each
    return before.sum(-1, dtype=torch.int32 if out_int32 else torch.int64)


def _hypot(x: Tensor, y: Tensor) -> Tensor:
    """Scaled by the larger side, so that no square overflows."""
    x, y = x.abs(), y.abs()
    larger = torch.maximum(x, y)
    ratio = torch.minimum(x, y) / torch.where(larger == 0, 1.0, larger)
    return torch.where(larger.isinf(), larger, larger * (1 + ratio * ratio).sqrt())


def _copysign(x: Tensor, sign: Tensor) -> Tensor:
    """A zero has a sign, too: that of its reciprocal."""
    negative = (sign < 0) | ((sign == 0) & (sign.reciprocal() < 0))
    return torch.where(negative, -x.abs(), x.abs())


def _log_sigmoid(x: Tensor) -> Tensor:
    """The logarithm of a sigmoid would be -Inf where that is 0."""
    return -torch.nn.functional.softplus(-x)


def _rrelu(
    x: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, generator: Any = None
) -> Tensor:
    return torch.nn.functional.leaky_relu(x, (lower + upper) / 2)


def _always(call: dict[str, Any]) -> bool:
    return True


SMALL_SPELLINGS: dict[Any, tuple[Callable[[dict[str, Any]], bool], Callable[..., Any]]] = {
    aten.aminmax.default: (_always, _aminmax),
    aten.kthvalue.default: (_always, _kthvalue),
    aten.median.dim: (_always, _median),
    aten.median.default: (_always, lambda x: _median(x.reshape([-1]), 0)[0]),
    aten.searchsorted.Tensor: (_always, _searchsorted),
    aten.hypot.default: (_always, _hypot),
    aten.copysign.Tensor: (lambda call: bool(call["self"].meta["val"].is_floating_point()), _copysign),
    aten.log_sigmoid.default: (_always, _log_sigmoid),
    aten.rrelu.default: (lambda call: not call["training"], _rrelu),
}
"""Operator -> (which calls of it, the call in the words of other operators)."""
