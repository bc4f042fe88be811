"""Recording what happens between the parts: every operator, by the identity of the tensors it takes and gives."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import HigherOrderOperator
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fxexport.capture.exporting import is_user_frame
from fxexport.control_flow import run_watched
from fxexport.subnets.tape import Operator, Outsider, Ref, Tape, ValueInfo


def user_place() -> str:
    """``file:line`` of the innermost frame that is neither PyTorch's nor ours, or ''."""
    frame = sys._getframe(1)
    while frame is not None:
        summary = traceback.FrameSummary(frame.f_code.co_filename, frame.f_lineno, "", lookup_line=False)
        if is_user_frame(summary):
            return f"{summary.filename}:{summary.lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return ""


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes operators to ``tape`` while it is active and ``inside`` (the depth of running parts) is 0.

    ``arguments`` are the tensors given to the driver, ``weights`` those of the model, by name. Every tensor seen is kept
    alive until the recorder goes, so that an identity stands for one tensor.
    """

    supports_higher_order_operators = True

    def __init__(self, tape: Tape, arguments: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tape = tape
        self.inside = 0
        self._known: dict[int, int] = {}
        self._alive: list[Tensor] = []
        self._weights = {id(tensor): name for name, tensor in weights.items()}
        for name, tensor in arguments.items():
            if not self.knows(tensor):
                self._outside(tensor, name, "")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):
            return run_watched(self, func, args, kwargs)
        if self.inside:
            return func(*args, **kwargs)
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            with self:  # inference mode hands over whole composites; what they consist of is recorded
                whole = func.decompose(*args, **kwargs)
            if whole is not NotImplemented:
                return whole
        given = pytree.tree_map_only(Tensor, lambda tensor: Ref(self.value_of(tensor)), (tuple(args), dict(kwargs)))
        result = func(*args, **kwargs)
        written = tuple(self.number(tensor) for tensor in _written(func, args, kwargs))
        tensors = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
        if torch.Tag.nondeterministic_seeded in func.tags:
            self._drawn(func, tensors, written)
        else:
            self._append(func, given, tensors, written, None if tensors else result)
        return result

    def _append(
        self, func: Any, given: Any, results: Sequence[Tensor], written: tuple[int, ...], number: Any = None
    ) -> None:
        step, (args, kwargs) = len(self.tape.steps), given
        fresh = [tensor for tensor in results if id(tensor) not in self._known]
        outputs = tuple(self.number(tensor) for tensor in results)
        operator = Operator(step, func, args, kwargs, outputs, written, user_place(), number)
        self.tape.steps.append(operator)
        self.tape.makers |= {self.number(tensor): operator for tensor in fresh}
        for value in written:
            self.tape.writes.setdefault(self.tape.values[value].storage, []).append(step)

    def _drawn(self, func: Any, tensors: Sequence[Tensor], written: tuple[int, ...]) -> None:
        """Random numbers cannot be drawn again: they are values from outside, also where written into a tensor."""
        what = f"random numbers ({func})"
        if not written:
            for tensor in tensors:
                self._outside(tensor, "", user_place(), what)
            return
        for value, tensor in zip(written, tensors, strict=True):
            drawn = self._outside(tensor.detach().clone(), "", user_place(), what)
            self._append(torch.ops.aten.copy_.default, ((Ref(value), Ref(drawn)), {}), (tensor,), (value,))

    def __deepcopy__(self, memo: dict[int, Any]) -> Recorder:
        return self  # a driver may copy the model with the hooks on it; there is one tape

    def knows(self, tensor: Tensor) -> bool:
        """Whether this very tensor was seen, or is a weight of the model."""
        return id(tensor) in self._known or id(tensor) in self._weights

    def value_of(self, tensor: Tensor) -> int:
        """The number of ``tensor`` on the tape; one that was never seen comes from outside."""
        if id(tensor) in self._known:
            return self._known[id(tensor)]
        name = self._weights.get(id(tensor), "")
        return self._outside(tensor, "", user_place(), f"the weight {name!r}" if name else "")

    def number(self, tensor: Tensor) -> int:
        """The number of ``tensor``, a new one for a tensor that a step just made."""
        if id(tensor) not in self._known:
            self._known[id(tensor)] = len(self.tape.values)
            self._alive.append(tensor)
            strided = tensor.layout == torch.strided
            storage = tensor.untyped_storage()._cdata if strided else -len(self._alive)
            self.tape.values.append(ValueInfo(tuple(tensor.shape), tensor.dtype, storage))
        return self._known[id(tensor)]

    def _outside(self, tensor: Tensor, name: str, place: str, what: str = "") -> int:
        value = self.number(tensor)
        self.tape.outside[value] = Outsider(name, tensor.detach().clone(), place, what)
        return value


def _written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    """The tensors that a call of ``func`` writes into."""
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = args[i] if i < len(args) else kwargs.get(argument.name)
            yield from (leaf for leaf in pytree.tree_leaves(given) if isinstance(leaf, Tensor))
