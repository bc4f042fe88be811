"""``PassManager``: runs passes in order, each as a transaction that is verified, then kept or rolled back."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Literal

from fxexport.errors import InputError, PassError, VerifyError
from fxexport.program import Program
from fxexport.rewrite.base import Pass, PassResult
from fxexport.rewrite.bisect_rewrites import first_bad
from fxexport.rewrite.checks import changed_calls, check_change, fixed_dimensions, untouched
from fxexport.rewrite.everywhere import run_everywhere
from fxexport.rewrite.explaining import explained
from fxexport.rewrite.ledger import PassRecord, describe_call, place
from fxexport.rewrite.rule_pass import RulePass

Judge = Callable[[Program, Program], float]
"""(before, after) -> largest difference of their outputs on the examples; raises VerifyError where it is too large."""

MAX_GROWTH = 0.25
FREE_GROWTH = 16 * 2**20
"""A pass may add a quarter to the bytes of the constants, and always 16 MiB: more than folding ever needs."""

MAX_ROUNDS = 4
"""How often each pass that repeats runs again, on average, before it is left at that."""


class PassManager:
    """Runs ``passes`` in order on copies of a program: the program given is never changed.

    After each pass the result is verified (graph, signature, a true ``meta["val"]`` on every call it made or
    changed, outputs of the same shape and dtype, constants that grew by ``max_growth`` at most) and dead code
    is erased; where a ``judge`` is given, it compares the numbers before and after. A pass that raises or leaves an
    invalid program is rolled back; then ``on_error="raise"`` raises PassError or VerifyError naming the pass,
    the match or node and its source line, ``on_error="skip"`` records the error and goes on. ``FXEXPORT_TRACE=1``
    prints to stderr a line per pass, each rewrite and the best near-misses.

    When all have run, those that repeat (``Pass.repeats``) run again, as long as others changed the program since, for
    ``MAX_ROUNDS`` rounds at most. ``ran``: the passes behind the records of the last run; of what ran again only what fired.
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
        self.ran: list[Pass] = []
        self._twin: tuple[Program, Program] | None = None

    def run(self, program: Program, *, limit: int | None = None) -> tuple[Program, list[PassRecord]]:
        """The rewritten program and one record for each pass, then one for each that fired again.

        ``limit`` applies the first rewrites only, counted over all passes (a pass that is no NodePass or PatternPass
        counts as one): the state in between, for those who look for the rewrite that is at fault. Then nothing repeats.
        """
        records: list[PassRecord] = []
        self.ran, self._twin = [], None
        if self.passes:
            program = program.clone()
            program.erase_dead()  # what nothing reads is no part of any pass's change
        for pass_ in self.passes:
            program, record = self._step(pass_, program, limit)
            self._enter(pass_, record, records, quiet=limit is not None)
            if limit is not None:
                limit -= steps_of(pass_, record)
        program = program if limit is not None else self._repeat(program, records)
        self._twin = None
        return program, records

    def _enter(self, pass_: Pass, record: PassRecord, records: list[PassRecord], *, quiet: bool = False) -> None:
        self.ran.append(pass_)
        records.append(record)
        if not quiet and os.environ.get("FXEXPORT_TRACE") == "1":  # not the many runs of a search
            _trace(record)

    def _repeat(self, program: Program, records: list[PassRecord]) -> Program:
        """Runs those that repeat, the one that waited longest first, until each has seen what the others changed."""
        seen = {place: place for place, pass_ in enumerate(self.passes) if pass_.repeats and not records[place].error}
        newest = max((place for place, record in enumerate(records) if record.count), default=-1)
        for clock in range(len(self.passes), len(self.passes) + MAX_ROUNDS * len(seen)):
            stale = [place for place in seen if seen[place] < newest]
            if not stale:
                break
            place = min(stale, key=seen.__getitem__)
            program, record = self._step(self.passes[place], program, None)
            seen[place] = clock
            if record.count or record.error:
                self._enter(self.passes[place], record, records)
                newest = clock
            if record.error:
                del seen[place]
        left = [str(self.passes[place]) for place in seen if seen[place] < newest]
        if left:
            program.notes.append(
                f"the passes were stopped after {MAX_ROUNDS} more rounds: {', '.join(left)} may find more to rewrite"
            )
        return program

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
        """The program after ``pass_``, verified; ``before`` itself where nothing was to do. What goes wrong is a
        PassError, and ``before`` is as it was."""
        if limit == 0 and not isinstance(pass_, RulePass):
            return before, PassResult(0), None
        known, result, delta = fixed_dimensions(before), None, None
        try:
            if isinstance(pass_, RulePass) and not pass_.concerns(before):
                return before, PassResult(0), None
            after = self._copy(before)
            result = run_everywhere(pass_, after, limit)
            if not result.modified and known == fixed_dimensions(before) and untouched(before, after):
                self._twin = before, after
                return before, result, None
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
            raise explained(pass_, error, result, self.on_error) from error
        for node in changed:
            # A new dictionary each time: a node shares its `custom` with the one it was made from.
            custom = dict(node.meta.get("custom") or {})
            custom["fxexport_passes"] = (*custom.get("fxexport_passes", ()), pass_.name)
            node.meta["custom"] = custom
        return after, result, delta

    def _copy(self, program: Program) -> Program:
        """A copy to work on: the one that the pass before left as it was, or a new one."""
        twin, self._twin = self._twin, None
        return twin[1] if twin is not None and twin[0] is program else program.clone()

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
