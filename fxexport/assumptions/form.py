"""``Form``: a tensor as a formula of its indices, ``i0 < t`` or ``where(i1 <= i0, 0, -inf)``."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
from sympy import Expr, Integer, Rational, Symbol

from fxexport.assumptions.sizes import INDICES, Prover, denominator_of, normal

MOST_CASES = 12
Atom = tuple[str, Expr]
"""``("ge", e)``: ``e >= 0``; ``("eq", e)``: ``e == 0``."""
Where = frozenset[tuple[Atom, bool]]
"""Atoms that all hold, or do not."""
Case = tuple[Where, Expr]
EVERYWHERE: Where = frozenset()


@dataclass(frozen=True)
class Form:
    """The elements of a tensor: the value of each of some ``cases``, of which exactly one holds at every index.

    Booleans are 0 and 1. ``shape``: sizes in normal form.
    """

    cases: tuple[Case, ...]
    shape: tuple[Expr, ...]

    @property
    def value(self) -> Expr | None:
        """The one formula for all elements, where there is one."""
        return self.cases[0][1] if len(self.cases) == 1 else None

    @property
    def constant(self) -> Expr | None:
        """The value that all elements have: a number, or a formula of sizes."""
        value = self.value
        return value if value is not None and value.free_symbols.isdisjoint(INDICES) else None

    def __str__(self) -> str:
        def told(where: Where) -> str:
            parts = (f"{'' if holds else 'not '}{e} {'>=' if kind == 'ge' else '=='} 0" for (kind, e), holds in where)
            return " and ".join(sorted(parts)) or "everywhere"

        return "; ".join(f"{value} where {told(where)}" for where, value in self.cases)


class Algebra:
    """Makes forms: keeps them small, and decides what can be proved of sizes within ``ranges``."""

    def __init__(self, ranges: Mapping[Symbol, tuple[Expr, Expr]]) -> None:
        self.ranges = dict(ranges)
        self._provers: dict[tuple[Expr, ...], Prover] = {}

    def prover(self, shape: tuple[Expr, ...] = ()) -> Prover:
        """What can be proved of the elements of a tensor of ``shape``: where one of its sizes is 0, there are none."""
        if shape not in self._provers:
            axes = dict(zip(INDICES, ((Integer(0), sympy.expand(size - 1)) for size in shape), strict=False))
            self._provers[shape] = Prover({**self.ranges, **axes}, [sympy.expand(size - 1) for size in shape])
        return self._provers[shape]

    def same(self, a: Expr, b: Expr) -> bool:
        """Whether two sizes are equal."""
        return bool(sympy.expand(a - b) == 0)

    def form(self, value: Any, shape: tuple[Expr, ...]) -> Form:
        """A tensor with one formula for its elements."""
        return Form(((EVERYWHERE, sympy.sympify(value)),), shape)

    def made(self, cases: Sequence[Case], shape: tuple[Expr, ...]) -> Form | None:
        """The form of ``cases``, without those that cannot be and with equal ones joined; None where too many are left."""
        kept = []
        for where, value in cases:
            known = self._decided(where, shape)
            if known is not None and value is not sympy.nan:
                kept.append((known, value))
            elif known is not None:
                return None
        joined = _joined(kept)
        return Form(tuple(joined), shape) if 0 < len(joined) <= MOST_CASES else None

    def _decided(self, where: Where, shape: tuple[Expr, ...]) -> Where | None:
        """``where`` without what always holds; None where something in it never does."""
        kept = set()
        for atom, holds in where:
            known = self.decide(atom, shape)
            if known is None:
                if (atom, not holds) in where:
                    return None
                kept.add((atom, holds))
            elif known != holds:
                return None
        return frozenset(kept)

    def decide(self, atom: Atom, shape: tuple[Expr, ...]) -> bool | None:
        """Whether ``atom`` holds at every index (True), at none (False), or is not known."""
        kind, value = atom
        if value in (sympy.oo, -sympy.oo):
            return bool(kind == "ge" and value is sympy.oo)
        prover = self.prover(shape)
        if kind == "ge":
            return True if prover.nonnegative(value) else False if prover.positive(sympy.expand(-value)) else None
        if value == 0:
            return True
        return False if prover.positive(value) or prover.positive(sympy.expand(-value)) else None

    def map(self, rule: Callable[..., Sequence[Case] | None], shape: tuple[Expr, ...], *forms: Form) -> Form | None:
        """``rule`` on the values of every combination of cases of ``forms``, each already of ``shape``.

        ``rule`` gives the cases of the result; None where it is not known.
        """
        found: list[Case] = []
        for combination in itertools.product(*(form.cases for form in forms)):
            where = self._decided(frozenset().union(*(w for w, _ in combination)), shape)
            if where is None:
                continue
            results = rule(*(value for _, value in combination))
            if results is None or len(found) > 8 * MOST_CASES:
                return None
            found += [(where | more, value) for more, value in results]
        return self.made(found, shape)

    def at(self, form: Form, places: Sequence[Expr], shape: tuple[Expr, ...]) -> Form | None:
        """The tensor of ``shape`` whose element is that of ``form`` at ``places``: formulas of the new indices."""
        swap = dict(zip(INDICES, places, strict=False))

        def moved(value: Expr) -> Expr | None:
            return value if value.free_symbols.isdisjoint(INDICES) else normal(value.xreplace(swap))

        found = []
        for where, value in form.cases:
            atoms = [((kind, moved(e)), holds) for (kind, e), holds in where]
            new = moved(value)
            if new is None or any(atom[1] is None for atom, _ in atoms):
                return None
            found.append((frozenset(canonical(atom, holds) for atom, holds in atoms), new))
        return self.made(found, shape)

    def broadcast(self, form: Form, shape: tuple[Expr, ...]) -> Form | None:
        """``form`` as an operator sees it that makes a tensor of ``shape``."""
        if form.shape == shape:
            return form
        offset = len(shape) - len(form.shape)
        places = [Integer(0) if size == 1 else INDICES[offset + k] for k, size in enumerate(form.shape)]
        return self.at(form, places, shape)


def canonical(atom: Atom, holds: bool = True) -> tuple[Atom, bool]:
    """One spelling for a comparison and its opposite: of whole values, without a common factor, and one sign."""
    kind, value = atom
    step = denominator_of(value) if not value.is_infinite else None
    if step is None or value.is_Number:
        return atom, holds
    value = sympy.expand(value * step)
    terms = {t: c for t, c in value.as_coefficients_dict().items() if t != 1}
    constant = value.as_coefficients_dict().get(Integer(1), Integer(0))
    factor = abs(sympy.gcd(list(terms.values())))
    body = sympy.Add(*(c / factor * t for t, c in terms.items()))
    constant = Rational(constant, factor)
    negative = min(terms.items(), key=lambda pair: str(pair[0]))[1] < 0
    if kind == "eq":
        return (kind, sympy.expand(-body - constant if negative else body + constant)), holds
    constant = sympy.floor(constant)
    if negative:  # body + c >= 0 is not (-body - c - 1 >= 0)
        return (kind, sympy.expand(-body - constant - 1)), not holds
    return (kind, sympy.expand(body + constant)), holds


def _joined(cases: Sequence[Case]) -> list[Case]:
    """``cases`` with two of one value that differ in whether one atom holds made one."""
    found = list(dict.fromkeys(cases))
    while True:
        for (i, (a, value)), (j, (b, other)) in itertools.combinations(enumerate(found), 2):
            if value != other:
                continue
            difference = a ^ b
            if a <= b or b <= a or (len(difference) == 2 and len({atom for atom, _ in difference}) == 1):
                found[i] = (a & b, value)
                del found[j]
                break
        else:
            if len(found) > 1 and len({value for _, value in found}) == 1:
                return [(EVERYWHERE, found[0][1])]
            return found
