"""A replacement function at the shapes and literals of a match, ready to be put into the program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from fxexport.errors import PassError
from fxexport.program import Program
from fxexport.rewrite.calls import seen_through
from fxexport.rewrite.outline import Wild
from fxexport.rewrite.tracing import Traced, constant_of

Bound = dict[tuple[str, int | None], fx.Node]
_ORIGIN = ("nn_module_stack", "stack_trace", "custom", "source_fn_stack", "from_node")


class Replacement:
    """The calls that a traced replacement makes, what it computes of constants alone set apart.

    Those are computed once, with the real tensors, when it is put in place: the same constants give the same new ones.
    """

    def __init__(self, name: str, traced: Traced, leaves: Sequence[Wild]) -> None:
        self.name, self.traced = name, traced
        self._leaves = dict(zip(traced.inputs, leaves, strict=True))
        self._known: set[fx.Node] = set()
        for node in traced.graph.nodes:
            sources = self._leaves[node].constant if node.op == "placeholder" else self._is_known(node)
            if sources:
                self._known.add(node)
        self._folded: dict[tuple[str, ...], dict[fx.Node, fx.Node]] = {}

    def _is_known(self, node: fx.Node) -> bool:
        if node.op != "call_function":
            return node.op == "get_attr"
        random = isinstance(node.target, OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags
        return not random and all(used in self._known for used in node.all_input_nodes)

    def insert(
        self, program: Program, bound: Bound, before: fx.Node, origin: fx.Node
    ) -> tuple[list[fx.Node], list[fx.Node]]:
        """Puts the calls before the node ``before``, made on behalf of ``origin``.

        Returns the nodes that stand for the outputs, and all new ones.
        """
        nodes = {node: bound[leaf.name, leaf.element] for node, leaf in self._leaves.items()}
        constants = self._fold(program, nodes)
        nodes.update(constants)
        meta = {key: origin.meta[key] for key in _ORIGIN if key in origin.meta}
        made = list(constants.values())
        with program.graph.inserting_before(before):
            for node in self.traced.graph.nodes:
                if node.op == "call_function" and node not in nodes and self._is_needed(node):
                    nodes[node] = new = program.graph.node_copy(node, nodes.__getitem__)
                    new.meta = {**meta, "val": node.meta["val"]}
                    made.append(new)
        return [nodes[node] for node in self.traced.outputs], made

    def _is_needed(self, node: fx.Node) -> bool:
        """Whether a call is made in the program: all that are not folded, and of the tensors made of nothing those read."""
        if node not in self._known:
            return True
        return not node.all_input_nodes and self._is_read(node)

    def _fold(self, program: Program, nodes: dict[fx.Node, fx.Node]) -> dict[fx.Node, fx.Node]:
        """A constant of the program for everything known that a call or an output reads."""
        wanted = [n for n in self._known if (n.all_input_nodes or n.op == "get_attr") and self._is_read(n)]
        if not wanted:
            return {}
        sources = {n: seen_through(nodes[n]) for n, leaf in self._leaves.items() if leaf.constant}
        key = tuple(node.name for node in sources.values())
        if key not in self._folded:
            values = self._compute(program, sources)
            stem = program.constant_name(next(iter(sources.values()))) if sources else "constant"
            label = f"{stem}_{self.name.replace('-', '_')}"
            ordered = [node for node in self.traced.graph.nodes if node in wanted]
            self._folded[key] = {node: program.add_constant(label, values[node]) for node in ordered}
        return self._folded[key]

    def _is_read(self, node: fx.Node) -> bool:
        if not isinstance(node.meta.get("val"), torch.Tensor) and node.op != "get_attr":
            return False
        return any(user not in self._known for user in node.users)

    def _compute(self, program: Program, sources: dict[fx.Node, fx.Node]) -> dict[fx.Node, Any]:
        values: dict[fx.Node, Any] = {node: program.constant_value(source) for node, source in sources.items()}
        with torch.no_grad():
            for node in self.traced.graph.nodes:
                if node.op == "get_attr":
                    values[node] = constant_of(self.traced.tensors[str(node.target)])
                    if values[node] is None:
                        raise PassError(
                            f"the replacement of {self.name} makes random weights; make them constants first"
                        )
                elif node in self._known and node.op == "call_function":
                    args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
                    values[node] = node.target(*args, **kwargs)
        return values
