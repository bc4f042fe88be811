"""Fourier transforms of all kinds as transforms of single axes.

Inputs are cut or filled with zeros to the length asked for. A real input is a complex one whose imaginary part is the
number 0; of a transform to real numbers the half that is not given is the conjugate of the other one, reversed.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import fx

from fxexport.ops.complex_call import Call, Result, Rule
from fxexport.ops.complex_pair import Pair
from fxexport.ops.dft import Transform, is_short, size_of, transform
from fxexport.ops.real_calls import Real

aten = torch.ops.aten
Length = int | Real
_NORMS = {
    (None, -1): "none", ("backward", -1): "none", ("ortho", -1): "root", ("forward", -1): "length",
    (None, 1): "length", ("backward", 1): "length", ("ortho", 1): "root", ("forward", 1): "none",
}  # fmt: skip
_CODES = {0: "none", 1: "root", 2: "length"}


@dataclass(frozen=True)
class Kind:
    """One function of ``torch.fft``.

    Attributes:
        form: complex to complex, real to the half that is not redundant, or back.
        sign: -1 forward, +1 inverse, of the sums that are computed.
        norm_sign: the same, of the direction that the normalization goes by: ``hfft`` is a forward transform.
    """

    form: Literal["full", "to half", "from half"]
    sign: int
    norm_sign: int


_KINDS = {
    **{name: Kind("full", -1, -1) for name in ("fft_fft", "fft_fft2", "fft_fftn")},
    **{name: Kind("full", 1, 1) for name in ("fft_ifft", "fft_ifft2", "fft_ifftn")},
    **{name: Kind("to half", -1, -1) for name in ("fft_rfft", "fft_rfft2", "fft_rfftn")},
    **{name: Kind("to half", 1, 1) for name in ("fft_ihfft", "fft_ihfft2", "fft_ihfftn")},
    **{name: Kind("from half", 1, 1) for name in ("fft_irfft", "fft_irfft2", "fft_irfftn")},
    **{name: Kind("from half", -1, -1) for name in ("fft_hfft", "fft_hfft2", "fft_hfftn")},
}


def _rule(kind: Kind) -> Rule:
    def fourier(call: Call) -> Result:
        z, rank = call.pair(call.args["self"]), call.args["self"].meta["val"].dim()
        axes, lengths = _axes(call, rank)
        norm = _NORMS[call.args["norm"], kind.norm_sign]
        return _transformed(call, z, kind, axes, lengths, [norm] * len(axes))

    return fourier


def _axes(call: Call, rank: int) -> tuple[list[int], list[Any]]:
    """The axes from behind, and the length asked for along each of them or None."""
    if "n" in call.args:
        return [_from_behind(call.args["dim"], rank)], [call.args["n"]]
    sizes, dims = call.args["s"], call.args["dim"]
    dims = list(range(-(rank if sizes is None else len(sizes)), 0)) if dims is None else dims
    sizes = [None] * len(dims) if sizes is None else [None if isinstance(n, int) and n == -1 else n for n in sizes]
    return [_from_behind(dim, rank) for dim in dims], sizes


def _from_behind(dim: int, rank: int) -> int:
    return dim if dim < 0 else dim - rank


def _transformed(call: Call, z: Pair, kind: Kind, axes: list[int], lengths: list[Any], norms: list[str]) -> Pair | Real:
    """The last axis is the one of which one half is given; its transform comes last, or first where a half is made."""
    order = list(zip(axes, lengths, norms, strict=True))
    if kind.form == "to half":
        order.reverse()
    for axis, asked, norm in order:
        is_half = axis == axes[-1] and kind.form != "full"
        size: Length = size_of(z, axis)
        if is_half and kind.form == "from half":
            length = _given(call, asked) if asked is not None else _twice(size)
            z = _from_half(z, axis, size, length, Transform(length, kind.sign, norm, real_only=True))
            continue
        length = _given(call, asked) if asked is not None else size
        half = "out" if is_half and is_short(length) else ""
        z = transform(_resized(z, axis, size, length), axis, Transform(length, kind.sign, norm, half=half))
        if is_half and not half:
            z = _sliced(z, axis, 0, _half(length))
    return z.whole()[0] if kind.form == "from half" else z


def _given(call: Call, length: Any) -> Length:
    return Real(length, call.site) if isinstance(length, fx.Node) else int(length)


def _twice(size: Length) -> Length:
    """The default length of a transform from ``size`` given numbers."""
    if isinstance(size, int):
        return 2 * (size - 1)
    return size.call(operator.sub, 1).call(operator.mul, 2)


def _half(length: Length) -> Any:
    """How many numbers of ``length`` are not redundant."""
    if isinstance(length, int):
        return length // 2 + 1
    return length.call(operator.floordiv, 2).call(operator.add, 1)


def _sliced(z: Pair, axis: int, start: Any, end: Any) -> Pair:
    return Pair(*(p.call(aten.slice.Tensor, axis, start, end) if isinstance(p, Real) else p for p in (z.real, z.imag)))


def _resized(z: Pair, axis: int, size: Length, length: Length) -> Pair:
    """Cut to ``length``; filled with zeros where the length is a number (a measured matrix has as many rows as needed)."""
    if length is size or (isinstance(size, int) and size == length):
        return z
    if not isinstance(size, int) or not isinstance(length, int) or size > length:
        z = _sliced(z, axis, 0, length)
        size = size_of(z, axis)
    if not isinstance(length, int) or size == length:
        return z
    missing = length - size if isinstance(size, int) else size.call(operator.sub, length).call(operator.neg)
    amounts = [*[0, 0] * (-axis - 1), 0, missing]
    return Pair(
        *(p.call(aten.constant_pad_nd.default, amounts) if isinstance(p, Real) else p for p in (z.real, z.imag))
    )


def _from_half(z: Pair, axis: int, size: Length, length: Length, how: Transform) -> Pair:
    """The other half is the conjugate in reverse order; of numbers that have none beside them only the real part counts."""
    z = _resized(z, axis, size, _half(length))
    if is_short(length):
        return transform(z, axis, replace(how, half="in"))
    end: Any = (length + 1) // 2 if isinstance(length, int) else length.call(operator.add, 1).call(operator.floordiv, 2)
    parts = [p.call(aten.slice.Tensor, axis, 1, end).call(aten.flip.default, [axis]) for p in z.whole()]
    rest = Pair(parts[0], -parts[1])
    site = parts[0].site
    both = [
        site.call(aten.cat.default, [given, mirrored], axis)
        for given, mirrored in zip(z.whole(), rest.whole(), strict=True)
    ]
    return transform(Pair(*both), axis, how)


def _composed(call: Call) -> Result:
    """``_fft_c2c``, ``_fft_r2c``, ``_fft_c2r``: what the functions above become when they are decomposed."""
    name = call.node.target._schema.name.rpartition("::")[2]  # type: ignore[union-attr]
    z, rank = call.pair(call.args["self"]), call.args["self"].meta["val"].dim()
    axes = [_from_behind(dim, rank) for dim in call.args["dim"]]
    norms = [_CODES[call.args["normalization"]]] * len(axes)
    lengths: list[Any] = [None] * len(axes)
    if name == "_fft_c2c":
        sign = -1 if call.args["forward"] else 1
        return _transformed(call, z, Kind("full", sign, sign), axes, lengths, norms)
    if name == "_fft_r2c":
        form: Literal["to half", "full"] = "to half" if call.args["onesided"] else "full"
        return _transformed(call, z, Kind(form, -1, -1), axes, lengths, norms)
    lengths[-1] = call.args["last_dim_size"]
    return _transformed(call, z, Kind("from half", 1, 1), axes, lengths, norms)


RULES: dict[Any, Rule] = {
    **{getattr(aten, name): _rule(kind) for name, kind in _KINDS.items() if hasattr(aten, name)},
    **dict.fromkeys((aten._fft_c2c, aten._fft_r2c, aten._fft_c2r), _composed),
}
