"""The graph at a fixed number of rows -> the graph at any number of rows, with a proof on the way.

Every value of the graph is followed from the inputs: is it rows along an axis, something of one row, or the same for all
rows? What is computed for one row is added for all rows at once. The next row does the same, so its calls are there
already: nodes of the new graph stand for equal computations. Where all rows are collected, they have to be one node.

    select(x, 0, 0) -> inv -> \\
    select(x, 0, 1) -> inv -> stack    ==>    inv(x)
    select(x, 0, 2) -> inv -> /
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from fxexport.capture.rows.applying import rowwise
from fxexport.capture.rows.building import Builder, constant_of
from fxexport.capture.rows.collecting import COLLECTED, settled
from fxexport.capture.rows.numbers import CHECKS, computed
from fxexport.capture.rows.rules import RowCall, draws
from fxexport.capture.rows.taking import TAKEN, filled
from fxexport.capture.rows.values import OF_ROWS, VALUES, Lone, Mixed, Number, Rows, Run, leaves_of
from fxexport.program import source_line

aten = torch.ops.aten


class Reader:
    """Reads ``exported``, captured at ``count`` rows along the given axes of its inputs (placeholder -> axis).

    ``build`` has the graph at any number of rows after :meth:`read`.
    """

    def __init__(self, exported: ExportedProgram, places: Mapping[str, int], count: int) -> None:
        self.exported, self.places, self.count = exported, places, count
        mode = next(n.meta["val"].fake_mode for n in exported.graph.find_nodes(op="placeholder") if n.name in places)
        self.build = Builder(mode, count)
        self._values: dict[fx.Node, Any] = {}

    def read(self) -> Builder:
        """The new graph, its output included. Raises Mixed naming the line at which the rows meet."""
        with _plain_convolutions():
            self._read_nodes()
        self.build.graph.eliminate_dead_code()
        return self.build

    def _read_nodes(self) -> None:
        for node in self.exported.graph.nodes:
            self.build.at(node)
            try:
                self._values[node] = self._value(node)
            except Mixed as error:
                line = source_line(node)
                raise Mixed(f"{error}{f', at {line}' if line else ''}") from error

    def _value(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return self._placeholder(node)
        if self.build.rows_node is None:
            name, axis = next(iter(self.places.items()))
            first = next(n for n in self.build.graph.nodes if n.name == name)
            self.build.rows_node = self.build.call(aten.sym_size.int, (first, axis))
        if node.op == "output":
            return self.build.graph.output(tuple(map(self._result, node.args[0])))  # type: ignore[arg-type]
        if node.op != "call_function" or isinstance(node.target, torch._ops.HigherOrderOperator):
            raise Mixed("a branch or a loop on data is in the way")
        return self._call(node)

    def _placeholder(self, node: fx.Node) -> Any:
        if node.name in self.places:
            return Rows(self.build.input(node, self.places[node.name]), self.places[node.name])
        new, content = self.build.placeholder(node, node.meta["val"]), constant_of(self.exported, node.name)
        return new if content is None else self.build.constants.setdefault(content, new)

    def _result(self, node: fx.Node) -> fx.Node:
        value = settled(self._values[node], self.count, self.build)
        if isinstance(value, Rows) and value.turn is None:
            return value.node
        if isinstance(value, OF_ROWS):
            raise Mixed("an output has only some of the rows")
        shared: fx.Node = self.build.shared(value)
        return shared

    def _call(self, node: fx.Node) -> Any:
        target: Any = node.target
        args: Any
        args, kwargs = fx.map_arg((node.args, node.kwargs), self._values.__getitem__)
        if target is operator.getitem and isinstance(args[0], tuple):
            return args[0][args[1]]
        if target is aten._assert_tensor_metadata.default:
            return None
        if target in CHECKS and isinstance(args[0], Number):
            return None  # eager raises an error there, which no artifact does
        if isinstance(target, torch._ops.OpOverload) and draws(self._bound(node, args, kwargs)):
            raise Mixed(f"{target} draws random numbers")
        of_rows = [leaf for leaf in leaves_of((args, kwargs)) if isinstance(leaf, OF_ROWS)]
        if not of_rows:
            made = filled(node, args)
            return made if made is not None else self.build.call(target, args, kwargs)
        if not isinstance(target, torch._ops.OpOverload):
            return computed(node, args, self.build)
        found = self._moved(node, args, kwargs, of_rows)
        if found is not None:
            return found
        args, kwargs = pytree.tree_map(
            lambda leaf: settled(leaf, self.count, self.build),
            (args, kwargs),
            is_leaf=lambda leaf: isinstance(leaf, VALUES),
        )
        of_rows = [leaf for leaf in leaves_of((args, kwargs)) if isinstance(leaf, OF_ROWS)]
        found = self._moved(node, args, kwargs, of_rows)
        if found is not None:
            return found
        if any(isinstance(value, Run | Number) for value in of_rows):
            raise Mixed(f"{target} reads rows before all of them are there, or a number of one")
        turns = {value.turn for value in of_rows if isinstance(value, Rows | Lone)}
        if len(turns) > 1:
            raise Mixed(f"{target} computes with {_meeting(turns)}")
        call = self._bound(node, args, kwargs)
        call.before = self._before(call, of_rows)
        return rowwise(call, turns.pop(), self.build)

    def _moved(self, node: fx.Node, args: Any, kwargs: Any, of_rows: list[Any]) -> Any:
        """The result of an operator that takes rows out of a tensor or puts them together; None for others."""
        call = self._bound(node, args, kwargs)
        call.before = self._before(call, of_rows)
        for table in (TAKEN, COLLECTED):
            if node.target in table:
                found = table[node.target](call, self.build)
                if found is not None:
                    return found
        return None

    def _before(self, call: RowCall, of_rows: list[Any]) -> Any:
        found = {value.before for value in of_rows if isinstance(value, Rows)}
        if len(found) > 1:
            return call.refuse()
        return found.pop() if found else 1

    def _bound(self, node: fx.Node, args: Any, kwargs: Any) -> RowCall:
        """The call of an operator with its arguments by name."""
        target: Any = node.target
        schema = target._schema.arguments
        names = [argument.name for argument in schema]
        bound = {a.name: a.default_value for a in schema if a.has_default_value()}
        found = {**bound, **dict(zip(names, args, strict=False)), **kwargs}
        given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
        return RowCall(node, {name: found[name] for name in names if name in found}, self.count, given)


@contextmanager
def _plain_convolutions() -> Iterator[None]:
    """As in torch.export: which library runs a convolution would be asked of the number of rows."""
    mkldnn: Any = torch.backends.mkldnn.set_flags
    other: Any = torch.backends.nnpack.set_flags
    own, (nnpack,) = mkldnn(_enabled=False, _fp32_precision=None)[0], other(_enabled=False)
    try:
        yield
    finally:
        mkldnn(_enabled=own, _fp32_precision=None)
        other(_enabled=nnpack)


def _meeting(turns: set[int | None]) -> str:
    known = sorted(turn for turn in turns if turn is not None)
    names = [f"row {turn}" for turn in known] + (["all rows"] if None in turns else [])
    return f"{', '.join(names[:-1])} and {names[-1]} together"
