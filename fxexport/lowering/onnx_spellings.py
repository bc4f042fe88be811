"""Operators that ONNX has no form of, or torch.onnx a wrong or narrow one, in the words of others, before translation.

roll(x, shift, dim)             ->  x[(arange(size) - shift) % size]      where a size or a shift is symbolic
x[:, mask] = one value          ->  where(mask, value, x)                 any leading axes, any rank of the mask
x[:, mask] = many values        ->  the same with the masked axes first

and those of the tables of ``onnx_matrix_spellings``, ``onnx_pool_spellings`` and the others beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fxexport.lowering.decompose import fake_mode_of, splice
from fxexport.lowering.onnx_matrix_spellings import MATRIX_SPELLINGS
from fxexport.lowering.onnx_measure_spellings import MEASURE_SPELLINGS
from fxexport.lowering.onnx_pool_spellings import POOL_SPELLINGS
from fxexport.lowering.onnx_running_spellings import RUNNING_SPELLINGS
from fxexport.lowering.onnx_scatter_spellings import SCATTER_SPELLINGS
from fxexport.lowering.onnx_small_spellings import SMALL_SPELLINGS
from fxexport.program import Program
from fxexport.rewrite import arguments

aten = torch.ops.aten
_ROUNDS = 4
"""How deep words are made of words that are spelled out themselves."""


def respell(program: Program, known: Container[Any] = ()) -> Program:
    """A program in which the operators above are written out; ``program`` itself is not changed.

    Operators in ``known`` have a translation by the user and stay.
    """
    spelled = [target for target in SPELLINGS if target not in known]
    if not any(node.target in spelled for _, _, graph in program.graphs() for node in graph.nodes):
        return program
    written = program.clone()
    for part in written.parts():
        spell_out(part.graph, known)
    return written


def count_from_front(graph: fx.Graph) -> None:
    """``sym_size(x, -1)`` with its dimension counted from the front, in place: ONNX has it as the end of a range."""
    for node in graph.find_nodes(op="call_function", target=aten.sym_size.int):
        x, dim = node.args
        node.args = (x, dim % x.meta["val"].dim())


def spell_out(graph: fx.Graph, known: Container[Any] = ()) -> None:
    """Writes out the operators above in ``graph``, in place, until none is left: some are in the words of others."""
    fake = fake_mode_of(graph)
    for _ in range(_ROUNDS):
        fitting = [node for node in graph.nodes if node.target in SPELLINGS and node.target not in known]
        fitting = [node for node in fitting if SPELLINGS[node.target][0](arguments(node))]
        for node in fitting:
            splice(graph, node, SPELLINGS[node.target][1], {}, fake)
        if not fitting:
            return


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


SPELLINGS: dict[Any, tuple[Callable[[dict[str, Any]], bool], Callable[..., Any]]] = {
    aten.roll.default: (_rolls_unknown, _roll),
    aten.fft_fftshift.default: (_shifts_unknown, _fftshift),
    aten.fft_ifftshift.default: (_shifts_unknown, _ifftshift),
    aten.index_put.default: (_writes_by_mask, _write_by_mask),
    **MATRIX_SPELLINGS,
    **MEASURE_SPELLINGS,
    **POOL_SPELLINGS,
    **RUNNING_SPELLINGS,
    **SCATTER_SPELLINGS,
    **SMALL_SPELLINGS,
}
"""Operator -> (which calls of it, the call in the words of other operators)."""
