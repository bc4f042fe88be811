"""Symbolic sizes that a squeeze must not find to be 1.

``x.squeeze(0)`` leaves an axis of another size as it is, so a graph captured at size 2 has one axis more than eager at
size 1. The graph holds from size 2.
"""

from __future__ import annotations

from typing import Any

import sympy
import torch
from torch import fx
from torch.export import ExportedProgram

from fxexport.program import source_line

aten = torch.ops.aten


def squeezed_sizes(exported: ExportedProgram) -> dict[sympy.Symbol, str]:
    """Symbol -> ``file:line`` of a squeeze of an axis that has this size."""
    found: dict[sympy.Symbol, str] = {}
    for target in (aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default):
        for node in exported.graph.find_nodes(op="call_function", target=target):
            for size in _asked(node):
                expression = sympy.sympify(size.node.expr)
                if expression.is_Symbol:
                    found.setdefault(expression, source_line(node))
    return found


def _asked(node: fx.Node) -> list[torch.SymInt]:
    """The symbolic sizes among those that would go if they were 1."""
    source: Any = node.args[0]
    shape = source.meta["val"].shape
    dims: Any = node.args[1] if len(node.args) > 1 else range(len(shape))
    chosen = [shape[dim] for dim in ([dims] if isinstance(dims, int) else dims)]
    return [size for size in chosen if isinstance(size, torch.SymInt)]
