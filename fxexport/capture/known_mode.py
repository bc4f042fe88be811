"""The operations of a running capture, followed on known values; Python asks for a value and gets it where it is known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from fxexport.capture.known_arguments import numbers_for_tensors, reads_data_shape, written_unseen
from fxexport.capture.known_call import Call, name_of, read_sizes
from fxexport.capture.known_decisions import Learnt, user_frame
from fxexport.capture.known_running import RandomDrawn, run_for_real, same_memory
from fxexport.capture.known_size_operations import follow, put
from fxexport.capture.known_sizes import NotFollowed, Sizes, numbers_in
from fxexport.capture.known_tensors import LARGEST, Known, KnownTensors, is_real
from fxexport.capture.known_text import unknown_text
from fxexport.errors import CaptureError

_READERS = {"__bool__", "__int__", "__float__", "__index__", "__complex__", "__contains__", "__format__"} | {
    *("item", "tolist", "is_nonzero", "equal", "allclose"),
}
_NUMBERS = ("__int__", "__float__", "__index__", "__complex__")
_COMPARISONS = {"gt", "lt", "ge", "le", "eq", "ne"}
_ARRAYS = {"numpy", "__array__"}
_UNSET = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "empty_permuted"}
_REPLACED = {"set_", "resize_", "resize_as_", "__set__"}
_FAILURES = (RandomDrawn, RuntimeError, TypeError, ValueError, IndexError, KeyError, NotImplementedError)


class KnownValues(TorchFunctionMode):
    """Follows known values through one run of forward. Everything else passes through it as it came."""

    def __init__(self, tensors: KnownTensors, learnt: Learnt) -> None:
        super().__init__()
        self._tensors = tensors
        self._learnt = learnt
        self._lent: list[tuple[Any, Any, str]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.compiler.is_dynamo_compiling():  # a body of torch.cond is read, with this in it
            return func(*args, **kwargs)
        name = name_of(func)
        if name is None or torch._C._functorch.peek_interpreter_stack() is not None:
            return func(*args, **kwargs)
        if name == "__iter__" and args[0].dim() > 0:
            return iter(self.__torch_function__(torch.Tensor.unbind, types, (args[0], 0)))
        args, kwargs = numbers_for_tensors(name, args, kwargs, self._number, self._mask_positions)
        call = Call(name, func, args, kwargs, self._tensors)
        if name in _READERS | _ARRAYS and call.all_known and call.tensors:
            answer = self._read(call)
            if answer is not NotImplemented:
                return answer
        if name in _ARRAYS:
            _refuse_array(call)
        if name == "__format__" and args[0].dim() == 0:
            self._learnt.told()
            return unknown_text(args[0].dtype)
        if call.all_known and not call.symbolic and reads_data_shape(name, args):
            return self._folded(call)
        before = [self._tensors.version_of(tensor) for tensor in call.tensors]
        with _told_to_python(name):
            result = func(*args, **kwargs)
        written = [t for t, version in zip(call.tensors, before, strict=True) if self._tensors.version_of(t) != version]
        unseen = call.tensors[:1] if name in _REPLACED else written_unseen(name, args, kwargs)
        self._follow(call, result, [*written, *unseen])
        return result

    def _read(self, call: Call) -> Any:
        """The answer to Python's question for a value; NotImplemented where it is not known."""
        if not all(known.lasting for known in call.known):
            return NotImplemented
        origins = frozenset[str]().union(*(known.origins for known in call.known))
        if call.symbolic:
            answer = read_sizes(call)
            if answer is not NotImplemented:
                self._learnt.decided(origins)
        elif call.name in _ARRAYS:
            self._learnt.computed(origins)
            answer = np.array(run_for_real(call.func, *call.on_values()))
            self._lent.append((answer, answer.copy(), _where()))
        else:
            self._learnt.decided(origins)
            answer = run_for_real(call.func, *call.on_values())
        return answer

    def _number(self, tensor: torch.Tensor) -> Any:
        """The number in a known tensor of no dimensions, else None."""
        known = self._tensors.find(tensor) if tensor.dim() == 0 else None
        if known is None:
            return None
        if not known.lasting:
            return None
        if isinstance(known.value, Sizes):
            try:
                value = numbers_in(known.value)[0]
            except NotFollowed:
                return None
            self._learnt.decided(known.origins)
            return value
        if known.value.is_complex():
            return None
        self._learnt.decided(known.origins)
        return run_for_real(torch.Tensor.item, (known.value,), {})

    def _mask_positions(self, mask: torch.Tensor) -> tuple[torch.Tensor, ...] | None:
        """The positions that a known mask selects, as constants."""
        known = self._tensors.find(mask)
        if known is None or isinstance(known.value, Sizes) or not known.lasting:
            return None
        self._learnt.decided(known.origins)
        found = run_for_real(torch.Tensor.nonzero, (known.value,), {"as_tuple": True})
        return tuple(self._constant(positions, [known]) for positions in found)

    def _constant(self, value: torch.Tensor, sources: Sequence[Known]) -> torch.Tensor:
        constant: torch.Tensor = torch.ops.aten.lift_fresh_copy.default(value)
        self._tensors.note(constant, run_for_real(torch.clone, (value,), {}), sources)
        return constant

    def _folded(self, call: Call) -> Any:
        """The result of an operation whose shape depends on values, all of which are known."""
        if not all(known.lasting for known in call.known):
            return call.func(*call.args, **call.kwargs)
        for known in call.known:
            self._learnt.decided(known.origins)
        real = run_for_real(call.func, *call.on_values())
        return pytree.tree_map_only(torch.Tensor, lambda value: self._constant(value, call.known), real)

    def _follow(self, call: Call, result: Any, written: Sequence[torch.Tensor]) -> None:
        results = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        values = self._values(call, result, results) if results or written else None
        for tensor in written:
            self._write(call, tensor, values is not None)
        if values is None or call.name in _UNSET:
            return
        for tensor, value in zip(results, values, strict=True):
            if isinstance(value, Sizes) or _alike(tensor, value, call):
                constant = call.name.startswith("lift_fresh")
                # What a size was compared with is noted there, and what the comparison says is said of the size.
                sources = [] if constant or (call.symbolic and call.name in _COMPARISONS) else call.known
                self._tensors.note(tensor, value, sources)

    def _values(
        self, call: Call, result: Any, results: Sequence[torch.Tensor]
    ) -> Sequence[torch.Tensor | Sizes] | None:
        """The values of ``results``; None where not all are known. What ``call`` writes is written into the real ones."""
        if not call.all_known or any(not _is_small(tensor) for tensor in results):
            return None
        try:
            if call.symbolic:
                found = follow(_plain(call.name), *call.on_values(), result)
                self._note_comparison(call)
                return list(found) if isinstance(found, tuple) else [found]
            real = run_for_real(call.func, *call.on_values())
        except (NotFollowed, *_FAILURES):
            return None
        values = [leaf for leaf in pytree.tree_leaves(real) if isinstance(leaf, torch.Tensor)]
        return values if len(values) == len(results) else None

    def _note_comparison(self, call: Call) -> None:
        if call.name not in _COMPARISONS:
            return
        for known in call.known:
            if known.origins and isinstance(known.value, torch.Tensor) and known.value.numel() == 1:
                self._learnt.compared(known.origins, run_for_real(torch.Tensor.item, (known.value,), {}))
            elif known.origins:
                self._learnt.decided(known.origins)

    def _write(self, call: Call, tensor: torch.Tensor, followed: bool) -> None:
        """``call`` wrote into ``tensor``."""
        value = next((known.value for known in call.known if known.tensor is tensor), None)
        if isinstance(value, torch.Tensor) and followed and not call.symbolic and call.name not in _REPLACED:
            self._tensors.wrote(tensor, value, call.known)
            return
        alone = call.name == "__setitem__" and call.all_known and self._tensors.alone(tensor)
        self._tensors.wrote(tensor, None)
        if alone:
            try:
                self._tensors.note(tensor, put(*call.on_values()[0]), call.known)
            except NotFollowed:
                return

    def check(self) -> None:
        """Raises CaptureError where forward wrote into what it had decided on, or into what numpy was lent."""
        for name, where in self._learnt.fixed.items():
            if name in self._tensors.written:
                raise CaptureError(
                    f"the model takes a Python decision on the state {name!r} at {where} and writes to it: every call of "
                    "an artifact starts from the state that the model has now.\n  Make the decision once, before export."
                )
        for array, before, where in self._lent:
            if not np.array_equal(array, before, equal_nan=array.dtype.kind in "fc"):
                raise CaptureError(
                    f"forward writes into the array that it got from a tensor at {where}: in eager that changes the tensor, "
                    "which no graph can show.\n  Write into a copy: tensor.numpy().copy()."
                )


@contextmanager
def _told_to_python(name: str) -> Iterator[None]:
    """Says what to write in the place of ``int(t)`` and ``float(t)``, of which Python wants a number at once."""
    try:
        yield
    except Exception as error:
        if name in _NUMBERS:
            error.add_note(
                f"{name.strip('_')}() wants the number itself, which no graph has before it is run. Write t.item() in the "
                "place of float(t), and t.long().item() in the place of int(t), or compute with the tensor t itself. A "
                "range over such a number is a loop of unknown length: torch.while_loop, or a mask over a fixed length."
            )
        raise


def _plain(name: str) -> str:
    return name.strip("_")


def _is_small(tensor: torch.Tensor) -> bool:
    return all(isinstance(size, int) for size in tensor.shape) and tensor.numel() <= LARGEST


def _alike(tensor: torch.Tensor, value: torch.Tensor, call: Call) -> bool:
    """Whether ``value`` is the same kind of tensor, and a view of the values of what ``tensor`` is a view of."""
    form = [(t.dtype, t.shape, t.device) for t in (tensor, value)]
    if form[0] != form[1] or not is_real(value):
        return False
    return all(
        same_memory(tensor, known.memory) == same_memory(value, known.value)
        for known in call.known
        if isinstance(known.value, torch.Tensor)
    )


def _where() -> str:
    frame = user_frame()
    return f"{frame.filename}:{frame.lineno}: {frame.line}" if frame else "a line of PyTorch"


def _refuse_array(call: Call) -> None:
    changed = sorted(name for known in call.known if not known.lasting for name in known.origins)
    cause = "that depend on its inputs"
    if call.symbolic:
        cause = "that depend on the sizes of its inputs"
    elif call.all_known and changed:
        cause = f"of {', '.join(changed)}, which a call of it changes"
    raise CaptureError(
        f"the model computes with numpy on values {cause}, at {_where()}\n"
        "  They would be fixed in the artifact as the example has them. Use the torch function of the same name on the "
        "tensor instead (torch.fft, torch.clamp, torch.where, ...), or do this part before or after the artifact."
    )
