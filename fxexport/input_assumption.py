"""What the user guarantees of the values of an input: ``assume={"length": "full"}``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

Says = Literal["full", "ones", "zeros"]
SAYS: tuple[str, ...] = get_args(Says)


@dataclass(frozen=True)
class InputAssumption:
    """The values that an input has whenever the artifact is called.

    Attributes:
        input: its name.
        says: ``ones``, ``zeros`` (of a mask, any dtype), or ``full``: every element is the size of ``axis``.
        axis: name of the input and position of the axis whose size ``full`` lengths have.
    """

    input: str
    says: Says
    axis: tuple[str, int] | None = None

    def __str__(self) -> str:
        if self.says != "full":
            return f"{self.input!r} is assumed to be all {self.says}"
        where = f" of {self.axis[0]!r}" if self.axis else ""
        return f"{self.input!r} is assumed to be full: as long as axis {self.axis[1] if self.axis else '?'}{where}"

    def to_json(self) -> dict[str, Any]:
        """A JSON object that :meth:`from_json` reads back."""
        return {"input": self.input, "says": self.says, "axis": list(self.axis) if self.axis else None}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> InputAssumption:
        """The inverse of :meth:`to_json`."""
        axis = data["axis"]
        return InputAssumption(data["input"], data["says"], (axis[0], axis[1]) if axis else None)


def met(
    assumptions: Sequence[InputAssumption], names: Sequence[str], tensors: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    """``tensors``, of the inputs ``names``, with the values that the ``assumptions`` say; the others as they are."""
    given = dict(zip(names, tensors, strict=True))
    for each in assumptions:
        value = {"ones": 1, "zeros": 0}.get(each.says)
        if value is None:
            assert each.axis is not None, "the axis of full lengths is known once they are bound"
            value = given[each.axis[0]].shape[each.axis[1]]
        given[each.input] = torch.full_like(given[each.input], value)
    return tuple(given[name] for name in names)
