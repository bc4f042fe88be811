"""Every way through the Python decisions that a model takes on tensor values, in one graph.

The model runs through ``torch.export`` once for each side of a decision, and each side until it joins a run that is known
(see ``states``). What the runs share is in the graph once; their sides stand under a select, a branch or a loop.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from torch.export import ExportedProgram

from fxexport.capture.flat_model import FlatModel
from fxexport.capture.paths.assembling import assemble
from fxexport.capture.paths.exploring import Assumed, Banned, Explorer, Line, Unstructured
from fxexport.capture.paths.tracing import Choose, Stops, TooMany, Trace, trace
from fxexport.decisions import Decision
from fxexport.errors import CaptureError, InputError

MOST_RUNS = 64
MOST_DECISIONS = 64
MOST_NODES = 200_000
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
    _nodes: int = field(default=0, init=False)
    _asked: Counter[str] = field(default_factory=Counter, init=False)

    def export_all(self) -> tuple[ExportedProgram, list[str], list[Decision]]:
        """One graph of all runs, notes, and what became of each decision.

        Raises CaptureError naming the line where the budget of runs is exceeded, or where two sides do not fit.
        """
        banned: Banned = {}
        for _ in range(_ATTEMPTS):
            self._runs = self._nodes = 0
            try:
                line = Explorer(self._run, self.example, banned, self.assumed).explore()
                exported, decisions = assemble(line)
            except Unstructured as asked:
                if banned.get(asked.path, -1) >= asked.passing:
                    break
                banned[asked.path] = asked.passing
                continue
            except TooMany as error:
                raise _too_many(str(error)) from error
            notes = list(dict.fromkeys(note for each in _lines(line) for note in each.trace.notes))
            decisions = [*decisions, *self._assumptions(line)]
            self.check_assumed(decisions)
            return exported, notes, decisions
        raise _too_many("its sides go on in ways that no nesting of branches and loops describes")

    def _run(self, choose: Choose, stops: Stops) -> Trace:
        self._runs += 1
        if self._runs > MOST_RUNS:
            site, _ = self._asked.most_common(1)[0]
            raise TooMany(f"more than {MOST_RUNS} ways through the model, most of them at {site}")
        found = trace(self.make, self.known, self.export, choose, stops, MOST_DECISIONS)
        assert found.exported is not None
        self._nodes += len(found.exported.graph.nodes)
        self._asked.update(f"{event.site}: {event.source}" for event in found.events)
        if self._nodes > MOST_NODES:
            raise TooMany(f"the ways through the model have more than {MOST_NODES} operators together")
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
