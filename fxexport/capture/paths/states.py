"""The state of a running model where it takes a decision: where Python stands, its values, and the live tensors.

Two runs that reach equal states go on in the same way, whatever they did before: the same code runs on the same Python
values, and only the contents of tensors differ. That is what lets two sides of a decision be joined again.
"""

from __future__ import annotations

import os
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import nn

from fxexport.capture.exporting import is_user_file
from fxexport.capture.paths.liveness import live_locals
from fxexport.capture.paths.stacks import ITERATOR, OPAQUE, hidden, loop_variables

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.layout)
_CODE = (types.FunctionType, types.BuiltinFunctionType, types.ModuleType, type, types.MethodWrapperType)
_OF_MODULES = {"_parameters", "_modules", "_backward_hooks", "_forward_hooks", "_forward_pre_hooks", "training"}
_TORCH_MODULES = os.path.dirname(nn.__file__) + os.sep
_LARGEST = 100_000
"""Values beyond which a state is taken for one of its own kind."""

Key = tuple[str, ...]


@dataclass(frozen=True)
class State:
    """``described``: everything but the contents of tensors; ``tensors``: the live ones. ``same``: for each of them the
    names of all others, live or not, that are the same object.

    ``frames``: those of the model that run, the innermost first; ``opaque`` ones hold values that no variable has.
    """

    described: int
    tensors: Mapping[Key, torch.Tensor]
    same: Mapping[Key, frozenset[Any]]
    frames: Sequence[types.FrameType] = ()
    opaque: Sequence[types.FrameType] = ()

    def is_open_since(self, earlier: State) -> bool:
        """Whether Python may hold a value that was made after the ``earlier`` state of this run and is not seen here."""
        before = {id(frame) for frame in earlier.frames}
        moved = [frame for frame in self.frames if id(frame) not in before]
        moved += [frame for frame in self.frames if id(frame) in before][:1]  # its callers have waited for it
        return any(frame is other for frame in moved for other in self.opaque)

    def resembles(self, other: State) -> bool:
        """Whether two runs go on alike, if it does not matter which tensors are the same object."""
        return self.described == other.described and self.tensors.keys() == other.tensors.keys()

    def continues_as(self, other: State) -> bool:
        """Whether this run goes on as ``other``'s does: what is one tensor there is one tensor here."""
        return self.resembles(other) and all(names <= self.same[key] for key, names in other.same.items())


class Observer:
    """Takes states of one run of ``root``. ``outermost``: the frame of the caller, which belongs to no state."""

    def __init__(self, root: nn.Module, outermost: types.FrameType) -> None:
        self._root, self._outermost = root, outermost
        self._rounds: dict[tuple[int, int], list[int]] = {}
        self._names = {id(module): name for name, module in root.named_modules()}
        self._own: dict[int, tuple[str, int]] = {}
        for name, module in root.named_modules():
            for table in (module._parameters, module._buffers, vars(module)):
                for key, value in table.items():
                    if isinstance(value, torch.Tensor):
                        self._own[id(value)] = f"{name}.{key}", value._version

    def state(self, frame: types.FrameType | None, extra: Mapping[str, Any]) -> State:
        """The state in which ``frame`` and its callers are; ``extra`` are values of it that no variable holds."""
        walk = _Walk(self._names, self._own)
        inner: int | None = None
        while frame is not None and frame is not self._outermost:
            if _is_of_model(frame.f_code.co_filename):
                walk.frame(frame, self._round(frame, inner))
                inner = id(frame)
            frame = frame.f_back
        return replace(self._finish(walk, extra), frames=walk.frames, opaque=walk.opaque)

    def _round(self, frame: types.FrameType, inner: int | None) -> int:
        """How many calls from the place where a frame stands led to a decision: where its loop is, as far as is seen."""
        calls = self._rounds.setdefault((id(frame), frame.f_lasti), [])
        if inner is None or inner not in calls:  # where the frame itself decides, each time is another round
            calls.append(0 if inner is None else inner)
        return len(calls)

    def result(self, result: Any) -> State:
        """The state after forward has returned ``result``."""
        return self._finish(_Walk(self._names, self._own), {"result": result}, modules=False)

    def _finish(self, walk: _Walk, extra: Mapping[str, Any], modules: bool = True) -> State:
        for name, value in extra.items():
            walk.visit(value, (name,))
        for name, module in self._root.named_modules() if modules else ():
            walk.module(name, module)
        names: dict[int, set[Any]] = {key: {name} for key, (name, _) in self._own.items()}
        for key, tensor in (*walk.tensors.items(), *walk.dead.items()):
            names.setdefault(id(tensor), set()).add(key)
        same = {key: frozenset(names[id(tensor)]) for key, tensor in walk.tensors.items()}
        return State(hash("\n".join(map(repr, walk.told))), walk.tensors, same)


class _Walk:
    """Describes values one after the other into ``told``; collects tensors."""

    def __init__(self, names: Mapping[int, str], own: Mapping[int, tuple[str, int]]) -> None:
        self._names, self._own = names, own
        self._seen: dict[int, int] = {}
        self._held: list[Any] = []  # so that no object gets the id of one that is gone
        self.told: list[Any] = []
        self.tensors: dict[Key, torch.Tensor] = {}
        self.frames: list[types.FrameType] = []
        self.opaque: list[types.FrameType] = []
        self.dead: dict[Key, torch.Tensor] = {}  # in variables that are not read again

    def note(self, *words: Any) -> None:
        self.told.append(words)

    def frame(self, frame: types.FrameType, rounds: int) -> None:
        """Where a frame stands, and those of its variables that are still read."""
        code = frame.f_code
        self.note(code.co_filename, code.co_name, code.co_firstlineno, frame.f_lasti)
        values, depth = frame.f_locals, str(len(self.told))
        held = hidden(frame)
        if ITERATOR in held:  # how far it is cannot be asked
            self.note("round", rounds)
            for name in sorted(loop_variables(code) & values.keys()):
                if not isinstance(values[name], torch.Tensor):
                    self.visit(values[name], (depth, "loop", name))
        self.frames.append(frame)
        if OPAQUE in held:
            self.opaque.append(frame)
        live = live_locals(frame) | set(held)
        for name, value in sorted(values.items()):
            if name in live:
                self.visit(value, (depth, name))
            elif isinstance(value, torch.Tensor):  # a callee may have been given it, and Python may hold it unnamed
                self.dead[depth, name] = value

    def visit(self, value: Any, key: Key) -> None:
        """Describes one value and what it holds."""
        if isinstance(value, torch.Tensor):
            self.note(key, str(value.dtype), str(list(value.shape)), str(value.device))
            self.tensors[key] = value
        elif isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
            self.note(key, type(value).__name__, str(value.node.expr))
        elif isinstance(value, _PLAIN):
            self.note(key, type(value).__name__, repr(value))
        elif isinstance(value, _CODE):
            self.note(key, getattr(value, "__module__", ""), getattr(value, "__qualname__", str(type(value))))
        elif isinstance(value, nn.Module) and id(value) in self._names:
            self.note(key, "module", self._names[id(value)])
        elif id(value) in self._seen:
            self.note(key, "again", self._seen[id(value)])
        elif len(self.told) > _LARGEST:
            self.note(key, "beyond", id(value))
        else:
            self._seen[id(value)] = len(self._seen)
            self._held.append(value)
            self.note(key, type(value).__module__, type(value).__qualname__)
            for name, part in _parts(value):
                self.visit(part, (*key, name))

    def module(self, name: str, module: nn.Module) -> None:
        """The attributes of a module of the model, its submodules and parameters aside."""
        self.note(name, sorted(module._modules), module.training)
        for key, value in vars(module).items():
            if key not in _OF_MODULES:
                self._attribute(value, (name, key))

    def _attribute(self, value: Any, key: Key) -> None:
        """A tensor that the model had before the run, untouched, is no news."""
        own, version = self._own.get(id(value), ("", 0))
        if own and value._version == version:
            self.note(key, "own", own)
        elif key[-1] == "_buffers":
            for name, buffer in value.items():
                self._attribute(buffer, (*key, name))
        else:
            self.visit(value, key)


def _is_of_model(file: str) -> bool:
    """Whether frames of that file compute the model; the others trace it."""
    typed_in = file.startswith("<") and not file.startswith("<frozen")  # a notebook, exec, a GraphModule
    return is_user_file(file) or file.startswith(_TORCH_MODULES) or typed_in


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """What an object holds, by name."""
    if isinstance(value, Mapping):
        yield from ((f"{type(k).__name__} {k}", v) for k, v in value.items())
    elif isinstance(value, list | tuple):
        yield from ((str(i), v) for i, v in enumerate(value))
    elif isinstance(value, set | frozenset):
        yield "members", sorted(map(repr, value))
    elif is_dataclass(value) and not isinstance(value, type):
        yield from ((field.name, getattr(value, field.name, None)) for field in fields(value))
    elif isinstance(value, types.MethodType):
        yield from (("function", value.__func__), ("self", value.__self__))
    elif hasattr(value, "__dict__"):
        yield from ((f".{k}", v) for k, v in vars(value).items())
    elif isinstance(value, Iterator):  # where it stands; one that cannot say so is like no other
        try:
            yield "position", value.__reduce__()
        except TypeError:
            yield "position", id(value)
