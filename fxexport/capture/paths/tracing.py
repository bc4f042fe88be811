"""One run of the model through ``torch.export`` along given decisions: its graph, and the states in which it decided."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.fx.experimental.symbolic_shapes import (
    GuardOnDataDependentSymNode,
    free_unbacked_symbols,
    statically_known_true,
    uninteresting_files,
)
from torch.overrides import TorchFunctionMode

from fxexport.capture.asked import number_kept, predicate, site_of
from fxexport.capture.exporting import is_user_file
from fxexport.capture.flat_model import FlatModel
from fxexport.capture.paths.states import Key, Observer, State

PREDICATE: Key = ("predicate",)


@dataclass(frozen=True)
class Event:
    """A decision that a run came to: ``taken`` is None where the run ended there, in a state that was looked for."""

    site: str
    source: str
    state: State
    taken: bool | None


@dataclass
class Trace:
    """What one run left. ``raised``: the error of the user's code that ended it.

    ``results``: how many results forward gave; after them the graph returns the predicate of every decision, then the
    live tensors of every event, in order.
    """

    taken: tuple[bool, ...]
    events: list[Event] = field(default_factory=list)
    end: State | None = None
    raised: str = ""
    results: int = 0
    exported: ExportedProgram | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def decided(self) -> int:
        """How many decisions were taken."""
        return sum(event.taken is not None for event in self.events)


class TooMany(BaseException):
    """A run took more decisions than a run may."""


class _Stop(BaseException):
    """Ends a run of the user's forward, whatever it catches."""


Choose = Callable[[Sequence[tuple[str, bool]], str], bool]
"""From the decisions so far, as site and side, and the present site: which side to take."""
Stops = Callable[[State, int], bool]
"""Whether a run ends in this state, before the decision of this number."""


def trace(
    make: Callable[[], FlatModel],
    known: Callable[[FlatModel], AbstractContextManager[list[str]]],
    export: Callable[[FlatModel], tuple[ExportedProgram, list[str]]],
    choose: Choose,
    stops: Stops,
    limit: int,
) -> Trace:
    """The run that ``choose`` decides and ``stops`` ends; ``export`` gives its functional graph.

    Raises CaptureError where torch.export does not get through, and TooMany after ``limit`` decisions.
    """
    flat, found = make(), Trace(())
    with known(flat) as known_notes:
        forward = flat.forward

        def forward_deciding(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            found.events.clear()
            run = _Deciding(Observer(flat.model, sys._getframe()), choose, stops, limit)
            results: tuple[torch.Tensor, ...] = ()
            try:
                with run, _module_stack_kept(), _sizes_asked(run):
                    results = forward(*tensors)
                found.end = run.observer.result(results)
            except _Stop:
                pass
            except Exception as error:
                if not run.events or not _raised_by_user(error):
                    raise
                found.raised = f"{type(error).__name__}: {error}".strip()
            found.events, found.results = run.events, len(results)
            return (*results, *run.predicates, *run.kept)

        flat.__dict__["forward"] = forward_deciding
        between = uninteresting_files()
        between.add(__file__)
        try:
            found.exported, found.notes = export(flat)
        finally:
            between.remove(__file__)
            flat.__dict__["forward"] = forward
    found.notes += known_notes
    found.taken = tuple(event.taken for event in found.events if event.taken is not None)
    return found


@contextmanager
def _module_stack_kept() -> Iterator[None]:
    """An error that leaves modules on its way would leave torch's record of where it is in the model out of step."""
    mode = get_proxy_mode()
    stack = getattr(mode.tracer, "module_stack", {}) if mode is not None else {}
    depth = len(stack)
    try:
        yield
    except BaseException:
        while len(stack) > depth:
            stack.popitem()
        raise


@contextmanager
def _sizes_asked(run: _Deciding) -> Iterator[None]:
    """While the block runs, ``if n > 3`` on a whole number that depends on data (``n = t.item()``) is a decision."""
    original: Callable[[torch.SymBool], bool] = torch.SymBool.__bool__

    def asked(self: torch.SymBool) -> bool:
        frame = sys._getframe(1)
        settled = statically_known_true(self) or statically_known_true(torch.sym_not(self))  # type: ignore[no-untyped-call]
        unknown = free_unbacked_symbols(self) and not settled
        if not unknown or not is_user_file(frame.f_code.co_filename):
            return original(self)
        number: Any = torch.sym_ite(self, 1, 0)  # type: ignore[no-untyped-call]
        return run.decide(torch.scalar_tensor(number, dtype=torch.int64) != 0, frame)

    torch.SymBool.__bool__ = asked  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.SymBool.__bool__ = original  # type: ignore[method-assign]


def _raised_by_user(error: Exception) -> bool:
    """Whether a line of the user's code raised ``error`` itself, so that eager raises it too."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    named_by_torch = isinstance(error, GuardOnDataDependentSymNode)
    return last is not None and not named_by_torch and is_user_file(last.tb_frame.f_code.co_filename)


class _Deciding(TorchFunctionMode):
    """Answers what Python asks of tensors; keeps copies of the live tensors, which may be written to afterwards."""

    def __init__(self, observer: Observer, choose: Choose, stops: Stops, limit: int) -> None:
        super().__init__()
        self.observer = observer
        self.events: list[Event] = []
        self.predicates: list[torch.Tensor] = []
        self.kept: list[torch.Tensor] = []
        self._copies: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}
        self._choose, self._stops, self._limit = choose, stops, limit

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        asked = predicate(func, args, kwargs)
        if asked is not None and _constant(asked) is None:
            return self.decide(asked, sys._getframe(1))
        if func is torch.tensor and args and (made := _of_numbers(args[0], kwargs)) is not None:
            return made
        number = number_kept(func, args)
        return func(*args, **kwargs) if number is None or _constant(number) is not None else number

    def _copy(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy of a tensor as it is now; the same one until something writes into it. (Kept beside it, so that no other
        tensor gets its id.)"""
        key = id(tensor), tensor._version
        if key not in self._copies:
            self._copies[key] = tensor, tensor.clone()
        return self._copies[key][1]

    def decide(self, asked: torch.Tensor, frame: FrameType | None) -> bool:
        """The side to take, after the state of this run was looked at; may end the run."""
        site, source = site_of(frame)
        asked = asked.clone()
        state = self.observer.state(frame, {"predicate": asked})
        self.predicates.append(asked)
        self.kept += map(self._copy, state.tensors.values())
        if self._stops(state, len(self.events)):
            self.events.append(Event(site, source, state, None))
            raise _Stop
        if len(self.events) >= self._limit:
            raise TooMany(f"more than {self._limit} decisions on the data, at {site}: {source}")
        so_far = [(event.site, event.taken) for event in self.events if event.taken is not None]
        taken = self._choose(so_far, site)
        self.events.append(Event(site, source, state, taken))
        return taken


def _of_numbers(data: Any, kwargs: dict[str, Any]) -> torch.Tensor | None:
    """``torch.tensor([t.item(), 1.0])``, where a tensor stands for the number."""
    given = list(data) if isinstance(data, list | tuple) else [data]
    if not any(isinstance(value, torch.Tensor) for value in given) or isinstance(data, torch.Tensor):
        return None
    if not all(isinstance(value, torch.Tensor | int | float) for value in given):
        return None
    dtype = kwargs.get("dtype") or torch.get_default_dtype()
    device = next(value.device for value in given if isinstance(value, torch.Tensor))
    parts = [
        v.to(dtype) if isinstance(v, torch.Tensor) else torch.full((), v, dtype=dtype, device=device) for v in given
    ]
    return torch.stack(parts).to(kwargs.get("device") or "cpu")


def _constant(value: torch.Tensor) -> Any:
    return getattr(value, "constant", None)


def kept(found: Trace) -> tuple[list[Any], list[dict[Key, Any]], list[Any]]:
    """The nodes of a trace's graph that hold its results, the live tensors of every event, and the predicates."""
    assert found.exported is not None
    nodes: Any = list(found.exported.graph.output_node().args[0])
    results, rest = nodes[: found.results], nodes[found.results :]
    predicates, rest = rest[: len(found.events)], rest[len(found.events) :]
    feed = iter(rest)
    states: list[Mapping[Key, Any]] = [{key: next(feed) for key in event.state.tensors} for event in found.events]
    return results, [dict(state) for state in states], predicates
