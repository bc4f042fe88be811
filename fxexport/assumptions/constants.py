"""What a constant tensor of the model holds, where that has a formula: one number, steps along an axis, a triangle."""

from __future__ import annotations

import torch
from sympy import Expr, Integer

from fxexport.assumptions.elementwise import number
from fxexport.assumptions.form import EVERYWHERE, Algebra, Case, Form, canonical
from fxexport.assumptions.sizes import INDICES

_MOST_ELEMENTS = 2**24


def form_of_constant(value: torch.Tensor, algebra: Algebra) -> Form | None:
    """The form of ``value``, None where it has none of those that masks have."""
    if value.layout != torch.strided or value.is_complex() or not 0 < value.numel() <= _MOST_ELEMENTS:
        return None
    if value.device.type == "meta":
        return None
    shape = tuple(Integer(n) for n in value.shape)
    cases = _uniform(value) or _steps(value) or _triangle(value)
    return algebra.made(cases, shape) if cases else None


def _uniform(value: torch.Tensor) -> list[Case] | None:
    first = value.reshape(-1)[0]
    found = number(first.item())
    return [(EVERYWHERE, found)] if found is not None and bool((value == first).all()) else None


def _steps(value: torch.Tensor) -> list[Case] | None:
    """``a + b * i`` along the only axis that is longer than 1."""
    axes = [axis for axis, size in enumerate(value.shape) if size > 1]
    flat = value.reshape(-1)
    if len(axes) != 1 or value.dtype == torch.bool or not bool((flat == flat.trunc()).all()):
        return None
    first, step = int(flat[0]), int(flat[1]) - int(flat[0])
    if not bool((flat.double().diff() == step).all()):
        return None
    return [(EVERYWHERE, Integer(first) + Integer(step) * INDICES[axes[0]])]


def _triangle(value: torch.Tensor) -> list[Case] | None:
    """One number up to a diagonal of the last two axes, and another one above it."""
    if value.dim() < 2 or value.numel() != value.shape[-1] * value.shape[-2]:
        return None
    rows, columns = value.shape[-2:]
    matrix = value.reshape(rows, columns)
    below, above = matrix[-1, 0], matrix[0, -1]
    counts = (matrix[0] == below).long()
    offset = int(counts.sum()) - 1
    lower = torch.arange(columns)[None, :] <= torch.arange(rows)[:, None] + offset
    if not bool((matrix.cpu() == torch.where(lower, below.cpu(), above.cpu())).all()):
        return None
    inside, outside = number(below.item()), number(above.item())
    if inside is None or outside is None:
        return None
    row, column = INDICES[value.dim() - 2], INDICES[value.dim() - 1]
    difference: Expr = row - column + offset
    return [
        (frozenset([canonical(("ge", difference))]), inside),
        (frozenset([canonical(("ge", difference), False)]), outside),
    ]
