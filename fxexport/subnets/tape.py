"""The tape of one run: calls of parts, and between them every operator, by the values they pass on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


def short(place: str) -> str:
    """``file.py:12`` without its folder: what a file that travels should say."""
    return place.rpartition("/")[2]


@dataclass(frozen=True)
class Ref:
    """In the recorded arguments of an operator: the tensor with this number on the tape."""

    value: int


@dataclass(frozen=True)
class Outsider:
    """A tensor that no recorded step made: an argument of the driver (``name``), a weight, a constant, random numbers.

    ``tensor`` is its content when it was first seen, ``place`` the ``file:line`` where that was.
    """

    name: str
    tensor: Tensor = field(repr=False)
    place: str
    what: str = ""


@dataclass(frozen=True)
class Operator:
    """One operator between the parts, to be executed again: arguments with ``Ref`` in place of tensors.

    ``outputs`` are the values of the tensors among its results, ``written`` those it wrote into. ``number`` is the
    result of an operator that handed a number to Python (``.item()``), whose decisions a tape cannot take again.
    """

    step: int
    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[int, ...]
    written: tuple[int, ...]
    place: str
    number: Any = None

    def __str__(self) -> str:
        return f"{short(self.place)} ({self.func._schema.name.removeprefix('aten::')})"


@dataclass(frozen=True)
class Leaf:
    """One tensor that went into or came out of a part: where it sits, its number on the tape, and its content."""

    path: str
    value: int
    tensor: Tensor = field(repr=False)


@dataclass(frozen=True)
class RecordedCall:
    """One call of a part. Tensors in ``args``, ``kwargs`` and ``result`` are copies made at that moment.

    ``inputs`` and ``outputs`` have the tensor leaves by path: ``states[0]``, ``output['logits']``. ``number`` counts
    the calls of this part in its run, from 1.
    """

    part: str
    number: int
    step: int
    args: tuple[Any, ...] = field(repr=False)
    kwargs: dict[str, Any] = field(repr=False)
    result: Any = field(repr=False)
    inputs: dict[str, Leaf]
    outputs: dict[str, Leaf]
    place: str

    @property
    def label(self) -> str:
        """``call 3 of decoder_joint``."""
        return f"call {self.number} of {self.part}"


@dataclass(frozen=True)
class ValueInfo:
    """Shape, dtype and memory of a value; values that share ``storage`` are views of one tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    storage: int


Maker = Operator | RecordedCall


@dataclass
class Tape:
    """What one run of the driver did, in order.

    Attributes:
        label: ``run 1``.
        steps: operators and calls of parts; ``steps[i].step == i``.
        values: facts about each value, by its number.
        outside: the values that no step made.
        makers: value -> the step that made it.
        writes: storage -> steps that wrote into it.
        result: the tensors that the driver returned, by path.
        notes: what the reader should know of this run.
    """

    label: str
    steps: list[Maker] = field(default_factory=list)
    values: list[ValueInfo] = field(default_factory=list)
    outside: dict[int, Outsider] = field(default_factory=dict)
    makers: dict[int, Maker] = field(default_factory=dict)
    writes: dict[int, list[int]] = field(default_factory=dict)
    result: list[Leaf] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def calls(self, part: str | None = None) -> list[RecordedCall]:
        """The calls of one part, or of all, in order."""
        return [step for step in self.steps if isinstance(step, RecordedCall) and part in (None, step.part)]

    def operators(self) -> Iterator[Operator]:
        """The operators between the parts, in order."""
        return (step for step in self.steps if isinstance(step, Operator))

    def made_at(self, value: int) -> int:
        """The step that made ``value``; -1 where it comes from outside."""
        maker = self.makers.get(value)
        return -1 if maker is None else maker.step

    def last_write(self, value: int, before: int) -> Operator | None:
        """The last operator before step ``before`` that changed the content of ``value`` after it was made."""
        made = self.made_at(value)
        late = [step for step in self.writes.get(self.values[value].storage, ()) if made < step < before]
        found = self.steps[late[-1]] if late else None
        assert found is None or isinstance(found, Operator)
        return found
