"""What a call does besides computing its result: what a pass must know before it computes it earlier, once, or elsewhere."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from fxexport.program import Program

aten = torch.ops.aten
_OURS = ("aten", "prims")
_UNSET = ("empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided")
_VIEWS_OF_MEMORY = (aten.as_strided.default, aten.view.dtype, aten.view_as_complex.default, aten.sym_stride.int)


def is_pure(node: fx.Node) -> bool:
    """Whether a call always gives the same result for the same arguments, and does nothing else.

    False for what draws random numbers, asserts, writes, reads memory that nobody filled, runs a graph, or belongs to a
    library of somebody else, of which nothing is known.
    """
    target = node.target
    if target is operator.getitem:
        return True
    if not isinstance(target, OpOverload) or target.namespace not in _OURS or target._schema.is_mutable:
        return False
    if torch.Tag.nondeterministic_seeded in target.tags or target._opname in _UNSET:
        return False
    return not node.is_impure() and not _trains(node)


def _trains(node: fx.Node) -> bool:
    """Batch normalization that may move its running statistics."""
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    if "running_mean" not in names or not {"training", "train", "use_input_stats"} & set(names):
        return False
    given: dict[str, Any] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    return any(given.get(name) is not False for name in ("training", "train", "use_input_stats") if name in names)


def looks_at_memory(program: Program) -> bool:
    """Whether some call may compute something else for other strides of the same tensor (``as_strided``, own operators)."""
    return any(map(_sees_memory, program.graph.nodes))


def _sees_memory(node: fx.Node) -> bool:
    own = isinstance(node.target, OpOverload) and node.target.namespace not in (*_OURS, "fxexport")
    return node.target in _VIEWS_OF_MEMORY or own
