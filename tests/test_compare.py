"""The judge's bench: what must pass, and above all what must not."""

from __future__ import annotations

import json
import math
import time

import numpy as np
import pytest
import torch

from fxexport.errors import InputError, ValidationError
from fxexport.validation.compare import (
    OutputComparison,
    Tolerance,
    compare_output,
    compare_outputs,
    tolerance_for,
)

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
INTEGERS = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]


def compare(expected: torch.Tensor, got: torch.Tensor, **options: object) -> OutputComparison:
    tolerance = options.pop("tolerance", None)
    return compare_output("y", expected, got, tolerance, **options)  # type: ignore[arg-type]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# ---- tolerances


def test_default_tolerances_are_scaled_and_looser_for_shorter_dtypes() -> None:
    rules = [tolerance_for(dtype) for dtype in FLOATS]
    assert all(rule.scaled for rule in rules)
    assert [rule.rtol for rule in rules] == sorted(rule.rtol for rule in rules)
    assert tolerance_for(torch.float32) == Tolerance(1e-4, 1e-5, scaled=True)
    assert tolerance_for(torch.complex64) == tolerance_for(torch.float32)


def test_given_atol_is_absolute_and_integers_stay_exact() -> None:
    assert tolerance_for(torch.float32, atol=0.5) == Tolerance(1e-4, 0.5, scaled=False)
    assert tolerance_for(torch.float32, rtol=0.5) == Tolerance(0.5, 1e-5, scaled=True)
    assert tolerance_for(torch.int64, rtol=0.5, atol=9.0) == Tolerance(0.0, 0.0, scaled=False)


@pytest.mark.parametrize("bad", [-1e-3, math.nan, math.inf])
def test_nonsense_tolerances_are_refused(bad: float) -> None:
    with pytest.raises(InputError, match="not a tolerance"):
        tolerance_for(torch.float32, rtol=bad)
    with pytest.raises(InputError, match="not a tolerance"):
        tolerance_for(torch.float32, atol=bad)


def test_dtype_without_a_tolerance_is_refused() -> None:
    with pytest.raises(InputError, match="float8_e4m3fn"):
        tolerance_for(torch.float8_e4m3fn)


# ---- floats


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS, torch.complex64, torch.complex128])
def test_equal_tensors_pass(dtype: torch.dtype) -> None:
    expected = (normal(3, 5) * 10).to(dtype)
    result = compare(expected, expected.clone())
    assert result.passed
    assert result.reason == ""
    assert result.judge == "eager"
    assert (result.max_abs, result.max_rel, result.mismatched) == (0.0, 0.0, 0)
    assert result.worst_index is None


@pytest.mark.parametrize("magnitude", [1e-30, 1e-6, 1.0, 1e3, 1e30])
def test_planted_error_fails_and_rounding_passes_at_any_magnitude(magnitude: float) -> None:
    expected = normal(40, 25) * magnitude
    assert compare(expected, expected * (1 + 3e-6)).passed
    got = expected.clone()
    got[7, 3] += 1e-3 * magnitude
    result = compare(expected, got)
    assert not result.passed
    assert result.worst_index == (7, 3)
    assert result.mismatched == 1
    assert result.total == 1000
    assert result.max_abs == pytest.approx(1e-3 * magnitude, rel=1e-2)
    assert (result.worst_expected, result.worst_got) == (expected[7, 3].item(), got[7, 3].item())
    assert "(7, 3)" in result.reason


@pytest.mark.parametrize(("dtype", "planted"), [(torch.float64, 1e-6), (torch.float16, 0.05), (torch.bfloat16, 0.2)])
def test_planted_error_fails_in_each_float_dtype(dtype: torch.dtype, planted: float) -> None:
    expected = normal(64, dtype=dtype)
    got = expected.clone()
    got[11] += planted
    assert compare(expected, got).worst_index == (11,)
    assert not compare(expected, got).passed


def test_values_next_to_zero_are_judged_by_the_scale_of_the_output() -> None:
    expected = torch.tensor([0.0, 1.0, -1.0, 1.0])
    assert compare(expected, expected + torch.tensor([5e-6, 0, 0, 0])).passed
    assert not compare(expected, expected + torch.tensor([5e-5, 0, 0, 0])).passed


def test_all_zero_reference() -> None:
    zeros = torch.zeros(8)
    assert compare(zeros, torch.full((8,), 5e-9)).passed
    assert not compare(zeros, torch.full((8,), 1e-3)).passed
    assert not compare(zeros, torch.full((8,), 1e-6)).passed


def test_scale_is_that_of_the_finite_values_and_does_not_overflow() -> None:
    expected = torch.tensor([1.0, math.inf, math.nan, -1.0, 1.0])
    assert compare(expected, expected.clone()).atol_eff == pytest.approx(1e-5)
    huge = torch.tensor([1e300, -1e300], dtype=torch.float64)
    assert compare(huge, huge).atol_eff == pytest.approx(1e292)
    assert not compare(huge, huge * (1 + 1e-5)).passed
    assert not compare(huge, -huge).passed


def test_error_is_found_in_every_block() -> None:
    expected = normal(300_000)
    for index in (0, 65_535, 65_536, 299_999):
        got = expected.clone()
        got[index] += 0.01
        assert compare(expected, got).worst_index == (index,)


def test_user_atol_is_absolute() -> None:
    expected = normal(16) * 1e-6
    got = expected + 1e-4
    assert compare(expected, got, tolerance=tolerance_for(torch.float32, atol=1e-3)).passed
    assert not compare(expected, got, tolerance=tolerance_for(torch.float32, atol=1e-5)).passed


def test_zero_tolerance_means_equal_bits_except_for_the_sign_of_zero() -> None:
    exact = tolerance_for(torch.float32, rtol=0.0, atol=0.0)
    expected = normal(16)
    assert compare(expected, expected.clone(), tolerance=exact).passed
    got = expected.clone()
    got[5] = torch.nextafter(got[5], torch.tensor(math.inf))
    assert not compare(expected, got, tolerance=exact).passed
    assert compare(torch.zeros(2), -torch.zeros(2), tolerance=exact).passed


# ---- NaN and infinities


def test_moved_nan_fails() -> None:
    expected = torch.tensor([1.0, math.nan, 3.0, 4.0])
    assert compare(expected, expected.clone()).passed
    result = compare(expected, torch.tensor([1.0, 2.0, math.nan, 4.0]))
    assert (result.passed, result.nan_mismatch, result.mismatched) == (False, 2, 2)
    assert result.worst_index == (1,)
    assert not compare(torch.ones(3), torch.full((3,), math.nan)).passed


def test_flipped_or_invented_infinity_fails() -> None:
    expected = torch.tensor([1.0, math.inf, -math.inf])
    assert compare(expected, expected.clone()).passed
    flipped = compare(expected, torch.tensor([1.0, -math.inf, -math.inf]))
    assert (flipped.passed, flipped.inf_mismatch, flipped.worst_index) == (False, 1, (1,))
    assert compare(expected, torch.tensor([math.inf, math.inf, -math.inf])).inf_mismatch == 1
    assert compare(expected, torch.tensor([1.0, 3e38, -math.inf])).inf_mismatch == 1
    assert compare(expected, torch.tensor([1.0, math.nan, -math.inf])).nan_mismatch == 1


def test_infinite_tolerance_scale_cannot_hide_a_difference() -> None:
    expected = torch.tensor([math.inf, 1.0, 2.0])
    assert not compare(expected, torch.tensor([math.inf, 1.0, 2.1])).passed


# ---- shapes, dtypes


@pytest.mark.parametrize(
    ("shape", "other"), [((3, 1), (3, 3)), ((1,), ()), ((2, 3), (3, 2)), ((0, 3), (0, 4)), ((0,), (1,))]
)
def test_shapes_are_never_broadcast(shape: tuple[int, ...], other: tuple[int, ...]) -> None:
    result = compare(torch.ones(shape), torch.ones(other))
    assert not result.passed
    assert result.reason == f"shape differs: expected {shape}, got {other}"
    assert math.isnan(result.max_abs)


@pytest.mark.parametrize(
    ("dtype", "other"),
    [(torch.float32, torch.float64), (torch.int32, torch.int64), (torch.bool, torch.uint8)],
)
def test_dtypes_are_never_cast(dtype: torch.dtype, other: torch.dtype) -> None:
    result = compare(torch.ones(3, dtype=dtype), torch.ones(3, dtype=other))
    assert not result.passed
    assert result.reason == f"dtype differs: expected {dtype}, got {other}"


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS])
def test_scalars_and_strided_views(dtype: torch.dtype) -> None:
    assert compare(torch.tensor(1, dtype=dtype), torch.tensor(1, dtype=dtype)).passed
    assert compare(torch.tensor(1, dtype=dtype), torch.tensor(0, dtype=dtype)).worst_index == ()
    matrix = torch.arange(12).reshape(3, 4).to(dtype)
    assert compare(matrix.t(), matrix.t().contiguous()).passed
    got = matrix.t().contiguous()
    got[2, 1] = 0
    assert compare(matrix.t(), got).worst_index == (2, 1)


def test_sparse_output_is_refused() -> None:
    with pytest.raises(InputError, match="to_dense"):
        compare(torch.eye(3).to_sparse(), torch.eye(3))


# ---- integers


def test_integers_are_exact_and_report_true_differences() -> None:
    wrapped = compare(torch.tensor([3], dtype=torch.uint8), torch.tensor([4], dtype=torch.uint8))
    assert (wrapped.passed, wrapped.max_abs, wrapped.max_ulp) == (False, 1.0, None)
    wide = compare(torch.tensor([2**62], dtype=torch.int64), torch.tensor([2**62 + 1], dtype=torch.int64))
    assert (wide.passed, wide.max_abs) == (False, 1.0)
    limits = torch.iinfo(torch.int64)
    assert compare(torch.tensor([limits.min]), torch.tensor([limits.max])).max_abs == 2.0**64
    unsigned = torch.from_numpy(np.array([0, 2**64 - 1], dtype=np.uint64))
    other = torch.from_numpy(np.array([0, 2**64 - 3], dtype=np.uint64))
    assert compare(unsigned, unsigned.clone()).passed
    assert compare(unsigned, other).max_abs == 2.0
    assert not compare(torch.tensor([True, False]), torch.tensor([True, True])).passed
    assert compare(torch.tensor([True, False]), torch.tensor([True, True])).mismatched == 1


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.uint64])
def test_unsigned_integers_do_not_wrap(dtype: type[np.unsignedinteger]) -> None:
    top = np.iinfo(dtype).max
    expected, got = (torch.from_numpy(np.array([5, value], dtype=dtype)) for value in (top, 0))
    assert compare(expected, expected.clone()).passed
    result = compare(expected, got)
    assert (result.passed, result.max_abs, result.worst_index) == (False, float(top), (1,))


def test_user_tolerance_does_not_soften_integers() -> None:
    loose = Tolerance(1.0, 10.0, scaled=False)
    assert not compare(torch.tensor([3]), torch.tensor([4]), tolerance=loose).passed


# ---- ULP


@pytest.mark.parametrize("dtype", FLOATS)
def test_ulp_counts_representable_steps_across_zero(dtype: torch.dtype) -> None:
    tiny = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    step = torch.tensor([tiny], dtype=dtype)
    assert compare(step, -step).max_ulp == 2.0
    assert compare(torch.zeros(1, dtype=dtype), -torch.zeros(1, dtype=dtype)).max_ulp == 0.0
    one = torch.ones(2, dtype=dtype)
    got = one.clone()
    got[1] += torch.finfo(dtype).eps
    assert compare(one, got).max_ulp == 1.0
    assert compare(one, got.neg().neg()).max_abs == torch.finfo(dtype).eps


def test_ulp_of_extremes_and_beside_nan() -> None:
    top = torch.tensor([torch.finfo(torch.float64).max, math.nan], dtype=torch.float64)
    assert compare(top, -top).max_ulp == pytest.approx(2 * 0x7FEFFFFFFFFFFFFF)
    assert compare(torch.tensor([1.0, math.nan]), torch.tensor([1.0, math.nan])).max_ulp == 0.0


# ---- complex


def test_complex_outputs_are_judged_by_their_real_parts() -> None:
    expected = torch.complex(normal(4, 3), normal(4, 3, seed=1))
    assert compare(expected, expected * (1 + 1e-6)).passed
    got = expected.clone()
    got[2, 1] += 1e-2j
    result = compare(expected, got)
    assert (result.passed, result.worst_index, result.total) == (False, (2, 1), 24)
    assert result.worst_got == got[2, 1].item()
    assert not compare(expected, expected.conj()).passed
    assert compare(expected.conj(), expected.conj().resolve_conj().clone()).passed


# ---- the float64 judge


def sum_in_order(columns: torch.Tensor) -> torch.Tensor:
    """One float32 rounding after each term, as a kernel with one accumulator does."""
    total = torch.zeros(columns.shape[0])
    for column in columns.unbind(1):
        total = total + column
    return total


def ill_conditioned() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sums that cancel: eager, the same terms in reverse order, and the float64 truth; each (64,)."""
    large = normal(64, 200) * 1e4
    terms = torch.cat([large, normal(64, 16, seed=1), -large.roll(77, 1)], dim=1)
    return sum_in_order(terms), sum_in_order(terms.flip(1)), terms.double().sum(1)


def test_float64_judge_accepts_an_honest_reordering_and_rejects_a_planted_error() -> None:
    expected, got, truth = ill_conditioned()
    without = compare(expected, got)
    assert not without.passed
    result = compare(expected, got, float64_reference=truth)
    assert (result.passed, result.judge, result.reason) == (True, "float64", "")
    assert result.mismatched == without.mismatched
    got[5] += 100 * (expected - truth).abs().max()
    rejected = compare(expected, got, float64_reference=truth)
    assert (rejected.passed, rejected.judge) == (False, "float64")
    assert "error against float64" in rejected.reason


def test_float64_judge_rejects_where_eager_is_accurate() -> None:
    truth = normal(100, dtype=torch.float64)
    expected = truth.float()
    got = expected.clone()
    got[3] += 1e-3
    assert not compare(expected, got, float64_reference=truth).passed


def test_float64_judge_never_overrules_the_user_nor_integers_nor_nan() -> None:
    expected, got, truth = ill_conditioned()
    strict = tolerance_for(torch.float32, rtol=1e-6)
    assert compare(expected, got, tolerance=strict, float64_reference=truth).judge == "eager"
    assert not compare(torch.tensor([1]), torch.tensor([2]), float64_reference=torch.tensor([2.0])).passed
    got[0] = math.nan
    assert not compare(expected, got, float64_reference=truth).passed


def test_float64_judge_needs_a_finite_reference_of_the_same_shape() -> None:
    expected, got, truth = ill_conditioned()
    with pytest.raises(InputError, match="same inputs"):
        compare(expected, got, float64_reference=truth[:5])
    truth[9] = math.nan
    result = compare(expected, got, float64_reference=truth)
    assert not result.passed
    assert "not finite at 1 positions" in result.reason


def test_float64_judge_of_complex_and_half_outputs() -> None:
    expected, got, truth = ill_conditioned()
    pair = [torch.complex(part, -part) for part in (expected, got, truth)]
    assert compare(pair[0], pair[1], float64_reference=pair[2]).judge == "float64"
    assert compare(pair[0], pair[1], float64_reference=pair[2]).passed


# ---- several outputs, JSON, speed


def test_compare_outputs_matches_by_position_and_counts() -> None:
    expected = [normal(3), torch.tensor([1, 2])]
    results = compare_outputs(["a", "b"], expected, [expected[0].clone(), torch.tensor([1, 3])], tolerance_for)
    assert [(result.name, result.passed) for result in results] == [("a", True), ("b", False)]
    with pytest.raises(ValidationError, match="returned 1 outputs, eager 2"):
        compare_outputs(["a", "b"], expected, expected[:1], tolerance_for)
    with pytest.raises(InputError, match="float64 references"):
        compare_outputs(["a", "b"], expected, expected, tolerance_for, [expected[0]])


def test_json_is_strict() -> None:
    results = [
        compare(torch.tensor([math.inf]), torch.tensor([math.nan])),
        compare(torch.ones(2), torch.ones(3)),
        compare(torch.tensor([1 + 2j]), torch.tensor([1 + 3j])),
    ]
    for result in results:
        data = json.loads(json.dumps(result.to_json(), allow_nan=False))
        assert data["passed"] is False
    assert results[0].to_json()["worst_expected"] == "inf"
    assert results[2].to_json()["worst_got"] == "(1+3j)"


def test_a_few_megabytes_take_milliseconds() -> None:
    expected = normal(1_000_000)
    got = expected * (1 + 1e-6)
    compare(expected, got)
    best = math.inf
    for _ in range(5):
        started = time.perf_counter()
        assert compare(expected, got).passed
        best = min(best, time.perf_counter() - started)
    assert best < 0.25, f"{best * 1e3:.0f} ms for 4 MB"
