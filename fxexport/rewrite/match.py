"""``Match``: where a pattern was found, and what its arguments are bound to."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxexport.program import Program, module_path, source_line
from fxexport.rewrite.calls import seen_through


class Match:
    """A place where a pattern fits; what ``PatternPass.check`` decides on.

    Attributes:
        label: the pass, and which of its patterns: ``"fuse-gelu/erf"``.
        program: the program it is part of; read it, do not edit it.
        nodes: the calls matched, in the order of the pattern; ``outputs`` are those that will be replaced.
        arguments: name of each argument of the pattern -> node, list of nodes, or literal it is bound to.
    """

    def __init__(
        self,
        label: str,
        program: Program,
        nodes: tuple[fx.Node, ...],
        outputs: tuple[fx.Node, ...],
        arguments: dict[str, Any],
    ) -> None:
        self.label = label
        self.program = program
        self.nodes = nodes
        self.outputs = outputs
        self.arguments = arguments

    def __getitem__(self, name: str) -> Any:
        """What argument ``name`` is bound to: a node, a list of nodes, a literal, or None. Raises KeyError."""
        return self.arguments[name]

    @property
    def root(self) -> fx.Node:
        """The last call that will be replaced."""
        return max(self.outputs)

    def value(self, name: str) -> Any:
        """The dtype and (symbolic) shape of a tensor argument as a fake tensor; of a size, its symbolic value."""
        found = self.arguments[name]
        return found.meta["val"] if isinstance(found, fx.Node) else found

    def shape(self, name: str) -> torch.Size:
        """The shape of a tensor argument; dynamic sizes are symbolic."""
        shape: torch.Size = self.value(name).shape
        return shape

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of a tensor argument."""
        dtype: torch.dtype = self.value(name).dtype
        return dtype

    def constant(self, name: str) -> torch.Tensor | None:
        """The tensor behind an argument that is a parameter, buffer or constant, else None. Never write into it."""
        return self.program.constant_value(seen_through(self.arguments[name]))

    def users(self, name: str) -> list[fx.Node]:
        """The calls outside the match that read a tensor argument as well."""
        return [user for user in self.arguments[name].users if user not in self.nodes]

    @property
    def module_path(self) -> str:
        """The path of the user's module that made the root: ``"encoder.layer.0"``."""
        return module_path(self.root)

    @property
    def source_line(self) -> str:
        """``file:line`` of the user's code that made the root."""
        return source_line(self.root)

    def __repr__(self) -> str:
        bound = ", ".join(f"{name}={value}" for name, value in self.arguments.items())
        return f"Match({self.root.name} in {self.module_path or 'the model'}: {bound})"
