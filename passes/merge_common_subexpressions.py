"""What is computed twice is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from fxexport.ops import is_pure, same_sizes
from fxexport.program import Program
from fxexport.rewrite import NodePass, arguments


@dataclass(frozen=True)
class MergeCommonSubexpressions(NodePass):
    """``f(x, 2), f(x, 2) -> y, y`` with ``y = f(x, 2)``, for equal operators, operands and literals.

    Exact: only for calls that give the same for the same arguments. Those that draw random numbers, raise, write, read
    memory nobody filled, find unknown sizes (``nonzero``) or belong to other libraries stay. Branches are merged each on
    their own, so nothing is computed that was not.
    """

    name: ClassVar[str] = "merge-common-subexpressions"
    default: ClassVar[bool] = True
    repeats: ClassVar[bool] = True
    targets: ClassVar = ()

    def operators(self, program: Program) -> Sequence[Any]:
        """Those that are called more than once."""
        seen: dict[Any, int] = {}
        for node in program.graph.nodes:
            if node.op == "call_function":
                seen[node.target] = seen.get(node.target, 0) + 1
        return [target for target, count in seen.items() if count > 1]

    def rewrite(self, program: Program, node: fx.Node) -> fx.Node | str | None:
        """The first call that computes the same."""
        if node.meta["val"] is None:  # assertions
            return None
        first = self.memo.setdefault(_key(node), node)
        if first is node:
            return None
        if not is_pure(node):
            return "it does not give the same each time, or does more than to compute"
        if not _same_form(first.meta["val"], node.meta["val"]):
            return "its size is unknown before it is computed"
        return first  # type: ignore[no-any-return]


def _key(node: fx.Node) -> Any:
    if isinstance(node.target, OpOverload):
        return node.target, tuple((name, _sign(value)) for name, value in arguments(node).items())
    return node.target, _sign(node.args), tuple((name, _sign(value)) for name, value in sorted(node.kwargs.items()))


def _sign(value: Any) -> Any:
    """A key for one argument: 1, 1.0 and True differ, and so do 0.0 and -0.0."""
    if isinstance(value, (list, tuple)):
        return tuple(map(_sign, value))
    if isinstance(value, slice):
        return slice, _sign((value.start, value.stop, value.step))
    return (type(value), value.hex() if isinstance(value, float) else value)


def _same_form(a: Any, b: Any) -> bool:
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_same_form, a, b))
    if isinstance(a, Tensor):
        return same_sizes(a.shape, b.shape)
    return not isinstance(a, (int, torch.SymInt)) or same_sizes([a], [b])
