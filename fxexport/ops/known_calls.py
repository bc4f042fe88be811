"""Calls whose result is known when the file is made: they depend on weights, constants and numbers alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from fxexport.errors import PassError
from fxexport.ops.purity import is_pure
from fxexport.program import Program

aten = torch.ops.aten
_FILLED = (aten.new_ones.default, aten.new_zeros.default, aten.new_full.default)
_LIKE = (aten.ones_like.default, aten.zeros_like.default, aten.full_like.default)
WORK = 2**28
"""Bytes that a result in between may have at most, where it is larger than all it is computed from."""


class KnownCalls:
    """The calls of a program that depend on constants alone, and their values, computed when they are asked for.

    ``new_ones(x, size)`` and ``zeros_like(x)`` are among them where the size is fixed: of ``x`` they read dtype and shape.

    Attributes:
        roots: known call or constant -> the constants it is computed from.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.roots: dict[fx.Node, frozenset[fx.Node]] = {}
        self._values: dict[fx.Node, Any] = {}
        for node in program.graph.nodes:
            if node.op == "placeholder":
                value = program.constant_value(node)
                if value is not None and value.layout == torch.strided and not value.is_quantized:
                    self.roots[node] = frozenset((node,))
            elif node.op == "call_function" and self._is_known(node):
                sources = [self.roots[each] for each in node.all_input_nodes if each in self.roots]
                found = frozenset[fx.Node]().union(*sources)
                if nbytes(node.meta["val"]) <= max(WORK, sum(nbytes(root.meta["val"]) for root in found)):
                    self.roots[node] = found

    def _is_known(self, node: fx.Node) -> bool:
        needed = [each for each in node.all_input_nodes if each not in self.roots]
        if needed and not (len(needed) == 1 and needed[0] is node.args[0] and _reads_shape_only(node)):
            return False
        values = node.meta["val"] if isinstance(node.meta["val"], (tuple, list)) else [node.meta["val"]]
        fit = all(_is_fixed(each) for each in values if isinstance(each, Tensor))
        return fit and any(isinstance(each, Tensor) for each in values) and is_pure(node)

    def value(self, node: fx.Node) -> Any:
        """What a known call gives in eager PyTorch.

        Raises what the operators raise, and PassError where an operand was replaced without ``put``.
        """
        todo = [node]
        while todo:
            top = todo[-1]
            missing = [each for each in top.all_input_nodes if each in self.roots and each not in self._values]
            if missing:
                todo += missing
                continue
            todo.pop()
            if top not in self._values:
                self._values[top] = self._compute(top)
        return self._values[node]

    def put(self, node: fx.Node, value: Tensor, roots: frozenset[fx.Node]) -> None:
        """A constant that stands in the graph for a known call from now on, so that later calls read it."""
        self.roots[node] = roots
        self._values[node] = value

    def _compute(self, node: fx.Node) -> Any:
        constant = self.program.constant_value(node)
        if constant is not None:
            return constant
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: self._operand(n, node))
        assert callable(node.target)
        with torch.no_grad():
            return node.target(*args, **kwargs)

    def _operand(self, node: fx.Node, reader: fx.Node) -> Any:
        if node in self._values:
            return self._values[node]
        if not (node is reader.args[0] and _reads_shape_only(reader)):
            raise PassError(f"{reader.name} was taken for known, but reads {node.name}, which is not")
        like: Tensor = node.meta["val"]
        shape = like.shape if reader.target in _LIKE else (0,)
        return torch.empty(shape, dtype=like.dtype, device=like.device)


def _reads_shape_only(node: fx.Node) -> bool:
    value = node.args[0].meta["val"] if node.args and isinstance(node.args[0], fx.Node) else None
    return isinstance(value, Tensor) and (node.target in _FILLED or (node.target in _LIKE and _is_fixed(value)))


def _is_fixed(value: Tensor) -> bool:
    return value.layout == torch.strided and all(isinstance(size, int) for size in value.shape)


def nbytes(value: Any) -> int:
    """Bytes of the elements of a tensor of fixed size, or of several."""
    if isinstance(value, (tuple, list)):
        return sum(map(nbytes, value))
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0
