"""Distances, statistics and special functions without an ONNX form, in the words of others.

cdist(x, y)         ->  norms of all differences; pdist of those above the diagonal
mode, nanmedian     ->  counting equal ones; sorting with NaN last
lgamma, digamma     ->  Stirling's series in float64, from arguments above 10 (NIST Digital Library 5.11, 5.5.1, 5.5.3)
erfinv              ->  PyTorch's own rational approximation and two steps of Newton's method
cross_entropy       ->  log_softmax and sums, where the labels are smoothed or probabilities
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def _always(call: dict[str, Any]) -> bool:
    return True


def _is_float(call: dict[str, Any]) -> bool:
    return bool(call["self"].meta["val"].dtype in (torch.float32, torch.float64))


# -------------------------------------------------------------------- distances


def _cdist(x: Tensor, y: Tensor, p: float = 2.0, compute_mode: int | None = None) -> Tensor:
    """[..., n, d] and [..., m, d] -> [..., n, m]; memory for n * m * d numbers."""
    distances: Tensor = torch.linalg.vector_norm(x.unsqueeze(-2) - y.unsqueeze(-3), p, -1)
    return distances


def _pdist(x: Tensor, p: float = 2.0) -> Tensor:
    """[n, d] -> [n (n - 1) / 2], row by row of the upper triangle.

    Before row i are i (2 n - 1 - i) / 2 pairs; the row of a pair is the root of that, rounded in float64.
    """
    size = x.shape[0]
    n = torch.scalar_tensor(size, dtype=torch.float64, device=x.device)
    pair = torch.arange(size * (size - 1) // 2, dtype=torch.float64, device=x.device)
    row = ((2 * n - 1 - ((2 * n - 1).square() - 8 * pair).sqrt()) / 2).floor()
    column = pair - row * (2 * n - 1 - row) / 2 + row + 1
    ends = [x.index_select(0, places.long()) for places in (row, column)]
    distances: Tensor = torch.linalg.vector_norm(ends[0] - ends[1], p, -1)
    return distances


# -------------------------------------------------------------------- statistics


def _mode(x: Tensor, dim: int = -1, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """The most frequent value, of several the least, and its last place; memory for n * n numbers."""
    if not x.dim():
        return x.clone(), torch.zeros_like(x, dtype=torch.int64)
    rows = x.movedim(dim, -1)
    counts = (rows.unsqueeze(-1) == rows.unsqueeze(-2)).sum(-1)
    is_candidate = counts == counts.amax(-1, keepdim=True)
    first = torch.where(is_candidate, rows, rows.amax(-1, keepdim=True)).amin(-1, keepdim=True)
    places = torch.arange(rows.shape[-1], device=x.device)
    last = torch.where(rows == first, places, -1).amax(-1, keepdim=True)
    if keepdim:
        return first.movedim(-1, dim), last.movedim(-1, dim)
    return first.squeeze(-1), last.squeeze(-1)


def _nanmedian(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """The lower of two middle values of those that are numbers; NaN and the first place where none is."""
    is_nan = x != x
    values, places = torch.where(is_nan, float("inf"), x).sort(dim)
    count = (~is_nan).sum(dim, keepdim=True)
    middle = torch.where(count == 0, 0, torch.div(count - 1, 2, rounding_mode="floor"))
    value = torch.where(count == 0, float("nan"), values.gather(dim, middle))
    place = places.gather(dim, middle)
    return (value, place) if keepdim else (value.squeeze(dim), place.squeeze(dim))


def _fmax(x: Tensor, y: Tensor) -> Tensor:
    return torch.where(x != x, y, torch.where(y != y, x, torch.maximum(x, y)))


def _fmin(x: Tensor, y: Tensor) -> Tensor:
    return torch.where(x != x, y, torch.where(y != y, x, torch.minimum(x, y)))


def _extremum(reduce: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def over_all(x: Tensor, dim: Any = (), keepdim: bool = False) -> Tensor:
        return reduce(x, list(range(x.dim())), keepdim) if x.dim() else x.clone()

    return over_all


def _over_all(call: dict[str, Any]) -> bool:
    return not call["dim"]


def _mean(x: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
    return aten.mean.dim(x, list(range(x.dim())), dtype=dtype)  # type: ignore[no-any-return]


def _has_axes(call: dict[str, Any]) -> bool:
    return bool(call["self"].meta["val"].dim())


# -------------------------------------------------------------------- special functions

_SHIFT = 10
_STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156)
"""Bernoulli numbers B(2k) / (2k (2k - 1))."""


def _lgamma(x: Tensor) -> Tensor:
    """Below 1/2 by reflection: log(pi / abs(sin(pi x))) - lgamma(1 - x); Inf at 0, -1, -2..."""
    z = x.double()
    is_low = z < 0.5
    high = torch.where(is_low, 1 - z, z)
    factor = torch.ones_like(high)
    for step in range(_SHIFT):
        factor = factor * (high + step)
    is_small = high < _SHIFT
    y = torch.where(is_small, high + _SHIFT, high)
    series = sum(c / y ** (2 * k + 1) for k, c in enumerate(_STIRLING))
    value = (y - 0.5) * y.log() - y + 0.5 * math.log(2 * math.pi) + series
    value = torch.where(is_small, value - torch.where(is_small, factor, 1.0).log(), value)
    value = torch.where(high.isinf(), high, value)
    sine = (math.pi * (z - z.floor())).sin()
    reflected = math.log(math.pi) - sine.log() - value
    value = torch.where(is_low, torch.where(z == z.floor(), float("inf"), reflected), value)
    return torch.where(z.isinf(), float("inf"), value).to(x.dtype)


def _digamma(x: Tensor) -> Tensor:
    """Below 1/2 by reflection: digamma(1 - x) - pi / tan(pi x); NaN at -1, -2..., -Inf at 0 and Inf at -0."""
    z = x.double()
    is_low = z < 0.5
    high = torch.where(is_low, 1 - z, z)
    is_small = high < _SHIFT
    below = sum((high + step).reciprocal() for step in range(_SHIFT))
    y = torch.where(is_small, high + _SHIFT, high)
    series = sum(c * (2 * k + 1) / y ** (2 * k + 2) for k, c in enumerate(_STIRLING))
    value = y.log() - 0.5 / y - series
    value = torch.where(is_small, value - below, value)
    turn = math.pi * (z - z.floor())
    value = torch.where(is_low, value - math.pi * turn.cos() / turn.sin(), value)
    poles = torch.where(z == 0, -z.reciprocal(), float("nan"))
    return torch.where((z <= 0) & (z == z.floor()), poles, value).to(x.dtype)


_CENTRE = (
    (0.886226899, -1.645349621, 0.914624893, -0.140543331),
    (-2.118377725, 1.442710462, -0.329097515, 0.012229801),
)
_TAIL = ((-1.970840454, -1.624906493, 3.429567803, 1.641345311), (3.543889200, 1.637067800))


def _polynomial(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    value = torch.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value = value * x + coefficient
    return value


def _erfinv(y: Tensor) -> Tensor:
    """``calc_erfinv`` of PyTorch's Math.h: rational in the centre and in the tails, then Newton's method twice."""
    size = y.abs()
    square = y * y
    centre = y * _polynomial(square, _CENTRE[0]) / (1 + square * _polynomial(square, _CENTRE[1]))
    far = (-((1 - size) / 2).log()).sqrt()
    tail = _polynomial(far, _TAIL[0]) / (1 + far * _polynomial(far, _TAIL[1])) * y.sign()
    x = torch.where(size <= 0.7, centre, tail)
    for _ in range(2):
        x = x - (x.erf() - y) / (2 / math.sqrt(math.pi) * (-x * x).exp())
    return torch.where(size == 1, y * float("inf"), torch.where(size > 1, float("nan"), x))


# -------------------------------------------------------------------- losses


def _is_soft(call: dict[str, Any]) -> bool:
    return bool(call["label_smoothing"]) or bool(call["target"].meta["val"].is_floating_point())


def _composed(*args: Any, **kwargs: Any) -> Any:
    """The operators that PyTorch itself runs for it."""
    return aten.cross_entropy_loss.default.decompose(*args, **kwargs)


MEASURE_SPELLINGS: dict[Any, tuple[Callable[[dict[str, Any]], bool], Callable[..., Any]]] = {
    aten.cdist.default: (_always, _cdist),
    aten._cdist_forward.default: (_always, _cdist),
    aten._euclidean_dist.default: (_always, _cdist),
    aten.pdist.default: (_always, _pdist),
    aten._pdist_forward.default: (_always, _pdist),
    aten.mode.default: (_always, _mode),
    aten.nanmedian.dim: (_has_axes, _nanmedian),
    aten.nanmedian.default: (_has_axes, lambda x: _nanmedian(x.reshape([-1]), 0)[0]),
    aten.fmax.default: (_is_float, _fmax),
    aten.fmin.default: (_is_float, _fmin),
    aten.amax.default: (_over_all, _extremum(torch.amax)),
    aten.amin.default: (_over_all, _extremum(torch.amin)),
    aten.mean.default: (_has_axes, _mean),
    aten.lgamma.default: (_is_float, _lgamma),
    aten.special_gammaln.default: (_is_float, _lgamma),
    aten.digamma.default: (_is_float, _digamma),
    aten.special_digamma.default: (_is_float, _digamma),
    aten.special_psi.default: (_is_float, _digamma),
    aten.erfinv.default: (_is_float, _erfinv),
    aten.special_erfinv.default: (_is_float, _erfinv),
    aten.cross_entropy_loss.default: (_is_soft, _composed),
}
"""Operator -> (which calls of it, the call in the words of other operators)."""
