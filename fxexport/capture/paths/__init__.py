"""Every way through the Python decisions that a model takes on tensor values, in one graph.

While ``torch.export`` captures it, the model runs once for each side of a decision, and each side until it joins a run
that is known (see ``states``). What the runs share is computed once (see ``tape``), and is in the graph once; their sides
stand under a select, a branch or a loop. Where several runs in one capture could show in one another, each has its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial

from torch.export import ExportedProgram

from fxexport.capture.flat_model import FlatModel
from fxexport.capture.paths.assembling import assemble
from fxexport.capture.paths.deciding import Choose, Stops, TooMany
from fxexport.capture.paths.exploring import Assumed, Banned, Explorer, Line, Unstructured
from fxexport.capture.paths.tape import NotShared
from fxexport.capture.paths.tracing import Capturing, MakeRun, Trace
from fxexport.decisions import Decision
from fxexport.errors import CaptureError, InputError

MOST_RUNS = 64
MOST_DECISIONS = 64
_ATTEMPTS = 24


@dataclass
class Paths:
    """How the runs of a model are made.

    Attributes:
        make: a model to run once.
        known: what is known of values during a run of that model.
        export: the functional graph and notes of a model.
        example: site and side of each decision that eager takes on the example.
        assumed: the sides that the user says are the only ones.
    """

    make: Callable[[], FlatModel]
    known: Callable[[FlatModel], AbstractContextManager[list[str]]]
    export: Callable[[FlatModel], tuple[ExportedProgram, list[str]]]
    example: Sequence[tuple[str, bool]]
    assumed: Assumed = field(default_factory=Assumed)
    _runs: int = field(default=0, init=False)
    _attempts: int = field(default=0, init=False)
    _asked: Counter[str] = field(default_factory=Counter, init=False)

    def export_all(self) -> tuple[ExportedProgram, list[str], list[Decision]]:
        """One graph of all runs, notes, and what became of each decision.

        Raises CaptureError naming the line where the budget of runs is exceeded, or where two sides do not fit.
        """
        banned, several = Banned(), True
        while True:
            try:
                line = self._explored(banned, several)
                exported, decisions = assemble(line)
            except NotShared:
                assert several
                several = False
                continue
            except Unstructured as asked:
                self._ban(asked, banned)
                continue
            except TooMany as error:
                raise _too_many(str(error)) from error
            notes = list(dict.fromkeys(note for each in _lines(line) for note in each.trace.notes))
            decisions = [*decisions, *self._assumptions(line)]
            self.check_assumed(decisions)
            return exported, notes, decisions

    def _explored(self, banned: Banned, several: bool) -> Line:
        """The runs of the model: ``several`` in one capture, where what they share is computed once, or one by one."""
        capturing = partial(Capturing, known=self.known, export=self.export, limit=MOST_DECISIONS, several=several)
        if several:
            return capturing(self.make(), steer=lambda run: self._tree(run, banned)).capture()
        return self._tree(
            lambda choose, stops: capturing(self.make(), steer=lambda run: run(choose, stops)).capture(), banned
        )

    def _tree(self, run: MakeRun, banned: Banned) -> Line:
        """The tree of runs that covers every side."""
        while True:
            self._runs = 0
            self._asked.clear()
            try:
                return Explorer(partial(self._counted, run), self.example, banned, self.assumed).explore()
            except Unstructured as asked:
                self._ban(asked, banned)

    def _ban(self, asked: Unstructured, banned: Banned) -> None:
        self._attempts += 1
        if self._attempts == _ATTEMPTS or banned.get(asked.path, -1) >= asked.passing:
            raise _too_many("its sides go on in ways that no nesting of branches and loops describes")
        banned[asked.path] = asked.passing

    def _counted(self, run: MakeRun, choose: Choose, stops: Stops) -> Trace:
        self._runs += 1
        if self._runs > MOST_RUNS:
            site, _ = self._asked.most_common(1)[0]
            raise TooMany(f"more than {MOST_RUNS} ways through the model, most of them at {site}")
        found = run(choose, stops)
        self._asked.update(f"{event.site}: {event.source}" for event in found.events)
        return found

    def _assumptions(self, line: Line) -> list[Decision]:
        found: dict[str, tuple[str, set[bool]]] = {}
        for each in _lines(line):
            for event in each.trace.events:
                if event.taken is not None and self.assumed.only_side(event.site):
                    found.setdefault(event.site, (event.source, set()))[1].add(event.taken)
        return [
            Decision(site, source, "assumed", sides.pop() if len(sides) == 1 else None, self._who(site))
            for site, (source, sides) in found.items()
        ]

    def _who(self, site: str) -> str:
        return "as in the examples" if self.assumed.side(site) is None else "as the caller says"

    def check_assumed(self, decisions: Sequence[Decision]) -> None:
        """Raises InputError for an assumption about a line that decides nothing on data."""
        sites = sorted({decision.site for decision in decisions})
        for key in self.assumed.sides:
            if all(Assumed({key: True}).side(site) is None for site in sites):
                raise InputError(f"assume names {key!r}; the lines that decide on data are {sites}")


def _lines(line: Line) -> list[Line]:
    return [line, *(other for side in line.sides.values() if side is not None for other in _lines(side))]


def _too_many(why: str) -> CaptureError:
    return CaptureError(
        "the model takes Python decisions that depend on the values of tensors, in too many ways to capture them all: "
        f"{why}\n"
        '  Ways out: assume="as in the examples" takes the sides that the example takes, and says so in the artifact; '
        'assume={"file.py:12": True} does it for one line; torch.where, torch.cond or torch.while_loop write the choice '
        "into the model."
    )


__all__ = ["Assumed", "Paths"]
