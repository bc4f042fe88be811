"""Recording the calls of parts, by hooks on the private copy and on modules that are built around pieces of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.utils import _pytree as pytree

from fxexport.capture.binding import bind_example
from fxexport.capture.nesting import flatten
from fxexport.signature import show_path
from fxexport.subnets.parts import Parts
from fxexport.subnets.recorder import Recorder, user_place
from fxexport.subnets.tape import Leaf, RecordedCall

_PLAIN = (NoneType, bool, int, float, complex, str, bytes, Enum, torch.dtype, torch.device, torch.Size)


@dataclass
class _Running:
    """A call of a part that has not returned yet; ``tensors`` are the inputs themselves, ``inputs`` copies."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: dict[str, Leaf]
    tensors: dict[str, Tensor]
    place: str


class PartHooks:
    """Puts the calls of ``parts`` on the tape of ``recorder``. A part called inside a part belongs to the outer one."""

    def __init__(self, recorder: Recorder, parts: Parts) -> None:
        self._recorder = recorder
        self._parts = parts
        self._counts: Counter[str] = Counter()
        self._running: _Running | None = None
        self._watched: list[nn.Module] = []
        self._handles: list[Any] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> PartHooks:
        return self  # with the model, by a driver: its copies are no parts, but calling them does no harm

    @contextmanager
    def attached(self) -> Iterator[None]:
        """While the block runs, calls are recorded. A module that takes a piece of the model as its child or parameter
        is watched from then on: it may be a part that is built anew each time."""
        try:
            self._handles += [
                register_module_module_registration_hook(self._built),
                register_module_parameter_registration_hook(self._built),
            ]
            for module in self._parts.modules.values():
                self._watch(module)
            yield
        finally:
            for handle in self._handles:
                handle.remove()

    def _built(self, module: nn.Module, name: str, piece: Any) -> None:
        if self._parts.belongs(piece) and not self._parts.belongs(module):
            self._watch(module)

    def _watch(self, module: nn.Module) -> None:
        if not any(module is other for other in self._watched):
            self._watched.append(module)
            self._handles.append(module.register_forward_pre_hook(self._before, prepend=True, with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._after, with_kwargs=True, always_call=True))

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        name = self._parts.name_of(module)
        if name is None:
            return
        self._recorder.inside += 1
        if self._recorder.inside > 1:
            return
        call = bind_example(module, args, kwargs)
        for leaf in call.leaves:
            if not leaf.is_tensor and not isinstance(leaf.value, _PLAIN):
                self._note(
                    f"{name} is given a {type(leaf.value).__name__} as {show_path(leaf.path)}: tensors inside such an "
                    "object are not recorded, nor what the part changes in it; export a part that takes and returns "
                    "the tensors themselves"
                )
        tensors = {show_path(leaf.path): leaf.value for leaf in call.leaves if leaf.is_tensor}
        value_of = self._recorder.value_of
        inputs = {path: Leaf(path, value_of(tensor), _copy(tensor)) for path, tensor in tensors.items()}
        self._running = _Running(_copies(args), _copies(kwargs), inputs, tensors, user_place())

    def _after(self, module: nn.Module, args: Any, kwargs: Any, result: Any) -> Any:
        name = self._parts.name_of(module)
        if name is None:
            return None
        try:
            running = self._running if self._recorder.inside == 1 else None
            if running is None or result is None:  # a nested part, or a call that raised
                return None
            return self._finish(name, running, result)
        finally:
            self._recorder.inside -= 1

    def _finish(self, name: str, running: _Running, result: Any) -> Any:
        tape = self._recorder.tape
        self._note_changes(name, running)
        result, named = self._told_apart(result)
        self._counts[name] += 1
        outputs = {path: Leaf(path, self._recorder.number(t), _copy(t)) for path, t in named.items()}
        call = RecordedCall(
            name, self._counts[name], len(tape.steps), running.args, running.kwargs, _copies(result),
            running.inputs, outputs, running.place,
        )  # fmt: skip
        tape.steps.append(call)
        tape.makers |= {leaf.value: call for leaf in outputs.values()}
        return result

    def _told_apart(self, result: Any) -> tuple[Any, dict[str, Tensor]]:
        """The result with an identity of its own for every tensor, and its tensors by path; numbers as 0-d tensors.

        A part may return its input as it is, a weight, or one tensor twice; what is done with it later must tell them
        apart. Such a tensor is replaced by a view of the whole of it.
        """
        leaves, spec = flatten(result)
        values: list[Any] = []
        named: dict[str, Tensor] = {}
        for leaf in leaves:
            value = leaf.value
            if isinstance(value, Tensor):
                if self._recorder.knows(value) or any(value is other for other in named.values()):
                    value = torch.ops.aten.alias.default(value)
                named[show_path(("output", *leaf.path))] = value
            elif isinstance(value, bool | int | float):
                named[show_path(("output", *leaf.path))] = torch.tensor(value)
            values.append(value)
        changed = any(value is not leaf.value for value, leaf in zip(values, leaves, strict=True))
        return (pytree.tree_unflatten(values, spec) if changed else result), named

    def _note_changes(self, name: str, running: _Running) -> None:
        for path, leaf in running.inputs.items():
            now = running.tensors[path]
            if now.shape == leaf.tensor.shape and torch.allclose(now, leaf.tensor, 0, 0, equal_nan=True):
                continue
            self._note(
                f"{name} writes into its input {path}, which an artifact cannot do; return the new value instead"
            )

    def _note(self, text: str) -> None:
        notes = self._recorder.tape.notes
        notes += [text] if text not in notes else []


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()


def _copies(tree: Any) -> Any:
    """The same nesting with copies of its tensors."""
    leaves, spec = flatten(tree)
    return pytree.tree_unflatten([_copy(leaf.value) if leaf.is_tensor else leaf.value for leaf in leaves], spec)
