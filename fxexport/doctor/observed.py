"""What one eager run shows: values read into Python, writes, random operators, loops."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch

from fxexport.capture.source_tree import Loop
from fxexport.doctor.places import Site
from fxexport.doctor.taint import Taint
from fxexport.signature import dtype_name

_KEPT = 8  # values kept for one place


def describe_tensor(tensor: torch.Tensor) -> str:
    """``"float32[2, 3]"``."""
    return f"{dtype_name(tensor.dtype)}[{', '.join(map(str, tensor.shape))}]"


@dataclass
class Seen:
    """One kind of event at one line, however often it happened.

    Attributes:
        form: the method or operator: ``"__bool__"``, ``"item"``, ``"numpy"``, ``"aten.rand.default"``, the buffer written.
        tensor: the tensor of the first time, ``values`` what was read: of scalars the number, else nothing.
    """

    form: str
    site: Site | None
    modules: list[str] = field(default_factory=list)
    tensor: str = ""
    taint: Taint = Taint.NONE
    values: list[Any] = field(default_factory=list)
    count: int = 0

    def happens(self, module: str, taint: Taint = Taint.NONE, value: Any = None) -> None:
        """Once more."""
        self.count += 1
        self.taint |= taint
        if module not in self.modules:
            self.modules.append(module)
        if value is not None and value not in self.values and len(self.values) < _KEPT:
            self.values.append(value)


class Log:
    """Events of one sort, by line and form, in the order in which they were first seen."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, Site | None], Seen] = {}

    def add(
        self,
        form: str,
        place: tuple[Site | None, str],
        tensor: torch.Tensor | None = None,
        taint: Taint = Taint.NONE,
        value: Any = None,
    ) -> None:
        """One event; ``place`` is what ``Places.here`` gives."""
        site, module = place
        seen = self._seen.get((form, site))
        if seen is None:
            shown = "" if tensor is None else describe_tensor(tensor)
            seen = self._seen[form, site] = Seen(form, site, tensor=shown)
        seen.happens(module, taint, value)

    def get(self, form: str, site: Site | None) -> Seen | None:
        """What was seen of ``form`` at ``site``."""
        return self._seen.get((form, site))

    def __iter__(self) -> Any:
        return iter(self._seen.values())

    def __len__(self) -> int:
        return len(self._seen)


@dataclass
class Observed:
    """Everything that was seen while the model ran once.

    Attributes:
        reads: values of tensors that Python got to see: decisions, numbers, arrays.
        outside: tensors whose memory was not made by PyTorch, at their first use.
        input_writes: in-place writes into an input, ``buffer_writes`` into a buffer (``form`` is its name).
        randoms, empties, data_shapes: operators that draw random numbers, give memory without values, or give results
            whose shape depends on data.
        functions: classes derived from ``torch.autograd.Function`` that were applied.
        operators: every operator that ran, where it ran first.
        nan_births: operators that made a NaN of arguments without any; looked for only where asked.
        turns: how often each loop went round, at most, each time it was reached.
        changed_inputs, changed_buffers: places in the flat inputs, and names, whose values are others afterwards.
        outputs, result: the tensors that were returned, and all of it, nested.
        error: what the model raised, None where it ran to its end.
    """

    reads: Log = field(default_factory=Log)
    outside: Log = field(default_factory=Log)
    input_writes: Log = field(default_factory=Log)
    buffer_writes: Log = field(default_factory=Log)
    randoms: Log = field(default_factory=Log)
    empties: Log = field(default_factory=Log)
    data_shapes: Log = field(default_factory=Log)
    functions: Log = field(default_factory=Log)
    operators: Log = field(default_factory=Log)
    nan_births: Log = field(default_factory=Log)
    turns: dict[Loop, int] = field(default_factory=lambda: defaultdict(int))
    changed_inputs: list[int] = field(default_factory=list)
    changed_buffers: list[str] = field(default_factory=list)
    outputs: tuple[torch.Tensor, ...] = ()
    result: Any = None
    error: Exception | None = None

    @property
    def ended(self) -> bool:
        """Whether the model returned; that no artifact can hold its result is another matter."""
        return self.error is None or self.result is not None
