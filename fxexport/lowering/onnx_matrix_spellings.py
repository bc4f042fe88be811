"""Linear algebra on small matrices, row by row, in the steps that LAPACK takes, so that signs agree.

inv, solve           ->  Gauss-Jordan elimination with pivots
slogdet              ->  the pivots of it
cholesky             ->  column by column
qr                   ->  Householder reflections
solve_triangular     ->  substitution; cholesky_solve and cholesky_inverse by two of them

Up to 16 x 16: ten operators a row. A singular matrix, which eager refuses, gives Inf and NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten
MAX_MATRIX = 16
"""Rows of the largest matrix that is taken apart step by step."""


def _is_small(call: dict[str, Any]) -> bool:
    value = next(iter(call.values())).meta["val"]
    known = [size for size in value.shape[-2:] if isinstance(size, int)]
    return len(known) == 2 and max(known) <= MAX_MATRIX and bool(value.is_floating_point())


def _triangle_is_small(call: dict[str, Any]) -> bool:
    value = (call["A"] if "A" in call else call["input2"] if "input2" in call else call["self"]).meta["val"]
    size = value.shape[-1]
    return isinstance(size, int) and size <= MAX_MATRIX and bool(value.is_floating_point())


# -------------------------------------------------------------------- elimination


def _inverse(a: Tensor) -> Tensor:
    return _eliminated(a, _eye(a).expand(a.shape))[0]


def _inverse_checked(a: Tensor, *, check_errors: bool = False) -> tuple[Tensor, Tensor]:
    """Also LAPACK's word on each matrix, [...]: 0, or the first column without a pivot, counted from 1."""
    inverse, pivots = _eliminated(a, _eye(a).expand(a.shape))
    is_missing = pivots == 0
    first = torch.where(is_missing.any(-1), is_missing.long().argmax(-1) + 1, 0)
    return inverse, first.to(torch.int32)


def _eye(a: Tensor) -> Tensor:
    return torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)


def _solve(a: Tensor, b: Tensor, *, left: bool = True) -> Tensor:
    if not left:
        return _solve(a.mT, b.mT).mT
    if b.dim() == 1 or (b.dim() == a.dim() - 1 and b.shape == a.shape[:-1]):  # vectors, as linalg.solve reads them
        return _solve(a, b.unsqueeze(-1)).squeeze(-1)
    shape = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])  # type: ignore[no-untyped-call]
    return _eliminated(a.expand([*shape, *a.shape[-2:]]), b.expand([*shape, *b.shape[-2:]]))[0]


def _slogdet(a: Tensor) -> tuple[Tensor, Tensor]:
    _, pivots = _eliminated(a, a[..., :0], may_be_singular=True)
    return pivots.sign().prod(-1), pivots.abs().log().sum(-1)


def _logdet(a: Tensor) -> Tensor:
    sign, logarithm = _slogdet(a)
    return torch.where(sign < 0, float("nan"), logarithm)


def _eliminated(a: Tensor, b: Tensor, may_be_singular: bool = False) -> tuple[Tensor, Tensor]:
    """``a^-1 @ b`` by Gauss-Jordan elimination, in each step with the row that has the largest number of the column;
    and the pivots, each with the sign of its exchange of rows: their product is the determinant.

    ``a`` [..., n, n], ``b`` [..., n, m] -> [..., n, m], [..., n]. A column without a pivot gives Inf and NaN, or, with
    ``may_be_singular``, only a pivot of 0.
    """
    size = a.shape[-1]
    work = torch.cat([a, b], -1)
    rows = torch.arange(size, device=a.device)
    pivots = []
    for k in range(size):
        largest = work[..., k:, k].abs().argmax(-1, keepdim=True) + k
        order = torch.where(rows == k, largest, torch.where(rows == largest, k, rows))
        work = work.gather(-2, order.unsqueeze(-1).expand(work.shape))
        pivot = work[..., k : k + 1, k : k + 1]
        pivots.append(torch.where(largest == k, pivot[..., 0], -pivot[..., 0]))
        divisor = torch.where(pivot == 0, 1.0, pivot) if may_be_singular else pivot
        row = work[..., k : k + 1, :] / divisor
        work = torch.where((rows == k).unsqueeze(-1), row, work - work[..., :, k : k + 1] * row)
    return work[..., size:], torch.cat(pivots, -1)


# -------------------------------------------------------------------- factors


def _cholesky(a: Tensor, upper: bool = False) -> Tensor:
    """The lower triangle ``l``, ``l @ l.T = a``; its transpose with ``upper``, which reads the other half of ``a``."""
    a = a.mT if upper else a
    rows = torch.arange(a.shape[-1], device=a.device)
    columns: list[Tensor] = []
    for k in range(a.shape[-1]):
        column = a[..., :, k]
        for done in columns:
            column = column - done * done[..., k : k + 1]
        column = column / column[..., k : k + 1].sqrt()
        columns.append(torch.where(rows >= k, column, 0.0))
    lower = torch.stack(columns, -1)
    return lower.mT if upper else lower


def _linalg_cholesky(a: Tensor, *, upper: bool = False) -> Tensor:
    return _cholesky(a, upper)


def _qr(a: Tensor, mode: str = "reduced") -> tuple[Tensor, Tensor]:
    """Reflections ``1 - tau v v.T``, the diagonal of ``r`` of the sign that LAPACK's geqrf gives it."""
    rows, columns = a.shape[-2:]
    places = torch.arange(rows, device=a.device)
    q = torch.eye(rows, dtype=a.dtype, device=a.device).expand([*a.shape[:-2], rows, rows])
    for k in range(min(rows - 1, columns)):
        tail = torch.where(places >= k, a[..., :, k], 0.0)
        first = tail[..., k : k + 1]
        norm = tail.square().sum(-1, keepdim=True).sqrt()
        beta = torch.where(first >= 0, -norm, norm)
        rest = torch.where(places > k, tail, 0.0)
        is_done = rest.abs().amax(-1, keepdim=True) == 0  # nothing below: LAPACK leaves the column
        v = torch.where(places == k, 1.0, rest / torch.where(is_done, 1.0, first - beta)).unsqueeze(-1)
        tau = torch.where(is_done, 0.0, (beta - first) / torch.where(beta == 0, 1.0, beta)).unsqueeze(-1)
        a = a - tau * v * (v.mT @ a)
        q = q - tau * (q @ v) * v.mT
    below = torch.arange(columns, device=a.device) < places.unsqueeze(-1)
    r = torch.where(below, 0.0, a)
    if mode == "r":
        return a.new_zeros([0]), r[..., : min(rows, columns), :]
    return (q, r) if mode == "complete" else (q[..., : min(rows, columns)], r[..., : min(rows, columns), :])


# -------------------------------------------------------------------- triangles


def _solve_triangular(a: Tensor, b: Tensor, *, upper: bool, left: bool = True, unitriangular: bool = False) -> Tensor:
    """``a^-1 @ b`` (``b @ a^-1`` unless ``left``), of one half of ``a``; its diagonal is ones if ``unitriangular``."""
    if not left:
        return _solve_triangular(a.mT, b.mT, upper=not upper, unitriangular=unitriangular).mT
    size = a.shape[-1]
    solved: dict[int, Tensor] = {}
    for row in reversed(range(size)) if upper else range(size):
        value = b[..., row : row + 1, :]
        for other, found in solved.items():
            value = value - a[..., row : row + 1, other : other + 1] * found
        solved[row] = value if unitriangular else value / a[..., row : row + 1, row : row + 1]
    return torch.cat([solved[row] for row in range(size)], -2)


def _triangular_solve(
    b: Tensor, a: Tensor, upper: bool = True, transpose: bool = False, unitriangular: bool = False
) -> tuple[Tensor, Tensor]:
    side = upper != transpose
    return _solve_triangular(a.mT if transpose else a, b, upper=side, unitriangular=unitriangular), a.clone()


def _cholesky_solve(b: Tensor, factor: Tensor, upper: bool = False) -> Tensor:
    lower = factor.mT if upper else factor
    return _solve_triangular(lower.mT, _solve_triangular(lower, b, upper=False), upper=True)


def _cholesky_inverse(factor: Tensor, upper: bool = False) -> Tensor:
    return _cholesky_solve(_eye(factor).expand(factor.shape), factor, upper)


def _is_zeroth(call: dict[str, Any]) -> bool:
    return bool(call["n"] == 0)


def _zeroth_power(a: Tensor, n: int) -> Tensor:
    return _eye(a).expand(a.shape).clone()


MATRIX_SPELLINGS: dict[Any, tuple[Callable[[dict[str, Any]], bool], Callable[..., Any]]] = {
    aten.linalg_inv.default: (_is_small, _inverse),
    aten.inverse.default: (_is_small, _inverse),
    aten.linalg_inv_ex.default: (_is_small, _inverse_checked),
    aten.linalg_solve.default: (_is_small, _solve),
    aten.slogdet.default: (_is_small, _slogdet),
    aten.linalg_slogdet.default: (_is_small, _slogdet),
    aten.logdet.default: (_is_small, _logdet),
    aten.cholesky.default: (_is_small, _cholesky),
    aten.linalg_cholesky.default: (_is_small, _linalg_cholesky),
    aten.linalg_qr.default: (_is_small, _qr),
    aten.linalg_solve_triangular.default: (_triangle_is_small, _solve_triangular),
    aten.triangular_solve.default: (_triangle_is_small, _triangular_solve),
    aten.cholesky_solve.default: (_triangle_is_small, _cholesky_solve),
    aten.cholesky_inverse.default: (_is_small, _cholesky_inverse),
    aten.linalg_matrix_power.default: (_is_zeroth, _zeroth_power),
}
"""Operator -> (which calls of it, the call in the words of other operators)."""
