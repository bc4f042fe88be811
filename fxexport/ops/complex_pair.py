"""A complex tensor as the pair of its real and imaginary part, and what can be computed of such pairs.

The formulas are those of C99's Annex G and of PyTorch's own kernels (``c10/util/complex.h``) where they differ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from fxexport.ops.real_calls import Number, Real, Site, divided, is_zero

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Pair:
    """``real + i imag``. A part that is one known number everywhere is that number; one of the two has the shape."""

    real: Number
    imag: Number

    def __add__(self, other: Pair) -> Pair:
        return Pair(self.real + other.real, self.imag + other.imag)

    def __sub__(self, other: Pair) -> Pair:
        return Pair(self.real - other.real, self.imag - other.imag)

    def __mul__(self, other: Pair) -> Pair:
        a, b, c, d = self.real, self.imag, other.real, other.imag
        return Pair(a * c - b * d, a * d + b * c)

    def __neg__(self) -> Pair:
        return Pair(-self.real, -self.imag)

    def __truediv__(self, other: Pair) -> Pair:
        return _quotient(self, other, guarded=True)

    def reciprocal(self) -> Pair:
        """``1 / self``; both parts are NaN where it is 0, as in PyTorch, whose ``1.0 / z`` this is."""
        return _quotient(Pair(1.0, 0.0), self, guarded=False)

    def conj(self) -> Pair:
        """``real - i imag``."""
        exact = isinstance(self.real, Real) and self.real.site.exact
        return self if is_zero(self.imag) and not exact else Pair(self.real, -self.imag)

    def scaled(self, factor: float) -> Pair:
        """Both parts times a real number."""
        return Pair(self.real * factor, self.imag * factor)

    def whole(self) -> tuple[Real, Real]:
        """Both parts as tensors."""
        a, b = self.real, self.imag
        if isinstance(a, Real):
            return a, b if isinstance(b, Real) else a.full_like(b)
        assert isinstance(b, Real), "one part of a pair is a tensor"
        return b.full_like(a), b


def _quotient(z: Pair, w: Pair, *, guarded: bool) -> Pair:
    """Smith's division, which PyTorch uses: no square of the divisor overflows or vanishes.

    ``guarded``: what is divided by 0 is infinite where it is not 0; else NaN.
    """
    a, b, c, d = z.real, z.imag, w.real, w.imag
    if not isinstance(c, Real) and not isinstance(d, Real):
        first = abs(c) >= abs(d)
        ratio = divided(d, c) if first and c else divided(c, d) if not first else 0.0
        scale = divided(1.0, c + d * ratio if first else d + c * ratio)
        return Pair((a + b * ratio) * scale, (b - a * ratio) * scale) if first else (
            Pair((a * ratio + b) * scale, (b * ratio - a) * scale)
        )  # fmt: skip
    if is_zero(d) and isinstance(c, Real) and not c.site.exact:
        return Pair(a / c, b / c)
    c, d = w.whole()
    site = c.site
    first_is_larger = c.call(aten.abs.default).call(aten.ge.Tensor, d.call(aten.abs.default))
    larger, smaller = site.where(first_is_larger, c, d), site.where(first_is_larger, d, c)
    is_null = larger.call(aten.eq.Scalar, 0) if guarded else None
    quotient = smaller / (larger if is_null is None else site.where(is_null, 1.0, larger))
    inverse = (larger + smaller * quotient).call(aten.reciprocal.default)
    real = site.where(first_is_larger, a + b * quotient, a * quotient + b)
    imag = site.where(first_is_larger, b - a * quotient, b * quotient - a)
    if site.exact and is_null is not None:  # infinite parts over 0 are infinite
        real, imag = site.where(is_null, a, real), site.where(is_null, b, imag)
    return Pair(real * inverse, imag * inverse)


def magnitude(z: Pair) -> Real:
    """``|z|`` without overflow or underflow on the way: the larger part times ``sqrt(1 + (smaller / larger)^2)``."""
    if is_zero(z.imag) and isinstance(z.real, Real):
        return z.real.call(aten.abs.default)
    if is_zero(z.real) and isinstance(z.imag, Real):
        return z.imag.call(aten.abs.default)
    a, b = (part.call(aten.abs.default) for part in z.whole())
    larger, smaller = a.call(aten.maximum.default, b), a.call(aten.minimum.default, b)
    # Where both are equal the quotient is 1, and it is not computed where both are zero or infinite.
    ratio = a.site.where(larger.call(aten.eq.Tensor, smaller), 1.0, smaller / larger)
    root = (ratio.times(ratio) + 1.0).call(aten.sqrt.default)
    return larger.times(root)


def is_negative(x: Real) -> Real:
    """Whether the sign bit is set: also that of -0."""
    return x.call(aten.lt.Scalar, 0).call(aten.logical_or.default, (1.0 / x).call(aten.lt.Scalar, 0))  # type: ignore[union-attr]


def argument(z: Pair) -> Real:
    """The angle of ``z`` in (-pi, pi], as ``atan2(imag, real)`` has it, 0 and -0 included.

    Spelled out: the ONNX form of ``atan2`` is NaN at 0 and has the wrong sign on the negative real axis.
    """
    x, y = z.whole()
    site, a, b = x.site, x.call(aten.abs.default), y.call(aten.abs.default)
    larger, smaller = a.call(aten.maximum.default, b), a.call(aten.minimum.default, b)
    is_null = larger.call(aten.eq.Scalar, 0)
    eighth = (smaller / site.where(is_null, 1.0, larger)).call(aten.atan.default)
    quarter = site.where(b.call(aten.gt.Tensor, a), math.pi / 2 - eighth, eighth)
    half = site.where(is_negative(x), math.pi - quarter, quarter)
    return site.where(is_negative(y), -half, half)


def from_polar(radius: Number, angle: Real) -> Pair:
    """``radius * (cos(angle) + i sin(angle))``."""
    return Pair(radius * angle.call(aten.cos.default), radius * angle.call(aten.sin.default))


def exponential(z: Pair) -> Pair:
    """``e^z``."""
    radius = 1.0 if is_zero(z.real) else z.real.call(aten.exp.default)  # type: ignore[union-attr]
    return Pair(radius, 0.0) if is_zero(z.imag) else from_polar(radius, z.whole()[1])


def logarithm(z: Pair) -> Pair:
    """The principal ``log z``."""
    return Pair(magnitude(z).call(aten.log.default), argument(z))


def square_root(z: Pair) -> Pair:
    """The principal root: the half with the larger part first, since the other one is a quotient by it.

    ``t = sqrt((|z| + |a|) / 2)``; ``t + i b / 2t`` right of the imaginary axis, ``|b| / 2t + i t sign(b)`` left of it.
    """
    a, b = z.whole()
    site = a.site
    half = (magnitude(z).times(0.5)) + a.call(aten.abs.default).times(0.5)
    t = half.call(aten.sqrt.default)
    other = b.call(aten.abs.default).times(0.5) / site.where(t.call(aten.eq.Scalar, 0), 1.0, t)
    right = a.call(aten.ge.Scalar, 0)
    imag = site.where(right, other, t)
    return Pair(site.where(right, t, other), site.where(is_negative(b), -imag, imag))


def power(z: Pair, exponent: Pair) -> Pair:
    """``z ** exponent``; products for whole exponents up to 16, else ``exp(exponent * log z)`` with ``0 ** w = 0``."""
    p, q = exponent.real, exponent.imag
    if not isinstance(p, Real) and is_zero(q):
        if p == 0.5:
            return square_root(z)
        if p == -0.5:
            return square_root(z).reciprocal()
        if p == int(p) and 0 < abs(p) <= 16:
            result = _whole_power(z, abs(int(p)))
            return result if p > 0 else result.reciprocal()
    radius, angle = magnitude(z), argument(z)
    turned = angle.times(p)
    grown = radius.call(aten.pow, p)
    if is_zero(q):
        return from_polar(grown, turned)
    result = from_polar(
        grown.times(angle.times(-q).call(aten.exp.default)), turned + radius.call(aten.log.default).times(q)
    )
    null = radius.call(aten.eq.Scalar, 0)
    return Pair(*(radius.site.where(null, 0.0, part) for part in result.whole()))


def _whole_power(z: Pair, exponent: int) -> Pair:
    if exponent == 1:
        return z
    half = _whole_power(z, exponent // 2)
    square = half * half
    return square * z if exponent % 2 else square


def direction(z: Pair) -> Pair:
    """``z / |z|``, and 0 where ``z`` is 0."""
    size = magnitude(z)
    size = size.site.where(size.call(aten.eq.Scalar, 0), 1.0, size)
    return Pair(z.real / size, z.imag / size)


def sine(z: Pair) -> Pair:
    """``sin a cosh b + i cos a sinh b``."""
    a, b = z.whole()
    return Pair(
        a.call(aten.sin.default) * b.call(aten.cosh.default), a.call(aten.cos.default) * b.call(aten.sinh.default)
    )


def cosine(z: Pair) -> Pair:
    """``cos a cosh b - i sin a sinh b``."""
    a, b = z.whole()
    second = a.call(aten.sin.default) * b.call(aten.sinh.default)
    return Pair(a.call(aten.cos.default) * b.call(aten.cosh.default), -second)


def hyperbolic_tangent(z: Pair) -> Pair:
    """With ``t = tanh a`` and ``u = tan b``: ``(t (1 + u^2) + i u (1 - t^2)) / (1 + t^2 u^2)``; nothing overflows."""
    t, u = z.whole()[0].call(aten.tanh.default), z.whole()[1].call(aten.tan.default)
    tt, uu = t.times(t), u.times(u)
    below = tt.times(uu) + 1.0
    return Pair(t * (uu + 1.0) / below, u * (1.0 - tt) / below)


def by_i(z: Pair) -> Pair:
    """``i z``: a quarter turn."""
    return Pair(-z.imag, z.real)


def constant(site: Site, name: str, value: torch.Tensor) -> Pair:
    """A complex constant as two real ones, stored once for each ``name``."""
    value = value.resolve_conj()
    real = site.constant((name, "real"), f"{name}.real", lambda: value.real.contiguous())
    return Pair(real, site.constant((name, "imag"), f"{name}.imag", lambda: value.imag.resolve_neg().contiguous()))
