"""How normalizations are spelled out in the wild: a grammar of squares, means and quotients."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

SQUARES: dict[str, Callable[[Tensor], Tensor]] = {
    "pow": lambda x: x.pow(2),
    "times": lambda x: x * x,
    "square": lambda x: x.square(),
    "abs": lambda x: x.abs() ** 2,
}
MEANS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda s: s.mean(-1, keepdim=True),
    "sum over n": lambda s: s.sum(-1, keepdim=True) / s.shape[-1],
    "sum times share": lambda s: (1 / s.shape[-1]) * s.sum(dim=-1, keepdim=True),
    "unsqueezed": lambda s: s.mean(dim=-1).unsqueeze(-1),
}
QUOTIENTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "rsqrt": lambda x, v: x * torch.rsqrt(v),
    "sqrt": lambda x, v: x / torch.sqrt(v),
    "power": lambda x, v: x * v ** (-0.5),
    "reciprocal": lambda x, v: (1.0 / v.sqrt()) * x,
    "half power": lambda x, v: x / v.pow(0.5),
    "expanded": lambda x, v: x * v.rsqrt().expand_as(x),
}
SPELLINGS = {
    f"{square}, {mean}, {quotient}": (SQUARES[square], MEANS[mean], QUOTIENTS[quotient])
    for place, (square, mean, quotient) in enumerate(product(SQUARES, MEANS, QUOTIENTS))
    if place % 5 == 0  # every rule of the grammar, not every sentence
}


def rms_norm(spelling: str, x: Tensor, eps: float) -> Tensor:
    square, mean, quotient = SPELLINGS[spelling]
    return quotient(x, mean(square(x)) + eps)


def layer_norm(spelling: str, x: Tensor, eps: float) -> Tensor:
    square, mean, quotient = SPELLINGS[spelling]
    centered = x - mean(x)
    return quotient(centered, mean(square(centered)) + eps)


def normalized(x: Tensor, dims: int | tuple[int, ...], eps: float = 1e-5) -> Tensor:
    """``(x - mean) / sqrt(var + eps)`` over ``dims``."""
    return (x - x.mean(dims, keepdim=True)) / torch.sqrt(x.var(dims, unbiased=False, keepdim=True) + eps)
