"""Answering what Python asks of tensors while a model is captured, and noting the state in which it asks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols, statically_known_true
from torch.overrides import TorchFunctionMode

from fxexport.capture.asked import number_kept, predicate, site_of
from fxexport.capture.exporting import is_user_file
from fxexport.capture.paths.states import Observer, State


@dataclass(frozen=True)
class Event:
    """A decision that a run came to: ``taken`` is None where the run ended there, in a state that was looked for."""

    site: str
    source: str
    state: State
    taken: bool | None


class TooMany(BaseException):
    """A run took more decisions than a run may."""


class Stop(BaseException):
    """Ends a run of the user's forward, whatever it catches."""


Choose = Callable[[Sequence[tuple[str, bool]], str], bool]
"""From the decisions so far, as site and side, and the present site: which side to take."""
Stops = Callable[[State, int], bool]
"""Whether a run ends in this state, before the decision of this number."""


@dataclass
class OneRun:
    """Who decides in a run, and what it has come to. ``predicates``: one for each event; ``copies``: of its live tensors."""

    observer: Observer
    choose: Choose
    stops: Stops
    events: list[Event]
    predicates: list[torch.Tensor]
    copies: list[list[torch.Tensor]]


class Deciding(TorchFunctionMode):
    """Decides what Python asks of tensors in the present ``run``; keeps copies of the live ones, which may be written to
    afterwards."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.run: OneRun | None = None
        self._copies: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}
        self._limit = limit

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        asked = predicate(func, args, kwargs)
        if asked is not None and _constant(asked) is None:
            return self.decide(copy_of(asked), sys._getframe(1))
        if func is torch.tensor and args and (made := _of_numbers(args[0], kwargs)) is not None:
            return made
        number = number_kept(func, args)
        return func(*args, **kwargs) if number is None or _constant(number) is not None else number

    def _kept(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy of a tensor as it is now; the same one until something writes into it. (Kept beside it, so that no other
        tensor gets its id.)"""
        key = id(tensor), tensor._version
        if key not in self._copies:
            self._copies[key] = tensor, copy_of(tensor)
        return self._copies[key][1]

    def decide(self, asked: torch.Tensor, frame: FrameType | None) -> bool:
        """The side to take for a predicate of which nobody else has a hold, after the state of the run was looked at; may
        end the run."""
        run = self.run
        assert run is not None
        site, source = site_of(frame)
        with torch._C.DisableTorchFunction():
            state = run.observer.state(frame, {"predicate": asked})
            run.predicates.append(asked)
            run.copies.append([self._kept(tensor) for tensor in state.tensors.values()])
        if run.stops(state, len(run.events)):
            run.events.append(Event(site, source, state, None))
            raise Stop
        if len(run.events) >= self._limit:
            raise TooMany(f"more than {self._limit} decisions on the data, at {site}: {source}")
        so_far = [(event.site, event.taken) for event in run.events if event.taken is not None]
        taken = run.choose(so_far, site)
        run.events.append(Event(site, source, state, taken))
        return taken


@contextmanager
def sizes_asked(decide: Callable[[torch.Tensor, FrameType | None], bool]) -> Iterator[None]:
    """While the block runs, ``if n > 3`` on a whole number that depends on data (``n = t.item()``) is a decision."""
    original: Callable[[torch.SymBool], bool] = torch.SymBool.__bool__

    def asked(self: torch.SymBool) -> bool:
        frame = sys._getframe(1)
        settled = statically_known_true(self) or statically_known_true(torch.sym_not(self))  # type: ignore[no-untyped-call]
        unknown = free_unbacked_symbols(self) and not settled
        if not unknown or not is_user_file(frame.f_code.co_filename):
            return original(self)
        number: Any = torch.sym_ite(self, 1, 0)  # type: ignore[no-untyped-call]
        return decide(copy_of(torch.scalar_tensor(number, dtype=torch.int64) != 0), frame)

    torch.SymBool.__bool__ = asked  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.SymBool.__bool__ = original  # type: ignore[method-assign]


def copy_of(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in the graph, whatever function modes are on."""
    with torch._C.DisableTorchFunction():
        return tensor.clone()


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
