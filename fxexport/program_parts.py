"""The graphs inside of a program, which its branches and loops run, as programs of their own."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

from torch import fx, nn
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument

from fxexport.control_flow import WHILE_LOOP, append_placeholder, control_flow, graphs_of, operands_of
from fxexport.errors import VerifyError
from fxexport.signature import Signature


class ProgramParts:
    """What a ``Program`` gives of the graphs inside of it. Its names and constants are those of the whole program."""

    graph: fx.Graph
    signature: Signature
    made: list[fx.Node]
    _root: nn.Module
    _first_input: fx.Node | None
    _input_specs: dict[str, InputSpec]

    if TYPE_CHECKING:  # what the program has

        @property
        def output_nodes(self) -> list[fx.Node]: ...
        def is_constant(self, node: Any) -> bool: ...
        def _placeholders(self) -> list[fx.Node]: ...
        def _list_names(self) -> None: ...
        def _constant_placeholder(self, target: str) -> fx.Node: ...

    def parts(self) -> Iterator[Self]:
        """This program, then each graph inside of it as :meth:`inside` gives it; edit one before the next is asked for."""
        yield self
        for call in control_flow(self.graph):
            for which in (0, 1):
                with self.inside(call, which) as part:
                    yield from part.parts()

    @contextmanager
    def inside(self, call: fx.Node, which: int) -> Iterator[Self]:
        """One of the two graphs of a ``cond`` or ``while_loop``, to be edited as a program of its own in the block.

        Its inputs are the operands that are no constants, and what a loop carries. Constants that are added there are
        constants of this program, handed down as operands. Raises VerifyError where the block removed an input or a result.
        """
        module = graphs_of(self._root, call)[which]
        self._list_names()
        part = copy.copy(self)
        part.graph, part._root, part._first_input, part.made = module.graph, module, None, []
        places = module.graph.find_nodes(op="placeholder")
        carried: Any = call.args[2] if call.target is WHILE_LOOP else ()  # a constant in the first round only
        given = (*(None for _ in carried), *operands_of(call)[len(carried) :])
        part._input_specs = {
            place.name: self._spec_inside(place, operand) for place, operand in zip(places, given, strict=True)
        }
        results = len(part.output_nodes)
        part.signature = replace(self.signature, inputs=(), outputs=(), unread=())
        yield part
        known = set(places)
        if not known <= set(part._placeholders()) or len(part.output_nodes) != results:
            raise VerifyError(f"inputs or results of a graph inside of {call.name} were removed; they stay as they are")
        for place in [place for place in part._placeholders() if place not in known]:
            self._hand_down(call, which, place, str(part._input_specs[place.name].target))
        module.recompile()

    def _spec_inside(self, place: fx.Node, operand: Any) -> InputSpec:
        argument = TensorArgument(place.name)
        if not self.is_constant(operand):
            return InputSpec(InputKind.USER_INPUT, argument, None)
        outer = self._input_specs[operand.name]
        return InputSpec(outer.kind, argument, outer.target, outer.persistent)

    def _hand_down(self, call: fx.Node, which: int, place: fx.Node, target: str) -> None:
        """``place``, made inside of ``call`` for a constant, becomes the last placeholder there, and an operand."""
        graph = place.graph
        last = graph.find_nodes(op="placeholder")[-1]
        if last is not place:
            last.append(place)
        group: list[Any] = list(call.args)
        constant = self._constant_placeholder(target)
        group[3] = (*group[3], constant)
        call.args = tuple(group)
        append_placeholder(graphs_of(self._root, call)[1 - which].graph, constant)
