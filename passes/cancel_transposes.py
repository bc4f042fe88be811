"""Transposes that undo each other go, also across what is computed element by element between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from fxexport.ops import PERMUTATIONS, is_pure, looks_at_memory, order_of
from fxexport.program import Program
from fxexport.rewrite import NodePass

aten = torch.ops.aten
CASTS = (aten.to.dtype, aten._to_copy.default)
DEPTH = 16


@dataclass(frozen=True)
class CancelTransposes(NodePass):
    """``permute(permute(x)) -> permute(x)`` or ``x``; ``permute'(f(permute(x), 2)) -> f(x, 2)`` for elementwise ``f``.

    For ``permute``, ``transpose``, ``t``, ``movedim``..., and any tree of up to 16 elementwise calls that nothing else
    reads, all of whose tensors are permuted by the inverse or are single numbers.

    Exact: only the order in memory changes, and programs that look at it (``as_strided``, own operators) are left alone.
    """

    name: ClassVar[str] = "cancel-transposes"
    default: ClassVar[bool] = True
    repeats: ClassVar[bool] = True
    targets: ClassVar = PERMUTATIONS

    def rewrite(self, program: Program, node: fx.Node) -> fx.Node | str | None:
        """What is under two transposes, or the elementwise calls on it."""
        outer, source = order_of(node), node.args[0]
        if outer is None or not isinstance(source, fx.Node) or source.op != "call_function":
            return None
        inner = order_of(source)
        if inner is None and not _is_elementwise(source):
            return None
        if "memory" not in self.memo:
            self.memo["memory"] = looks_at_memory(program)
        if self.memo["memory"]:
            return "the program looks at strides or memory"
        if inner is not None:
            return self._combine(program, node, [inner[axis] for axis in outer])
        tree: list[fx.Node] = []
        why = _collect(source, outer, node, tree)
        return why if why else _rebuild(program, node, tree)

    def _combine(self, program: Program, node: fx.Node, order: list[int]) -> fx.Node | str:
        inner: Any = node.args[0]
        if order == sorted(order):
            return inner.args[0]  # type: ignore[no-any-return]
        if len(inner.users) > 1:
            return f"{inner.name} is read elsewhere, so nothing would be saved"
        return program.insert(aten.permute.default, (inner.args[0], order), before=node, like=inner)


def _is_elementwise(node: fx.Node) -> bool:
    """Whether each element of the result depends on the elements in its place alone, whatever the order of axes."""
    if not isinstance(node.target, OpOverload) or not is_pure(node):
        return False
    plain = node.target in CASTS and node.kwargs.get("memory_format") in (None, torch.preserve_format)
    return (plain or torch.Tag.pointwise in node.target.tags) and isinstance(node.meta["val"], Tensor)


def _collect(node: fx.Node, outer: list[int], reader: fx.Node, tree: list[fx.Node]) -> str:
    """Puts the elementwise calls from ``node`` upwards into ``tree``, last first; or says why ``outer`` does not cancel."""
    rank = node.meta["val"].dim()
    if list(node.users) != [reader]:
        return f"{node.name}, between the two, is read elsewhere"
    if len(tree) == DEPTH:
        return f"more than {DEPTH} calls are between the two"
    tree.append(node)
    cancelled = False
    for operand in node.all_input_nodes:
        value, inner = operand.meta["val"], order_of(operand)
        if not isinstance(value, Tensor) or value.dim() == 0 or operand in tree:
            continue
        if value.dim() != rank:
            return f"{operand.name} has another rank"
        if inner is not None and [inner[axis] for axis in outer] == list(range(rank)):
            cancelled = True
        elif all(isinstance(size, int) and size == 1 for size in value.shape):
            continue
        elif not _is_elementwise(operand):
            return f"{operand.name} is not transposed back"
        elif why := _collect(operand, outer, node, tree):
            return why
        else:
            cancelled = True
    return "" if cancelled else "none of its operands is transposed"


def _rebuild(program: Program, node: fx.Node, tree: list[fx.Node]) -> fx.Node:
    """The calls of ``tree`` on what is under the transposes, before ``node``; the last of them."""
    made: dict[fx.Node, fx.Node] = {}

    def under(operand: fx.Node) -> fx.Node:
        inner: Any = operand.args[0] if order_of(operand) is not None else operand
        node_under: fx.Node = made.get(operand, inner)
        return node_under

    for old in sorted(tree):
        args, kwargs = fx.map_arg((old.args, old.kwargs), under)
        assert callable(old.target)
        made[old] = program.insert(old.target, args, kwargs, before=node, like=old)
    return made[tree[0]]
