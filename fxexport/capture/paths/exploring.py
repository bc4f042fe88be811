"""The tree of runs that covers every side of every decision: each side is followed until it joins the run it left."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fxexport.capture.paths.deciding import Choose, Stops
from fxexport.capture.paths.states import State
from fxexport.capture.paths.tracing import Trace

RETURN = 10**9
"""Number of the end of forward, as if it were an event after all others."""


@dataclass(frozen=True, order=True)
class Join:
    """Where a side ends. Outer lines count as later: ``depth`` is minus the level of the line that is joined.

    ``number``: the event of that line; ``back`` marks an event that the side itself came through, the head of a loop.
    """

    depth: int
    number: int
    back: bool = False


@dataclass
class Line:
    """A run, and for each of its own decisions (from ``start`` on) the side that it did not take.

    ``looked_for``: the places where it could end, the earliest first. ``sides`` has None where the other side raises an
    error of the user's code, which ``raises`` tells.
    """

    trace: Trace
    start: int
    level: int
    end: Join
    looked_for: list[Join] = field(default_factory=list)
    sides: dict[int, Line | None] = field(default_factory=dict)
    raises: dict[int, str] = field(default_factory=dict)

    @property
    def raised(self) -> str:
        """The error that ends this run and all its sides, or ''."""
        return self.trace.raised


class _Swap(Exception):
    """The other side of decision ``number`` is the one to go on with: it tells apart more tensors."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


Run = Callable[[Choose, Stops], Trace]
Banned = dict[tuple[bool, ...], int]


@dataclass(frozen=True)
class Assumed:
    """What the user says of decisions on data: ``sides`` by site (its end is enough), ``as_examples`` of all others."""

    sides: Mapping[str, bool] = field(default_factory=dict)
    as_examples: bool = False

    def side(self, site: str) -> bool | None:
        """The side that was said for a site, if any."""
        return next((value for key, value in self.sides.items() if _names(key, site)), None)

    def only_side(self, site: str) -> bool:
        """Whether the other side of a decision does not count."""
        return self.as_examples or self.side(site) is not None


def _names(key: str, site: str) -> bool:
    return site == key or site.endswith(f"/{key}")


class Unstructured(Exception):
    """The side that the decisions ``path`` lead to must go on past the first ``passing`` places where it could join."""

    def __init__(self, path: tuple[bool, ...], passing: int) -> None:
        super().__init__(path, passing)
        self.path, self.passing = path, passing


class Explorer:
    """``run`` makes one run; ``example``: sites and sides of the run on the example; ``banned``: for a side, by the
    decisions that lead to it, the number of joins it must pass by."""

    def __init__(
        self,
        run: Run,
        example: Sequence[tuple[str, bool]],
        banned: Banned,
        assumed: Assumed,
    ) -> None:
        self._run, self._example, self._banned, self._assumed = run, list(example), banned, assumed
        self._usual = dict(example)

    def explore(self) -> Line:
        """The line of the example, with all its sides. Raises Unstructured where two sides join too early."""
        return self._line((), 0, 0, [])

    def _choose(self, prefix: tuple[bool, ...]) -> Choose:
        def choose(so_far: Sequence[tuple[str, bool]], site: str) -> bool:
            n = len(so_far)
            if n < len(prefix):
                return prefix[n]
            assumed = self._assumed.side(site)
            if assumed is not None:
                return assumed
            sites = {site, *(before for before, _ in so_far)}
            example = [decision for decision in self._example if decision[0] in sites]  # others were known, not asked
            if n < len(example) and list(so_far) == example[:n] and example[n][0] == site:
                return example[n][1]
            return self._usual.get(site, False)

        return choose

    def _line(self, prefix: tuple[bool, ...], start: int, level: int, joins: list[tuple[Join, State]]) -> Line:
        passing = self._banned.get(prefix, 0)
        looked_for = sorted(joins, key=lambda join: join[0])[passing:]
        ends: list[Join] = []
        own: list[State] = []

        def stops(state: State, number: int) -> bool:
            if number >= len(prefix):
                join = None if start == 0 or state.is_open_since(own[start - 1]) else _found(state, looked_for)
                loops = (n for n, before in enumerate(own[:number]) if state.continues_as(before))
                back = [n for n in loops if not state.is_open_since(own[n])]
                if join is not None or back:
                    ends.append(join or Join(-level, back[-1], back=True))
                    return True
            del own[number:]
            own.append(state)
            return False

        try:
            trace = self._run(self._choose(prefix), stops)
        except _Coarser as found:
            raise _Swap(start - 1) from found
        open_joins = sorted(join for join, _ in joins)
        line = Line(trace, start, level, ends[-1] if ends else Join(0, RETURN), open_joins)
        if trace.raised:
            return self._around(line, joins)
        if line.end.back and line.end.number >= start:  # it never leaves the loop: its other side does
            out = line.end.number
            return self._line((*trace.taken[:out], not trace.taken[out]), start, level, joins)
        try:
            for i in reversed(range(start, trace.decided)):
                self._other_side(line, i, joins)
        except _Swap as swap:
            if swap.number < start:
                raise
            return self._line((*trace.taken[: swap.number], not trace.taken[swap.number]), start, level, joins)
        return line

    def _around(self, line: Line, joins: list[tuple[Join, State]]) -> Line:
        """Where a run of several decisions raises an error, the run that does not."""
        last = line.trace.decided - 1
        if last < line.start or self._assumed.only_side(line.trace.events[last].site):
            return line
        taken = line.trace.taken
        return self._line((*taken[:last], not taken[last]), line.start, line.level, joins)

    def _other_side(self, line: Line, i: int, joins: list[tuple[Join, State]]) -> None:
        trace = line.trace
        if i in line.sides or self._assumed.only_side(trace.events[i].site):
            return
        inside = [(k, _last(line, side)) for k, side in line.sides.items() if side]
        own = [
            (Join(-line.level, k), trace.events[k].state)
            for k in range(i + 1, trace.decided)
            if not any(first < k < last for first, last in inside)
        ]
        path = (*trace.taken[:i], not trace.taken[i])
        side = self._line(path, i + 1, line.level + 1, [*own, *joins])
        if side.raised:
            line.sides[i], line.raises[i] = None, side.raised
            return
        ends_loop = side.end.back and side.end.number == i
        joins_here = not side.end.back and side.end.depth == -line.level and side.end.number < RETURN
        if not (ends_loop or joins_here or _alike(side.end, line.end)):
            self._move(line, path, side)
        line.sides[i] = side

    def _move(self, line: Line, path: tuple[bool, ...], side: Line) -> None:
        """Asks for the earlier one of two different ends to become a later one."""
        if not side.end.back and (line.end.back or side.end < line.end):
            raise Unstructured(path, side.looked_for.index(side.end) + 1)
        if line.start == 0 or line.end.back:
            raise Unstructured(path, len(side.looked_for))
        raise Unstructured(line.trace.taken[: line.start], line.looked_for.index(line.end) + 1)


class _Coarser(BaseException):
    """A run came to the state of another one, which takes for one tensor what this one has as two."""


def _found(state: State, joins: Iterable[tuple[Join, State]]) -> Join | None:
    coarser = False
    for join, other in joins:
        if state.continues_as(other):
            return join
        coarser = coarser or (state.resembles(other) and other.continues_as(state))
    if coarser:
        raise _Coarser
    return None


def _last(line: Line, side: Line) -> int:
    """The event of ``line`` at which a side joins it; RETURN and more for its end."""
    return side.end.number if side.end.back or side.end.depth == -line.level else RETURN + 1


def _alike(a: Join, b: Join) -> bool:
    """Whether two ends are one: the head of a loop has one number in all lines that come back to it."""
    return (a.number, a.back) == (b.number, b.back) and (a.back or a.depth == b.depth)
