"""The graphs of runs as they are written out: order, what was kept, and where sides leave and join."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from fxexport.capture.paths.exploring import RETURN, Join, Line, Unstructured
from fxexport.capture.paths.numbering import Numbering
from fxexport.capture.paths.states import Key
from fxexport.capture.paths.tracing import kept, nodes_of

aten = torch.ops.aten


class Run:
    """The graph of a line's trace: the order of its nodes, and the nodes that hold what the trace kept."""

    def __init__(self, line: Line, parent: Run | None, numbering: Numbering) -> None:
        self.line, self.parent = line, parent
        exported = line.trace.exported
        assert exported is not None
        self.exported, self.root = exported, exported.graph_module
        self.order = nodes_of(line.trace)
        self.position = {node: i for i, node in enumerate(self.order)}
        results, copies, predicates = kept(line.trace)
        self.results = [of_copy(node) for node in results]
        self.predicates = [of_copy(node) for node in predicates]
        asked = dict(zip(predicates, self.predicates, strict=True))  # a predicate is a copy, of which one more is kept
        self.states = [{key: asked.get(n := of_copy(node), n) for key, node in state.items()} for state in copies]
        self.markers = [self.position[node] for node in predicates]
        self.copies = {node for state in copies for node in state.values()} | {*predicates, *results}
        self.numbers = numbering.of(exported)
        self.by_number = {self.numbers[node]: node for node in reversed(self.order) if node.op != "output"}
        self.sides = {i: Run(side, self, numbering) for i, side in line.sides.items() if side is not None}

    @property
    def first(self) -> int:
        """The position after which the nodes are this run's own."""
        return self.markers[self.line.start - 1] + 1 if self.line.start else 0

    def is_settled(self, node: fx.Node, low: int) -> bool:
        """Whether a node was made before position ``low``, or is a size computed from such nodes."""
        if self.position[node] < low:
            return True
        is_size = node.op == "call_function" and not isinstance(node.meta.get("val"), torch.Tensor)
        return is_size and all(self.is_settled(arg, low) for arg in node.all_input_nodes)

    def after_sides(self, low: int, high: int) -> list[fx.Node]:
        """The nodes between two positions that come after the last decision there whose sides have joined again."""
        for i, side in self.sides.items():
            end = side.line.end
            here = not end.back and end.depth == -self.line.level and end.number < len(self.markers)
            joined = self.markers[end.number] if here else None
            last = self.markers[i] if end.back and end.number == i else high if joined is None else min(joined, high)
            low = max(low, last) if low <= self.markers[i] < high else low
        return [node for node in self.order[low:high] if node not in self.copies and node.op == "call_function"]

    def changed_since(self, i: int) -> set[Key]:
        """What this run, or a side of it, has changed when it is back at event ``i``."""
        found = {key for key, node in self.states[i].items() if node is not self.states[-1][key]}
        return found.union(*(s.changed_since(i) for s in self.sides.values() if s.line.end == self.line.end))

    def stop(self, join: Join | None = None) -> Stop:
        """The stop at one of the own events, or at the end."""
        if join is not None:
            return Stop(self.markers[join.number], join, self.states[join.number])
        if self.line.end.number == RETURN:
            return Stop(len(self.order), self.line.end, {(str(i),): node for i, node in enumerate(self.results)})
        return Stop(len(self.order), self.line.end, self.states[-1])


@dataclass(frozen=True)
class Stop:
    """A place in a run up to which it is written out, and the nodes that are wanted there."""

    position: int
    join: Join
    values: dict[Key, fx.Node]


def of_copy(node: fx.Node) -> fx.Node:
    """What a kept copy is a copy of."""
    assert node.target is aten.clone.default, f"{node.name} is no copy of a kept tensor"
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source


def closed(run: Run, before: int) -> list[tuple[int, int]]:
    """The decisions of a run whose sides joined it at an event up to ``before``, with that event."""
    ends = ((i, side.line.end) for i, side in run.sides.items())
    here = [(i, end.number) for i, end in ends if not end.back and end.depth == -run.line.level]
    return [(i, end) for i, end in here if end <= before]


def region(run: Run, position: int) -> tuple[Run, int]:
    """The decision after which a node was made that is not known where it is wanted."""
    inside = [i for i, end in closed(run, len(run.markers) - 1) if run.markers[i] < position < run.markers[end]]
    assert inside, f"{run.order[position].name} of a run is wanted where it is not known"
    return run, inside[-1]


def pass_by(run: Run, i: int) -> Unstructured:
    """The sides of decision ``i`` join where a value that Python holds unseen differs: they must join later."""
    side = run.sides[i].line
    path = (*run.line.trace.taken[:i], not run.line.trace.taken[i])
    passing = side.looked_for.index(side.end) + 1 if side.end in side.looked_for else len(side.looked_for)
    return Unstructured(path, passing)
