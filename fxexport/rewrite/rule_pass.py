"""``RulePass``: a pass made of rules that are tried at single calls, run by the engine to a fixed point."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch._ops import OpOverloadPacket

from fxexport.control_flow import control_flow
from fxexport.program import Program
from fxexport.rewrite.base import Pass, PassResult
from fxexport.rewrite.engine import MAX_ROUNDS, Rule, run_rules


@dataclass(frozen=True)
class RulePass(Pass):
    """A pass whose rewrites can be counted, limited and named one by one: the base of NodePass and PatternPass."""

    max_rounds: ClassVar[int] = MAX_ROUNDS
    """Rounds over the graph after which a pass that still fires is an error."""

    @abstractmethod
    def rules(self, program: Program) -> Sequence[Rule]:
        """The rules for ``program``, first come first served at calls that several of them fit."""

    def concerns(self, program: Program) -> bool:
        """False where ``program`` has no call at which some rule would be tried, so that there is nothing to run."""
        if type(self).run is not RulePass.run or control_flow(program.graph):  # what is inside is not looked through
            return True
        called = {node.target for node in program.graph.nodes if node.op == "call_function"}
        return any(not called.isdisjoint(rule.targets) for rule in self.rules(program))

    def run(self, program: Program, limit: int | None = None) -> PassResult:
        """Rewrites ``program`` in place until no rule fires, or ``limit`` rewrites were made.

        Raises PassError where the rules go round in a circle or never settle.
        """
        book = run_rules(program, self.rules(program), limit=limit, max_rounds=self.max_rounds)
        rewrites = tuple(book.rewrites)
        return PassResult(len(rewrites), (), rewrites, book.near_misses, book.near_miss_count)


def expand_targets(targets: Sequence[Any]) -> Iterator[Any]:
    """Operators as graphs call them: every overload of a packet, and of a name such as ``"aten::_grouped_mm"``.

    A name that no library has registered stands for nothing: a program cannot call it.
    """
    for target in targets:
        if isinstance(target, str):
            namespace, _, name = target.partition("::")
            target = getattr(getattr(torch.ops, namespace), name, None)
        if isinstance(target, OpOverloadPacket):
            names: list[str] = target.overloads()  # type: ignore[no-untyped-call]
            yield from (getattr(target, name) for name in names)
        elif target is not None:
            yield target
