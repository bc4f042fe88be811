"""Two passes that make one SiLU out of its spellings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fxexport.program import Program
from fxexport.rewrite import Match, Pass, PassResult, PatternPass, arguments

aten = torch.ops.aten


@dataclass(frozen=True)
class ReplaceLogistic(Pass):
    """``a / (1 + exp(-x)) -> a * sigmoid(x)``

    Exact up to rounding, also where ``exp(-x)`` overflows: both sides are then zero.
    """

    name = "sample-replace-logistic"
    after = ("remove-noops",)  # copies in between would hide the pattern
    before = ("sample-fuse-silu",)  # which looks for the sigmoid

    def run(self, program: Program) -> PassResult:
        """Rewrites every such division."""
        count = 0
        for node in program.find(aten.div.Tensor):
            above, below = node.args
            x = logistic_of(below)
            if x is None:
                continue
            sigmoid = program.insert(aten.sigmoid.default, (x,), before=node)
            program.replace(node, program.insert(aten.mul.Tensor, (above, sigmoid), before=node))
            count += 1
        return PassResult(count)


def logistic_of(node: Any) -> fx.Node | None:
    """``x`` where ``node`` is ``1 + exp(-x)``, else None."""
    total = call_of(node, aten.add.Tensor)
    if total is None or total["other"] != 1 or total["alpha"] != 1:
        return None
    power = call_of(total["self"], aten.exp.default)
    negation = call_of(power["self"], aten.neg.default) if power else None
    return negation["self"] if negation else None


def call_of(node: Any, target: Any) -> dict[str, Any] | None:
    """The arguments of ``node`` where it is a call of ``target``, else None."""
    return arguments(node) if isinstance(node, fx.Node) and node.target == target else None


@dataclass(frozen=True)
class FuseSilu(PatternPass):
    """``x * sigmoid(x) -> silu(x)``

    Exact up to rounding. ``skip`` are paths of modules to leave alone, with what is inside them.
    """

    name = "sample-fuse-silu"
    skip: tuple[str, ...] = ()

    @staticmethod
    def pattern(x: torch.Tensor) -> torch.Tensor:
        """What to look for."""
        return x * torch.sigmoid(x)

    @staticmethod
    def replacement(x: torch.Tensor) -> torch.Tensor:
        """What takes its place."""
        return torch.nn.functional.silu(x)

    def check(self, match: Match) -> bool | str:
        """Whether silu knows the dtype, and the module may be touched."""
        if not match.dtype("x").is_floating_point:
            return "silu is for real numbers"
        skipped = [path for path in self.skip if f"{match.module_path}.".startswith(f"{path}.")]
        return f"{skipped[0]} is to be left alone" if skipped else True


PASSES = (ReplaceLogistic, FuseSilu)
