"""Edits of branches and loops as they are: more operands, and fewer results and operands where nothing reads them."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from torch import fx, nn

from fxexport.control_flow.reading import COND, WHILE_LOOP, control_flow, graphs_of, operands_of


def add_operand(module: nn.Module, call: fx.Node, operand: fx.Node) -> list[fx.Node]:
    """Gives one more operand to ``call``; returns its placeholder in each of the two graphs, the last one there.

    Of a loop it is one that is not carried.
    """
    group = list(call.args)
    group[3] = (*group[3], operand)  # type: ignore[misc]
    call.args = tuple(group)
    return [append_placeholder(each.graph, operand) for each in graphs_of(module, call)]


def append_placeholder(graph: fx.Graph, operand: fx.Node) -> fx.Node:
    """A new last placeholder of ``graph`` that stands for ``operand``."""
    known = graph.find_nodes(op="placeholder")
    with graph.inserting_after(known[-1]) if known else graph.inserting_before():
        placeholder = graph.placeholder(operand.name)
    placeholder.target = placeholder.name
    placeholder.meta["val"] = operand.meta["val"]
    return placeholder


def erase_dead(module: nn.Module, graph: fx.Graph) -> None:
    """Erases the calls whose result nothing reads, in ``graph`` and in the graphs that its control flow runs.

    Results of a branch that nothing reads are no results any more, operands that no graph reads no operands. What a loop
    carries stays.
    """
    shared = _run_twice(graph)
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op in ("call_function", "get_attr") and not node.is_impure():
            graph.erase_node(node)
        elif node.target in (COND, WHILE_LOOP) and shared.isdisjoint(_names(node)):
            _prune(module, node)


def _prune(module: nn.Module, call: fx.Node) -> None:
    if call.target is COND:
        _drop_results(module, call)
    graphs = graphs_of(module, call)
    for each in graphs:
        erase_dead(each, each.graph)
    places = list(zip(*(each.graph.find_nodes(op="placeholder") for each in graphs), strict=True))
    carried = 0 if call.target is COND else len(call.args[2])  # type: ignore[arg-type]
    dead = [i for i, pair in enumerate(places) if i >= carried and not any(place.users for place in pair)]
    for i in dead:
        for each, place in zip(graphs, places[i], strict=True):
            each.graph.erase_node(place)
    group = list(call.args)
    group[3] = tuple(operand for i, operand in enumerate(operands_of(call)) if i >= carried and i not in dead)
    call.args = tuple(group)
    for each in graphs:
        each.recompile()


def _drop_results(module: nn.Module, call: fx.Node) -> None:
    """Leaves of a branch those results that something reads."""
    items = list(call.users)
    if not all(item.target is operator.getitem for item in items):
        return
    kept: list[Any] = sorted({item.args[1] for item in items if item.users})
    if len(kept) == len(call.meta["val"]) or not kept:
        return
    for each in graphs_of(module, call):
        output = each.graph.output_node()
        results: Any = output.args[0]
        output.args = (tuple(results[i] for i in kept),)
    for item in items:
        if item.users:
            item.args = (call, kept.index(item.args[1]))
        else:
            call.graph.erase_node(item)
    call.meta["val"] = tuple(call.meta["val"][i] for i in kept)
    if "unbacked_bindings" in call.meta:
        call.meta["unbacked_bindings"] = _renumbered(call.meta["unbacked_bindings"], kept)


def _renumbered(bindings: dict[Any, Any], kept: Sequence[int]) -> dict[Any, Any]:
    """The places of unknown sizes in the results that are left."""
    found = {}
    for symbol, (first, *rest) in bindings.items():
        if first.idx in kept:
            found[symbol] = (type(first)(kept.index(first.idx)), *rest)
    return found


def _names(call: fx.Node) -> list[str]:
    places = call.args[1:3] if call.target is COND else call.args[:2]
    return [str(place.target) for place in places]  # type: ignore[union-attr]


def _run_twice(graph: fx.Graph) -> set[str]:
    """Names of the graphs that more than one call runs: what one call does not read, another may."""
    names = [name for call in control_flow(graph) for name in _names(call)]
    return {name for name in names if names.count(name) > 1}
