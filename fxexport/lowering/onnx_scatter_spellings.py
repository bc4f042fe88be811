"""Writes by index that ONNX has no form of, or runtimes a wrong one, in the words of others.

scatter_reduce(x, "mean")    ->  scatter_add, over how many there are
index_reduce(x, dim, i)      ->  scatter_reduce with the index expanded
put(x, i, values)            ->  index_put of the flattened x
diagonal_scatter(x, values)  ->  where(on the diagonal, values, x)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def _always(call: dict[str, Any]) -> bool:
    return True


def _is_mean(call: dict[str, Any]) -> bool:
    return bool(call["reduce"] == "mean" and call["self"].meta["val"].is_floating_point())


def _scatter_mean(
    x: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, *, include_self: bool = True
) -> Tensor:
    ones, nothing = torch.ones_like(index, dtype=x.dtype), torch.zeros_like(x)
    count = nothing.scatter_add(dim, index, ones)
    source = source.narrow(0, 0, index.shape[0]) if not x.dim() else source
    total = nothing.scatter_add(dim, index, source)
    if include_self:
        return (x + total) / (count + 1)
    return torch.where(count == 0, x, total / count)


def _index_reduce(
    x: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, *, include_self: bool = True
) -> Tensor:
    shape = [-1 if axis == dim % x.dim() else 1 for axis in range(x.dim())]
    expanded = index.long().reshape(shape).expand(source.shape)
    words: Any = _scatter_mean if reduce == "mean" else aten.scatter_reduce.two
    result: Tensor = words(x, dim, expanded, source, reduce, include_self=include_self)
    return result


def _put(x: Tensor, index: Tensor, source: Tensor, accumulate: bool = False) -> Tensor:
    flat = x.reshape([-1])
    places = index.reshape([-1])
    size = torch.scalar_tensor(flat.shape[0], dtype=torch.int64, device=x.device)
    places = torch.where(places < 0, places + size, places)
    written: Tensor = aten.index_put.default(flat, [places], source.reshape([-1]), accumulate)
    return written.reshape(x.shape)


def _diagonal_scatter(x: Tensor, values: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    first, second = dim1 % x.dim(), dim2 % x.dim()
    order = [*(axis for axis in range(x.dim()) if axis not in (first, second)), first, second]
    last = x.permute(order)
    rows = torch.arange(last.shape[-2], device=x.device)
    columns = torch.arange(last.shape[-1], device=x.device)
    along = rows if offset >= 0 else columns
    end = torch.scalar_tensor(values.shape[-1] - 1, dtype=torch.int64, device=x.device)
    spread = values.index_select(-1, torch.minimum(along, end))
    spread = spread.unsqueeze(-1) if offset >= 0 else spread.unsqueeze(-2)
    written = torch.where(columns - rows.unsqueeze(-1) == offset, spread, last)
    return written.permute([order.index(axis) for axis in range(x.dim())])


SCATTER_SPELLINGS: dict[Any, tuple[Callable[[dict[str, Any]], bool], Callable[..., Any]]] = {
    aten.scatter_reduce.two: (_is_mean, _scatter_mean),
    aten.index_reduce.default: (_always, _index_reduce),
    aten.put.default: (_always, _put),
    aten.diagonal_scatter.default: (_always, _diagonal_scatter),
}
"""Operator -> (which calls of it, the call in the words of other operators)."""
