"""Operators that ONNX has no form of, or torch.onnx a wrong or narrow one, in the words of others, before translation.

roll(x, shift, dim)             ->  x[(arange(size) - shift) % size]      where a size or a shift is symbolic
x[:, mask] = one value          ->  where(mask, value, x)                 any leading axes, any rank of the mask
x[:, mask] = many values        ->  the same with the masked axes first
cumprod, cummax, cummin         ->  of blocks that double in length       where the size is fixed
inv(a), solve(a, b)             ->  Gauss-Jordan elimination with pivots  up to 16 x 16
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fxexport.lowering.decompose import splice
from fxexport.lowering.onnx_small_spellings import SMALL_SPELLINGS
from fxexport.program import Program
from fxexport.rewrite import arguments

aten = torch.ops.aten
MAX_MATRIX = 16
"""Rows of the largest matrix that is inverted step by step: ten operators a row."""


def respell(program: Program, known: Any = ()) -> Program:
    """A program in which the operators above are written out; ``program`` itself is not changed.

    Operators in ``known`` have a translation by the user and stay.
    """
    spelled = [target for target in _SPELLINGS if target not in known]
    if not any(node.target in spelled for _, _, graph in program.graphs() for node in graph.nodes):
        return program
    written = program.clone()
    for part in written.parts():
        for node in part.find(*spelled):
            fits, words = _SPELLINGS[node.target]
            if fits(arguments(node)):
                splice(part.graph, node, words, {}, part.fake_mode)
    return written


# -------------------------------------------------------------------- roll


def _rolls_unknown(call: dict[str, Any]) -> bool:
    sizes = call["self"].meta["val"].shape
    chosen = [sizes[dim] for dim in call["dims"]] or list(sizes)
    return not all(isinstance(n, int) for n in (*call["shifts"], *chosen))


def _roll(x: Tensor, shifts: Sequence[int], dims: Sequence[int] = ()) -> Tensor:
    if not dims:
        return _roll(x.reshape([-1]), shifts, [0]).reshape(x.shape)
    for shift, dim in zip(shifts, dims, strict=True):
        places = torch.arange(x.shape[dim], device=x.device) - shift
        size = torch.scalar_tensor(x.shape[dim], dtype=torch.int64, device=x.device)
        x = x.index_select(dim, torch.remainder(places, size))
    return x


def _fftshift(x: Tensor, dim: Sequence[int] | None = None) -> Tensor:
    dims = range(x.dim()) if dim is None else dim
    return _roll(x, [x.shape[axis] // 2 for axis in dims], list(dims))


def _ifftshift(x: Tensor, dim: Sequence[int] | None = None) -> Tensor:
    dims = range(x.dim()) if dim is None else dim
    return _roll(x, [(x.shape[axis] + 1) // 2 for axis in dims], list(dims))


def _shifts_unknown(call: dict[str, Any]) -> bool:
    sizes = call["self"].meta["val"].shape
    return not all(isinstance(n, int) for n in ([sizes[dim] for dim in call["dim"]] if call["dim"] else sizes))


# -------------------------------------------------------------------- masks


def _mask_of(indices: Sequence[Any]) -> int | None:
    """The position of the only index, where that is a mask."""
    given = [place for place, index in enumerate(indices) if index is not None]
    return given[0] if len(given) == 1 and _value(indices[given[0]]).dtype == torch.bool else None


def _value(node: Any) -> Tensor:
    value: Tensor = node.meta["val"] if isinstance(node, fx.Node) else node
    return value


def _writes_by_mask(call: dict[str, Any]) -> bool:
    first = _mask_of(call["indices"])
    if first is None:
        return False
    many = _many(_value(call["self"]), _value(call["indices"][first]), _value(call["values"]), first)
    return first > 0 or not many


def _many(x: Tensor, mask: Tensor, values: Tensor, first: int) -> bool:
    """Whether ``values`` has one entry for each True of the mask, or may have."""
    after = x.dim() - mask.dim() - first
    if values.dim() <= after:
        return False
    size = values.shape[values.dim() - after - 1]
    return not isinstance(size, int) or size != 1


def _write_by_mask(x: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False) -> Tensor:
    first = _mask_of(indices)
    assert first is not None
    mask = indices[first]
    assert mask is not None
    after = x.dim() - mask.dim() - first
    if _many(x, mask, values, first):
        return _write_in_front(x, mask, values, first, accumulate)
    if values.dim() > after:  # the axis of the Trues, of size 1, becomes the axes of the mask
        before = values.shape[: values.dim() - after - 1]
        values = values.reshape([*before, *[1] * mask.dim(), *values.shape[values.dim() - after :]])
    chosen = mask.reshape([*mask.shape, *[1] * after])
    return torch.where(chosen, x + values if accumulate else values, x)


def _write_in_front(x: Tensor, mask: Tensor, values: Tensor, first: int, accumulate: bool) -> Tensor:
    masked = list(range(first, first + mask.dim()))
    order = [*masked, *(axis for axis in range(x.dim()) if axis not in masked)]
    missing = x.dim() - mask.dim() + 1 - values.dim()
    values = values.reshape([*[1] * missing, *values.shape]).movedim(first, 0)
    front = aten.index_put.default(x.permute(order), [mask], values, accumulate)
    back: Tensor = front.permute([order.index(axis) for axis in range(x.dim())])
    return back


# -------------------------------------------------------------------- running products and maxima


def _is_fixed(call: dict[str, Any]) -> bool:
    shape = call["self"].meta["val"].shape
    return not shape or isinstance(shape[call["dim"]], int)


def _cumprod(x: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    if dtype is None and not x.is_floating_point():
        dtype = torch.int64
    x = x if dtype is None else x.to(dtype)
    reach = 1
    while x.dim() and reach < x.shape[dim]:
        earlier = x.narrow(dim, 0, x.shape[dim] - reach)
        x = torch.cat([x.narrow(dim, 0, reach), x.narrow(dim, reach, x.shape[dim] - reach) * earlier], dim)
        reach *= 2
    return x


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


# -------------------------------------------------------------------- small matrices


def _is_small(call: dict[str, Any]) -> bool:
    value = next(iter(call.values())).meta["val"]
    size = value.shape[-1]
    return isinstance(size, int) and size <= MAX_MATRIX and value.is_floating_point()


def _inverse(a: Tensor) -> Tensor:
    rows = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    return _eliminated(a, rows.expand(a.shape))


def _solve(a: Tensor, b: Tensor, *, left: bool = True) -> Tensor:
    if not left:
        return _solve(a.mT, b.mT).mT
    if b.dim() == 1 or (b.dim() == a.dim() - 1 and b.shape == a.shape[:-1]):  # vectors, as linalg.solve reads them
        return _solve(a, b.unsqueeze(-1)).squeeze(-1)
    shape = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])  # type: ignore[no-untyped-call]
    return _eliminated(a.expand([*shape, *a.shape[-2:]]), b.expand([*shape, *b.shape[-2:]]))


def _eliminated(a: Tensor, b: Tensor) -> Tensor:
    """``a^-1 @ b`` by Gauss-Jordan elimination, in each step with the row that has the largest number of the column.

    ``a`` [..., n, n], ``b`` [..., n, m]. A singular matrix, which eager refuses, gives Inf and NaN.
    """
    size = a.shape[-1]
    work = torch.cat([a, b], -1)
    rows = torch.arange(size, device=a.device)
    for k in range(size):
        largest = work[..., k:, k].abs().argmax(-1, keepdim=True) + k
        order = torch.where(rows == k, largest, torch.where(rows == largest, k, rows))
        work = work.gather(-2, order.unsqueeze(-1).expand(work.shape))
        pivot = work[..., k : k + 1, :] / work[..., k : k + 1, k : k + 1]
        work = torch.where((rows == k).unsqueeze(-1), pivot, work - work[..., :, k : k + 1] * pivot)
    return work[..., size:]


_SPELLINGS: dict[Any, tuple[Callable[[dict[str, Any]], bool], Callable[..., Any]]] = {
    aten.roll.default: (_rolls_unknown, _roll),
    aten.fft_fftshift.default: (_shifts_unknown, _fftshift),
    aten.fft_ifftshift.default: (_shifts_unknown, _ifftshift),
    aten.index_put.default: (_writes_by_mask, _write_by_mask),
    aten.cumprod.default: (_is_fixed, _cumprod),
    aten.cummax.default: (_is_fixed, _running(lambda later, earlier: (later >= earlier) | (later != later))),
    aten.cummin.default: (_is_fixed, _running(lambda later, earlier: (later <= earlier) | (later != later))),
    aten.linalg_inv.default: (_is_small, _inverse),
    aten.inverse.default: (_is_small, _inverse),
    aten.linalg_solve.default: (_is_small, _solve),
    **SMALL_SPELLINGS,
}
"""Operator -> (which calls of it, the call in the words of other operators)."""
