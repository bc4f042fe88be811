"""Short-time Fourier transforms as convolutions with constant waves, which every runtime computes fast and right."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from fxexport.program import Program
from fxexport.rewrite import NodePass, arguments

aten = torch.ops.aten
_PIECE = 64
"""Samples of a frame that are summed at a time."""


@dataclass(frozen=True)
class DecomposeStft(NodePass):
    """``stft(x, n, hop, window) -> complex(conv1d(x, cosines * window), conv1d(x, sines * window))``: exact up to
    rounding.

    ``x`` real, [batch, time] or [time] with any number of samples; the length of the transform is fixed. ONNX runtimes
    compute a transform whose length is no power of two with an error that is a hundred times larger, and many have
    none at all. ``budget``: bytes of matrices that one run may add; a transform that needs more stays as it is.
    """

    name: ClassVar[str] = "decompose-stft"
    default: ClassVar[bool] = True
    formats: ClassVar[tuple[str, ...]] = ("onnx",)
    targets: ClassVar = (aten.stft.default,)

    budget: int = 12 * 2**20

    def rewrite(self, program: Program, node: fx.Node) -> fx.Node | str:
        """The products, or why the transform stays."""
        call = arguments(node)
        if call["self"].meta["val"].dtype != torch.float32:  # of which runtimes have convolutions
            return f"its input is {call['self'].meta['val'].dtype}, not float32"
        return self._frames(program, node, call)

    def _frames(self, program: Program, node: fx.Node, call: dict[str, Any]) -> fx.Node | str:
        x, n_fft, window = call["self"], call["n_fft"], call["window"]
        if call["align_to_window"]:
            return "its frames are aligned to the window"
        span = call["win_length"] or n_fft
        bins = n_fft // 2 + 1 if call["onesided"] in (None, True) else n_fft
        scale = n_fft**-0.5 if call["normalized"] else 1.0
        known = torch.ones(span) if window is None else program.constant_value(window)
        if (known is not None and known.is_complex()) or not isinstance(n_fft, int):
            return "its window is complex" if isinstance(n_fft, int) else "its length depends on the input"
        if (reason := self._over_budget(2 * bins * n_fft, x)) is not None:
            return reason
        insert = partial(program.insert, before=node)
        before = (n_fft - span) // 2
        around = [before, n_fft - span - before]
        matrix = _fourier(n_fft, bins, scale).unsqueeze(1)
        dtype = x.meta["val"].dtype
        if known is not None:
            matrix = matrix * torch.nn.functional.pad(known.cpu().double(), around)
        weight = self._matrix(program, node, matrix, x)
        if known is None:
            padded = insert(aten.constant_pad_nd.default, (insert(aten.to.dtype, (window, dtype)), around))
            weight = insert(aten.mul.Tensor, (weight, padded))
        single = x.meta["val"].dim() == 1
        signal = insert(aten.unsqueeze.default, (insert(aten.unsqueeze.default, (x, 0)) if single else x, 1))
        both = _convolve(program, node, signal, weight, call["hop_length"] or n_fft // 4)
        both = insert(aten.squeeze.dim, (both, 0)) if single else both
        parts = _halves(program, node, both, -2, bins)
        if call["return_complex"]:
            return insert(aten.complex.default, parts)
        return insert(aten.stack.default, (parts, -1))

    def _over_budget(self, numbers: int, x: fx.Node) -> str | None:
        """Why a matrix is too large, or None after taking its bytes off the budget."""
        wanted = self.memo.get("bytes", 0) + numbers * x.meta["val"].dtype.itemsize
        if wanted > self.budget:
            return f"its matrix would bring the constants to {wanted} bytes, over the budget of {self.budget}"
        self.memo["bytes"] = wanted
        return None

    def _matrix(self, program: Program, node: fx.Node, matrix: Tensor, x: fx.Node) -> fx.Node:
        value = x.meta["val"]
        return self.constant(program, "fourier_matrix", matrix.to(value.device, value.dtype))


def _convolve(program: Program, node: fx.Node, signal: fx.Node, weight: fx.Node, hop: int) -> fx.Node:
    """The convolution in pieces of the kernel: the rounding error of a sum grows with the number of its terms, and
    that of one long sum is several times that of a fast Fourier transform."""
    insert = partial(program.insert, before=node)
    taps = weight.meta["val"].shape[-1]
    total: fx.Node | None = None
    for start in range(0, taps, _PIECE):
        stop = min(start + _PIECE, taps)
        heard = insert(aten.slice.Tensor, (signal, -1, start, stop - taps if stop < taps else sys.maxsize))
        kernel = insert(aten.slice.Tensor, (weight, -1, start, stop))
        part = insert(aten.conv1d.default, (heard, kernel, None, [hop]))
        total = part if total is None else insert(aten.add.Tensor, (total, part))
    assert total is not None, "a transform has at least one sample"
    return total


def _fourier(length: int, bins: int, scale: float) -> Tensor:
    """[2 * bins, length] in double precision: the rows of the real parts, then those of the imaginary parts."""
    turns = torch.arange(bins)[:, None] * torch.arange(length) % length
    angles = turns.double() * (2 * math.pi / length)
    sines = torch.where(2 * turns % length == 0, 0.0, -angles.sin())  # exactly 0, not -0: an angle has its sign
    return torch.cat([angles.cos(), sines]) * scale


def _halves(program: Program, node: fx.Node, both: fx.Node, dim: int, bins: int) -> tuple[fx.Node, fx.Node]:
    """The real and the imaginary part, one after the other along ``dim``."""
    first = program.insert(aten.slice.Tensor, (both, dim, 0, bins), before=node)
    return first, program.insert(aten.slice.Tensor, (both, dim, bins, 2 * bins), before=node)
