"""Functions of PyTorch that take a size as a plain number, in words that keep it open.

``torch.linspace(-1, 1, x.shape[2])`` asks its symbolic size for a number, which fixes the dimension. While
:class:`SizeFunctions` is active, such a call on a symbolic size is computed from operators that take one:

    linspace(a, b, n)              ->  a + arange(n) * (b - a) / (n - 1), from both ends as PyTorch does
    hann_window(n)                 ->  0.5 - 0.5 * cos(2 pi * arange(n) / n), and the other windows
    affine_grid(theta, size)       ->  coordinates @ theta
    istft(z, n_fft, length=n)      ->  irfft, fold, divided by the folded squares of the window, cut to n
    take_along_dim(x, places, d)   ->  gather of both, expanded to one shape
    matrix_norm(x, 1)              ->  x.abs().sum(-2).amax(-1)

and those of ``size_formulas``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import SymInt, Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from fxexport.capture.size_formulas import FORMULAS

Size = Any  # int or torch.SymInt, which torch's own annotations leave out


class SizeFunctions(TorchFunctionMode):
    """Answers the calls above where a size among their arguments is symbolic; every other call goes on as it came."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        own = _FUNCTIONS.get(func)
        if own is None or (own not in _ALWAYS and not any(map(_is_symbolic, pytree.tree_leaves((args, kwargs))))):
            return func(*args, **kwargs)
        result = own(*args, **kwargs)
        return func(*args, **kwargs) if result is NotImplemented else result


def _is_symbolic(value: Any) -> bool:
    return isinstance(value, SymInt) or (
        isinstance(value, Tensor) and any(isinstance(size, SymInt) for size in value.shape)
    )


# -------------------------------------------------------------------- coordinates


def _linspace(start: Any, end: Any, steps: Size, **options: Any) -> Tensor:
    options.pop("out", None)
    places = _places(steps, options)
    step = (end - start) / _count(steps, -1, places).clamp(min=1)
    last = _count(steps, -1, places)
    return torch.where(places * 2 < last + 1, start + step * places, end - step * (last - places))


def _logspace(start: Any, end: Any, steps: Size, base: float = 10.0, **options: Any) -> Tensor:
    return torch.pow(base, _linspace(start, end, steps, **options))


def _places(count: Size, options: dict[str, Any]) -> Tensor:
    """0, 1, 2... as floating point numbers."""
    dtype = options.get("dtype") or torch.get_default_dtype()
    return torch.arange(count, dtype=dtype, device=options.get("device"))


def _count(size: Size, more: int, like: Tensor) -> Tensor:
    return torch.scalar_tensor(size + more, dtype=like.dtype, device=like.device)


def _fftfreq(n: Size, d: float = 1.0, **options: Any) -> Tensor:
    places = _places(n, options)
    count = _count(n, 0, places)
    return torch.where(places * 2 < count, places, places - count) / (count * d)


def _rfftfreq(n: Size, d: float = 1.0, **options: Any) -> Tensor:
    places = _places(n // 2 + 1, options)
    return places / (_count(n, 0, places) * d)


def _affine_grid(theta: Tensor, size: Sequence[Size], align_corners: bool | None = None) -> Tensor:
    """``theta`` [batch, d, d + 1], ``size`` (batch, channels, *sizes) -> [batch, *sizes, d]; x, the last axis, first."""
    axes = []
    for count in size[2:]:
        axis = _linspace(-1.0, 1.0, count, dtype=theta.dtype, device=theta.device)
        whole = _count(count, 0, axis)
        axes.append(axis if align_corners else axis * (whole - 1) / whole)
    places = torch.meshgrid(*axes, indexing="ij")
    base = torch.stack([*reversed(places), torch.ones_like(places[0])], -1)
    grid = base.reshape([-1, base.shape[-1]]) @ theta.transpose(1, 2)
    return grid.reshape([theta.shape[0], *size[2:], len(size) - 2])


# -------------------------------------------------------------------- windows


def _window(shape: Callable[[Tensor, Tensor, dict[str, Any]], Tensor], **defaults: Any) -> Callable[..., Tensor]:
    """A window function from one of ``places / count``, in turns; ``count`` is that of a period."""

    def window(window_length: Size, periodic: bool = True, *shaping: float, **options: Any) -> Tensor:
        values = {name: options.pop(name, default) for name, default in defaults.items()}
        values.update(zip(defaults, shaping, strict=False))
        places = _places(window_length, options)
        count = _count(window_length, 0 if periodic else -1, places)
        ones = torch.ones_like(places)
        return torch.where(_count(window_length, 0, places) == 1, ones, shape(places, count.clamp(min=1), values))

    return window


def _cosines(places: Tensor, count: Tensor, values: dict[str, Any]) -> Tensor:
    turns = places * (2 * math.pi) / count
    window: Tensor = values["alpha"] - values["beta"] * turns.cos()
    return window


def _blackman(places: Tensor, count: Tensor, values: dict[str, Any]) -> Tensor:
    turns = places * (2 * math.pi) / count
    return 0.42 - 0.5 * turns.cos() + 0.08 * (2 * turns).cos()


def _triangle(places: Tensor, count: Tensor, values: dict[str, Any]) -> Tensor:
    return 1 - (2 * places / count - 1).abs()


# -------------------------------------------------------------------- others


def _take_along_dim(input: Tensor, indices: Tensor, dim: int | None = None, **options: Any) -> Any:
    if dim is None or options or input.dim() != indices.dim():
        return NotImplemented
    dim %= input.dim()
    others = ([1 if axis == dim else n for axis, n in enumerate(each.shape)] for each in (input, indices))
    shape = torch.broadcast_shapes(*others)  # type: ignore[no-untyped-call]
    own, wanted = ([t.shape[dim] if axis == dim else n for axis, n in enumerate(shape)] for t in (input, indices))
    return input.expand(own).gather(dim, indices.expand(wanted))


def _matrix_norm(A: Tensor, ord: Any = "fro", dim: Any = (-2, -1), keepdim: bool = False, **options: Any) -> Any:
    if ord not in (1, -1, math.inf, -math.inf) or isinstance(ord, str) or options:
        return NotImplemented
    first, second = (axis % A.dim() for axis in dim)
    summed, chosen = (first, second) if abs(ord) == 1 else (second, first)
    sums = A.abs().sum(summed, keepdim=True)
    best = sums.amax(chosen, keepdim=True) if ord > 0 else sums.amin(chosen, keepdim=True)
    return best if keepdim else best.squeeze((first, second))


def _norm(A: Tensor, ord: Any = None, dim: Any = None, keepdim: bool = False, **options: Any) -> Any:
    """Of matrices; of vectors PyTorch's own keeps sizes open."""
    axes = (-2, -1) if dim is None and A.dim() == 2 else dim
    if ord is None or not isinstance(axes, tuple | list) or len(axes) != 2:
        return NotImplemented
    return _matrix_norm(A, ord, axes, keepdim, **options)


def _istft(
    input: Tensor,
    n_fft: int,
    hop_length: int | None = None,
    win_length: int | None = None,
    window: Tensor | None = None,
    center: bool = True,
    normalized: bool = False,
    onesided: bool | None = None,
    length: Size | None = None,
    return_complex: bool = False,
) -> Any:
    """``torch.istft``: the frames added where they overlap, over the sum of the squared windows there.

    ``input`` complex [..., frequencies, frames] -> [..., length]. PyTorch's own has no shape for an odd ``n_fft``, so
    these calls are computed here as well.
    """
    if return_complex or not (isinstance(length, SymInt) or (n_fft % 2 and onesided is not False)):
        return NotImplemented
    hop, span = hop_length or n_fft // 4, win_length or n_fft
    shown = torch.ones(span, device=input.device) if window is None else window
    shown = F.pad(shown, ((n_fft - span) // 2, n_fft - span - (n_fft - span) // 2))
    batch = input.reshape([-1, *input.shape[-2:]])[:, : n_fft // 2 + 1]
    frames = torch.fft.irfft(batch, n=n_fft, dim=1, norm="ortho" if normalized else "backward") * shown[:, None]
    squares = (shown * shown)[None, :, None].expand([1, n_fft, frames.shape[-1]])
    total = n_fft + hop * (frames.shape[-1] - 1)
    first = n_fft // 2 if center else 0
    signal, weight = (
        F.fold(each, (1, total), (1, n_fft), stride=(1, hop))[:, 0, 0, first : total if length else total - first]
        for each in (frames, squares)
    )
    if length is None:
        length = total - 2 * first
    return F.pad(signal / weight, (0, length))[:, :length].reshape([*input.shape[:-2], length])


_ALWAYS = (_istft, FORMULAS[torch.combinations])
"""What capture does not understand of PyTorch's own at known sizes, either."""
_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    torch.linspace: _linspace,
    torch.logspace: _logspace,
    torch.fft.fftfreq: _fftfreq,
    torch.fft.rfftfreq: _rfftfreq,
    F.affine_grid: _affine_grid,
    torch.affine_grid_generator: _affine_grid,
    torch.hann_window: _window(_cosines, alpha=0.5, beta=0.5),
    torch.hamming_window: _window(_cosines, alpha=0.54, beta=0.46),
    torch.blackman_window: _window(_blackman),
    torch.bartlett_window: _window(_triangle),
    torch.take_along_dim: _take_along_dim,
    Tensor.take_along_dim: _take_along_dim,
    torch.linalg.matrix_norm: _matrix_norm,
    torch.istft: _istft,
    torch.functional.istft: _istft,
    Tensor.istft: _istft,
    torch.linalg.norm: _norm,
    **FORMULAS,
}
