"""Discrete Fourier transforms of one axis as products with small constant matrices.

Lengths up to 128 are one product with a matrix; longer ones two transforms of their factors with a twist in between
(Cooley and Tukey), and long primes a convolution (Bluestein). Measured in onnxruntime, a matrix is the faster one up to a
length of 128; the error of the factored form is that of a fast Fourier transform, a third of that of one long sum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxexport.ops.complex_pair import Pair
from fxexport.ops.real_calls import Real, is_zero

aten = torch.ops.aten
DIRECT = 128
"""The longest transform that is one product, but for primes."""
PRIME = 256
"""The longest prime that is one product: with 512 * 512 numbers."""


@dataclass(frozen=True)
class Transform:
    """``X[k] = factor * sum_n x[n] exp(sign * 2 pi i k n / length)`` along one axis.

    Attributes:
        length: a number, or a symbolic number of the program.
        sign: -1 forward, +1 inverse.
        norm: what the sums are divided by: "none", "root" of the length, or "length".
        real_only: only the real part of the result is wanted.
        half: of a short transform, what is given or wanted ("in", "out") is the half that is not redundant, else "".
    """

    length: int | Real
    sign: int
    norm: str = "none"
    real_only: bool = False
    half: str = ""

    @property
    def factor(self) -> float:
        """What the sums are multiplied by."""
        assert isinstance(self.length, int)
        factors: dict[str, float] = {"none": 1.0, "root": 1 / math.sqrt(self.length), "length": 1 / self.length}
        return factors[self.norm]


def transform(z: Pair, axis: int, how: Transform) -> Pair:
    """``z`` transformed along ``axis`` (negative), whose size is the length of the transform, or unknown."""
    if not isinstance(how.length, int):
        return _product(z, axis, how, _measured_matrix(z, axis, how))
    if is_short(how.length):
        return _product(z, axis, how, None)
    if axis != -1:
        turned = transform(_each(z, aten.transpose.int, axis, -1), -1, how)
        return _each(turned, aten.transpose.int, axis, -1)
    first = _divisor(how.length)
    return _factored(z, how, first) if first > 1 else _by_convolution(z, how)


def is_short(length: int | Real) -> bool:
    """Whether a transform of that length is one product with a stored matrix."""
    return isinstance(length, int) and (length <= DIRECT or (length <= PRIME and _divisor(length) == 1))


def _each(z: Pair, target: Any, *args: Any) -> Pair:
    """``target`` on both parts."""
    return Pair(*(part.call(target, *args) if isinstance(part, Real) else part for part in (z.real, z.imag)))


def some_part(z: Pair) -> Real:
    """A part that is a tensor, and has the shape."""
    return z.real if isinstance(z.real, Real) else z.whole()[1]


def size_of(z: Pair, axis: int) -> int | Real:
    """The size along ``axis`` (negative): a number, or a symbolic number of the program."""
    part = some_part(z)
    size = part.value.shape[axis]
    return size if isinstance(size, int) else part.call(aten.sym_size.int, axis + part.value.dim())


def _divisor(length: int) -> int:
    """The largest divisor up to the square root."""
    return next(d for d in range(math.isqrt(length), 0, -1) if length % d == 0)


# ---------------------------------------------------------------- one product


def _product(z: Pair, axis: int, how: Transform, matrix: Real | None) -> Pair:
    """Both parts side by side times the matrix ``[[cos, sin], [-sin, cos]]``, less what is zero or not wanted."""
    parts = [part for part in (z.real, z.imag) if isinstance(part, Real)]
    left = matrix is None and axis == -2
    if axis not in (-1, -2) or (axis == -2 and not left):
        turned = _product(_each(z, aten.transpose.int, axis, -1), -1, how, matrix)
        return _each(turned, aten.transpose.int, axis, -1)
    x = parts[0] if len(parts) == 1 else parts[0].site.call(aten.cat.default, parts, axis)
    if matrix is None:
        matrix = _stored_matrix(z, how, left=left)
    y = matrix.call(aten.matmul.default, x) if left else x.call(aten.matmul.default, matrix)
    if how.real_only:
        return Pair(y, 0.0)
    size = how.length // 2 + 1 if how.half == "out" and isinstance(how.length, int) else how.length
    return Pair(y.call(aten.slice.Tensor, axis, 0, size), y.call(aten.slice.Tensor, axis, size))


def matrix_of(length: int, sign: int, factor: float) -> tuple[Tensor, Tensor]:
    """The cosines and signed sines, [length, length] in double precision, each as near as it can be."""
    turns = torch.arange(length)[:, None] * torch.arange(length) % length
    angles = turns.double() * (2 * math.pi / length)
    sines = torch.where(2 * turns % length == 0, 0.0, sign * angles.sin())  # exactly 0, not -0: an angle has its sign
    cosines = torch.where(4 * turns % length == 0, angles.cos().round(), angles.cos())
    sines = torch.where(4 * turns % length == 0, sines.round(), sines)
    return cosines * factor, sines * factor + 0.0


def _stored_matrix(z: Pair, how: Transform, *, left: bool) -> Real:
    assert isinstance(how.length, int)
    length, like = how.length, some_part(z).value
    key = ("dft", how, is_zero(z.real), is_zero(z.imag), left, like.dtype, like.device)

    def make() -> Tensor:
        c, s = matrix_of(length, how.sign, how.factor)
        bins = length // 2 + 1
        if how.half == "out":
            c, s = c[:, :bins], s[:, :bins]
        elif how.half == "in":  # all but the first, and the middle one of an even length, stand for two
            twice = torch.where(2 * torch.arange(bins)[:, None] % length == 0, 1.0, 2.0)
            c, s = c[:bins] * twice, s[:bins] * twice
        rows = [[c] if how.real_only else [c, s]] if not is_zero(z.real) else []
        rows += [[-s] if how.real_only else [-s + 0.0, c]] if not is_zero(z.imag) else []
        matrix = torch.cat([torch.cat(row, 1) for row in rows]).to(like.device, like.dtype)
        return (matrix.T if left else matrix).contiguous()

    return some_part(z).site.constant(key, f"dft_{length}", make)


def _measured_matrix(z: Pair, axis: int, how: Transform) -> Real:
    """The matrix of a length that is known only when the model runs, made once for each length."""
    assert isinstance(how.length, Real)
    length, like = how.length, some_part(z).value
    sizes = (str(length.value), str(like.shape[axis]))
    kind = (how.sign, how.norm, how.real_only, is_zero(z.real), is_zero(z.imag), like.dtype, like.device)
    return length.site.once(("measured", *sizes, *kind), lambda: _matrix_in_graph(z, axis, length, how))


def _matrix_in_graph(z: Pair, axis: int, length: Real, how: Transform) -> Real:
    """Angles are reduced to one turn before they are scaled, so that they keep their digits."""
    site, like = length.site, some_part(z).value
    ends = {"dtype": torch.int64, "device": like.device}
    size = size_of(z, axis)
    given = site.call(aten.arange.default, size, **ends).call(aten.unsqueeze.default, 1)
    period = site.call(aten.scalar_tensor.default, length, **ends)
    turns = given.times(site.call(aten.arange.default, length, **ends)).call(aten.remainder.Tensor, period)
    period = period.to(like.dtype)
    angles = turns.to(like.dtype).times(2 * math.pi) / period
    cosines, sines = angles.call(aten.cos.default), angles.call(aten.sin.default)
    if how.norm != "none":
        divisor = period.call(aten.sqrt.default) if how.norm == "root" else period
        cosines, sines = cosines / divisor, sines / divisor
    plus, minus = (sines, -sines) if how.sign > 0 else (-sines, sines)
    rows = [] if is_zero(z.real) else [[cosines, plus]]
    rows += [] if is_zero(z.imag) else [[minus, cosines]]
    joined = [row[0] if how.real_only else site.call(aten.cat.default, row, 1) for row in rows]
    return joined[0] if len(joined) == 1 else site.call(aten.cat.default, joined, 0)


# ---------------------------------------------------------------- longer ones


def _factored(z: Pair, how: Transform, first: int) -> Pair:
    """Length ``first * second``: with n = second * n1 + n2 and k = k1 + first * k2, transforms over n1, then over n2."""
    assert isinstance(how.length, int)
    second = how.length // first
    z = _each(z, aten.unflatten.int, -1, [first, second])
    z = transform(z, -2, Transform(first, how.sign))
    z = z * _twist(z, how, first, second)
    z = transform(z, -1, Transform(second, how.sign, real_only=how.real_only))
    return _each(_each(z, aten.transpose.int, -1, -2), aten.flatten.using_ints, -2, -1)


def _twist(z: Pair, how: Transform, first: int, second: int) -> Pair:
    """``factor * exp(sign * 2 pi i k1 n2 / length)``, [first, second]."""
    turns = torch.arange(first)[:, None] * torch.arange(second)
    return _constant(
        z, ("twist", how.length, how.sign, how.norm), lambda: how.factor * _unit(turns, first * second, how.sign)
    )


def _unit(turns: Tensor, length: int, sign: int) -> Tensor:
    """``exp(sign * 2 pi i turns / length)`` in double precision."""
    angles = (turns % length).double() * (2 * math.pi / length)
    unit: Tensor = torch.complex(angles.cos(), sign * angles.sin())
    return unit


def _constant(z: Pair, key: tuple[Any, ...], make: Any) -> Pair:
    like = some_part(z)
    kind = (like.value.dtype, like.value.device)

    def stored(part: str) -> Real:
        name = "_".join(map(str, key[:2]))
        value = lambda: getattr(make(), part).to(kind[1], kind[0]).contiguous()  # noqa: E731
        return like.site.constant((*key, part, *kind), f"{name}.{part}", value)

    return Pair(stored("real"), stored("imag"))


def _by_convolution(z: Pair, how: Transform) -> Pair:
    """A long prime length: with ``2 k n = k^2 + n^2 - (k - n)^2`` the sum is a convolution with ``exp(i pi n^2 / length)``,
    which transforms of a power of two compute."""
    assert isinstance(how.length, int)
    length, size = how.length, 2 ** math.ceil(math.log2(2 * how.length - 1))
    squares = torch.arange(length) ** 2
    chirp = _unit(squares, 2 * length, how.sign)

    def kernel() -> Tensor:
        wave = torch.zeros(size, dtype=torch.complex128)
        wave[:length] = chirp.conj()
        wave[size - length + 1 :] = chirp.conj()[1:].flip(0)
        spectrum: Tensor = torch.fft.fft(wave)
        return spectrum

    key = (length, how.sign)
    z = z * _constant(z, ("chirp", *key), lambda: chirp)
    z = _each(z, aten.constant_pad_nd.default, [0, size - length])
    z = transform(z, -1, Transform(size, -1)) * _constant(z, ("kernel", *key), kernel)
    z = _each(transform(z, -1, Transform(size, 1, "length")), aten.slice.Tensor, -1, 0, length)
    return z * _constant(z, ("last_chirp", *key, how.norm), lambda: how.factor * chirp)
