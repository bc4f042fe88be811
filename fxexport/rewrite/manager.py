"""``PassManager``: runs passes in order, each as a transaction that is verified, then kept or rolled back."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import fx

from fxexport.errors import InputError, PassError, VerifyError
from fxexport.program import Program, source_line
from fxexport.rewrite.base import Pass, PassResult
from fxexport.rewrite.checks import changed_calls, check_change, fixed_dimensions


@dataclass(frozen=True)
class PassRecord:
    """What one pass did in one run: rewritten places, operator calls before and after, wall time in seconds.

    ``error`` is the message of a pass that failed and was rolled back (``on_error="skip"``), else None.
    """

    name: str
    count: int
    nodes_before: int
    nodes_after: int
    seconds: float
    notes: tuple[str, ...] = ()
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON object with the fields of this record."""
        return {**asdict(self), "notes": list(self.notes)}

    def __str__(self) -> str:
        did = f"failed, rolled back: {self.error}" if self.error else f"{self.count} rewritten"
        sizes = f"{self.nodes_before} -> {self.nodes_after} nodes"
        return f"{self.name}: {did}, {sizes}, {self.seconds * 1e3:.1f} ms"


class PassManager:
    """Runs ``passes`` in order on copies of a program: the program given is never changed.

    After each pass the result is verified (graph, signature, a true ``meta["val"]`` on every call it made or
    changed, outputs of the same shape and dtype) and dead code is erased. A pass that raises or leaves an
    invalid program is rolled back; then ``on_error="raise"`` raises PassError or VerifyError naming the pass,
    the node and its source line, ``on_error="skip"`` records the error and goes on. ``FXEXPORT_TRACE=1``
    prints a line per pass to stderr.
    """

    def __init__(self, passes: Sequence[Pass], *, on_error: Literal["raise", "skip"] = "raise") -> None:
        if on_error not in ("raise", "skip"):
            raise InputError(f'on_error must be "raise" or "skip", got {on_error!r}')
        wrong = [p for p in passes if not isinstance(p, Pass)]
        if wrong:
            raise InputError(f"{wrong[0]!r} is not a Pass instance; fxexport.rewrite.resolve() makes them from names")
        self.passes = tuple(passes)
        self.on_error = on_error

    def run(self, program: Program) -> tuple[Program, list[PassRecord]]:
        """The rewritten program and one record for each pass."""
        records = []
        for pass_ in self.passes:
            program, record = self._step(pass_, program)
            records.append(record)
            if os.environ.get("FXEXPORT_TRACE") == "1":
                print(f"fxexport: {record}", file=sys.stderr)
        return program, records

    def _step(self, pass_: Pass, before: Program) -> tuple[Program, PassRecord]:
        start, result, message = time.perf_counter(), PassResult(0), None
        after, known = before, fixed_dimensions(before)
        try:
            after, result = _transact(pass_, before)
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
        )
        return after, record


def _transact(pass_: Pass, before: Program) -> tuple[Program, PassResult]:
    """The program after ``pass_``, verified. What goes wrong is a PassError, and ``before`` is as it was."""
    after, known = before.clone(), fixed_dimensions(before)
    try:
        result = pass_.run(after)
        if not isinstance(result, PassResult):
            raise PassError(f"run() returned {type(result).__name__} instead of a PassResult")
        after.verify()
        after.erase_dead()
        changed = changed_calls(before, after)
        if changed and not result.modified:
            raise VerifyError(f"reported no rewrite but changed {_place(changed[0])}")
        check_change(before, after, changed)
        if new := fixed_dimensions(before) - known:
            raise VerifyError(f"fixed dynamic dimensions: {', '.join(sorted(new))}; its shapes fit one size only")
    except Exception as error:
        raise _explain(pass_, error) from error
    for node in changed:
        # A new dictionary each time: a node shares its `custom` with the one it was made from.
        custom = dict(node.meta.get("custom") or {})
        custom["fxexport_passes"] = (*custom.get("fxexport_passes", ()), pass_.name)
        node.meta["custom"] = custom
    return after, result


def _explain(pass_: Pass, error: Exception) -> PassError:
    """``error`` as a PassError (a VerifyError stays one) that names the pass and the node it worked on."""
    node = _node_at_fault(error)
    what = str(error) if isinstance(error, PassError) else f"{type(error).__name__}: {error}"
    where = f" at {_place(node)}" if node is not None and node.name not in what else ""
    kind = VerifyError if isinstance(error, VerifyError) else PassError
    return kind(
        f"pass {pass_}{where}: {what}; the program was rolled back. Leave the pass out of `passes`, "
        'or use on_error="skip", to go on without it'
    )


def _place(node: fx.Node) -> str:
    """``relu_1 (aten.relu.default) made at model.py:12``."""
    line = source_line(node)
    return f"{node.name} ({node.target})" + (f" made at {line}" if line else "")


def _node_at_fault(error: Exception) -> fx.Node | None:
    """The local variable ``node`` of the innermost frame that has one: what was worked on when it failed."""
    found, trace = None, error.__traceback__
    while trace is not None:
        candidate = trace.tb_frame.f_locals.get("node")
        if isinstance(candidate, fx.Node):
            found = candidate
        trace = trace.tb_next
    return found
