"""``Pass``: one rewrite of a ``Program``. Subclass it as a frozen dataclass; fields are its options."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import fx

from fxexport.program import Program


@dataclass(frozen=True)
class PassResult:
    """What a pass did: how many places it rewrote, and notes for the report (what it left alone, and why)."""

    count: int
    notes: tuple[str, ...] = ()

    @property
    def modified(self) -> bool:
        """Whether the program changed."""
        return self.count > 0


@dataclass(frozen=True)
class Pass(ABC):
    """A rewrite that may assume a valid program and must leave one; the manager verifies, the pass does not
    have to.

    ``name`` is the command-line spelling (``fold-batchnorm``), dataclass fields are the options
    (``fold-batchnorm{into_next=false}``), and the docstring draws the rewrite and says when it is exact.
    ``default`` says whether a pass of the built-in library is part of the default pipeline; a pass from
    elsewhere runs only where it is named.
    """

    name: ClassVar[str]
    default: ClassVar[bool] = False

    @abstractmethod
    def run(self, program: Program) -> PassResult:
        """Rewrites ``program`` in place and returns how many places changed."""

    @classmethod
    def option_names(cls) -> list[str]:
        """The names of the options, in order."""
        return [f.name for f in fields(cls)]

    def __str__(self) -> str:
        options = [f"{f.name}={getattr(self, f.name)}" for f in fields(self) if getattr(self, f.name) != f.default]
        return self.name + (f"{{{','.join(options)}}}" if options else "")


def arguments(node: fx.Node) -> dict[str, Any]:
    """Every argument of an ATen call by its name in the operator's schema, in order, defaults filled in.

    Raises TypeError when the node does not call an ``OpOverload`` (an operator with a schema).
    """
    if not isinstance(node.target, torch._ops.OpOverload):
        raise TypeError(f"{node.name} calls {node.target}, which has no operator schema")
    found: dict[str, Any] = {}
    for position, argument in enumerate(node.target._schema.arguments):
        if position < len(node.args) and not argument.kwarg_only:
            found[argument.name] = node.args[position]
        else:
            found[argument.name] = node.kwargs.get(argument.name, _default(argument))
    return found


_MEMORY_FORMATS = (
    torch.contiguous_format,
    torch.preserve_format,
    torch.channels_last,
    torch.channels_last_3d,
)


def _default(argument: torch.Argument) -> Any:
    """Schemas give a default memory format as its number in C++."""
    value = argument.default_value
    is_format = str(argument.type) == "MemoryFormat" or str(argument.real_type) == "MemoryFormat"
    return _MEMORY_FORMATS[value] if is_format and value is not None else value
