"""What was computed on the way to a decision, so that another run comes there without computing it again.

All runs of a model are made one after the other in one capture. Up to the decision at which a run leaves a known one, it
calls the same functions on the same tensors, and is given the results that are there already.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from fxexport.capture.known_arguments import written_unseen
from fxexport.capture.known_call import name_of

_DECIDES = {"__bool__", "is_nonzero", "item", "__contains__", "equal", "allclose"}
_NOT_FOLLOWED = {"set_", "resize_", "resize_as_", "__set__", "_enter_autocast", "_exit_autocast"}


class NotShared(BaseException):
    """The runs of this model cannot be made in one capture: something of one run would show in another."""


class Restart(BaseException):
    """The run must be made again, and given results of the first ``calls`` calls only."""

    def __init__(self, calls: int) -> None:
        super().__init__(calls)
        self.calls = calls


@dataclass(eq=False)
class Call:
    """One call of a function of PyTorch: the tensors and plain values that it got, and what it gave."""

    func: Any
    tensors: tuple[torch.Tensor, ...]
    plain: tuple[Any, ...]
    result: Any

    def is_again(self, func: Any, tensors: tuple[torch.Tensor, ...], plain: tuple[Any, ...]) -> bool:
        """Whether a call is this one, of another run."""
        same = len(tensors) == len(self.tensors) and all(map(operator.is_, tensors, self.tensors))
        return same and plain == self.plain and bool(self.func == func)

    def given(self) -> Any:
        """The result for one run: lists and dicts of its own, which it may change."""
        if self.func is torch.Tensor.__iter__:
            return iter(self.result)
        if isinstance(self.result, list | dict):
            return pytree.tree_map(lambda leaf: leaf, self.result)
        return self.result


@dataclass(eq=False)
class Tape:
    """The calls from one decision to the next one. ``asked``: the call that asks for that; its result is its predicate."""

    calls: list[Call] = field(default_factory=list)
    asked: Call | None = None
    sides: dict[bool, Tape] = field(default_factory=dict)


class Tapes:
    """The tapes of all runs of one capture, from ``root`` on, and the memory that calls wrote into."""

    def __init__(self) -> None:
        self.root = Tape()
        self._writes: list[tuple[Call, int]] = []

    def wrote(self, call: Call, tensor: torch.Tensor) -> None:
        """``call`` wrote into ``tensor``."""
        self._writes.append((call, _memory(tensor)))

    def check(self, replayed: list[Call]) -> None:
        """Raises Restart where some other run wrote into what one of the ``replayed`` calls made, and NotShared where it
        wrote into what was there before."""
        known = set(map(id, replayed))
        written = {memory for call, memory in self._writes if id(call) not in known}
        if not written:
            return
        for i, call in enumerate(replayed):
            if any(_memory(tensor) in written for tensor in call.tensors):
                raise NotShared
            if any(_memory(tensor) in written for tensor in _tensors(call.result)):
                raise Restart(i)


class Replaying(TorchFunctionMode):
    """Gives the results that ``tapes`` have as long as a run does what another one did; then lets it compute, and records.

    ``decided`` answers a decision that is known, from its predicate; ``begun`` are the predicates of the decisions that the
    run has come to. ``most``: the number of calls whose results may be given.
    """

    def __init__(
        self,
        tapes: Tapes,
        decided: Callable[[torch.Tensor], bool],
        begun: list[torch.Tensor],
        most: int | None = None,
    ) -> None:
        super().__init__()
        self._tapes, self._decided, self._begun, self._most = tapes, decided, begun, most
        self._tape, self._at = tapes.root, 0
        self._path: list[tuple[Tape, bool]] = []
        self._replayed: list[Call] = []
        self._live = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.compiler.is_dynamo_compiling() or torch._C._functorch.peek_interpreter_stack() is not None:
            return func(*args, **kwargs)
        tensors = tuple(_tensors((args, kwargs)))
        if not self._live:
            call = self._next(func, tensors, _plain(args))
            if call is None:
                self._go_live()
            elif call is self._tape.asked:
                return self._decide(call)
            else:
                self._at += 1
                self._replayed.append(call)
                if call.result is None and not tensors:  # a switch such as that of gradients
                    func(*args, **kwargs)
                return call.given()
        return self._record(func, tensors, args, kwargs)

    def _next(self, func: Any, tensors: tuple[torch.Tensor, ...], plain: tuple[Any, ...]) -> Call | None:
        """The known call that this one is."""
        if self._most is not None and len(self._replayed) >= self._most:
            return None
        calls = self._tape.calls
        call = calls[self._at] if self._at < len(calls) else self._tape.asked
        return call if call is not None and call.is_again(func, tensors, plain) else None

    def _decide(self, asked: Call) -> bool:
        taken = self._decided(asked.result)
        self._turn(taken)
        return taken

    def _turn(self, taken: bool) -> None:
        self._path.append((self._tape, taken))
        known = self._tape.sides.get(taken)
        if known is None:
            if not self._live:
                self._tapes.check(self._replayed)
            self._live = True
            known = self._tape.sides[taken] = Tape()
        self._tape, self._at = known, 0

    def _go_live(self) -> None:
        """From here on nothing is known; what is recorded starts from a copy of what was replayed."""
        self._tapes.check(self._replayed)
        self._live = True
        if self._tape.asked is None and self._at == len(self._tape.calls):
            return
        own = Tape(self._tape.calls[: self._at])
        first = own
        for tape, taken in reversed(self._path):
            first = Tape(tape.calls, tape.asked, {taken: first})
        self._tapes.root, self._tape = first, own

    def _record(self, func: Any, tensors: tuple[torch.Tensor, ...], args: Any, kwargs: Any) -> Any:
        name = str(name_of(func) or getattr(func, "__name__", ""))
        if name in _NOT_FOLLOWED:
            raise NotShared
        before, count = list(map(_version, tensors)), len(self._begun)
        try:
            result = func(*args, **kwargs)
        finally:
            if len(self._begun) > count:
                if name not in _DECIDES or len(self._begun) > count + 1:
                    raise NotShared
                self._tape.asked = Call(func, tensors, _plain(args), self._begun[-1])
        if len(self._begun) > count:
            self._turn(bool(result))
            return result
        call = Call(func, tensors, _plain(args), list(result) if isinstance(result, Iterator) else result)
        self._tape.calls.append(call)
        changed = [t for t, version in zip(tensors, before, strict=True) if version is None or _version(t) != version]
        for tensor in (*changed, *(t for t in written_unseen(name, args, kwargs) if isinstance(t, torch.Tensor))):
            self._tapes.wrote(call, tensor)
        return call.given()


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [tensor for part in value for tensor in _tensors(part)]
    if isinstance(value, dict):
        return [tensor for part in value.values() for tensor in _tensors(part)]
    if isinstance(value, slice):
        return _tensors((value.start, value.stop, value.step))
    if dataclasses.is_dataclass(value):
        return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]
    return []


def _plain(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value for value in args if type(value) in (bool, int, float, str))


def _version(tensor: torch.Tensor) -> int | None:
    """How often something wrote into ``tensor``; None where PyTorch does not count."""
    with torch._C.DisableTorchFunction():
        return None if tensor.is_inference() else int(tensor._version)


def _memory(tensor: torch.Tensor) -> int:
    with torch._C.DisableTorchFunction():
        return int(tensor.untyped_storage()._cdata)
