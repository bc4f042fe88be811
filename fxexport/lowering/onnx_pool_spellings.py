"""Adaptive pools over sizes that are open, or that the output does not divide, axis by axis.

Cell ``i`` of ``out`` along an axis of size ``n`` pools ``x[start : end]``, ``start = floor(i n / out)`` and
``end = ceil((i + 1) n / out)`` (torch.nn.AdaptiveAvgPool2d). Windows have at most ``n // out + 2`` elements, so

    adaptive pool(x)  ->  x[places], places [out, n // out + 2], pooled along the last axis where it is inside the window
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

aten = torch.ops.aten


def _windows(x: Tensor, axis: int, out: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The windows of ``x`` along ``axis`` ``[..., out, widest, ...]``, which elements are inside, and their places."""
    size = x.shape[axis]
    n, cells = (torch.scalar_tensor(each, dtype=torch.int64, device=x.device) for each in (size, out))
    cell = torch.arange(out, device=x.device).unsqueeze(-1)
    start = torch.div(cell * n, cells, rounding_mode="floor")
    end = torch.div((cell + 1) * n + cells - 1, cells, rounding_mode="floor")
    places = start + torch.arange(size // out + 2, device=x.device)
    inside = places < end
    places = torch.minimum(places, n - 1)
    after = [1] * (x.dim() - axis - 1)
    windows = x.index_select(axis, places.reshape([-1])).reshape([*x.shape[:axis], out, -1, *x.shape[axis + 1 :]])
    return windows, inside.reshape([out, -1, *after]), places.reshape([out, -1, *after])


def _axes(x: Tensor, size: Sequence[Any]) -> list[tuple[int, Any]]:
    """The axes that change, as numbers from the front, the last first, with their new sizes."""
    pairs = [(x.dim() - len(size) + place, out) for place, out in enumerate(size)]
    return [(axis, out) for axis, out in reversed(pairs) if not statically_known_true(x.shape[axis] == out)]


def _average(x: Tensor, output_size: Sequence[Any]) -> Tensor:
    if all(isinstance(out, int) and out == 1 for out in output_size):
        return x.mean([-place for place in range(len(output_size), 0, -1)], keepdim=True)
    for axis, out in _axes(x, output_size):
        if isinstance(out, int) and out == 1:
            x = x.mean([axis], keepdim=True)
            continue
        windows, inside, _ = _windows(x, axis, out)
        x = torch.where(inside, windows, 0.0).sum(axis + 1) / inside.sum(1).to(x.dtype)
    return x


def _maximum(x: Tensor, output_size: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """Values, and their places in the flattened axes; of equal ones the first, as in PyTorch."""
    axes = _axes(x, output_size)
    spatial = list(range(x.dim() - len(output_size), x.dim()))
    shape = x.shape
    where: dict[int, Tensor] = {}
    for axis, out in axes:
        windows, inside, places = _windows(x, axis, out)
        chosen = torch.where(inside, windows, float("-inf")).argmax(axis + 1, keepdim=True)
        x = windows.gather(axis + 1, chosen).squeeze(axis + 1)
        found = _spread(where, axis, chosen, windows.shape, out)
        found[axis] = places.expand(windows.shape).gather(axis + 1, chosen).squeeze(axis + 1)
        where = found
    total = torch.zeros_like(x, dtype=torch.int64)
    for axis in spatial:
        kept = torch.arange(shape[axis], device=x.device).reshape([-1, *[1] * (x.dim() - axis - 1)])
        size = torch.scalar_tensor(shape[axis], dtype=torch.int64, device=x.device)
        total = total * size + where.get(axis, kept)
    return x, total


def _spread(where: dict[int, Tensor], axis: int, chosen: Tensor, shape: Sequence[Any], out: Any) -> dict[int, Tensor]:
    """What was found along later axes, for the element that is chosen along ``axis``."""
    found = {}
    for other, places in where.items():
        windows = _windows(places, axis, out)[0]
        found[other] = windows.gather(axis + 1, chosen).squeeze(axis + 1)
    return found


def _is_open(call: dict[str, Any]) -> bool:
    """Whether an axis is open, or cut into windows that overlap or differ in size."""
    sizes, out = call["self"].meta["val"].shape, call["output_size"]
    if all(isinstance(n, int) and n == 1 for n in out):
        return True
    pairs = zip(sizes[-len(out) :], out, strict=True)
    return any(not (isinstance(n, int) and isinstance(m, int) and n % m == 0) for n, m in pairs)


def _no_kernel(call: dict[str, Any]) -> bool:
    return _is_open(call) or len(call["output_size"]) == 3


def _always(call: dict[str, Any]) -> bool:
    return True


def _scaled_average(
    x: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """A divisor of the user's own: the sum of the window, which is its mean with the padding times its elements."""
    rank = 2 if len(kernel_size) < 3 else 3
    kernel = [*kernel_size] * (rank // len(kernel_size) if len(kernel_size) == 1 else 1)
    elements = 1
    for size in kernel:
        elements *= size
    pool: Any = aten.avg_pool2d.default if rank == 2 else aten.avg_pool3d.default
    mean: Tensor = pool(x, kernel_size, stride, padding, ceil_mode, True)
    return mean * (elements / (divisor_override or elements))


def _has_divisor(call: dict[str, Any]) -> bool:
    return call["divisor_override"] is not None and not call["ceil_mode"]


POOL_SPELLINGS: dict[Any, tuple[Callable[[dict[str, Any]], bool], Callable[..., Any]]] = {
    aten.adaptive_avg_pool1d.default: (_is_open, _average),
    aten.adaptive_avg_pool2d.default: (_is_open, _average),
    aten.adaptive_avg_pool3d.default: (_no_kernel, _average),
    aten._adaptive_avg_pool2d.default: (_is_open, _average),
    aten._adaptive_avg_pool3d.default: (_no_kernel, _average),
    aten.adaptive_max_pool1d.default: (_always, _maximum),
    aten.adaptive_max_pool2d.default: (_always, _maximum),
    aten.adaptive_max_pool3d.default: (_always, _maximum),
    aten.avg_pool2d.default: (_has_divisor, _scaled_average),
    aten.avg_pool3d.default: (_has_divisor, _scaled_average),
}
"""Operator -> (which calls of it, the call in the words of other operators)."""
