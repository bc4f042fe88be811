"""Running products, maxima, minima and log-sums along an axis of fixed size: of blocks that double in length.

    y[i] = x[i] . x[i-1]          then  y[i] . y[i-2],  y[i] . y[i-4], ...

    logaddexp(x, y)     ->  larger + log(1 + exp(smaller - larger))

Along an axis of open size they are a Scan: ``running_scans``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def is_fixed(call: dict[str, Any]) -> bool:
    """Whether the axis of a call has a known size."""
    shape = call["self"].meta["val"].shape
    return not shape or isinstance(shape[call["dim"]], int)


def _doubled(x: Tensor, dim: int, joined: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """``joined(later, earlier)`` of all elements up to each."""
    reach = 1
    while x.dim() and reach < x.shape[dim]:
        earlier = x.narrow(dim, 0, x.shape[dim] - reach)
        x = torch.cat([x.narrow(dim, 0, reach), joined(x.narrow(dim, reach, x.shape[dim] - reach), earlier)], dim)
        reach *= 2
    return x


def _cumprod(x: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    if dtype is None and not x.is_floating_point():
        dtype = torch.int64
    return _doubled(x if dtype is None else x.to(dtype), dim, torch.mul)


def _logcumsumexp(x: Tensor, dim: int) -> Tensor:
    return _doubled(x, dim, log_add_exp)


def log_add_exp(x: Tensor, y: Tensor) -> Tensor:
    """By the larger of two, so that no exponential overflows and none is all that is left."""
    larger, smaller = torch.maximum(x, y), torch.minimum(x, y)
    both = larger + (smaller - larger).exp().log1p()
    return torch.where((larger == smaller) & larger.isinf(), larger, both)


def _log_add_exp2(x: Tensor, y: Tensor) -> Tensor:
    return log_add_exp(x * math.log(2), y * math.log(2)) / math.log(2)


def _is_float(call: dict[str, Any]) -> bool:
    return bool(call["self"].meta["val"].is_floating_point())


def _running(better: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, int], tuple[Tensor, Tensor]]:
    """Values and places of the best so far, the last of equal ones; ``better(later, earlier)`` says where to keep."""

    def run(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        shape = [x.shape[dim] if axis == dim % max(x.dim(), 1) else 1 for axis in range(x.dim())]
        places = torch.arange(x.shape[dim], device=x.device).reshape(shape).expand(x.shape) if shape else x.long() * 0
        reach = 1
        while shape and reach < x.shape[dim]:
            rest = x.shape[dim] - reach
            keep = better(x.narrow(dim, reach, rest), x.narrow(dim, 0, rest))
            both = [torch.where(keep, v.narrow(dim, reach, rest), v.narrow(dim, 0, rest)) for v in (x, places)]
            x, places = (torch.cat([v.narrow(dim, 0, reach), w], dim) for v, w in zip((x, places), both, strict=True))
            reach *= 2
        return x, places

    return run


RUNNING_SPELLINGS: dict[Any, tuple[Callable[[dict[str, Any]], bool], Callable[..., Any]]] = {
    aten.cumprod.default: (is_fixed, _cumprod),
    aten.logaddexp.default: (_is_float, log_add_exp),
    aten.logaddexp2.default: (_is_float, _log_add_exp2),
    aten.logcumsumexp.default: (is_fixed, _logcumsumexp),
    aten.cummax.default: (is_fixed, _running(lambda later, earlier: (later >= earlier) | (later != later))),
    aten.cummin.default: (is_fixed, _running(lambda later, earlier: (later <= earlier) | (later != later))),
}
"""Operator -> (which calls of it, the call in the words of other operators)."""
