"""Expressions over symbolic sizes and indices in one normal form, and what can be proved of them.

The length of a strided convolution is written in many ways; ``(t - 1)//2 + 1``, ``floor((t + 1)/2)`` and
``floor((t - 3 + 2)/2 + 1)`` are one expression here. Nothing is guessed: what is not proved is unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, reduce
from math import gcd
from typing import Any

import sympy
from sympy import Expr, Integer, Rational, Symbol

INDICES = tuple(Symbol(f"i{axis}", integer=True, nonnegative=True) for axis in range(16))
"""The index along each axis of a tensor."""
Ranges = Mapping[Symbol, tuple[Expr, Expr]]
"""Symbol -> its smallest and largest value; ``oo`` where it has no bound. Bounds of an index may name sizes."""


class Floor(sympy.Function):  # type: ignore[misc]
    """``floor`` that sympy does not rewrite: :func:`floor` is the only one that makes it."""

    is_integer = True
    is_real = True


def floor(value: Expr) -> Expr:
    """``floor(value)`` with whole parts taken out, nested floors joined and the constant rounded to what matters.

    ``floor((floor(u) + n)/m) = floor((u + n)/m)`` for whole n, m > 0 (Graham, Knuth, Patashnik: Concrete Mathematics, 3.2).
    """
    terms = _terms(value)
    if terms is None:
        return Floor(value)
    constant = terms.pop(Integer(1), Integer(0))
    whole: Expr = sympy.Add(*(sympy.floor(c) * t for t, c in terms.items()))
    parts = {t: c - sympy.floor(c) for t, c in terms.items() if c - sympy.floor(c) != 0}
    denominator = reduce(lambda a, b: a * b // gcd(a, b), (int(c.q) for c in parts.values()), 1)
    constant = Rational(sympy.floor(constant * denominator), denominator)
    whole, constant = whole + sympy.floor(constant), constant - sympy.floor(constant)
    if not parts:
        return sympy.expand(whole)
    inner = next((t for t, c in parts.items() if isinstance(t, Floor) and c == Rational(1, denominator)), None)
    if inner is not None:
        rest = sympy.Add(*(c * t for t, c in parts.items() if t != inner))
        return sympy.expand(whole + floor(sympy.expand(inner.args[0] / denominator + rest + constant)))
    return sympy.expand(whole + Floor(sympy.expand(sympy.Add(*(c * t for t, c in parts.items())) + constant)))


def _terms(value: Expr) -> dict[Expr, Rational] | None:
    """Whole-valued monomial -> rational coefficient; None where ``value`` is no such sum."""
    found = dict(sympy.expand(value).as_coefficients_dict())
    if all(c.is_Rational and t.is_integer for t, c in found.items()):
        return found
    return None


def denominator_of(value: Expr) -> int | None:
    """The smallest ``d`` such that ``d * value`` is whole; None where there is none that is known."""
    terms = _terms(value)
    if terms is None:
        return None
    return reduce(lambda a, b: a * b // gcd(a, b), (int(c.q) for c in terms.values()), 1)


def ceiling(value: Expr) -> Expr:
    """The smallest whole number that is not below ``value``: ``floor(value + (d-1)/d)`` where ``d * value`` is whole."""
    step = denominator_of(value)
    return -floor(-value) if step is None else floor(sympy.expand(value + Rational(step - 1, step)))


def _ratio(a: Expr, b: Expr) -> Expr:
    return a / b


_FUNCTIONS: dict[str, Callable[..., Expr]] = {
    "FloorDiv": lambda a, b: floor(a / b),
    "CleanDiv": lambda a, b: floor(a / b),
    "CeilDiv": lambda a, b: ceiling(a / b),
    "Mod": lambda a, b: a - b * floor(a / b),
    "PythonMod": lambda a, b: a - b * floor(a / b),
    "ModularIndexing": lambda a, b, c: floor(a / b) - c * floor(floor(a / b) / c),
    "IntTrueDiv": _ratio,
    "FloatTrueDiv": _ratio,
    "ToFloat": lambda a: a,
    "Identity": lambda a: a,
    "FloorToInt": floor,
    "CeilToInt": lambda a: ceiling(a),
    "floor": floor,
    "Floor": floor,
    "ceiling": lambda a: ceiling(a),
    "Max": sympy.Max,
    "Min": sympy.Min,
}


@cache
def normal(value: Any) -> Expr | None:
    """A size of a graph (int, or the sympy expression of a SymInt) in normal form; None for functions unknown here."""
    value = sympy.sympify(value)
    if not value.args:
        return value if value.is_Number or isinstance(value, Symbol) else None
    args = [normal(arg) for arg in value.args]
    if any(arg is None for arg in args):
        return None
    if isinstance(value, sympy.Add | sympy.Mul) or (value.is_Pow and value.args[1].is_Integer and value.args[1] > 0):
        return sympy.expand(value.func(*args))
    make = _FUNCTIONS.get(type(value).__name__)
    return make(*args) if make is not None else None


def size_of(size: Any) -> Expr | None:
    """A size of a tensor's shape, or a SymInt that a call computes, in normal form."""
    return normal(size if isinstance(size, int) else size.node.expr)


def _floors(value: Expr, of_indices: bool) -> list[Expr]:
    return [f for f in value.atoms(Floor) if not of_indices or not f.free_symbols.isdisjoint(INDICES)]


class Prover:
    """What holds for all values of the symbols within ``ranges`` for which none of ``facts`` is negative."""

    def __init__(self, ranges: Ranges, facts: Sequence[Expr] = ()) -> None:
        self.ranges = ranges
        self.facts = [fact for fact in dict.fromkeys(facts) if not fact.is_Number]
        self._known: dict[Expr, bool] = {}

    def nonnegative(self, value: Expr) -> bool:
        """Whether ``value >= 0`` is proved."""
        if value.is_Number:
            return bool(value >= 0)
        if value not in self._known:
            self._known[value] = False  # a proof that leads back to what it proves is none
            rests = (sympy.expand(value - fact) for fact in self.facts)
            self._known[value] = self._prove(value) or any(self._prove(rest) for rest in rests)
        return self._known[value]

    def positive(self, value: Expr) -> bool:
        """Whether ``value > 0`` is proved."""
        step = denominator_of(value) if value.is_finite is not False else None
        if value.is_Number or step is None:
            return bool(value.is_Number and value > 0)
        return self.nonnegative(sympy.expand(value - Rational(1, step)))

    def _prove(self, value: Expr) -> bool:
        found: Expr | None = sympy.expand(value)
        for indices in (True, False):  # the size that an index stays below cancels best while floors are whole
            found = None if found is None else self._without_floors(found, of_indices=indices)
            found = None if found is None else self._at_worst(found, indices)
        return found is not None and bool(found.is_Number and found >= 0)

    def _at_worst(self, value: Expr, indices: bool) -> Expr | None:
        """A lower bound of ``value`` in which no index is left, or else no size."""
        for symbol in sorted(value.free_symbols, key=str):
            if symbol not in self.ranges or self._is_index(symbol) != indices:
                continue
            low, high = self.ranges[symbol]
            slope = sympy.expand(sympy.diff(value, symbol))
            if slope == 0:
                continue
            grows = self._grows(value, symbol, low) if slope.has(symbol) else self._grows_with(slope)
            if grows:
                value = sympy.expand(value.subs(symbol, low))
            elif high != sympy.oo and not slope.has(symbol) and self._grows_with(sympy.expand(-slope)):
                value = sympy.expand(value.subs(symbol, high))
            else:
                return None
        return value

    @staticmethod
    def _is_index(symbol: Symbol) -> bool:
        return symbol in INDICES

    def _grows_with(self, slope: Expr) -> bool:
        return bool(slope >= 0) if slope.is_Number else self.nonnegative(slope)

    def _grows(self, value: Expr, symbol: Symbol, low: Expr) -> bool:
        shifted = sympy.Poly(sympy.expand(value.subs(symbol, symbol + low)), symbol)
        return all(self._grows_with(c) for (power,), c in shifted.terms() if power > 0)

    def _without_floors(self, value: Expr, of_indices: bool) -> Expr | None:
        """A lower bound of ``value`` without floors (``of_indices``: without those that hold an index).

        ``u - (d-1)/d <= floor(u) <= u`` where ``d * u`` is whole.
        """
        if value.has(sympy.Max, sympy.Min):
            return None
        while floors := sorted(_floors(value, of_indices), key=str):
            outer = next(f for f in floors if not any(f in g.atoms(Floor) - {g} for g in floors))
            mark = sympy.Dummy(integer=True)
            marked = sympy.expand(value.xreplace({outer: mark}))
            factor = marked.coeff(mark, 1)
            if sympy.expand(marked - factor * mark).has(mark):
                return None
            step = denominator_of(outer.args[0])
            if step is None:
                return None
            if self._grows_with(factor):
                bound = outer.args[0] - Rational(step - 1, step)
            elif self._grows_with(sympy.expand(-factor)):
                bound = outer.args[0]
            else:
                return None
            value = sympy.expand(marked.subs(mark, bound))
        return value
