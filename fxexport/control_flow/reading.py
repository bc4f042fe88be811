"""What a graph with branches and loops is made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import fx, nn

COND = torch.ops.higher_order.cond
WHILE_LOOP = torch.ops.higher_order.while_loop


class SubGraph(NamedTuple):
    """A graph that control flow runs, with its place: ``"true_graph_0.while_loop_body_graph_1"``; '' for the outermost."""

    path: str
    module: nn.Module
    graph: fx.Graph


def control_flow(graph: fx.Graph) -> list[fx.Node]:
    """The calls of ``cond`` and ``while_loop``, in graph order."""
    return sorted(node for target in (COND, WHILE_LOOP) for node in graph.find_nodes(op="call_function", target=target))


def graphs_of(module: nn.Module, call: fx.Node) -> list[fx.GraphModule]:
    """The two graphs that ``call`` runs: of a branch for True and False, of a loop its condition and its body."""
    places = call.args[1:3] if call.target is COND else call.args[:2]
    return [read_attribute(module, str(place.target)) for place in places]  # type: ignore[union-attr]


def inside(at: SubGraph, call: fx.Node) -> list[SubGraph]:
    """The graphs of ``call``, a call in the graph ``at``, with their places."""
    places = call.args[1:3] if call.target is COND else call.args[:2]
    names = [str(place.target) for place in places]  # type: ignore[union-attr]
    found = [(f"{at.path}.{name}" if at.path else name, read_attribute(at.module, name)) for name in names]
    return [SubGraph(path, module, module.graph) for path, module in found]


def operands_of(call: fx.Node) -> tuple[Any, ...]:
    """What ``call`` gives to its graphs, in the order of their placeholders."""
    given: Any = call.args[3:4] if call.target is COND else call.args[2:4]
    return tuple(operand for group in given for operand in group)


def nested_graphs(module: nn.Module, graph: fx.Graph, path: str = "") -> Iterator[SubGraph]:
    """``graph`` itself, then each graph that control flow in it runs, at any depth."""
    yield SubGraph(path, module, graph)
    places = graph.find_nodes(op="get_attr")
    for name in dict.fromkeys(str(place.target) for place in places):
        held = read_attribute(module, name)
        if isinstance(held, fx.GraphModule):
            yield from nested_graphs(held, held.graph, f"{path}.{name}" if path else name)


def read_attribute(module: nn.Module, target: str) -> Any:
    """What a ``get_attr`` node of that target reads."""
    found: Any = module
    for part in target.split("."):
        found = getattr(found, part)
    return found
