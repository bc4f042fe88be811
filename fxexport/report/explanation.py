"""``explain``: what a pass rewrote, what it almost rewrote and why not, and what it looked for in vain."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any, TypeVar

from rich.text import Text

from fxexport.program import Program
from fxexport.report.layout import Part, bullets, digits, paragraph, table
from fxexport.report.program_text import short_name, shown_module, shown_place, shown_text
from fxexport.rewrite import NearMiss, Pass, PassRecord, Rewrite, RulePass
from fxexport.rewrite.ledger import operator_name

_ABSENT = 8  # operators that are named as missing
_SIMILAR = 4  # operators that are named as similar to one
_LOOSE = 3  # places of which little more than the last operator agrees that are shown where there are no better ones
_LIKENESS, _RELATED = 0.6, 0.5  # of names, 1 being equal; the second for names with a word in common
_Entry = TypeVar("_Entry", Rewrite, NearMiss)


def explain(record: PassRecord, pass_: Pass | None = None, program: Program | None = None) -> list[Part]:
    """What one run of a pass did, in the model's own words, alike places in one row.

    With the ``pass_`` and the ``program`` it was given, a pass that found nothing also tells what it looked for.
    """
    record, loose = sorted_out(record)
    parts: list[Part] = [_head(record)]
    if record.error:
        return [*parts, paragraph(f"failed and rolled back: {shown_text(record.error)}")]
    parts += _rewrites(record)
    parts += _near_misses(record, loose)
    if not record.count and not record.near_miss_count:
        parts.append(bullets(_in_vain(pass_, program)))
    return parts + ([bullets([shown_text(note) for note in record.notes])] if record.notes else [])


def explanation_json(record: PassRecord, pass_: Pass, program: Program) -> dict[str, Any]:
    """The record, and for each operator that the pass looks for how often the program calls it and similar ones.

    ``last_operator_only`` has places that are no near misses: they are named where there are no better ones.
    """
    record, loose = sorted_out(record)
    return {
        **record.to_json(),
        "last_operator_only": [asdict(miss) for miss in loose],
        "looks_for": looks_for(pass_, program),
    }


def sorted_out(record: PassRecord) -> tuple[PassRecord, list[NearMiss]]:
    """The record with its true near misses only, best first, and up to three looser places where it has none.

    A near miss has two calls that agree, or half of all. What the pass itself made is none.
    """
    made = {name for rewrite in record.rewrites for name in rewrite.made}
    near = [miss for miss in record.near_misses if _is_near(miss)]
    others = [miss for miss in near if miss.node not in made]
    others.sort(key=lambda miss: -miss.matched / max(miss.total, 1))
    count = max(record.near_miss_count - (len(near) - len(others)), len(others))
    loose = [miss for miss in record.near_misses if not _is_near(miss) and miss.node not in made]
    return replace(record, near_misses=tuple(others), near_miss_count=count), [] if count else loose[:_LOOSE]


def _is_near(miss: NearMiss) -> bool:
    return miss.matched >= 2 or 2 * miss.matched >= miss.total


def looks_for(pass_: Pass, program: Program) -> dict[str, dict[str, Any]] | None:
    """Operator -> its ``calls`` in ``program`` and the calls of ``similar`` ones; None where the pass does not say."""
    if not isinstance(pass_, RulePass):
        return None
    calls = Counter(
        operator_name(n.target) for _, _, graph in program.graphs() for n in graph.nodes if n.op == "call_function"
    )
    wanted = dict.fromkeys(operator_name(target) for rule in pass_.rules(program) for target in rule.targets)
    return {name: {"calls": calls[name], "similar": _similar(name, calls, wanted)} for name in wanted}


def _head(record: PassRecord) -> Text:
    did = "FAILED" if record.error else f"{record.count} rewritten" if record.count else "nothing rewritten"
    missed = f", {_counted(record.near_miss_count, 'near miss', 'near misses')}" if record.near_miss_count else ""
    delta = "" if record.delta is None else f", outputs moved by {digits(record.delta)}"
    sizes = f"{record.nodes_before} -> {record.nodes_after} nodes"
    style = "bold red" if record.error else "bold green" if record.count else "bold"
    return Text(f"{record.name}: {did}{missed}, {sizes}, {digits(record.seconds * 1e3)} ms{delta}", style=style)


def _counted(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


# ---------------------------------------------------------------- places


def _rewrites(record: PassRecord) -> list[Part]:
    if record.count and not record.rewrites:
        return [paragraph("this pass counts its rewrites but does not say where; fxexport diff shows what changed")]
    groups = _grouped(record.rewrites, lambda each: (each.rule, each.operators, each.line))
    rows = [
        (
            str(len(group)),
            "" if group[0].rule == record.name else group[0].rule,
            _operators(group[0].operators),
            _modules([each.module for each in group]),
            shown_place(group[0].line),
        )
        for group in groups
    ]
    return [Text(), table((">places", "rule", "~operators", "in module", "at"), rows)] if rows else []


def _near_misses(record: PassRecord, loose: Sequence[NearMiss]) -> list[Part]:
    parts: list[Part] = []
    for title, misses in (("Almost, best first", record.near_misses), ("Only the last operator agrees", loose)):
        if rows := _miss_rows(misses, record.name):
            parts += [Text(f"\n{title}"), table(_MISSES, rows)]
    if more := record.near_miss_count - len(record.near_misses):
        parts.append(paragraph(f"and {_counted(more, 'near miss', 'near misses')} more that fit no better"))
    return parts


def _miss_rows(misses: Sequence[NearMiss], name: str) -> list[tuple[str, ...]]:
    groups = _grouped(misses, lambda each: (each.rule, each.line, each.matched, each.total, _kind(each.reason)))
    return [
        (
            str(len(group)),
            "" if group[0].rule == name else group[0].rule,
            f"{group[0].matched} of {group[0].total}",
            _modules([each.module for each in group]),
            shown_place(group[0].line),
            shown_text(_briefly(group[0])),
        )
        for group in groups
    ]


_MISSES = (">places", "rule", "matched", "in module", "at", "~why not")
_MADE_AT = re.compile(r" made at (\S+:\d+)")


def _briefly(miss: NearMiss) -> str:
    """The reason, each ``made at file:line`` once, and not at all where it is the line of the place itself."""
    told = {miss.line}

    def once(found: re.Match[str]) -> str:
        known = found[1] in told
        told.add(found[1])
        return "" if known else found[0]

    return _MADE_AT.sub(once, miss.reason)


def _kind(reason: str) -> str:
    """A reason without the numbers that tell alike places apart: ``mul_1``, ``blocks.3``."""
    return re.sub(r"\d+", "", re.sub(r"(?<=\w)_\d+\b", "", reason))


def _grouped(entries: Iterable[_Entry], key: Callable[[_Entry], Hashable]) -> list[list[_Entry]]:
    """Entries with equal keys whose module paths differ in numbers only, in the order of the first of each."""
    groups: dict[Hashable, list[_Entry]] = {}
    for entry in entries:
        groups.setdefault((key(entry), _unnumbered(entry.module)), []).append(entry)
    return list(groups.values())


def _unnumbered(path: str) -> str:
    return re.sub(r"\d+", "#", path)


def merged_modules(paths: Iterable[str]) -> list[str]:
    """Module paths, those that differ in numbers only as one, without the root."""
    groups: dict[str, list[str]] = {}
    for path in paths:
        groups.setdefault(_unnumbered(path), []).append(path)
    return list(filter(None, map(_modules, groups.values())))


def _modules(paths: Sequence[str]) -> str:
    """Paths that differ in numbers only as one: ``blocks.{0..5}.norm``, ``layers.{0,2,7}``."""
    columns = zip(*(re.split(r"(\d+)", shown_module(path)) for path in paths), strict=True)
    return "".join(_numbers(sorted(set(map(int, column)))) if i % 2 else column[0] for i, column in enumerate(columns))


def _numbers(values: list[int]) -> str:
    if len(values) == 1:
        return str(values[0])
    if len(values) > 2 and values == list(range(values[0], values[-1] + 1)):
        return f"{{{values[0]}..{values[-1]}}}"
    return f"{{{','.join(map(str, values))}}}"


def _operators(names: Sequence[str]) -> str:
    """Operators in order, runs of one counted: ``aten.mul.Tensor x3 + aten.tanh``."""
    runs: list[list[Any]] = []
    for name in map(short_name, names):
        if runs and runs[-1][0] == name:
            runs[-1][1] += 1
        else:
            runs.append([name, 1])
    return " + ".join(name if count == 1 else f"{name} x{count}" for name, count in runs)


# ---------------------------------------------------------------- nothing at all


def _in_vain(pass_: Pass | None, program: Program | None) -> list[str]:
    """What the pass looked for, and what the program has instead."""
    wanted = looks_for(pass_, program) if pass_ is not None and program is not None else None
    if wanted is None:
        return ["nothing in the program is what this pass rewrites; it does not say which operators it looks for"]
    present = {name: each["calls"] for name, each in wanted.items() if each["calls"]}
    lines = []
    if present:
        lines.append(f"it looks at {_listed(present)} in the program, and none of them is what it rewrites")
    known = set(map(_bare, present))  # other overloads of these need no mention
    if absent := list(dict.fromkeys(_bare(name) for name in wanted if _bare(name) not in known)):
        more = f" and {len(absent) - _ABSENT} more" if len(absent) > _ABSENT else ""
        lines.append(f"it looks for {', '.join(absent[:_ABSENT])}{more}: the program has none")
    similar = {name: count for each in wanted.values() for name, count in each["similar"].items()}
    if similar:
        lines.append(f"similar operators in the program: {_listed(similar)}")
    return lines or ["it looks for no operator at all"]


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{short_name(name)} {count}" for name, count in counts.items())


def _bare(name: str) -> str:
    """An operator without its overload: ``aten.to`` of ``aten.to.dtype``."""
    return ".".join(name.split(".")[:2])


def _similar(name: str, calls: Counter[str], wanted: Iterable[str]) -> dict[str, int]:
    """Called operators with a name like ``name``, the closest first; other overloads of it above all."""
    others = {other: _likeness(name, other) for other in calls if other not in wanted}
    close = sorted((o for o, likeness in others.items() if likeness >= _LIKENESS), key=lambda o: -others[o])
    return {other: calls[other] for other in close[:_SIMILAR]}


def _likeness(a: str, b: str) -> float:
    """1 for overloads of one operator, else how alike the bare names are: a word in common counts more than letters."""
    first, second = (_bare(name).rpartition(".")[2] for name in (a, b))
    if first == second:
        return 1.0
    letters = difflib.SequenceMatcher(None, first, second).ratio()
    common = {word for word in first.split("_") if len(word) > 3} & set(second.split("_"))
    return max(letters, 0.8) if common and letters >= _RELATED else letters
