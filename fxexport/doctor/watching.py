"""The modes under which the private copy runs: what Python reads of tensors, and what every operator does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fxexport.doctor.observed import Log, Observed
from fxexport.doctor.places import Places
from fxexport.doctor.taint import Taint, Taints, storage_key
from fxexport.doctor.turns import Turns

aten = torch.ops.aten

# Reads that reach no operator: the memory itself is handed over.
_ARRAYS = {"numpy", "__array__", "tolist"}
_FROM_ELEMENTS = {"tensor", "as_tensor", "asarray"}
_PRINTING = {"__repr__", "__format__", "__str__"}
_SCALAR_READS = (aten._local_scalar_dense.default, aten.equal.default)
_EMPTY = {"empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided"}
# The values of the results do not depend on the values of the tensors given.
_SIZES_ONLY = _EMPTY | {"zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full"}
_SIZES_ONLY |= {"rand_like", "randn_like", "randint_like"}


class PythonReads(TorchFunctionMode):
    """Notes the calls by which Python gets at the memory of a tensor, and which call is running for :class:`Operators`."""

    def __init__(self, seen: Observed, taints: Taints, places: Places) -> None:
        super().__init__()
        self._seen, self._taints, self._places = seen, taints, places
        self.running: list[str] = []
        self.copied = Taint.NONE  # what the elements depend on that are being copied into a new tensor
        self._measuring = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(getattr(func, "__name__", func))
        outermost = not self.running and not self._measuring
        if outermost and name in _ARRAYS and isinstance(args[0], torch.Tensor):
            self._note("numpy" if name == "__array__" else name, [args[0]])
        elif outermost and name in _FROM_ELEMENTS and args and isinstance(args[0], list | tuple):
            self._note(f"torch.{name}", [t for t in pytree.tree_leaves(args[0]) if isinstance(t, torch.Tensor)])
        self.running.append(name)
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.running.pop()
            if outermost:
                self.copied = Taint.NONE

    @property
    def aside(self) -> bool:
        """Whether what runs is no part of the model: a tensor is shown as text, or measured by the doctor."""
        return self._measuring or any(name in _PRINTING for name in self.running)

    @property
    def from_python(self) -> bool:
        """Whether a tensor is being made from Python numbers."""
        return any(name in _FROM_ELEMENTS for name in self.running)

    def digest(self, tensor: torch.Tensor) -> float | None:
        """A number that is another one where the values are others, for tensors that have plain numbers."""
        if tensor.layout is not torch.strided or tensor.is_complex() or tensor.is_quantized:
            return None
        self._measuring = True
        try:
            return float(tensor.detach().double().sum())
        finally:
            self._measuring = False

    def _note(self, form: str, tensors: Sequence[torch.Tensor]) -> None:
        if tensors and not self.aside:
            for tensor in tensors:
                self.copied |= self._taints.of(tensor) or Taint.NONE
            self._seen.reads.add(form, self._places.here(), tensors[0], self.copied, self.digest(tensors[0]))


class Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows values from operator to operator, and notes what the doctor looks for."""

    def __init__(
        self,
        seen: Observed,
        taints: Taints,
        places: Places,
        reads: PythonReads,
        own: Mapping[int, tuple[Log, str]],
        fill: int,
        turns: Turns | None,
        find_nan: bool,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seen, self._taints, self._places, self._reads = seen, taints, places, reads
        self._own, self._fill, self._turns, self._find_nan = own, fill, turns, find_nan
        self._met: set[OpOverload] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._reads.aside:
            return func(*args, **(kwargs or {}))
        given = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        taint = self._taint_of(func, given)
        clean = self._find_nan and not any(map(_has_nan, given))
        result = func(*args, **(kwargs or {}))
        if func not in self._met:
            self._met.add(func)
            self._seen.operators.add(str(func), self._places.here())
        if func in _SCALAR_READS:
            self._seen.reads.add(self._form(), self._places.here(), given[0], taint, result)
            return result
        made = [t for t in pytree.tree_leaves(result) if isinstance(t, torch.Tensor)]
        self._writes(func, args, kwargs or {}, taint)
        self._results(func, made, taint)
        if clean and any(map(_has_nan, made)):
            self._seen.nan_births.add(str(func), self._places.here(), made[0])
        if self._turns is not None:
            self._turns.count(self._places.chain())
        return result

    def _form(self) -> str:
        return self._reads.running[0] if self._reads.running else "item"

    def _taint_of(self, func: OpOverload, given: Sequence[torch.Tensor]) -> Taint:
        """What the arguments depend on. Memory that nobody has seen came from outside: NumPy, mostly."""
        taint = Taint.NONE
        if func is aten.lift_fresh.default and self._reads.from_python:
            self._taints.add(given[0], self._reads.copied)
        for tensor in given:
            known = self._taints.of(tensor)
            if known is None:
                known = Taint.OUTSIDE
                self._taints.add(tensor, known)
                if tensor.dim() == 0:
                    continue  # a Python number, as PyTorch wraps it where an operator takes tensors only
                self._seen.outside.add("", self._places.here(), tensor, value=self._reads.digest(tensor))
            taint |= known
        return taint

    def _writes(self, func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any], taint: Taint) -> None:
        """In-place writes: the memory depends on what was written, and it may be an input or a buffer."""
        for position, argument in enumerate(func._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            value = kwargs.get(argument.name, args[position] if position < len(args) else None)
            for tensor in pytree.tree_leaves(value):
                if not isinstance(tensor, torch.Tensor):
                    continue
                self._taints.add(tensor, taint)
                log, name = self._own.get(storage_key(tensor) or 0, (None, ""))
                if log is not None:
                    log.add(name, self._places.here(), tensor)

    def _results(self, func: OpOverload, made: Sequence[torch.Tensor], taint: Taint) -> None:
        name = func.overloadpacket.__name__
        if name in _SIZES_ONLY:
            taint = Taint.NONE
        if torch.Tag.nondeterministic_seeded in func.tags:
            taint |= Taint.RANDOM
            self._seen.randoms.add(str(func), self._places.here(), made[0] if made else None)
        if torch.Tag.dynamic_output_shape in func.tags:
            self._seen.data_shapes.add(str(func), self._places.here(), made[0] if made else None, taint)
        for tensor in made:
            if self._taints.of(tensor) is None or taint:
                self._taints.add(tensor, taint)
        if name in _EMPTY and made and made[0].numel():
            made[0].fill_(self._fill)
            self._seen.empties.add(str(func), self._places.here(), made[0])


def _has_nan(tensor: torch.Tensor) -> bool:
    return (tensor.is_floating_point() or tensor.is_complex()) and bool(tensor.isnan().any())
