"""A pass on a whole program: on its graph, then on each graph that its branches and loops run."""

from __future__ import annotations

from collections.abc import Sequence

from fxexport.errors import PassError
from fxexport.program import Program
from fxexport.rewrite.base import Pass, PassResult
from fxexport.rewrite.engine import KEPT_NEAR_MISSES
from fxexport.rewrite.rule_pass import RulePass


def run_everywhere(pass_: Pass, program: Program, limit: int | None = None) -> PassResult:
    """Runs ``pass_`` on ``program`` in place; what it did inside of ``cond`` and ``while_loop`` is part of the result.

    A pass that is no NodePass or PatternPass runs once, and sees to what is inside itself (``program.parts()``). The
    others see a program whose inputs are the operands, and never match across the border of a branch, since what is
    outside runs whatever is decided. ``limit``: rewrites to make at most, of a RulePass.

    Raises what the pass raises, and PassError where it returns something else than a PassResult.
    """
    results: list[PassResult] = []
    for part in program.parts() if isinstance(pass_, RulePass) else (program,):
        left = None if limit is None else limit - sum(each.count for each in results)
        result = pass_.run(part, left) if isinstance(pass_, RulePass) else pass_.run(part)
        if not isinstance(result, PassResult):
            raise PassError(f"run() returned {type(result).__name__} instead of a PassResult")
        results.append(result)
    return _together(results)


def _together(results: Sequence[PassResult]) -> PassResult:
    if len(results) == 1:
        return results[0]
    misses = sorted((m for each in results for m in each.near_misses), key=lambda m: -m.matched / m.total)
    return PassResult(
        sum(each.count for each in results),
        tuple(dict.fromkeys(note for each in results for note in each.notes)),
        tuple(rewrite for each in results for rewrite in each.rewrites),
        tuple(misses[:KEPT_NEAR_MISSES]),
        sum(each.near_miss_count for each in results),
    )
