"""Complex numbers as pairs of real ones, through the whole graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fxexport.ops import decompose_complex
from fxexport.program import Program
from fxexport.rewrite import Pass, PassResult


@dataclass(frozen=True)
class DecomposeComplex(Pass):
    """``z * w -> (a * c - b * d, a * d + b * c)`` for ``z = a + bi``, ``w = c + di``, and so every operator: exact up to
    rounding.

    Views, indices, sums and products, matrices and convolutions, functions, norms, casts, constants; parameters and
    buffers are stored as two. Quotients and absolute values are scaled, so that no square overflows. Fourier transforms
    are products with constant matrices, in two steps where they are long, and with matrices made in the graph where the
    length is dynamic. The signs of zeros and NaN of ``inf * 0`` are those of PyTorch where an operator of the program
    (``angle``, ``isnan``) can tell. What has no such form stays complex, and is made of its pair again.
    """

    name: ClassVar[str] = "decompose-complex"
    default: ClassVar[bool] = True
    formats: ClassVar[tuple[str, ...]] = ("onnx",)
    after: ClassVar[tuple[str, ...]] = ("decompose-stft", "decompose-istft")

    def run(self, program: Program) -> PassResult:
        """One walk in the order of the graph."""
        rewrites, misses = decompose_complex(program, self.name)
        return PassResult(len(rewrites), (), tuple(rewrites), tuple(misses), len(misses))
