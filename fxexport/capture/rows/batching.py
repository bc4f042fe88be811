"""A model with a Python loop over a dynamic axis: its rows proved independent, and computed all at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import TensorArgument

from fxexport.capture.dynamic import AxisRequests
from fxexport.capture.resize import resize_axis
from fxexport.capture.rows.building import Builder, constant_of
from fxexport.capture.rows.reading import Reader
from fxexport.capture.rows.values import Mixed, NoLoop
from fxexport.capture.rows.watching import Seen, decision_on_rows, loop_over_rows, watching

Place = tuple[int, int]
"""Position of an input, and one of its axes."""
_SIZES = (3, 4, 2, 5, 6, 8)
_Export = Callable[[AxisRequests, list[torch.Tensor]], tuple[ExportedProgram, list[str]]]


@dataclass
class ByRows:
    """Captures a model at two numbers of rows and makes one graph of both.

    ``export`` captures it on some inputs with the requested axes open; ``accepts`` says whether eager runs on some.
    """

    export: _Export
    examples: list[torch.Tensor]
    requests: AxisRequests
    accepts: Callable[[list[torch.Tensor]], bool]
    loop: str = ""
    """``file:line: source`` of the loop that :meth:`capture` found last."""

    def capture(self, fixed: Sequence[Place]) -> tuple[ExportedProgram, list[str], list[torch.Tensor]]:
        """The model for any size of the axes of ``fixed``, with the notes and the inputs of one of its captures.

        At each of two numbers of rows the graph is followed from the inputs: every row of an output has to be computed
        from that row of the inputs alone, all rows alike, and alike at both numbers. No decision of the code may depend on
        the number of rows: the graphs would not show one on ``8``.

        Raises NoLoop where nothing runs once for each row, or where that cannot be seen (eager takes one number of rows, or
        several dimensions are fixed), Mixed saying where rows are not independent, CaptureError where a capture fails.
        """
        places = self._together(fixed)
        tries = self._tries(places)
        self._find_loop(*(seen for *_, seen in tries))
        found: list[tuple[ExportedProgram, list[str], list[torch.Tensor], Builder]] = []
        for inputs, count, _ in tries:
            exported, notes = self.export(self._others(places), inputs)
            names = [str(name) for name in exported.graph_signature.user_inputs]
            reader = Reader(exported, {names[i]: axis for i, axis in places}, count)
            found.append((exported, notes, inputs, reader.read()))
        first, second = (list(_described(exported, build.graph)) for exported, _, _, build in found)
        if first != second:
            raise Mixed(
                "the number of rows is used as a number, or rows are computed in another way where there are more"
            )
        exported, notes, inputs, build = found[0]
        return _exchanged(exported, build), notes, inputs

    def _find_loop(self, fewer: Seen, more: Seen) -> None:
        """Raises NoLoop where the code does not go over the rows, Mixed where it decides on their number."""
        self.loop = loop_over_rows(fewer, more)
        if not self.loop:
            raise NoLoop("no line runs once for each row")
        decision = decision_on_rows(fewer, more)
        if decision:
            raise Mixed(f"the code decides on the number of rows, or on that of a row, at {decision}")

    def _tries(self, places: Sequence[Place]) -> list[tuple[list[torch.Tensor], int, Seen]]:
        """Inputs with two numbers of rows, one apart, and what eager does on them; fewer rows first."""
        found: dict[int, tuple[list[torch.Tensor], int, Seen]] = {}
        for inputs, count in self._inputs(places):
            with watching() as seen:
                accepted = self.accepts(inputs)
            if not accepted:
                continue
            found[count] = inputs, count, seen
            for pair in ((count - 1, count), (count, count + 1)):
                if found.keys() >= set(pair):
                    return [found[each] for each in pair]
        raise NoLoop("eager takes no two numbers of rows that are one apart")

    def _together(self, fixed: Sequence[Place]) -> list[Place]:
        """``fixed`` and all axes of the same name. Raises NoLoop where they are of two names, or two of one input."""
        labels = {self.requests[i][axis].label for i, axis in fixed}
        sizes = {self.examples[i].shape[axis] for i, axis in fixed}
        if len(labels) > 1 or len(sizes) > 1:
            raise NoLoop("more than one dimension is fixed")
        others = [
            (i, axis)
            for i, axes in enumerate(self.requests)
            for axis, request in axes.items()
            if request.label in labels
        ]
        places = sorted({*fixed, *others} if labels != {None} else {*fixed})
        if len({i for i, _ in places}) < len(places):
            raise NoLoop("one input has the dimension twice")
        return places

    def _others(self, places: Sequence[Place]) -> AxisRequests:
        return [{a: r for a, r in axes.items() if (i, a) not in places} for i, axes in enumerate(self.requests)]

    def _inputs(self, places: Sequence[Place]) -> Iterator[tuple[list[torch.Tensor], int]]:
        least = max(self.requests[i][axis].minimum or 0 for i, axis in places)
        most = [self.requests[i][axis].maximum for i, axis in places]
        for size in _SIZES:
            if size < least or any(limit is not None and size > limit for limit in most):
                continue
            inputs = list(self.examples)
            for i, axis in places:
                inputs[i] = resize_axis(inputs[i], axis, size)
            yield inputs, size


def _described(exported: ExportedProgram, graph: fx.Graph) -> Iterator[str]:
    """Every call of ``graph`` in words that are the same for the same computation in another capture."""
    numbers: dict[fx.Node, str] = {}

    def name(node: fx.Node) -> Any:
        if node not in numbers:
            content = constant_of(exported, node.name)
            numbers[node] = f"input {node.name}" if content is None else f"constant {content}"
        return _Word(numbers[node])

    for node in graph.nodes:
        if node.op in ("call_function", "output"):
            args, kwargs = fx.map_arg((node.args, node.kwargs), name)
            numbers[node] = f"%{len(numbers)}"
            yield f"{numbers[node]} = {node.target}{args!r}{sorted(kwargs.items())!r}"


class _Word(str):
    def __repr__(self) -> str:
        return str(self)


def _exchanged(exported: ExportedProgram, build: Builder) -> ExportedProgram:
    """``exported`` with the graph of ``build``; symbols of other sizes are the same in both."""
    graph = build.graph
    signature = exported.graph_signature
    results: Any = graph.output_node().args[0]
    for spec, node in zip(signature.output_specs, results, strict=True):
        spec.arg = TensorArgument(node.name)
    env = build.mode.shape_env
    return ExportedProgram(
        root=fx.GraphModule(torch.nn.Module(), graph),
        graph=graph,
        graph_signature=signature,
        state_dict=exported.state_dict,
        range_constraints={**exported.range_constraints, build.symbol: env.var_to_range[build.symbol]},
        module_call_graph=exported.module_call_graph,
        constants=exported.constants,
        verifiers=exported.verifiers,
    )
