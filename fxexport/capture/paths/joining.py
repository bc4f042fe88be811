"""All runs as one graph: what they share once, and their sides under a select, a branch or a loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from fxexport.capture.paths.exploring import RETURN
from fxexport.capture.paths.runs import Run, Stop, closed, of_copy, pass_by, region
from fxexport.capture.paths.scopes import Scope, Target
from fxexport.capture.paths.states import Key
from fxexport.capture.paths.suffixes import Pair, arguments_of, common_suffix
from fxexport.capture.paths.tracing import PREDICATE
from fxexport.control_flow import insert_cond, insert_while_loop
from fxexport.decisions import Decision
from fxexport.errors import CaptureError

aten = torch.ops.aten
_CHEAP = 24
"""Operators that two sides may have together and still be computed both."""
_COSTLY = ("conv", "linear", "mm", "matmul", "bmm", "einsum", "attention", "fft", "lstm", "gru", "rnn", "while", "cond")
_PARTIAL = (
    "index",
    "gather",
    "embedding",
    "scatter",
    "linalg",
    "inverse",
    "cholesky",
    "item",
    "nonzero",
    "solve",
    "sort",
)


class Joiner:
    """Writes runs into targets; tells what became of each decision in ``decisions``.

    ``placeholders``: what stands for a placeholder of some run; ``fresh``: makes a target inside of another one.
    """

    def __init__(self, placeholders: Any, fresh: Any) -> None:
        self._placeholder, self._fresh = placeholders, fresh
        self.decisions: list[Decision] = []

    def write(self, run: Run, low: int, stop: Stop, scope: Scope) -> list[fx.Node]:
        """The run from position ``low`` to ``stop``: the values that are wanted there."""
        position = low
        events = {run.markers[i]: i for i in run.line.sides}
        while position < stop.position:
            node = run.order[position]
            i = events.get(position)
            side = None if i is None else run.sides.get(i)
            if i is not None and side is None:
                self._tell(run, i, "raises", value=run.line.trace.taken[i], note=run.line.raises[i])
            if i is None or side is None:
                if node.op in ("call_function", "get_attr") and node not in run.copies:
                    scope[node] = self._copy(run, node, scope)
            elif side.line.end.back and side.line.end.number == i:
                self._loop(run, i, side, scope)
            elif side.line.end == stop.join or (side.line.end.back and side.line.end.number == stop.join.number):
                return self._choose(run, i, side, stop, scope)
            else:
                here = run.stop(side.line.end)
                values = self._choose(run, i, side, here, scope)
                self._set(run, i, here.values, values, scope)
                position = here.position
                continue
            position += 1
        return [self._get(run, node, scope) for node in stop.values.values()]

    def _set(self, run: Run, i: int, nodes: dict[Key, fx.Node], values: Sequence[fx.Node], scope: Scope) -> None:
        given: dict[fx.Node, fx.Node] = {}
        for node, value in zip(nodes.values(), values, strict=True):
            if given.setdefault(node, value) is not value:
                raise pass_by(run, i)
            scope[node] = value

    # ---------------------------------------------------------------- values

    def _copy(self, run: Run, node: fx.Node, scope: Scope) -> fx.Node:
        return scope.target.copy(node, {arg: self._get(run, arg, scope) for arg in node.all_input_nodes}, run.root)

    def _get(self, run: Run, node: fx.Node, scope: Scope) -> fx.Node:
        """The value of a run's node: written here, or by the run that this one left."""
        found = scope.get(node)
        if found is not None:
            return found
        if node in run.copies:
            return self._get(run, of_copy(node), scope)
        if node.op == "placeholder":
            return scope.target.bring_in(self._placeholder(run.exported, node))
        position = run.position[node]
        if run.parent is None or position >= run.first:
            raise pass_by(*region(run, position))
        twin = run.parent.by_number.get(run.numbers[node])
        if twin is not None and run.parent.position[twin] < run.parent.markers[run.line.start - 1]:
            return self._get(run.parent, twin, scope)
        outer: Run | None = run.parent
        while outer is not None:  # what only this run needs is computed here, unless it depends on the way taken
            for i, end in closed(outer, run.line.start - 1):
                if run.markers[i] < position < run.markers[end]:
                    raise pass_by(outer, i)
            outer = outer.parent
        scope[node] = copied = self._copy(run, node, scope)
        return copied

    # ---------------------------------------------------------------- branches

    def _choose(self, run: Run, i: int, side: Run, stop: Stop, scope: Scope) -> list[fx.Node]:
        """The values at ``stop`` of the run or of its other side, as the predicate decides."""
        asked = self._get(run, run.predicates[i], scope)
        low, there = run.markers[i] + 1, side.stop()
        results = self._results(run, i, stop, there)
        if stop.join.number != RETURN and len(set(results)) < len(
            results
        ):  # variables that are one tensor: chosen once
            first: dict[Pair, Key] = {}
            for key, pair in zip(stop.values, results, strict=True):
                first.setdefault(pair, key)
            fewer = replace(stop, values={key: stop.values[key] for key in first.values()})
            chosen = dict(zip(first, self._choose(run, i, side, fewer, scope), strict=True))
            return [chosen[pair] for pair in results]
        suffix = common_suffix(
            run.after_sides(low, stop.position),
            side.after_sides(side.first, there.position),
            results,
            lambda a, b: run.numbers[a] == side.numbers[b],
            lambda a: run.is_settled(a, low),
        )
        wanted = suffix.wanted if suffix.steps else results
        ends = stop, replace(there, values={key: there.values[key] for key in stop.values})
        if suffix.steps:  # then no side of these two ends where they end, and looks for its values by their keys
            ends = tuple(
                replace(end, values={(str(n),): pair[which] for n, pair in enumerate(wanted)})
                for which, end in enumerate(ends)
            )  # type: ignore[assignment]
        left_out = {pair[0] for pair in suffix.steps} | {pair[1] for pair in suffix.steps} | run.copies | side.copies
        nodes = [n for n in (*run.order[low : stop.position], *side.order[side.first :]) if n not in left_out]
        count, cheap = len(self.decisions), _is_cheap(nodes) and all(_same_form(a, b) for a, b in wanted)
        targets = [scope.target if cheap else self._fresh(scope.target) for _ in range(2)]
        mine = self.write(run, low, ends[0], Scope(targets[0], scope))
        others = self.write(side, side.first, ends[1], Scope(targets[1], scope))
        pairs = list(zip(mine, others, strict=True))
        if cheap:
            values = [
                a if a is b else scope.target.call(aten.where.self, self._sides(run, i, asked, a, b), asked)
                for a, b in pairs
            ]
        else:
            values = self._branch(run, i, asked, targets, pairs, scope)
        if any(value is not a for value, a in zip(values, mine, strict=True)):
            self._tell(run, i, "select" if cheap else "branch", at=count)
        return self._finish(run, low, suffix.steps, results, wanted, values, scope) if suffix.steps else values

    def _finish(
        self,
        run: Run,
        low: int,
        steps: Sequence[Pair],
        results: Sequence[Pair],
        wanted: Sequence[Pair],
        values: Any,
        scope: Scope,
    ) -> list[fx.Node]:
        """What both sides do alike at their end, once, on the ``values`` of what is ``wanted``; gives the ``results``."""
        chosen = dict(zip(wanted, values, strict=True))
        for a, b in steps:
            pairs = zip(arguments_of(a), arguments_of(b), strict=True)
            args = [chosen[pair] if pair in chosen else self._size(run, pair[0], scope, low) for pair in pairs]
            chosen[a, b] = scope.target.copy_with(a, args)
        return [chosen[pair] for pair in results]

    def _size(self, run: Run, node: fx.Node, scope: Scope, low: int) -> fx.Node:
        """A size that is computed from what was before position ``low``."""
        if run.position[node] < low:
            return self._get(run, node, scope)
        args = {arg: self._size(run, arg, scope, low) for arg in node.all_input_nodes}
        return scope.target.copy(node, args, run.root)

    def _results(self, run: Run, i: int, stop: Stop, there: Stop) -> list[tuple[fx.Node, fx.Node]]:
        """What is wanted of both sides, pair by pair. Raises CaptureError where the sides are of different types."""
        pairs = [(node, there.values.get(key)) for key, node in stop.values.items()]
        found = [(a, b) for a, b in pairs if b is not None and _same_type(a, b)]
        if len(found) < len(pairs) or (stop.join.number == RETURN and len(pairs) < len(there.values)):
            event = run.line.trace.events[i]
            raise CaptureError(
                f"the model decides on data, {event.source!r} at {event.site}, and returns tensors of other number, rank or "
                'dtype on the other side, which one graph cannot. Ways out: assume="as in the examples" takes the side of '
                "the example and says so in the artifact; or return the same on both sides."
            )
        return found

    def _sides(self, run: Run, i: int, asked: fx.Node, mine: Any, other: Any) -> tuple[Any, Any, Any]:
        return (asked, mine, other) if run.line.trace.taken[i] else (asked, other, mine)

    def _branch(
        self,
        run: Run,
        i: int,
        asked: fx.Node,
        targets: Sequence[Target],
        pairs: Sequence[tuple[fx.Node, fx.Node]],
        scope: Scope,
    ) -> list[fx.Node]:
        back = [{inner: outer for outer, inner in target.captured.items()} for target in targets]
        unchanged = [back[0].get(a) if a in back[0] and back[0].get(a) is back[1].get(b) else None for a, b in pairs]
        differ = [pair for pair, same in zip(pairs, unchanged, strict=True) if same is None]
        outs: list[fx.Node] = []
        if differ:
            for target, values in zip(targets, zip(*differ, strict=True), strict=True):
                target.graph.output(tuple(values))
                target.graph.eliminate_dead_code()
            operands = _shared_operands(targets)
            graphs = self._sides(run, i, asked, targets[0].graph, targets[1].graph)[1:]
            outs = self._insert(scope.target, lambda module, end: insert_cond(module, end, asked, *graphs, operands))
        feed = iter(outs)
        return [next(feed) if same is None else scope.target.bring_in(same) for same in unchanged]

    def _insert(self, target: Target, insert: Any) -> list[fx.Node]:
        """Lets ``insert(module, before)`` add nodes at the end of a target."""
        end = target.graph.output(())
        nodes: list[fx.Node] = insert(target.holder, end)
        target.graph.erase_node(end)
        return nodes

    # ---------------------------------------------------------------- loops

    def _loop(self, run: Run, i: int, side: Run, scope: Scope) -> None:
        """``while``: the side comes back to the event where it left; afterwards the run goes on."""
        head, last = side.states[i], side.states[-1]
        carried = [key for key in head if key in side.changed_since(i)]
        starts = [self._get(run, run.states[i][key], scope) for key in carried]
        body, inner_scope = self._loop_target(scope, starts)
        for key, placeholder in zip(carried, body.graph.find_nodes(op="placeholder"), strict=True):
            inner_scope[head[key]] = placeholder
        values = self.write(
            side, side.first, Stop(len(side.order), side.line.end, {k: last[k] for k in carried}), inner_scope
        )
        body.graph.output(tuple(values))
        body.graph.eliminate_dead_code()
        additional = [outer for outer, inner in body.captured.items() if inner.users]
        for inner in list(body.captured.values()):
            if not inner.users:
                body.graph.erase_node(inner)
        condition = self._fresh(None)
        places = [condition.placeholder(node.name, node.meta["val"]) for node in (*starts, *additional)]
        asked = places[carried.index(PREDICATE)]
        goes_on = not run.line.trace.taken[i]
        result = condition.call(
            aten.clone.default if goes_on else aten.logical_not.default, (asked,), run.predicates[i]
        )
        condition.graph.output((result,))
        outs = self._insert(
            scope.target,
            lambda module, end: insert_while_loop(module, end, condition.graph, body.graph, starts, additional),
        )
        self._tell(run, i, "loop")
        self._set(run, i, {key: run.states[i][key] for key in carried}, outs, scope)

    def _loop_target(self, scope: Scope, starts: Sequence[fx.Node]) -> tuple[Target, Scope]:
        body = self._fresh(scope.target)
        for node in starts:
            body.placeholder(node.name, node.meta["val"])
        return body, Scope(body, scope)

    def _tell(
        self, run: Run, i: int, form: Any, *, value: bool | None = None, note: str = "", at: int | None = None
    ) -> None:
        event = run.line.trace.events[i]
        told = Decision(event.site, event.source, form, value, note)
        if told not in self.decisions:
            self.decisions.insert(len(self.decisions) if at is None else at, told)


def _shared_operands(targets: Sequence[Target]) -> list[fx.Node]:
    """What both graphs get: the values that either captured and reads, in one order."""
    used = dict.fromkeys(outer for target in targets for outer, inner in target.captured.items() if inner.users)
    for target in targets:
        places = [target.captured.get(outer) or target.placeholder(outer.name, outer.meta["val"]) for outer in used]
        for inner in target.graph.find_nodes(op="placeholder"):
            if inner not in places:
                target.graph.erase_node(inner)
        first = next(iter(target.graph.nodes))
        for place in reversed(places):
            if place is not first:
                first.prepend(place)
            first = place
    return list(used)


def _same_type(a: fx.Node, b: fx.Node) -> bool:
    x, y = a.meta["val"], b.meta["val"]
    return bool(x.dtype == y.dtype and x.dim() == y.dim() and x.device == y.device)


def _same_form(a: fx.Node, b: fx.Node) -> bool:
    return str(list(a.meta["val"].shape)) == str(list(b.meta["val"].shape))


def _is_cheap(nodes: Sequence[fx.Node]) -> bool:
    names = [str(node.target) for node in nodes if node.op == "call_function"]
    hard = any(word in name for name in names for word in (*_COSTLY, *_PARTIAL))
    return len(names) <= _CHEAP and not hard
