"""Runs of the model in a capture by ``torch.export``, along given decisions: what they return and where they decided."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Generic, TypeVar

import torch
from torch import fx, nn
from torch._guards import detect_fake_mode
from torch.export import ExportedProgram
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode, uninteresting_files
from torch.utils._sympy.symbol import SymT, symbol_is_type

from fxexport.capture.exporting import is_user_file
from fxexport.capture.flat_model import FlatModel
from fxexport.capture.paths.deciding import (
    Choose,
    Deciding,
    Event,
    OneRun,
    Stop,
    Stops,
    copy_of,
    sizes_asked,
)
from fxexport.capture.paths.python_state import PythonState
from fxexport.capture.paths.states import Key, Observer, State
from fxexport.capture.paths.tape import NotShared, Replaying, Restart, Tapes

PREDICATE: Key = ("predicate",)
_OWN_FILES = {str(path) for path in Path(__file__).parent.glob("*.py")}
T = TypeVar("T")


@dataclass
class Trace:
    """What one run left. ``raised``: the error of the user's code that ended it.

    ``results``, ``predicates`` and ``kept`` (the live tensors of every event) are copies: numbers of outputs of
    ``exported``, the graph of all runs of one capture; ``alone`` where that is this one only.
    """

    taken: tuple[bool, ...]
    events: list[Event] = field(default_factory=list)
    end: State | None = None
    raised: str = ""
    results: list[int] = field(default_factory=list)
    predicates: list[int] = field(default_factory=list)
    kept: list[list[int]] = field(default_factory=list)
    exported: ExportedProgram | None = None
    alone: bool = True
    notes: list[str] = field(default_factory=list)

    @property
    def decided(self) -> int:
        """How many decisions were taken."""
        return sum(event.taken is not None for event in self.events)


MakeRun = Callable[[Choose, Stops], Trace]


@dataclass
class Capturing(Generic[T]):
    """One capture of a model in which it runs several times.

    ``known``: what is known of values during a run of a model; ``export``: the functional graph and notes of a model;
    ``limit``: of decisions in a run; ``steer`` makes the runs, by what it is given. ``several``: whether it may make more
    than one.
    """

    flat: FlatModel
    known: Callable[[FlatModel], AbstractContextManager[list[str]]]
    export: Callable[[FlatModel], tuple[ExportedProgram, list[str]]]
    limit: int
    steer: Callable[[MakeRun], T]
    several: bool = True

    def capture(self) -> T:
        """What ``steer`` gives; its traces have their graph.

        Raises CaptureError where torch.export does not get through, TooMany after ``limit`` decisions in one run, and
        NotShared where several runs cannot be made in one capture.
        """
        found: list[tuple[T, _Session]] = []
        plain, deciding = self.flat.forward, Deciding(self.limit)

        def forward_by_ways(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            session = _Session(self.flat.model, plain, tensors, deciding, self.several)
            found[:] = [(self.steer(session.run), session)]
            return tuple(session.outputs)

        self.flat.__dict__["forward"] = forward_by_ways
        with self.known(self.flat) as known_notes:
            forward = self.flat.forward

            def forward_deciding(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
                with deciding, sizes_asked(self._asked_of_size(deciding)):
                    return forward(*tensors)

            self.flat.__dict__["forward"] = forward_deciding
            with _looked_past():
                exported, notes = self.export(self.flat)
        result, session = found[0]
        for trace in session.traces:
            trace.exported, trace.notes = exported, [*notes, *known_notes]
            trace.alone = len(session.traces) == 1
        return result

    def _asked_of_size(self, deciding: Deciding) -> Callable[[torch.Tensor, FrameType | None], bool]:
        def decide(asked: torch.Tensor, frame: FrameType | None) -> bool:
            if self.several:
                raise NotShared
            return deciding.decide(asked, frame)

        return decide


class _Session:
    """The runs of a capture that is under way, and the tensors that it returns."""

    def __init__(
        self,
        model: nn.Module,
        forward: Callable[..., tuple[torch.Tensor, ...]],
        inputs: Sequence[torch.Tensor],
        deciding: Deciding,
        several: bool,
    ) -> None:
        self._model, self._forward, self._inputs, self._deciding = model, forward, inputs, deciding
        self._state = PythonState(model) if several else None
        self._tapes = Tapes()
        self._numbers: dict[int, int] = {}
        self.outputs: list[torch.Tensor] = []
        self.traces: list[Trace] = []

    def run(self, choose: Choose, stops: Stops) -> Trace:
        """The run that ``choose`` decides and ``stops`` ends."""
        most: int | None = None
        while True:
            if self._state is not None and self.traces:
                self._state.restore()
            try:
                found = self._run(choose, stops, most)
            except Restart as again:
                most = again.calls
                continue
            self.traces.append(found)
            return found

    def _run(self, choose: Choose, stops: Stops, most: int | None) -> Trace:
        found = Trace(())
        run = OneRun(Observer(self._model, sys._getframe()), choose, stops, found.events, [], [])
        self._deciding.run = run
        results: tuple[torch.Tensor, ...] = ()
        replaying = Replaying(
            self._tapes, lambda asked: self._deciding.decide(asked, sys._getframe()), run.predicates, most
        )
        try:
            with _module_stack_kept(), replaying:
                results = self._forward(*self._inputs)
            found.end = run.observer.result(results)
        except Stop:
            pass
        except Exception as error:
            if not run.events or not _raised_by_user(error):
                raise
            found.raised = f"{type(error).__name__}: {error}".strip()
        if self._state is not None and _has_unknown_sizes(self._inputs):
            raise NotShared
        found.results = [self._number(copy_of(tensor)) for tensor in results]  # a later run may write into them
        found.predicates = [self._number(tensor) for tensor in run.predicates]
        found.kept = [[self._number(tensor) for tensor in copies] for copies in run.copies]
        found.taken = tuple(event.taken for event in found.events if event.taken is not None)
        return found

    def _number(self, tensor: torch.Tensor) -> int:
        if id(tensor) not in self._numbers:
            self._numbers[id(tensor)] = len(self.outputs)
            self.outputs.append(tensor)
        return self._numbers[id(tensor)]


def _has_unknown_sizes(inputs: Sequence[torch.Tensor]) -> bool:
    """Whether the data decides some size of the capture: what is known of it is known to all runs alike."""
    mode = detect_fake_mode(inputs)
    sizes = mode.shape_env.var_to_range if mode is not None and mode.shape_env is not None else ()
    return any(symbol_is_type(size, (SymT.UNBACKED_INT, SymT.UNBACKED_FLOAT)) for size in sizes)


@contextmanager
def _looked_past() -> Iterator[None]:
    """Torch says which line of the user's code asked about a size, and not which one of these files."""
    between = uninteresting_files()
    added = _OWN_FILES - between
    between |= added
    try:
        yield
    finally:
        between -= added


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


def _raised_by_user(error: Exception) -> bool:
    """Whether a line of the user's code raised ``error`` itself, so that eager raises it too."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    named_by_torch = isinstance(error, GuardOnDataDependentSymNode)
    return last is not None and not named_by_torch and is_user_file(last.tb_frame.f_code.co_filename)


def kept(found: Trace) -> tuple[list[Any], list[dict[Key, Any]], list[Any]]:
    """The nodes of a trace's graph that hold its results, the live tensors of every event, and the predicates."""
    assert found.exported is not None
    nodes: Any = list(found.exported.graph.output_node().args[0])
    pairs = zip(found.events, found.kept, strict=True)
    states = [dict(zip(event.state.tensors, (nodes[i] for i in numbers), strict=True)) for event, numbers in pairs]
    return [nodes[i] for i in found.results], states, [nodes[i] for i in found.predicates]


def nodes_of(found: Trace) -> list[fx.Node]:
    """The nodes of a trace's graph that compute what the trace left, in order."""
    assert found.exported is not None
    if found.alone:
        return list(found.exported.graph.nodes)
    results, states, predicates = kept(found)
    wanted: set[fx.Node] = set()
    todo = [*results, *predicates, *(node for state in states for node in state.values())]
    while todo:
        node = todo.pop()
        if node not in wanted:
            wanted.add(node)
            todo += node.all_input_nodes
    return [node for node in found.exported.graph.nodes if node in wanted or node.op == "placeholder"]
