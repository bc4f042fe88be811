"""``PassManager``: runs passes in order, each as a transaction that is verified, then kept or rolled back."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Literal

from torch import fx

from fxexport.control_flow import control_flow
from fxexport.errors import InputError, PassError, VerifyError
from fxexport.program import Program
from fxexport.rewrite.base import Pass, PassResult
from fxexport.rewrite.bisect_rewrites import first_bad
from fxexport.rewrite.checks import changed_calls, check_change, fixed_dimensions
from fxexport.rewrite.everywhere import run_everywhere
from fxexport.rewrite.ledger import PassRecord, describe_call, place
from fxexport.rewrite.rule_pass import RulePass

Judge = Callable[[Program, Program], float]
"""(before, after) -> largest difference of their outputs on the examples; raises VerifyError where it is too large."""

MAX_GROWTH = 0.25
FREE_GROWTH = 16 * 2**20
"""A pass may add a quarter to the bytes of the constants, and always 16 MiB: more than folding ever needs."""


class PassManager:
    """Runs ``passes`` in order on copies of a program: the program given is never changed.

    After each pass the result is verified (graph, signature, a true ``meta["val"]`` on every call it made or
    changed, outputs of the same shape and dtype, constants that grew by ``max_growth`` at most) and dead code
    is erased; where a ``judge`` is given, it compares the numbers before and after. A pass that raises or leaves an
    invalid program is rolled back; then ``on_error="raise"`` raises PassError or VerifyError naming the pass,
    the match or node and its source line, ``on_error="skip"`` records the error and goes on. ``FXEXPORT_TRACE=1``
    prints to stderr a line per pass, each rewrite and the best near-misses.
    """

    def __init__(
        self,
        passes: Sequence[Pass],
        *,
        on_error: Literal["raise", "skip"] = "raise",
        judge: Judge | None = None,
        max_growth: float = MAX_GROWTH,
    ) -> None:
        if on_error not in ("raise", "skip"):
            raise InputError(f'on_error must be "raise" or "skip", got {on_error!r}')
        wrong = [p for p in passes if not isinstance(p, Pass)]
        if wrong:
            raise InputError(f"{wrong[0]!r} is not a Pass instance; fxexport.rewrite.resolve() makes them from names")
        self.passes = tuple(passes)
        self.on_error = on_error
        self.judge = judge
        self.max_growth = max_growth

    def run(self, program: Program, *, limit: int | None = None) -> tuple[Program, list[PassRecord]]:
        """The rewritten program and one record for each pass.

        ``limit`` applies the first rewrites only, counted over all passes (a pass that is no NodePass or PatternPass
        counts as one): the state in between, for those who look for the rewrite that is at fault.
        """
        records = []
        if control_flow(program.graph):  # results and operands that nothing reads are no part of any pass's change
            program = program.clone()
            program.erase_dead()
        for pass_ in self.passes:
            program, record = self._step(pass_, program, limit)
            records.append(record)
            if limit is not None:
                limit -= steps_of(pass_, record)
            elif os.environ.get("FXEXPORT_TRACE") == "1":  # not the many runs of a search
                _trace(record)
        return program, records

    def _step(self, pass_: Pass, before: Program, limit: int | None) -> tuple[Program, PassRecord]:
        start, result, message, delta = time.perf_counter(), PassResult(0), None, None
        after, known = before, fixed_dimensions(before)
        try:
            after, result, delta = self._transact(pass_, before, limit)
        except PassError as error:
            # The symbolic sizes are shared by all copies: a dimension that the pass fixed cannot be unfixed.
            if self.on_error == "raise" or fixed_dimensions(before) != known:
                raise
            message = str(error)
        record = PassRecord(
            name=str(pass_),
            count=result.count,
            nodes_before=before.node_count(),
            nodes_after=after.node_count(),
            seconds=time.perf_counter() - start,
            notes=tuple(result.notes),
            error=message,
            rewrites=result.rewrites,
            near_misses=result.near_misses,
            near_miss_count=result.near_miss_count,
            delta=delta,
        )
        return after, record

    def _transact(self, pass_: Pass, before: Program, limit: int | None) -> tuple[Program, PassResult, float | None]:
        """The program after ``pass_``, verified. What goes wrong is a PassError, and ``before`` is as it was."""
        if limit == 0 and not isinstance(pass_, RulePass):
            return before, PassResult(0), None
        after, known, result, delta = before.clone(), fixed_dimensions(before), None, None
        try:
            result = run_everywhere(pass_, after, limit)
            after.verify()
            after.erase_dead()
            changed = changed_calls(before, after)
            if changed and not result.modified:
                raise VerifyError(f"reported no rewrite but changed {describe_call(changed[0])}")
            check_change(before, after, changed)
            if new := fixed_dimensions(before) - known:
                raise VerifyError(f"fixed dynamic dimensions: {', '.join(sorted(new))}; its shapes fit one size only")
            self._check_growth(before, after)
            if self.judge is not None and result.modified:
                delta = self._judge(pass_, before, after, result)
        except Exception as error:
            raise _explain(pass_, error, result, self.on_error) from error
        for node in changed:
            # A new dictionary each time: a node shares its `custom` with the one it was made from.
            custom = dict(node.meta.get("custom") or {})
            custom["fxexport_passes"] = (*custom.get("fxexport_passes", ()), pass_.name)
            node.meta["custom"] = custom
        return after, result, delta

    def _judge(self, pass_: Pass, before: Program, after: Program, result: PassResult) -> float:
        """The numeric delta. Raises VerifyError naming the first rewrite after which the numbers are wrong."""
        assert self.judge is not None
        judge = self.judge
        try:
            return judge(before, after)
        except VerifyError as error:
            if not isinstance(pass_, RulePass) or len(result.rewrites) < 1:
                raise
            wrong = error

            def is_bad(count: int) -> bool:
                partial = before.clone()
                run_everywhere(pass_, partial, count)
                partial.erase_dead()
                try:
                    judge(before, partial)
                except VerifyError:
                    return True
                return False

            # 0 rewrites are right by definition: the program is compared with itself.
            culprit = result.rewrites[max(first_bad(len(result.rewrites), is_bad), 1) - 1]
            where = culprit.node + place(culprit.module, culprit.line)
            raise VerifyError(f"{wrong}, from its rewrite of {where} on") from wrong

    def _check_growth(self, before: Program, after: Program) -> None:
        old, new = before.constants_bytes(), after.constants_bytes()
        if new > old * (1 + self.max_growth) + FREE_GROWTH:
            raise VerifyError(
                f"the constants grew from {old / 2**20:.1f} to {new / 2**20:.1f} MiB, which is over the limit of "
                f"{self.max_growth:.0%} and {FREE_GROWTH // 2**20} MiB; keep what was folded as a computation, or give "
                "PassManager a larger max_growth"
            )


def steps_of(pass_: Pass, record: PassRecord) -> int:
    """How many rewrites of a record count against a limit: each one of a RulePass, any other pass as a whole."""
    return record.count if isinstance(pass_, RulePass) else min(record.count, 1)


def _trace(record: PassRecord) -> None:
    print(f"fxexport: {record}", file=sys.stderr)
    for rewrite in record.rewrites:
        print(f"fxexport:   rewrote {rewrite}", file=sys.stderr)
    for miss in record.near_misses:
        print(f"fxexport:   near miss {miss}", file=sys.stderr)


def _explain(pass_: Pass, error: Exception, result: PassResult | None, on_error: str) -> PassError:
    """``error`` as a PassError (a VerifyError stays one) that names the pass, and the match or node it worked on.

    The way out is named only where it was not taken: a record says itself that the pass was rolled back.
    """
    node = _node_at_fault(error)
    what = str(error) if isinstance(error, PassError) else f"{type(error).__name__}: {error}"
    where = f" at {describe_call(node)}" if node is not None and node.name not in what else ""
    made = [r for r in result.rewrites if _names(what, r.made)] if isinstance(result, PassResult) else []
    whose = f" (made by {made[-1]})" if made else ""
    kind = VerifyError if isinstance(error, VerifyError) else PassError
    way_out = "" if on_error == "skip" else '; the program was rolled back (on_error="skip" goes on without it)'
    return kind(f"pass {pass_}{where}: {what}{whose}{way_out}")


def _names(text: str, made: Sequence[str]) -> bool:
    words = set(text.replace(",", " ").split())
    return not words.isdisjoint(made)


def _node_at_fault(error: Exception) -> fx.Node | None:
    """The local variable ``node`` of the innermost frame that has one: what was worked on when it failed."""
    found, trace = None, error.__traceback__
    while trace is not None:
        candidate = trace.tb_frame.f_locals.get("node")
        if isinstance(candidate, fx.Node):
            found = candidate
        trace = trace.tb_next
    return found
