"""Of several reshapes in a row one is enough, and none where the shape comes back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from fxexport.ops import RESHAPES, is_reshape, looks_at_memory, plain_sizes, same_sizes
from fxexport.program import Program
from fxexport.rewrite import NodePass, arguments

aten = torch.ops.aten
SIZED = (aten.view.default, aten.reshape.default, aten._unsafe_view.default)


@dataclass(frozen=True)
class CancelReshapes(NodePass):
    """``reshape(reshape(x)) -> reshape(x)`` or ``x``; ``expand(expand(x)) -> expand(x)``.

    For ``view``, ``reshape``, ``flatten``, ``unflatten``, ``squeeze`` and ``unsqueeze`` in any mixture; with dynamic sizes
    where it is proved that the shapes are equal, or the last call says its sizes, or at most one of them is dynamic.

    Exact: the elements stay in their order. Programs that look at strides or memory are left alone.
    """

    name: ClassVar[str] = "cancel-reshapes"
    default: ClassVar[bool] = True
    repeats: ClassVar[bool] = True
    targets: ClassVar = (*RESHAPES, aten.expand.default)

    def rewrite(self, program: Program, node: fx.Node) -> fx.Node | str | None:
        """The one call that does the same, or what both are applied to."""
        inner: Any = node.args[0]
        expands = node.target is aten.expand.default
        if not (inner.target is aten.expand.default if expands else is_reshape(inner)):
            return None
        source: fx.Node = inner.args[0]
        if not isinstance(source.meta["val"], Tensor):
            return None
        if "memory" not in self.memo:
            self.memo["memory"] = looks_at_memory(program)
        if self.memo["memory"]:
            return "the program looks at strides or memory"
        if same_sizes(source.meta["val"].shape, node.meta["val"].shape):
            return source
        if len(inner.users) > 1:
            return f"{inner.name} is read elsewhere, so nothing would be saved"
        if expands:
            sizes = _together(arguments(inner)["size"], arguments(node)["size"])
            return program.insert(aten.expand.default, (source, sizes), before=node)
        asked: Any = list(arguments(node).values())[1] if node.target in SIZED else plain_sizes(node.meta["val"].shape)
        if asked is None:
            return "its shape has several dynamic sizes, which would have to be computed"
        return program.insert(aten.reshape.default, (source, list(asked)), before=node)


def _together(inner: list[Any], outer: list[Any]) -> list[Any]:
    """The sizes that two ``expand`` ask for as one: -1 keeps what the first one made."""
    first = [*outer[: len(outer) - len(inner)], *inner]
    keeps = [isinstance(size, int) and size == -1 for size in outer]
    return [old if kept else new for old, new, kept in zip(first, outer, keeps, strict=True)]
