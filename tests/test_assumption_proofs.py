"""The normal form of sizes and what is proved of them, against the numbers."""

from __future__ import annotations

import itertools

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st
from sympy import Expr, Integer, Rational

from fxexport.assumptions.form import Algebra, canonical
from fxexport.assumptions.sizes import INDICES, Floor, Prover, ceiling, floor

T = sympy.Symbol("t", integer=True, positive=True)
U = sympy.Symbol("u", integer=True, positive=True)
RANGES = {T: (Integer(1), sympy.oo), U: (Integer(2), Integer(9))}


def value(formula: Expr, **sizes: int) -> Expr:
    """``formula`` at numbers."""
    at = formula.subs({symbol: sizes[symbol.name] for symbol in formula.free_symbols})
    return at.replace(Floor, sympy.floor) if isinstance(at, sympy.Basic) else Integer(at)


lengths = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 6), st.integers(-6, 6)), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(lengths)
def test_floors_keep_their_values(steps: list[tuple[int, int, int]]) -> None:
    formula: Expr = T
    for stride, times, plus in steps:
        formula = sympy.expand(floor((formula * (times or 1) + plus) / stride) + plus)
    for t in (1, 2, 7, 12, 31):
        expected = t
        for stride, times, plus in steps:
            expected = (expected * (times or 1) + plus) // stride + plus
        assert value(formula, t=t) == expected


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (floor((T - 1) / 2) + 1, floor((T + 1) / 2)),
        (floor((T + 2 - 3) / Integer(2) + 1), floor((T - 1) / 2) + 1),
        (floor((floor((T + 1) / 2) + 1) / 2), floor((T + 3) / 4)),
        (floor((floor((T - 1) / 2) + 1 + 2 - 3) / Integer(3)) + 1, floor((T - 1) / 6) + 1),
        (ceiling(T / 2), floor((T + 1) / 2)),
    ],
)
def test_one_length_has_one_formula(left: Expr, right: Expr) -> None:
    assert sympy.expand(left - right) == 0


@settings(max_examples=150, deadline=None)
@given(st.integers(-3, 3), st.integers(-3, 3), st.integers(-3, 3), st.integers(-8, 8), st.integers(2, 4))
def test_what_is_proved_is_true(a: int, b: int, c: int, d: int, step: int) -> None:
    formula = sympy.expand(a * T + b * U + c * floor((T + d) / step) + d)
    prover = Prover(RANGES)
    nonnegative, positive = prover.nonnegative(formula), prover.positive(formula)
    for t, u in itertools.product((1, 2, 3, 5, 8, 60), range(2, 10)):
        found = value(formula, t=t, u=u)
        assert not nonnegative or found >= 0
        assert not positive or found > 0


def test_indices_stay_below_their_sizes() -> None:
    size = floor((T - 1) / 2) + 1
    prover = Algebra(RANGES).prover((size, T))
    assert prover.nonnegative(size - 1 - INDICES[0])
    assert prover.positive(size - INDICES[0])
    assert not prover.nonnegative(T - 2 - INDICES[1])
    assert not prover.nonnegative(INDICES[0] - INDICES[1])


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["ge", "eq"]), st.integers(-4, 4), st.integers(-4, 4), st.integers(-5, 5), st.integers(1, 3))
def test_a_comparison_and_its_opposite_are_one_atom(kind: str, a: int, b: int, c: int, step: int) -> None:
    formula = sympy.expand(Rational(1, step) * (a * T + b * U) + c)
    (known, body), holds = canonical((kind, formula))
    for t, u in itertools.product(range(1, 7), range(2, 6)):
        before, after = value(formula, t=t, u=u), value(body, t=t, u=u)
        true = before >= 0 if kind == "ge" else before == 0
        assert (after >= 0 if known == "ge" else after == 0) == (true == holds)
