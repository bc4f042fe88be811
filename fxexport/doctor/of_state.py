"""Findings about what a call leaves behind or draws from outside: writes, state, random numbers, empty memory, NaN."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from fxexport.doctor.finding import Finding
from fxexport.doctor.observed import Observed
from fxexport.doctor.places import Site
from fxexport.doctor.runs import Runs


def findings_on_state(runs: Runs) -> Iterator[Finding]:
    """In-place writes into inputs and buffers, random numbers, memory that nothing wrote, NaN."""
    example = runs.example
    if not example.ended:
        return
    yield from _inputs(runs)
    yield from _buffers(example)
    yield from _random(runs)
    yield from _empty(runs)
    yield from _nan(runs)


def _inputs(runs: Runs) -> Iterator[Finding]:
    way_out = "write into a copy (x = x.clone()) where the caller needs the new values, return them"
    what = "writes into the input {}: the file leaves its inputs as they are"
    written = set()
    for seen in runs.example.input_writes:
        written.add(seen.form)
        at = (seen.site, tuple(seen.modules), seen.tensor)
        yield Finding("input-write", "changes", what.format(seen.form), way_out, *at)
    for i in runs.example.changed_inputs:
        if (path := runs.reference.call.paths[i]) not in written:
            unseen = f"{what.format(path)} (by something other than a PyTorch operator)"
            yield Finding("input-write", "changes", unseen, way_out)


def _buffers(example: Observed) -> Iterator[Finding]:
    """Buffers that a call changes, those that one line writes together."""
    by_site: dict[Site | None, list[str]] = {}
    for seen in example.buffer_writes:
        if seen.form in example.changed_buffers:
            by_site.setdefault(seen.site, []).append(seen.form)
    told = {name for names in by_site.values() for name in names}
    if rest := [name for name in example.changed_buffers if name not in told]:
        by_site.setdefault(None, []).extend(rest)
    for site, names in by_site.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        what = f"a call changes {', '.join(names[:3])}{more}: every run of the file starts from the present values"
        modules = tuple(dict.fromkeys(name.rpartition(".")[0] for name in names))
        yield Finding("state", "changes", what, 'state="explicit" makes buffers inputs and outputs', site, modules)


def _random(runs: Runs) -> Iterator[Finding]:
    matters = runs.reseeded is not None and not _alike(runs.example.outputs, runs.reseeded.outputs)
    way_out = "take the random numbers as an input, or accept them with allow_random=True"
    for seen in runs.example.randoms:
        what = f"{seen.form} draws random numbers, " + (
            "on which outputs depend" if matters else "which change no output"
        )
        at = (seen.site, tuple(seen.modules), seen.tensor)
        yield Finding("random", "blocks" if matters else "information", what, way_out if matters else "", *at)
    if matters and not len(runs.example.randoms):
        what = "outputs differ from run to run, and no PyTorch operator draws random numbers: Python or NumPy does"
        yield Finding("random", "blocks", what, way_out)


def _empty(runs: Runs) -> Iterator[Finding]:
    if runs.refilled is None or _alike(runs.example.outputs, runs.refilled.outputs):
        return
    for seen in runs.example.empties:
        what = f"{seen.form} gives memory without values, which an output shows: zeros in the file, and not compared"
        way_out = "make it with torch.zeros, or write all of it"
        yield Finding("uninitialised", "changes", what, way_out, seen.site, tuple(seen.modules), seen.tensor)


def _nan(runs: Runs) -> Iterator[Finding]:
    if runs.watched_nan is None:
        return
    way_out = "give other example inputs, or compare the places of NaN with allow_nan=True"
    first = next(iter(runs.watched_nan.nan_births), None)
    if first is None:
        yield Finding("nan", "blocks", "outputs hold NaN, which inputs or weights have in them", way_out)
    else:
        what = f"outputs hold NaN; {first.form} makes the first one"
        yield Finding("nan", "blocks", what, way_out, first.site, tuple(first.modules), first.tensor)


def _alike(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> bool:
    if len(first) != len(second):
        return False
    pairs = zip(first, second, strict=True)
    return all(a.shape == b.shape and bool(torch.allclose(a, b, equal_nan=True)) for a, b in pairs)
