"""Masks that an assumption about an input makes trivial."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fxexport.assumptions import disable
from fxexport.program import Program
from fxexport.rewrite import Pass, PassResult


@dataclass(frozen=True)
class DisableMasks(Pass):
    """``masked_fill(x, arange(t) >= length, 0) -> x`` under ``assume={"length": "full"}``: exact on inputs that meet it.

    The assumption is bound at its input, and what follows from it is computed through ranges, comparisons, views,
    indices, sums of masks and the lengths of strided convolutions, with symbolic sizes. ``where``, ``masked_fill``,
    ``x * 1``, ``x + 0``, ``and``, ``or`` of what is all true, false, one or zero go; attention loses its mask, or becomes
    causal where that is what is left of it. A comparison counts only if it is proved for all sizes. Without an assumption
    about an input nothing changes.
    """

    name: ClassVar[str] = "disable-masks"
    default: ClassVar[bool] = True
    after: ClassVar[tuple[str, ...]] = ("decompose-grouped-mm", "remove-noops")

    def run(self, program: Program) -> PassResult:
        """One walk in the order of the graph, then one that writes out what became known."""
        done = disable(program, self.name)
        return PassResult(len(done.rewrites), tuple(done.notes), tuple(done.rewrites))
