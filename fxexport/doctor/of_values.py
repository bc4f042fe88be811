"""Findings about values that Python gets to see: decisions, numbers, NumPy arrays, constants from outside."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fxexport.capture.source_tree import decision_at
from fxexport.doctor.finding import Finding
from fxexport.doctor.observed import Seen
from fxexport.doctor.runs import Runs
from fxexport.doctor.taint import Taint

_DECIDING = {"__bool__", "is_nonzero", "equal", "allclose", "__contains__"}
_DEPENDS = Taint.DATA | Taint.RANDOM
_WAYS_OUT = {
    "if": "choose between values with torch.where, between computations with torch.cond, or fix the side with assume=",
    "while": "write it with torch.while_loop, or with a fixed number of turns and torch.where",
    "assert": "check before the model is called, not in forward",
    "count": "keep it a tensor: mask with torch.arange(n) < length where a number cuts or counts, or pass it as an input",
    "value": "compute with the tensor itself: one of no dimensions does everywhere what the number would",
    "numpy": "compute it with torch operators: what NumPy computes would be fixed in the file",
    "elements": "put the tensors together with torch.stack or torch.cat, which keep them in the graph",
}


def findings_on_values(runs: Runs) -> Iterator[Finding]:
    """One finding for each line that reads values of tensors into Python."""
    for seen in _met(runs, "reads"):
        if _depends_on_data(seen, runs):
            yield _on_data(seen, runs)
        elif seen.taint & Taint.BUFFER and (changed := _changed_buffers(runs)):
            yield Finding(
                "value",
                "changes",
                f"reads a value that depends on state ({', '.join(changed)}): the file keeps the one it has now",
                'state="explicit" makes buffers inputs and outputs, and then the line has to compute with tensors',
                *_at(seen),
            )
        else:
            what = f"reads a constant, or a value that depends on sizes alone: {_shown(seen.values)}"
            yield Finding("constant", "information", what, "", *_at(seen), handled=True)
    for seen in _met(runs, "outside"):
        if not _varies(seen, runs, "outside"):  # else it is data, whose way through NumPy is told where it begins
            what = "a constant that was made outside PyTorch (NumPy): it is kept in the file with the values it has now"
            yield Finding("numpy", "information", what, "", *_at(seen), handled=True)
    for seen in _met(runs, "data_shapes"):
        what = f"{seen.form} gives a result whose shape depends on data: the output's axis has a name of its own"
        yield Finding("data-shape", "information", what, "", *_at(seen))


def _on_data(seen: Seen, runs: Runs) -> Finding:
    why = "random numbers" if not seen.taint & Taint.DATA and seen.taint & Taint.RANDOM else "the values of the inputs"
    if seen.form in _DECIDING or (seen.form == "item" and seen.tensor.startswith("bool")):
        statement = decision_at(seen.site.file, seen.site.line) if seen.site else ""
        spelled = {"while": "a while loop goes on or ends", "assert": "an assertion is checked"}
        what = f"{spelled.get(statement, 'a branch is chosen')} by {why}: {_outcomes(seen, runs)}"
        return Finding("branch", "blocks", what, _WAYS_OUT.get(statement, _WAYS_OUT["if"]), *_at(seen))
    if seen.form == "numpy":
        return Finding("numpy", "blocks", f"NumPy gets a tensor that depends on {why}", _WAYS_OUT["numpy"], *_at(seen))
    if seen.form.startswith("torch."):
        what = f"{seen.form} copies the elements of a list, which depend on {why}, into a constant"
        return Finding("value", "blocks", what, _WAYS_OUT["elements"], *_at(seen))
    name = f"{seen.form.strip('_')}()" if seen.form != "__getitem__" else "an index"
    values = f" ({_shown(_values(seen, runs))})" if seen.form != "tolist" else ""
    what = f"{name} makes a Python number of a tensor that depends on {why}{values}"
    whole = seen.tensor.startswith(("int", "uint"))
    return Finding("value", "blocks", what, _WAYS_OUT["count" if whole else "value"], *_at(seen))


def _at(seen: Seen) -> tuple[Any, tuple[str, ...], str]:
    return seen.site, tuple(seen.modules), seen.tensor


def _met(runs: Runs, log: str) -> list[Seen]:
    """What any run met: other values may lead to lines that the example does not reach."""
    found: dict[tuple[str, object], Seen] = {}
    for run in runs.all:
        for seen in getattr(run, log):
            found.setdefault((seen.form, seen.site), seen)
    return list(found.values())


def _depends_on_data(seen: Seen, runs: Runs) -> bool:
    """By where the tensor comes from, or because other inputs gave other values: numbers that Python passes on."""
    return bool(seen.taint & _DEPENDS) or _varies(seen, runs, "reads")


def _varies(seen: Seen, runs: Runs, log: str) -> bool:
    others = [other for run in runs.all if (other := getattr(run, log).get(seen.form, seen.site)) is not None]
    return any(other.values != seen.values for other in others)


def _values(seen: Seen, runs: Runs) -> list[Any]:
    """The values of the example first, then what other inputs gave."""
    logs = [run.reads.get(seen.form, seen.site) for run in runs.all]
    return list(dict.fromkeys(value for each in logs if each is not None for value in each.values))


def _outcomes(seen: Seen, runs: Runs) -> str:
    mine = runs.example.reads.get(seen.form, seen.site)
    every = _values(seen, runs)
    if mine is None:
        return f"{_shown(every)} at other values; the example does not come here"
    if len(mine.values) > 1:
        return "both ways are taken on the example"
    other = "the other way at other values" if len(every) > 1 else "and at the other values that were tried"
    return f"{_shown(mine.values)} on the example, {other}"


def _changed_buffers(runs: Runs) -> list[str]:
    return sorted({name for run in runs.all for name in run.changed_buffers})


def _shown(values: list[Any]) -> str:
    shown = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in values[:3]]
    return ", ".join(shown) + (", ..." if len(values) > 3 else "") if shown else "a tensor"
