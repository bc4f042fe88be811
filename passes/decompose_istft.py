"""The inverse short-time Fourier transform as one transposed convolution, which every runtime has."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from fxexport.program import Program
from fxexport.rewrite import NodePass, arguments

aten = torch.ops.aten


@dataclass(frozen=True)
class DecomposeIstft(NodePass):
    """``istft(z, n, hop, window) -> conv_transpose1d(cat(z.real, z.imag), waves * window) / conv_transpose1d(1,
    window^2)``, then cut: exact up to rounding.

    ``z`` [batch, frequencies, frames] or [frequencies, frames] with any number of frames; the length of the transform is
    fixed. Where the summed squares of the window are 0, which eager refuses, the result is NaN. ``budget``: bytes of
    matrices that one run may add; a transform that needs more stays as it is.
    """

    name: ClassVar[str] = "decompose-istft"
    default: ClassVar[bool] = True
    formats: ClassVar[tuple[str, ...]] = ("onnx",)
    targets: ClassVar = (aten.istft.default,)

    budget: int = 12 * 2**20

    def rewrite(self, program: Program, node: fx.Node) -> fx.Node | str:
        """The convolutions, or why the transform stays."""
        call = arguments(node)
        z, n_fft, window = call["self"], call["n_fft"], call["window"]
        if call["return_complex"]:
            return "it returns complex numbers"
        if not isinstance(n_fft, int):
            return "its length depends on the input"
        if window is not None and window.meta["val"].is_complex():
            return "its window is complex"
        real = z.meta["val"].real.dtype
        bins, hop = n_fft // 2 + 1, call["hop_length"] or n_fft // 4
        wanted = self.memo.get("bytes", 0) + 2 * bins * n_fft * real.itemsize
        if wanted > self.budget:
            return f"its matrix would bring the constants to {wanted} bytes, over the budget of {self.budget}"
        self.memo["bytes"] = wanted
        insert = partial(program.insert, before=node)
        waves, squares = self._kernels(program, node, call, real)
        single = z.meta["val"].dim() == 2
        z = insert(aten.unsqueeze.default, (z, 0)) if single else z
        z = insert(aten.slice.Tensor, (z, 1, 0, bins)) if z.meta["val"].shape[1] != bins else z
        parts = [insert(part, (z,)) for part in (aten.real.default, aten.imag.default)]
        signal = insert(aten.conv_transpose1d.default, (insert(aten.cat.default, (parts, 1)), waves, None, [hop]))
        ones = insert(aten.slice.Tensor, (insert(aten.slice.Tensor, (parts[0], 0, 0, 1)), 1, 0, 1))
        ones = insert(aten.ones_like.default, (ones,))
        weight = insert(aten.conv_transpose1d.default, (ones, squares, None, [hop]))
        start = n_fft // 2 if call["center"] else 0
        length = call["length"]
        end = -start if length is None and start else 2**63 - 1
        cut = [insert(aten.slice.Tensor, (each, 2, start, end)) for each in (signal, weight)]
        result = insert(aten.squeeze.dim, (insert(aten.div.Tensor, tuple(cut)), 1))
        if length is not None:
            padded = insert(aten.constant_pad_nd.default, (result, [0, length]))
            result = insert(aten.slice.Tensor, (padded, 1, 0, length))
        return insert(aten.squeeze.dim, (result, 0)) if single else result

    def _kernels(
        self, program: Program, node: fx.Node, call: dict[str, Any], dtype: torch.dtype
    ) -> tuple[fx.Node, fx.Node]:
        """[2 * bins, 1, n_fft] waves under the window, and [1, 1, n_fft] its squares."""
        n_fft, window = call["n_fft"], call["window"]
        span = call["win_length"] or n_fft
        around = [(n_fft - span) // 2, n_fft - span - (n_fft - span) // 2]
        waves = _waves(n_fft, n_fft**-0.5 if call["normalized"] else 1 / n_fft)
        known = torch.ones(span) if window is None else program.constant_value(window)
        if known is not None:
            shown = torch.nn.functional.pad(known.cpu().double(), around)
            values, device = (waves * shown, (shown * shown)[None, None]), call["self"].meta["val"].device
            first, second = (
                self.constant(program, name, value.to(device, dtype))
                for name, value in zip(("inverse_fourier_matrix", "window_squares"), values, strict=True)
            )
            return first, second
        insert = partial(program.insert, before=node)
        matrix = self.constant(program, "inverse_fourier_matrix", waves.to(window.meta["val"].device, dtype))
        padded = insert(aten.constant_pad_nd.default, (insert(aten.to.dtype, (window, dtype)), around))
        squares = insert(aten.reshape.default, (insert(aten.mul.Tensor, (padded, padded)), [1, 1, n_fft]))
        return insert(aten.mul.Tensor, (matrix, padded)), squares


def _waves(length: int, scale: float) -> Tensor:
    """[2 * bins, 1, length] in double precision: what each real part adds to a frame, then what each imaginary part does.

    A real signal has every frequency twice, but for the first and, of an even length, the last.
    """
    bins = length // 2 + 1
    turns = torch.arange(bins)[:, None] * torch.arange(length) % length
    angles = turns.double() * (2 * math.pi / length)
    times = torch.full([bins, 1], 2.0, dtype=torch.float64)
    times[0] = 1.0
    if length % 2 == 0:
        times[-1] = 1.0
    sines = torch.where(2 * turns % length == 0, 0.0, -angles.sin())
    return torch.cat([angles.cos() * times, sines * times])[:, None] * scale
