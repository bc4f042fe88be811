"""Arithmetic on sizes: each size is asked for once, of an input, and only where it is not known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx
from torch._ops import HigherOrderOperator
from torch.fx.experimental.symbolic_shapes import statically_known_true

from fxexport.ops import expression, fixed, plain_sizes
from fxexport.program import Program
from fxexport.rewrite import NodePass

aten = torch.ops.aten
RESHAPES = (aten.view.default, aten.reshape.default, aten._unsafe_view.default)
SIZED = (*RESHAPES, aten.expand.default)


@dataclass(frozen=True)
class SimplifyShapes(NodePass):
    """``sym_size(f(x), 0) -> sym_size(x, 0)``, ``(s * 4) // 4 -> s``, ``view(x, [s, 2, 8]) -> view(x, [-1, 2, 8])``.

    Sizes with one formula in the dynamic sizes become one node: the size of an input that is read anyway, where it is
    one, else the first that is computed. Sizes that are one number for every input become that number. Of the sizes asked
    of ``view`` or ``reshape`` the only dynamic one becomes -1, of ``expand`` those that the tensor has already.

    Exact: two sizes are equal only where what is known of the dynamic sizes proves it.
    """

    name: ClassVar[str] = "simplify-shapes"
    default: ClassVar[bool] = True
    repeats: ClassVar[bool] = True
    targets: ClassVar = SIZED

    def operators(self, program: Program) -> Sequence[Any]:
        """Whatever computes sizes, and whatever is given a list of them."""
        sizes = (n.target for n in program.graph.nodes if n.op == "call_function" and _is_size(n))
        return list(dict.fromkeys((*sizes, *SIZED)))

    def rewrite(self, program: Program, node: fx.Node) -> fx.Node | str | bool | None:
        """The node that stands for a size; True where arguments were made simpler."""
        if node.target in SIZED:
            return _ask_less(node)
        if not _is_size(node):
            return None
        number = fixed(node.meta["val"])
        if number is not None:
            return _put_number(program, node, number)
        if "sizes" not in self.memo:
            self.memo["sizes"] = _sizes(program)
        known: dict[Any, fx.Node] = self.memo["sizes"]
        found = known.get(expression(node.meta["val"]), node)
        return None if found is node else found


def _is_size(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool)


def _put_number(program: Program, node: fx.Node, number: int) -> bool | str | None:
    """Every reader reads ``number`` instead."""
    if any(user.op == "output" or isinstance(user.target, HigherOrderOperator) for user in node.users):
        return "it is a result, or given to a branch or loop"
    if not node.users:
        return None
    for user in list(node.users):
        user.args, user.kwargs = fx.map_arg((user.args, user.kwargs), lambda n: number if n is node else n)
    program.erase(node)
    return True


def _sizes(program: Program) -> dict[Any, fx.Node]:
    """Formula -> the node that stands for it from now on; sizes of inputs are asked for before anything else."""
    known: dict[Any, fx.Node] = {}
    for node in program.graph.nodes:
        if node.op != "output" and isinstance(node.meta.get("val"), torch.SymInt):
            known.setdefault(expression(node.meta["val"]), node)
    for formula, (source, axis) in _axes(program).items():
        node = known.get(formula)
        if node is None or node.op == "placeholder" or node.args[:2] == (source, axis):
            continue
        same = [n for n in source.users if n.target is aten.sym_size.int and n.args == (source, axis)]
        if same and min(same) < node:
            known[formula] = min(same)
        else:
            first = next(n for n in program.graph.nodes if n.op != "placeholder")
            known[formula] = program.insert(aten.sym_size.int, (source, axis), before=first, like=node)
    return known


def _axes(program: Program) -> dict[Any, tuple[fx.Node, int]]:
    """Formula -> input and axis of that size; of an input whose elements are read, where there is one."""
    found: dict[Any, tuple[fx.Node, int]] = {}
    inputs = [node for node in program.input_nodes if isinstance(node.meta["val"], Tensor)]
    is_read = {node: any(user.target is not aten.sym_size.int for user in node.users) for node in inputs}
    for node in sorted(inputs, key=lambda node: not is_read[node]):
        for axis, size in enumerate(node.meta["val"].shape):
            if isinstance(size, torch.SymInt):
                found.setdefault(expression(size), (node, axis))
    return found


def _ask_less(node: fx.Node) -> bool:
    """Puts numbers and -1 among the sizes that a call asks for; whether that changed any."""
    source, *given = node.args
    asked: list[Any] = list(given[0]) if given and isinstance(given[0], (list, tuple)) else []
    if not isinstance(source, fx.Node) or not any(isinstance(size, fx.Node) for size in asked):
        return False
    shape = node.meta["val"].shape
    known = [fixed(size) for size in shape]
    if node.target in RESHAPES:
        wanted = plain_sizes(shape) or [old if new is None else new for new, old in zip(known, asked, strict=True)]
    else:
        own = [None] * (len(shape) - source.meta["val"].dim()) + list(source.meta["val"].shape)
        kept = [old is not None and statically_known_true(old == new) for old, new in zip(own, shape, strict=True)]
        dynamic = [-1 if keeps else old for keeps, old in zip(kept, asked, strict=True)]
        wanted = [old if new is None else new for new, old in zip(known, dynamic, strict=True)]
    if all(a is b or (type(a) is int and type(b) is int and a == b) for a, b in zip(asked, wanted, strict=True)):
        return False
    node.args = (source, wanted, *given[1:])
    return True
