"""Inputs on both sides of every decision that a model takes on values, found by running eager on many candidates."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from fxexport.capture.recording_decisions import decisions_of
from fxexport.capture.reference import Reference, Tensors
from fxexport.decisions import Decision
from fxexport.signature import Signature
from fxexport.validation.edges import edges
from fxexport.validation.sweep import Point, draw, example_sizes
from fxexport.validation.values import Role, constant, roles_of

Side = tuple[str, bool]
"""A site, ``models/net.py:41``, and what its condition comes out as."""

_MOST_RUNS = 64  # of eager, in search of sides that the points so far do not take
_SECONDS = 5.0  # the search ends after that long, or after _SLOW_RUNS of a slow model
_SLOW_RUNS = 8
_FIRST_SEED = 200
_SCALES = (0.1, 10.0, 1e-3, 1e3, 1e-6, -1.0)
_SHIFTS = (1.0, -1.0, 3.0, -3.0)  # of the mean, in standard deviations
_HALVINGS = 6
_OF_NO_NUMBER = re.compile(r"nan|inf|finite", re.IGNORECASE)


@dataclass
class Sides:
    """``points``: inputs that take sides which no point so far takes. ``missing``: what no input that was tried takes."""

    points: list[Point] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def both_sides(
    reference: Reference,
    signature: Signature,
    examples: Sequence[torch.Tensor],
    decisions: Sequence[Decision],
    tried: Sequence[Point] = (),
) -> Sides:
    """Searches inputs for each side of ``decisions`` that none of ``tried`` takes; decisions of which the artifact has one
    side only are left out.

    Candidates: the values of :func:`edges`, in all inputs and in one of them, scaled and shifted draws, NaN and Inf in one
    element where the line asks for such, and inputs half way between two that decide differently.
    """
    wanted = {d.site: d for d in decisions if d.form not in ("assumed", "raises")}
    missing: set[Side] = {(site, taken) for site in wanted for taken in (True, False)}
    search = _Search(reference, missing)
    for point in tried:
        if search.over():
            break
        search.look(point.inputs)
    found = Sides()
    sizes = example_sizes(signature, examples)
    candidates = _Candidates(signature, examples, any(_OF_NO_NUMBER.search(d.source) for d in wanted.values()))
    for inputs in (*candidates.all(), *_halfway(search)) if missing else ():
        if search.over():
            break
        if new := search.look(inputs):
            label = ", ".join(f"branch {site} {taken}" for site, taken in sorted(new))
            found.points.append(Point(label, sizes, inputs, lenient=True))
    found.missing = [
        f"the side {taken} of {wanted[site].source!r} at {site} was not reached by any input tried: proved on structure only"
        for site, taken in sorted(missing)
    ]
    return found


@dataclass
class _Search:
    reference: Reference
    missing: set[Side]
    started: float = field(default_factory=time.monotonic)
    runs: int = 0
    seen: dict[tuple[Side, ...], Tensors] = field(default_factory=dict)

    def over(self) -> bool:
        """Whether all sides are found, or the budget is spent."""
        late = time.monotonic() - self.started > _SECONDS and self.runs >= _SLOW_RUNS
        return not self.missing or late or self.runs >= _MOST_RUNS

    def look(self, inputs: Tensors) -> set[Side]:
        """The missing sides that eager takes on ``inputs``; they are missing no more."""
        self.runs += 1
        try:
            taken = decisions_of(self.reference, inputs)
        except Exception:  # noqa: BLE001 - eager refuses such inputs: they prove nothing
            return set()
        self.seen.setdefault(tuple(taken), inputs)
        new = self.missing & set(taken)
        self.missing -= new
        return new


@dataclass
class _Candidates:
    signature: Signature
    examples: Sequence[torch.Tensor]
    not_finite: bool

    def all(self) -> Iterator[Tensors]:
        """What is likely to decide differently, the likeliest first."""
        roles, sizes = roles_of(self.signature, self.examples), example_sizes(self.signature, self.examples)
        drawn = draw(self.signature, self.examples, sizes, _FIRST_SEED)
        real = [i for i, role in enumerate(roles) if role.kind == "real" and drawn[i].numel()]
        if self.not_finite:
            yield from (_with(drawn, {i: _poisoned(drawn[i], value)}) for value in (torch.nan, torch.inf) for i in real)
        found = edges(self.signature, self.examples)
        yield from (edge.point.inputs for edge in found)
        yield from self._alone(roles, drawn)
        for change in _changes():
            if len(real) > 1:
                yield _with(drawn, {i: change(drawn[i]) for i in real})
            yield from (_with(drawn, {i: change(drawn[i])}) for i in real)

    def _alone(self, roles: Sequence[Role], drawn: Tensors) -> Iterator[Tensors]:
        """One input at a constant, all others as they are."""
        for i, role in enumerate(roles):
            if role.kind in ("real", "mask"):
                for number in (1.0, 0.0):
                    filled = constant(drawn[i], number, pairs=self.signature.inputs[i].pairs)
                    yield _with(drawn, {i: filled})


def _changes() -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
    """Scales and shifts in turn."""
    for number, scale in enumerate(_SCALES):
        yield lambda t, scale=scale: t * scale  # type: ignore[misc]
        if number < len(_SHIFTS):
            yield lambda t, shift=_SHIFTS[number]: t + shift * (t.std() if t.numel() > 1 else t.abs().max())  # type: ignore[misc]


def _poisoned(values: torch.Tensor, number: float) -> torch.Tensor:
    """``values`` with ``number`` as the first element."""
    changed = values.clone()
    changed[(0,) * values.dim()] = number
    return changed


def _with(inputs: Tensors, changed: Mapping[int, torch.Tensor]) -> Tensors:
    return tuple(changed.get(i, tensor) for i, tensor in enumerate(inputs))


def _halfway(search: _Search) -> Iterator[Tensors]:
    """Between the first inputs and others that decide differently, closer and closer to where the decision turns."""
    if len(search.seen) < 2:
        return
    first, *others = list(search.seen.values())
    for other in others:
        if any(a.shape != b.shape for a, b in zip(first, other, strict=True)):
            continue
        for halving in range(1, _HALVINGS + 1):
            for share in (0.5**halving, 1 - 0.5**halving) if halving > 1 else (0.5,):
                yield tuple(_between(a, b, share) for a, b in zip(first, other, strict=True))


def _between(a: torch.Tensor, b: torch.Tensor, share: float) -> torch.Tensor:
    if not (a.is_floating_point() or a.is_complex()):
        return a
    return a * (1 - share) + b * share
