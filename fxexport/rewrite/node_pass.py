"""``NodePass``: a rewrite of single calls, found by their operator."""

from __future__ import annotations

import operator
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from fxexport.errors import PassError
from fxexport.program import Program
from fxexport.rewrite.engine import Book, Rule
from fxexport.rewrite.ledger import whereabouts
from fxexport.rewrite.rule_pass import RulePass, expand_targets


@dataclass(frozen=True)
class NodePass(RulePass):
    """A rewrite of every call of ``targets``: operators, packets (all overloads), or names (``"aten::_grouped_mm"``).

    Example::

        @dataclass(frozen=True)
        class RemoveDoubleNegation(NodePass):
            \"\"\"``neg(neg(x)) -> x``: exact.\"\"\"

            name = "remove-double-negation"
            targets = (torch.ops.aten.neg.default,)

            def rewrite(self, program, node):
                inner = node.args[0]
                return inner.args[0] if inner.target == torch.ops.aten.neg.default else None
    """

    targets: ClassVar[tuple[Any, ...]]

    @abstractmethod
    def rewrite(self, program: Program, node: fx.Node) -> fx.Node | str | bool | None:
        """What becomes of one call.

        Returns the node that stands for it from now on (what only the old one read is erased; of a call with several
        results it stands for ``first_result``); True where the edits were made here; a reason (str) why a call that
        looks right is left alone, for the ledger; None or False where there is nothing to do.
        """

    def operators(self, program: Program) -> Sequence[Any]:
        """What ``rewrite`` is tried at, in the form of ``targets``; for a pass that is not about certain operators."""
        return self.targets

    @cached_property
    def memo(self) -> dict[Any, Any]:
        """For ``rewrite``: what it found or made and will want again in this run. Each run starts with an empty one."""
        return {}

    def constant(self, program: Program, name: str, value: Tensor) -> fx.Node:
        """``program.add_constant``; an equal constant that this run added under the same name stands for this one too."""
        same = self.memo.setdefault((name, value.dtype, value.device), [])
        node = next((made for other, made in same if torch.equal(other, value)), None)
        if node is None:
            node = program.add_constant(name, value)
            same.append((value, node))
        return node

    def rules(self, program: Program) -> Sequence[Rule]:
        """This pass, as one rule: a copy of it for each run, with a memo of its own."""
        return [_NodeRule(replace(self), tuple(expand_targets(self.operators(program))))]


@dataclass(frozen=True)
class _NodeRule:
    owner: NodePass
    targets: tuple[Any, ...]

    @property
    def label(self) -> str:
        return self.owner.name

    @property
    def tier(self) -> int:
        return 0

    def attempt(self, program: Program, node: fx.Node, book: Book) -> bool:
        known = len(program.made)
        answer = self.owner.rewrite(program, node)
        made = [new.name for new in program.made[known:] if not new._erased]
        if isinstance(answer, str):
            book.missed(self.label, node, 1, 1, answer)
            return False
        if isinstance(answer, fx.Node):
            operands = list(node.all_input_nodes)
            _put(program, node, answer)
            erase_unread(program, operands)
            book.rewrote(self.label, node, [node], made, whereabouts(node))
            return True
        if not isinstance(answer, bool | None):
            raise PassError(f"rewrite() returned {type(answer).__name__}; return a node, a reason, True, or None")
        if answer:
            book.rewrote(self.label, node, [node], made, whereabouts(node))
        return bool(answer)


def first_result(node: fx.Node) -> fx.Node | None:
    """What the readers of a call read: itself, or of several results the first; None where they read others as well."""
    if not isinstance(node.meta["val"], (tuple, list)):
        return node
    parts = [user for user in node.users if user.target is operator.getitem]
    first = [part for part in parts if part.args[1] == 0]
    others_read = len(parts) < len(node.users) or any(part.users for part in parts if part not in first)
    return first[0] if len(first) == 1 and not others_read else None


def _put(program: Program, node: fx.Node, answer: fx.Node) -> None:
    """``answer`` for ``node``, or a tensor for the first result of a call with several."""
    if isinstance(answer.meta["val"], (tuple, list)):
        return program.replace(node, answer)
    result = first_result(node)
    if result is None:
        raise PassError(
            f"rewrite() returned {answer.name} for {node.name}, of which more than the first result is read"
        )
    program.replace(result, answer)
    if result is not node:
        for part in [*node.users, node]:  # erase_unread would keep a call that draws random numbers
            program.graph.erase_node(part)


def erase_unread(program: Program, nodes: Sequence[fx.Node]) -> None:
    """Erases those of ``nodes`` that nothing reads, and what only they read: calls only, and none with an effect."""
    todo = list(nodes)
    while todo:
        node = todo.pop()
        if node._erased or node.op != "call_function" or node.users or node.is_impure():
            continue
        operands = list(node.all_input_nodes)
        program.graph.erase_node(node)
        todo += operands
