"""``diff(before, after)``: what a rewrite changed in a program, as text, as JSON, as a drawing."""

from __future__ import annotations

import difflib
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import networkx as nx
from rich.table import Table
from rich.text import Text
from torch import fx

from fxexport.program import Program
from fxexport.report.layout import Part, human_size
from fxexport.report.program_text import ProgramText, origin, short_name
from fxexport.rewrite.ledger import operator_name

CONTEXT = 3
"""Lines before and after a change that are shown with it."""

_STYLES = {"-": "red", "+": "green", "@": "cyan", " ": "dim"}


@dataclass(frozen=True)
class Place:
    """Calls that changed together: those removed, those made, and those that only have other arguments now.

    A removed and a made call belong together where something that stayed reads the one in place of the other.
    """

    removed: tuple[fx.Node, ...]
    made: tuple[fx.Node, ...]
    module: str
    line: str

    @property
    def form(self) -> str:
        """What places of one kind have in common: ``aten.conv2d + aten.batch_norm -> aten.conv2d``."""
        old, new = (" + ".join(operator_of(node) for node in nodes) for nodes in (self.removed, self.made))
        return f"{old or 'nothing'} -> {new or 'nothing'}"

    def to_json(self) -> dict[str, Any]:
        """Names of the calls removed and made, their operators, module path and source line."""
        return {
            "form": self.form,
            "removed": [node.name for node in self.removed],
            "made": [node.name for node in self.made],
            "module": self.module,
            "line": self.line,
        }


class ProgramDiff:
    """The difference between two programs, one made from the other by passes: calls that stayed have their names.

    ``str()`` is the whole text; neither program may be changed while the difference is in use.
    """

    def __init__(self, before: Program, after: Program) -> None:
        self.before, self.after = before, after
        self.texts = ProgramText(before), ProgramText(after)
        self._nodes = tuple({n.name: n for n in p.graph.nodes if not p.is_constant(n)} for p in (before, after))

    @cached_property
    def removed(self) -> dict[str, fx.Node]:
        """Calls of the program before that the one after does not have, or has with other literals or constants."""
        return {name: old for name, old in self._nodes[0].items() if not self._stayed(name)}

    @cached_property
    def made(self) -> dict[str, fx.Node]:
        """Calls of the program after that the one before does not have, or has with other literals or constants."""
        return {name: new for name, new in self._nodes[1].items() if not self._stayed(name)}

    @property
    def operators(self) -> dict[str, tuple[int, int]]:
        """Calls before and after, of every operator that was removed or made somewhere."""
        touched = dict.fromkeys(map(operator_of, [*self.removed.values(), *self.made.values()]))
        counts = [Counter(operator_of(n) for n in nodes.values()) for nodes in self._nodes]
        return {name: (counts[0][name], counts[1][name]) for name in touched}

    @property
    def head(self) -> list[str]:
        """Counts of calls and constants before and after."""
        if not self.removed and not self.made and not any(self._hunks(0)):
            return [f"nothing changed: {self.before.node_count()} nodes"]
        moved = ", ".join(f"{name} {old} -> {new}" for name, (old, new) in self.operators.items())
        old, new = self.before.constants(), self.after.constants()
        sizes = [human_size(sum(t.numel() * t.element_size() for t in c.values())) for c in (old, new)]
        head = [f"nodes {self.before.node_count()} -> {self.after.node_count()}" + (f": {moved}" if moved else "")]
        if old.keys() != new.keys():
            head.append(f"constants {len(old)} -> {len(new)}, {sizes[0]} -> {sizes[1]}")
        return head

    @property
    def text(self) -> str:
        """The head, then a unified diff of the programs, a line for each call."""
        return "\n".join([*self.head, *self.lines()]) + "\n"

    def __str__(self) -> str:
        return self.text

    def lines(self, context: int = CONTEXT) -> list[str]:
        """A unified diff with ``context`` unchanged lines around each change."""
        return [line for hunk in self._hunks(context) for line in hunk]

    def parts(self, context: int = CONTEXT) -> list[Part]:
        """The same in colour, for a terminal."""
        shown = [Text(line, style=_STYLES[line[0]]) for line in self.lines(context)]
        return [*(Text(line, style="bold") for line in self.head), *([_verbatim(shown)] if shown else [])]

    def to_json(self) -> dict[str, Any]:
        """Counts, the places that changed, and the lines of every call removed or made."""
        return {
            "nodes": {"before": self.before.node_count(), "after": self.after.node_count()},
            "operators": {name: {"before": old, "after": new} for name, (old, new) in self.operators.items()},
            "constants": {"before": len(self.before.constants()), "after": len(self.after.constants())},
            "removed": {name: self.texts[0].line(node) for name, node in self.removed.items()},
            "made": {name: self.texts[1].line(node) for name, node in self.made.items()},
            "places": [place.to_json() for place in self.places],
        }

    def save_svg(self, path: str | Path, *, limit: int = 4) -> Path:
        """Draws the places that changed, one of each form and at most ``limit``; returns the absolute path.

        Raises InputError where ``path`` cannot be written or is no ``.svg``, or matplotlib is not installed.
        """
        from fxexport.report.program_drawing import save_svg

        return save_svg(self, path, limit=limit)

    # ---------------------------------------------------------------- what belongs together

    @cached_property
    def places(self) -> list[Place]:
        """The changes in groups that do not touch, in the order of the program."""
        graph: nx.Graph[tuple[int, str]] = nx.Graph()
        for side, nodes in enumerate((self.removed, self.made)):
            graph.add_nodes_from((side, name) for name in nodes)
            pairs = ((name, used.name) for name, node in nodes.items() for used in node.all_input_nodes)
            graph.add_edges_from(((side, name), (side, used)) for name, used in pairs if used in nodes)
        graph.add_edges_from(((0, old), (1, new)) for old, new in self._replaced())
        ranks = [{name: number for number, name in enumerate(nodes)} for nodes in self._nodes]
        groups = [sorted(g, key=lambda at: ranks[at[0]][at[1]]) for g in nx.connected_components(graph)]
        return [self._place(group) for group in sorted(groups, key=lambda group: ranks[group[0][0]][group[0][1]])]

    def _place(self, group: list[tuple[int, str]]) -> Place:
        old, new = (tuple(self._nodes[s][name] for s, name in group if s == side) for side in (0, 1))
        known = [origin(node) for node in (*reversed(old), *reversed(new))]
        return Place(old, new, *next((place for place in known if any(place)), ("", "")))

    def _replaced(self) -> Iterator[tuple[str, str]]:
        """Names of a removed call and the made one that is read in its place."""
        yield from ((name, name) for name in self.removed if name in self.made)
        for name, new in self._nodes[1].items():
            if name in self.made:
                continue
            pairs = zip(_operands(self._nodes[0][name]), _operands(new), strict=True)
            yield from ((a.name, b.name) for a, b in pairs if a.name in self.removed and b.name in self.made)

    def _stayed(self, name: str) -> bool:
        """Whether both programs have this call, with the same operator, literals and constants."""
        both = [nodes.get(name) for nodes in self._nodes]
        if any(node is not None and node.op == "output" for node in both):
            return True
        forms = [self._form(side, node) for side, node in enumerate(both) if node is not None]
        return len(forms) == 2 and forms[0] == forms[1]

    def _form(self, side: int, node: fx.Node) -> str:
        text, program = self.texts[side], (self.before, self.after)[side]
        if node.op == "placeholder":
            return "input"
        return text.expression(node, lambda used: text.name(used) if program.is_constant(used) else "%")

    def _hunks(self, context: int) -> Iterator[list[str]]:
        old, new = ([t.line(n) for n in nodes.values()] for t, nodes in zip(self.texts, self._nodes, strict=True))
        for group in _LineMatcher(old, new).get_grouped_opcodes(context):
            if all(tag == "equal" for tag, *_ in group):
                continue
            body = []
            for tag, i, j, k, m in group:
                body += [f" {line}" for line in old[i:j]] if tag == "equal" else [f"-{line}" for line in old[i:j]]
                body += [] if tag == "equal" else [f"+{line}" for line in new[k:m]]
            (_, i, _, k, _), (_, _, j, _, m) = group[0], group[-1]
            yield [f"@@ -{i + 1},{j - i} +{k + 1},{m - k} @@{_hunk_module(body)}", *body]


def diff(before: Program, after: Program) -> ProgramDiff:
    """What changed from ``before`` to ``after``, which passes made from it."""
    return ProgramDiff(before, after)


class _LineMatcher(difflib.SequenceMatcher[str]):
    """Matches lines that occur once on each side, as those of programs do, in time n log n; difflib's own takes n**2."""

    def __init__(self, old: Sequence[str], new: Sequence[str]) -> None:
        super().__init__(None, old, new, autojunk=False)
        self._old, self._new = old, new

    def get_matching_blocks(self) -> list[difflib.Match]:
        """The longest sequence of lines that both sides have in the same order, in blocks; then an empty one."""
        there = {line: j for j, line in enumerate(self._new)}
        ends: list[int] = []  # of the best chains of each length so far: where on the right they end,
        last: list[int] = []  # and with which line on the left
        before: dict[int, int | None] = {}
        for i, line in enumerate(self._old):
            if (j := there.get(line)) is not None:
                length = bisect_left(ends, j)
                before[i] = last[length - 1] if length else None
                ends[length : length + 1], last[length : length + 1] = [j], [i]
        blocks = [difflib.Match(len(self._old), len(self._new), 0)]
        at = last[-1] if last else None
        while at is not None:
            j, (i, k, size) = there[self._old[at]], blocks[-1]
            if size and (i, k) == (at + 1, j + 1):
                blocks[-1] = difflib.Match(at, j, size + 1)
            else:
                blocks.append(difflib.Match(at, j, 1))
            at = before[at]
        return blocks[::-1]


def operator_of(node: fx.Node) -> str:
    """``aten.relu``, ``getitem``, ``input``, ``output``."""
    if node.op != "call_function":
        return {"placeholder": "input"}.get(node.op, node.op)
    return short_name(operator_name(node.target))


def _operands(node: fx.Node) -> list[fx.Node]:
    """The nodes that are read, in the order of the arguments, as often as they stand there."""
    found: list[fx.Node] = []
    fx.map_arg((node.args, node.kwargs), found.append)
    return found


def _hunk_module(body: Sequence[str]) -> str:
    """The module of the first changed line, for the header of a hunk."""
    changed = (re.search(r"  # ([\w.]+) \S+:\d+$", line) for line in body if line[0] in "-+")
    return next((f" {found[1]}" for found in changed if found), "")


def _verbatim(lines: Sequence[Text]) -> Table:
    """Lines that stay whole, however long."""
    grid = Table.grid()
    grid.add_column(no_wrap=True, min_width=max(line.cell_len for line in lines))
    for line in lines:
        grid.add_row(line)
    return grid
