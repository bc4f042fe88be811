"""How operators are spelled out in simpler ones: complex numbers as pairs of real ones, Fourier transforms as products."""

from fxexport.ops.complex_walk import decompose_complex

__all__ = ["decompose_complex"]
