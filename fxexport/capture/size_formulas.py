"""More functions of PyTorch that fix the sizes of what they are given, by the formulas of their documentation.

gradient(x, spacing=h)         ->  differences of neighbours over 2 h, of two at the ends
cov(x), corrcoef(x)            ->  centred x @ x.T / (n - correction)
vander(x, n)                   ->  x ** (n - 1), ..., x, 1
tril_indices, triu_indices     ->  the places where a mask of that triangle holds, in order
kron(a, b)                     ->  a[:, None, :, None] * b[None, :, None, :]
multi_dot(a, b, c)             ->  a @ b @ c, from the left
combinations(x, 2)             ->  x at the places of the upper triangle
native_channel_shuffle(x, g)   ->  reshape, transpose, reshape
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Size = Any  # int or torch.SymInt, which torch's own annotations leave out


def _gradient(input: Tensor, *, spacing: Any = 1, dim: Any = None, edge_order: int = 1) -> tuple[Tensor, ...] | Any:
    axes = range(input.dim()) if dim is None else [dim] if isinstance(dim, int) else dim
    steps = spacing if isinstance(spacing, list | tuple) else [spacing] * len(axes)
    if not all(isinstance(step, int | float) for step in steps):
        return NotImplemented
    return tuple(_slope(input, axis, step, edge_order) for axis, step in zip(axes, steps, strict=True))


def _slope(x: Tensor, axis: int, step: float, edge_order: int) -> Tensor:
    """Second order inside, ``edge_order`` at both ends (torch.gradient)."""
    size = x.shape[axis]
    first, second, third = (x.narrow(axis, place, 1) for place in (0, 1, 2 if edge_order == 2 else 1))
    last, before, third_last = (x.narrow(axis, size - place, 1) for place in (1, 2, 3 if edge_order == 2 else 2))
    if edge_order == 2:
        ends = (-1.5 * first + 2 * second - 0.5 * third, 1.5 * last - 2 * before + 0.5 * third_last)
    else:
        ends = (second - first, last - before)
    middle = (x.narrow(axis, 2, size - 2) - x.narrow(axis, 0, size - 2)) / 2
    return torch.cat([ends[0], middle, ends[1]], axis) / step


def _cov(input: Tensor, *, correction: int = 1, fweights: Any = None, aweights: Any = None) -> Any:
    """``input`` [variables, observations] or [observations] -> [variables, variables] or a number."""
    if fweights is not None or aweights is not None or not input.is_floating_point():
        return NotImplemented
    rows = input.reshape([1, -1]) if input.dim() < 2 else input
    count = torch.scalar_tensor(rows.shape[1] - correction, dtype=rows.dtype, device=rows.device)
    centred = rows - rows.mean(1, keepdim=True)
    products = centred @ centred.T / count.clamp(min=0)
    return products.reshape([]) if input.dim() < 2 else products


def _corrcoef(input: Tensor) -> Any:
    products = _cov(input)
    if products is NotImplemented or input.dim() < 2:
        return NotImplemented
    deviations = products.diagonal().sqrt()
    return (products / deviations.unsqueeze(1) / deviations.unsqueeze(0)).clamp(-1, 1)


def _vander(x: Tensor, N: Size = None, increasing: bool = False) -> Tensor:
    count = x.shape[0] if N is None else N
    ones = torch.ones_like(x).unsqueeze(-1)
    powers = torch.cat([ones, x.unsqueeze(-1).expand([x.shape[0], count - 1])], -1).cumprod(-1)
    return powers if increasing else powers.flip(-1)


def _triangle(of: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def indices(row: Size, col: Size, offset: int = 0, **options: Any) -> Tensor:
        dtype = options.get("dtype") or torch.int64
        mask = of(torch.ones(row, col, dtype=torch.bool, device=options.get("device")), offset)
        return mask.nonzero().T.to(dtype)

    return indices


def _kron(input: Tensor, other: Tensor) -> Tensor:
    rank = max(input.dim(), other.dim())
    a, b = ([1] * (rank - each.dim()) + list(each.shape) for each in (input, other))
    left = input.reshape([size for n in a for size in (n, 1)])
    right = other.reshape([size for n in b for size in (1, n)])
    return (left * right).reshape([n * m for n, m in zip(a, b, strict=True)])


def _multi_dot(tensors: Sequence[Tensor], **options: Any) -> Any:
    if options or len(tensors) < 2:
        return NotImplemented
    product = tensors[0]
    for each in tensors[1:]:
        product = product @ each
    return product


def _combinations(input: Tensor, r: int = 2, with_replacement: bool = False) -> Any:
    if r != 2:
        return NotImplemented
    size = input.shape[0]
    first, second = _triangle(torch.triu)(size, size, 0 if with_replacement else 1, device=input.device)
    return torch.stack([input[first], input[second]], 1)


def _shuffle(input: Tensor, groups: int) -> Tensor:
    parts = input.reshape([input.shape[0], groups, input.shape[1] // groups, *input.shape[2:]])
    return parts.transpose(1, 2).reshape(input.shape)


FORMULAS: dict[Any, Callable[..., Any]] = {
    torch.gradient: _gradient,
    torch.cov: _cov,
    Tensor.cov: _cov,
    torch.corrcoef: _corrcoef,
    Tensor.corrcoef: _corrcoef,
    torch.vander: _vander,
    torch.tril_indices: _triangle(torch.tril),
    torch.triu_indices: _triangle(torch.triu),
    torch.kron: _kron,
    Tensor.kron: _kron,
    torch.linalg.multi_dot: _multi_dot,
    torch.combinations: _combinations,
    torch.native_channel_shuffle: _shuffle,
}
"""Function -> the same in operators that keep sizes open; NotImplemented for calls that have no such form."""
