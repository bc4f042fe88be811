"""Compare one output of an artifact with the output of the eager model: the judge's bench.

A floating point value passes when ``|got - expected| <= atol_eff + rtol * |expected|``; integers and bools
must be equal; NaN and Inf (with its sign) must sit at the same positions. Nothing is broadcast and nothing is
cast: dtype and shape are part of the answer. Arithmetic is done in float64 (or int64) over cache-sized
blocks, so a 100 MB output costs a few MB of scratch memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor

from fxexport.errors import InputError, ValidationError

Scalar = bool | int | float | complex
_BLOCK = 1 << 16  # elements; 512 KiB of float64, which stays in the L2 cache of current CPUs
_INT64_MIN = -(1 << 63)
# How much worse than eager an artifact may be, both measured against float64. Reordered sums stay well within
# it.
_JUDGE_FACTOR = 4.0


@dataclass(frozen=True)
class Tolerance:
    """``rtol`` and ``atol`` of one comparison; ``scaled``: atol counts in units of the reference's RMS."""

    rtol: float
    atol: float
    scaled: bool


_EXACT = Tolerance(0.0, 0.0, scaled=False)
_DEFAULTS = {
    torch.float64: Tolerance(1e-7, 1e-8, scaled=True),
    torch.float32: Tolerance(1e-4, 1e-5, scaled=True),
    torch.float16: Tolerance(1e-2, 1e-3, scaled=True),
    torch.bfloat16: Tolerance(3e-2, 1e-2, scaled=True),
}
# A reference that is zero everywhere has no scale of its own, and a scaled atol of 0 would demand bits: where
# eager cancels exactly (x - x), a fused kernel may leave a residue of one rounding. The floor, below 0.1 ulp
# of 1.0, covers such a residue and no real error. It serves all-zero references only: beside a reference of
# magnitude 1e-7 it would excuse an error of ten percent.
_ZERO_FLOOR = {torch.float64: 1e-17, torch.float32: 1e-8, torch.float16: 1e-5, torch.bfloat16: 1e-4}
_REAL_OF = {torch.complex128: torch.float64, torch.complex64: torch.float32, torch.complex32: torch.float16}
_BITS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}


def tolerance_for(
    dtype: torch.dtype, rtol: float | None = None, atol: float | None = None, usual: Tolerance | None = None
) -> Tolerance:
    """The tolerance for ``dtype``; an ``atol`` given is absolute, the default scales with the reference's
    RMS. ``usual`` stands for the default, of an artifact that computes with fewer bits than its outputs have.

    Integers and bools are exact whatever is given; complex dtypes are judged as their real parts. Raises
    InputError for a negative or non-finite tolerance, and for a float dtype other than float16/32/64 and
    bfloat16.
    """
    for label, value in (("rtol", rtol), ("atol", atol)):
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise InputError(f"{label}={value} is not a tolerance; give a finite number >= 0 or None")
    if not _is_inexact(dtype):
        return _EXACT
    default = usual or _DEFAULTS.get(_REAL_OF.get(dtype, dtype))
    if default is None:
        raise InputError(f"outputs of {dtype} cannot be compared; cast the output to float32 in the model")
    return Tolerance(
        rtol=default.rtol if rtol is None else rtol,
        atol=default.atol if atol is None else atol,
        scaled=atol is None,
    )


@dataclass(frozen=True)
class OutputComparison:
    """How one output of the artifact differs from eager.

    ``max_abs``, ``max_rel`` (over nonzero references) and ``max_ulp`` (None for integers) range over
    positions where both values are finite; they are NaN and None where shape or dtype differ. ``total``
    counts compared numbers: a complex element is two. ``worst_index`` is where the tolerance is exceeded
    most, or missed least; None when all is equal. ``reason`` is '' if passed. ``judge`` is 'float64' when the
    float64 reference decided, 'shape and dtype only' for outputs that are random by the user's own word.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    got_dtype: str
    got_shape: tuple[int, ...]
    max_abs: float
    max_rel: float
    max_ulp: float | None
    worst_index: tuple[int, ...] | None
    worst_expected: Scalar | None
    worst_got: Scalar | None
    nan_mismatch: int
    inf_mismatch: int
    mismatched: int
    total: int
    rtol: float
    atol_eff: float
    passed: bool
    reason: str
    judge: Literal["eager", "float64", "shape and dtype only"]

    def to_json(self) -> dict[str, object]:
        """Plain JSON types; NaN, infinities and complex numbers become strings (JSON has none of them)."""
        return {field.name: _json_value(getattr(self, field.name)) for field in fields(self)}


def compare_output(
    name: str,
    expected: Tensor,
    got: Tensor,
    tolerance: Tolerance | None,
    *,
    float64_reference: Tensor | None = None,
) -> OutputComparison:
    """Compare ``got`` (artifact) with ``expected`` (eager): strided CPU tensors of any shape, also empty.

    ``tolerance=None`` takes the default of the dtype. Where the default is exceeded and ``float64_reference``
    (the same output of a float64 copy of the model, same shape) is given, it decides: the output passes if it
    is as close to float64 as eager itself is, within a factor of 4. A tolerance of the user's own is never
    overruled. Raises InputError for a dtype without a tolerance, a sparse tensor, or a float64 reference of
    another shape.
    """
    for tensor in (expected, got):
        if tensor.layout != torch.strided:
            raise InputError(f"output '{name}' is {tensor.layout}; call .to_dense() on it in the model")
    default = tolerance_for(expected.dtype)
    rule = default if tolerance is None or not _is_inexact(expected.dtype) else tolerance
    if expected.shape != got.shape or expected.dtype != got.dtype:
        return _incomparable(name, expected, got, rule)
    flat_expected, flat_got = _flat(expected), _flat(got)
    atol = _effective_atol(flat_expected, rule)
    if _is_inexact(expected.dtype):
        tally = _tally_floats(flat_expected, flat_got, rule.rtol, atol)
    else:
        tally = _tally_integers(flat_expected, flat_got)
    result = _summarise(name, expected, got, tally, rule.rtol, atol)
    may_appeal = rule == default and rule != _EXACT and not (tally.nan or tally.inf)
    if result.passed or float64_reference is None or not may_appeal:
        return result
    if float64_reference.shape != expected.shape:
        raise InputError(
            f"output '{name}' has shape {tuple(expected.shape)}, its float64 reference "
            f"{tuple(float64_reference.shape)}; compute both on the same inputs"
        )
    return _ask_float64(result, flat_expected, flat_got, _flat(float64_reference))


def compare_outputs(
    names: Sequence[str],
    expected: Sequence[Tensor],
    got: Sequence[Tensor],
    tolerance_of: Callable[[torch.dtype], Tolerance],
    float64_references: Sequence[Tensor | None] | None = None,
) -> list[OutputComparison]:
    """``compare_output`` for each output, in order; ValidationError when the numbers of outputs differ."""
    if not len(names) == len(expected) == len(got):
        raise ValidationError(
            f"the artifact returned {len(got)} outputs, eager {len(expected)}, and {len(names)} are declared "
            f"({', '.join(names)}); a None output is dropped, every other leaf of the result is one output"
        )
    references = [None] * len(names) if float64_references is None else float64_references
    if len(references) != len(names):
        raise InputError(f"{len(references)} float64 references for {len(names)} outputs; give one each")
    return [
        compare_output(name, want, have, tolerance_of(want.dtype), float64_reference=reference)
        for name, want, have, reference in zip(names, expected, got, references, strict=True)
    ]


@dataclass
class _Tally:
    """What the blocks have shown so far; ``worst`` is a flat index, -1 for none."""

    max_abs: float = 0.0
    max_rel: float = 0.0
    max_ulp: float = 0.0
    nan: int = 0
    inf: int = 0
    mismatched: int = 0
    worst: int = -1
    worst_excess: float = -math.inf

    def add(self, diff: Tensor, magnitude: Tensor, excess: Tensor, offset: int) -> None:
        """Absorb a block (flat float64): differences, reference sizes, differences minus their limit."""
        peak = diff.max().item()
        if peak == 0:
            return
        self.max_abs = max(self.max_abs, peak)
        relative = diff / magnitude
        if not math.isfinite(relative.max().item()):
            relative = torch.where(magnitude > 0, relative, 0.0)
        self.max_rel = max(self.max_rel, relative.max().item())
        at = int(excess.argmax().item())
        self.note_worst(excess[at].item(), offset + at)
        if excess[at] > 0:
            self.mismatched += int((excess > 0).sum().item())

    def note_worst(self, excess: float, index: int) -> None:
        if excess > self.worst_excess:
            self.worst, self.worst_excess = index, excess


def _is_inexact(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point or dtype.is_complex


def _flat(tensor: Tensor) -> Tensor:
    """1-d and real, without a copy where possible; a complex element becomes (real, imaginary) neighbours."""
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).reshape(-1)


def _blocks(*tensors: Tensor) -> Iterator[tuple[int, list[Tensor]]]:
    for start in range(0, tensors[0].numel(), _BLOCK):
        yield start, [tensor[start : start + _BLOCK] for tensor in tensors]


def _rms(flat: Tensor) -> float:
    """Root mean square of the finite values; divided by their peak first, so that no square overflows."""
    rms, count = 0.0, 0
    for _, (block,) in _blocks(flat):
        values = block.double()
        peak = values.abs().max().item()
        if not math.isfinite(peak):
            values = values[torch.isfinite(values)]
            peak = values.abs().max().item() if values.numel() else 0.0
        total = count + values.numel()
        if total > count:
            part = peak * math.sqrt((values / peak).square_().mean().item()) if peak else 0.0
            rms = math.hypot(rms * math.sqrt(count / total), part * math.sqrt((total - count) / total))
        count = total
    return rms


def _effective_atol(flat: Tensor, rule: Tolerance) -> float:
    if not rule.scaled:
        return rule.atol
    rms = _rms(flat)
    # Runtimes may flush subnormal numbers to zero, hence at least one smallest normal number.
    return max(rule.atol * rms, torch.finfo(flat.dtype).tiny) if rms else _ZERO_FLOOR[flat.dtype]


def _tally_floats(expected: Tensor, got: Tensor, rtol: float, atol: float) -> _Tally:
    tally = _Tally()
    for offset, (want, have) in _blocks(expected, got):
        reference = want.double()
        diff = (have.double() - reference).abs_()
        peak = diff.max().item()
        if peak == 0:  # all equal and finite: inf - inf would have been NaN
            continue
        ulp = _distance(_ordered(want), _ordered(have))
        if not math.isfinite(peak):
            _note_non_finite(tally, want, have, offset)
            finite = want.isfinite() & have.isfinite()
            diff, reference, ulp = (torch.where(finite, part, 0.0) for part in (diff, reference, ulp))
        tally.max_ulp = max(tally.max_ulp, ulp.max().item())
        magnitude = reference.abs()
        tally.add(diff, magnitude, diff - (magnitude * rtol).add_(atol), offset)
    return tally


def _note_non_finite(tally: _Tally, want: Tensor, have: Tensor, offset: int) -> None:
    moved_nan = want.isnan() != have.isnan()
    moved_inf = (want.isinf() | have.isinf()) & (want != have) & ~moved_nan
    tally.nan += int(moved_nan.sum().item())
    tally.inf += int(moved_inf.sum().item())
    bad = moved_nan | moved_inf
    if bad.any():
        tally.mismatched += int(bad.sum().item())
        tally.note_worst(math.inf, offset + int(bad.int().argmax().item()))


def _tally_integers(expected: Tensor, got: Tensor) -> _Tally:
    tally = _Tally()
    for offset, (want, have) in _blocks(expected, got):
        left, right = _ordered(want), _ordered(have)
        if not torch.equal(left, right):
            distance = _distance(left, right)
            tally.add(distance, want.double().abs(), distance, offset)
    return tally


def _ordered(flat: Tensor) -> Tensor:
    """Integer keys in the order of the values, neighbouring floats one apart: differences are ULP distances.

    For a float with bits ``i``, read as a signed integer of its width: ``i`` if ``i >= 0`` else ``MIN - i``,
    so that -0.0 and 0.0 share key 0. (B. Dawson, "Comparing Floating Point Numbers, 2012 Edition".) The keys
    are int64 for 64-bit dtypes and float64 (exact, and faster) for all shorter ones.
    """
    if flat.dtype in _BITS:
        bits = flat.view(_BITS[flat.dtype])
        width = torch.iinfo(bits.dtype)
        sign = bits >> (width.bits - 1)  # 0 or -1; i ^ MAX is MIN - i - 1 for negative i
        keys = (bits ^ (sign & width.max)) - sign
    elif flat.dtype == torch.uint64:
        keys = flat.view(torch.int64) ^ _INT64_MIN
    else:
        keys = flat
    return keys if keys.dtype == torch.int64 else keys.double()


def _distance(left: Tensor, right: Tensor) -> Tensor:
    """|left - right| of keys, as float64; int64 of different signs are added: subtracting may overflow."""
    if left.dtype != torch.int64:
        return (left - right).abs_()
    across = (left < 0) != (right < 0)
    return torch.where(across, left.double().abs() + right.double().abs(), (left - right).double().abs())


def _unravel(index: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    position: list[int] = []
    for size in reversed(shape):
        index, rest = divmod(index, size)
        position.append(rest)
    return tuple(reversed(position))


def _summarise(name: str, expected: Tensor, got: Tensor, tally: _Tally, rtol: float, atol: float) -> OutputComparison:
    index, want, have = None, None, None
    parts = 2 if expected.is_complex() else 1
    if tally.worst >= 0:
        index = _unravel(tally.worst // parts, tuple(expected.shape))
        want, have = expected[index].item(), got[index].item()
    total = expected.numel() * parts
    reason = ""
    if tally.mismatched:
        limit = f"rtol {rtol:.1e}, atol {atol:.1e}" if rtol or atol else "exact comparison"
        reason = (
            f"{tally.mismatched} of {total} values differ"
            + (f"; {tally.nan} where only one side is NaN" if tally.nan else "")
            + (f"; {tally.inf} where an infinity has no equal" if tally.inf else "")
            + f"; worst at {index}: expected {want}, got {have}"
            + f"; largest finite difference {tally.max_abs:.3e} ({limit})"
        )
    return OutputComparison(
        name, str(expected.dtype), tuple(expected.shape), str(got.dtype), tuple(got.shape),
        tally.max_abs, tally.max_rel, tally.max_ulp if _is_inexact(expected.dtype) else None,
        index, want, have, tally.nan, tally.inf, tally.mismatched, total, rtol, atol,
        passed=not tally.mismatched, reason=reason, judge="eager",
    )  # fmt: skip


def _incomparable(name: str, expected: Tensor, got: Tensor, rule: Tolerance) -> OutputComparison:
    """Shape or dtype differ: a failure with no numbers to it."""
    total = expected.numel()
    nowhere = _Tally(max_abs=math.nan, max_rel=math.nan, mismatched=total)
    blank = _summarise(name, expected, got, nowhere, rule.rtol, 0.0 if rule.scaled else rule.atol)
    if expected.shape != got.shape:
        reason = f"shape differs: expected {tuple(expected.shape)}, got {tuple(got.shape)}"
    else:
        reason = f"dtype differs: expected {expected.dtype}, got {got.dtype}"
    return replace(blank, max_ulp=None, passed=False, reason=reason)


def _ask_float64(result: OutputComparison, expected: Tensor, got: Tensor, reference: Tensor) -> OutputComparison:
    """Overturn or confirm a failure: is the artifact as close to float64 as eager (by largest error) is?"""
    eager_error = artifact_error = 0.0
    undefined = 0
    for _, (want, have, exact) in _blocks(expected, got, reference):
        finite = want.isfinite()
        undefined += int((finite & ~exact.isfinite()).sum().item())
        want, have, exact = (torch.where(finite, part.double(), 0.0) for part in (want, have, exact))
        eager_error = max(eager_error, (want - exact).abs_().max().item())
        artifact_error = max(artifact_error, (have - exact).abs_().max().item())
    limit = _JUDGE_FACTOR * eager_error + torch.finfo(expected.dtype).eps * _rms(reference)
    if undefined:
        verdict = f"the float64 reference is not finite at {undefined} positions where eager is"
    else:
        verdict = f"error against float64 {artifact_error:.3e}, of eager {eager_error:.3e}, limit {limit:.3e}"
    passed = not undefined and artifact_error <= limit
    return replace(result, passed=passed, judge="float64", reason="" if passed else f"{result.reason}; {verdict}")


def _json_value(value: object) -> object:
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, complex) or (isinstance(value, float) and not math.isfinite(value)):
        return str(value)
    return value
