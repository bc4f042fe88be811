"""Operators without an ONNX form that are one line in the words of others.

median and kthvalue by sorting, searchsorted by counting, hypot, copysign, aminmax, and rrelu as it is in inference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

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


def _copy(x: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """``source`` in the shape and dtype of ``x``."""
    return source.to(x.dtype).expand(x.shape)


def _vander(x: Tensor, *, N: int | None = None) -> Tensor:
    """1, x, x * x, ... along a new last axis of ``N``."""
    count = x.shape[-1] if N is None else N
    ones = torch.ones_like(x).unsqueeze(-1)
    powers = torch.cat([ones, x.unsqueeze(-1).expand([*x.shape, count - 1])], -1)
    return aten.cumprod.default(powers, -1)  # type: ignore[no-any-return]


def _by_number(operator: Any) -> Callable[[Tensor, Any], Tensor]:
    """A size in the place of a plain number, as a tensor of no dimensions, which leaves the dtype as it is."""

    def call(x: Tensor, number: Any) -> Tensor:
        is_whole = isinstance(number, torch.SymInt)
        dtype = torch.int64 if is_whole else x.dtype if x.is_floating_point() else torch.get_default_dtype()
        return operator(x, torch.scalar_tensor(number, dtype=dtype, device=x.device))  # type: ignore[no-any-return]

    return call


def _is_size(call: dict[str, Any]) -> bool:
    return isinstance(call.get("other", call.get("exponent")), fx.Node)


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
    aten.remainder.Scalar: (_is_size, _by_number(aten.remainder.Tensor)),
    aten.pow.Tensor_Scalar: (_is_size, _by_number(aten.pow.Tensor_Tensor)),
    aten.bitwise_and.Scalar: (_is_size, _by_number(aten.bitwise_and.Tensor)),
    aten.bitwise_or.Scalar: (_is_size, _by_number(aten.bitwise_or.Tensor)),
    aten.bitwise_xor.Scalar: (_is_size, _by_number(aten.bitwise_xor.Tensor)),
    aten.copy.default: (_always, _copy),
    aten.linalg_vander.default: (_always, _vander),
    aten.rrelu.default: (lambda call: not call["training"], _rrelu),
}
"""Operator -> (which calls of it, the call in the words of other operators)."""
