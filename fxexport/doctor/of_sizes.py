"""Findings about dimensions: sizes that eager itself refuses, and Python loops that go round once for each element."""

from __future__ import annotations

from collections.abc import Iterator

from fxexport.capture.source_tree import Loop
from fxexport.doctor.finding import Finding
from fxexport.doctor.places import Site, is_users
from fxexport.doctor.runs import Runs, SizeRun


def findings_on_sizes(runs: Runs) -> Iterator[Finding]:
    """For each dynamic dimension: whether the model runs at another size, and what it does more often there."""
    for run in runs.sizes:
        if not run.seen.ended:
            yield _refused(run)
            continue
        for loop, turns in run.seen.turns.items():
            before = runs.example.turns.get(loop, 0)
            if 0 < before != turns:
                yield _loop(run, loop, before, turns)


def _refused(run: SizeRun) -> Finding:
    error = run.seen.error
    assert error is not None
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    if run.also is not None:
        what = f"{run.label!r} takes {run.also}, but not {run.after}: {said}"
        return Finding("fixed-size", "information", what, "", site_of(error))
    return Finding(
        "fixed-size",
        "blocks" if run.declared else "information",
        f"eager itself takes {run.label!r} at {run.before} only; at {run.after}: {said}",
        "leave it out of the dynamic shapes, or compute that size from the inputs instead of a constant",
        site_of(error),
    )


def _loop(run: SizeRun, loop: Loop, before: int, turns: int) -> Finding:
    each = (before, turns) == (run.before, run.after)
    often = "runs once for each element of" if each else "runs more often with"
    return Finding(
        "loop",
        "blocks" if run.declared else "changes",
        f"a Python loop {often} {run.label!r}: {before} times at {run.before}, {turns} times at {run.after}; "
        "a graph holds one number of turns",
        f"leave {run.label!r} fixed, or let the body compute all of it at once",
        Site(loop.file, loop.line),
    )


def site_of(error: BaseException) -> Site | None:
    """The user's innermost line in the traceback of ``error``."""
    found, trace = None, error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if is_users(code.co_filename):
            found = Site(code.co_filename, trace.tb_lineno)
        trace = trace.tb_next
    return found
