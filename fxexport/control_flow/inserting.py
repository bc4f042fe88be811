"""Building branches and loops into a graph: sides that agree in what they return, whatever they were made of."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.fx.experimental.symbolic_shapes import (
    CallMethodKey,
    free_unbacked_symbols,
    statically_known_true,
)
from torch.utils import _pytree as pytree

from fxexport.control_flow.agreement import (
    ORIGIN,
    align,
    form,
    laid_out,
    merged,
    new_like,
    own_outputs,
    pairs,
    results,
    same_shape,
    set_output,
    tensor_of,
)
from fxexport.control_flow.reading import COND, WHILE_LOOP
from fxexport.errors import CaptureError


def insert_cond(
    graph_module: fx.GraphModule,
    before: fx.Node,
    predicate: fx.Node,
    true_graph: fx.Graph,
    false_graph: fx.Graph,
    operands: Sequence[fx.Node],
) -> list[fx.Node]:
    """Adds ``cond(predicate, true_graph, false_graph, operands)`` before a node; returns a node for each output.

    ``predicate``: a bool tensor of one element. The graphs have one placeholder for each operand and as many outputs as
    each other: tensors that agree in dtype and rank. Each becomes a new sub-module of ``graph_module`` (as does what
    their own ``get_attr`` nodes read, from ``owning_module``); outputs that are operands are copied, since a branch
    returns new tensors, and outputs of other strides are laid out alike. Sizes that differ become new unknown sizes.

    Raises CaptureError where the two graphs do not fit each other or the operands.
    """
    _check_predicate(predicate.meta.get("val"), predicate.name)
    branches = [_owned(graph) for graph in (true_graph, false_graph)]
    for branch in branches:
        _check_placeholders(branch.graph, operands)
        own_outputs(branch.graph)
    both = pairs(*(results(branch.graph) for branch in branches))
    for position, (ours, theirs) in enumerate(both):
        align(branches[0].graph, branches[1].graph, position, tensor_of(ours), tensor_of(theirs))
    outside = free_unbacked_symbols([node.meta.get("val") for node in operands])
    both = pairs(*(results(branch.graph) for branch in branches))
    outputs = tuple(merged(tensor_of(ours), tensor_of(theirs), outside) for ours, theirs in both)
    places = [_register(graph_module, before, kind, branch) for kind, branch in zip(_SIDES, branches, strict=True)]
    args = (predicate, *places, tuple(operands))
    return _call(graph_module.graph, before, COND, args, outputs, predicate)


def insert_while_loop(
    graph_module: fx.GraphModule,
    before: fx.Node,
    condition_graph: fx.Graph,
    body_graph: fx.Graph,
    carried: Sequence[fx.Node],
    additional: Sequence[fx.Node],
) -> list[fx.Node]:
    """Adds ``while_loop(condition_graph, body_graph, carried, additional)`` before a node; returns the final ``carried``.

    Both graphs have one placeholder for each of ``(*carried, *additional)``. The condition returns one bool tensor of one
    element (alone, or as a tuple), the body one tensor for each carried one, of its dtype and shape. Outputs of the body
    that are operands are copied, and laid out as the carried tensors are.

    Raises CaptureError where the graphs do not fit the tensors.
    """
    condition, body = _owned(condition_graph), _owned(body_graph)
    for each in (condition, body):
        _check_placeholders(each.graph, (*carried, *additional))
    decided = pytree.tree_leaves(condition.graph.output_node().args[0])
    if len(decided) != 1 or not isinstance(decided[0], fx.Node):
        raise CaptureError(f"the condition of a loop returns {len(decided)} values, not one bool tensor")
    _check_predicate(decided[0].meta.get("val"), decided[0].name)
    condition.graph.output_node().args = (decided[0],)  # the form in which torch calls it
    own_outputs(body.graph)
    for position, (old, new) in enumerate(pairs(list(carried), results(body.graph))):
        if not same_shape(tensor_of(old), tensor_of(new)):
            raise CaptureError(
                f"{old.name} is {form(tensor_of(old))} before the loop and {form(tensor_of(new))} after a round of it"
            )
        set_output(body.graph, position, laid_out(body.graph, new, tensor_of(old)))
    condition.recompile()
    outputs = tuple(new_like(tensor_of(node)) for node in carried)
    places = [_register(graph_module, before, kind, each) for kind, each in zip(_PARTS, (condition, body), strict=True)]
    origin = decided[0] if "stack_trace" in decided[0].meta else before
    args = (*places, tuple(carried), tuple(additional))
    return _call(graph_module.graph, before, WHILE_LOOP, args, outputs, origin)


_SIDES = ("true_graph", "false_graph")
_PARTS = ("while_loop_cond_graph", "while_loop_body_graph")

# -------------------------------------------------------------------- the calls


def _owned(graph: fx.Graph) -> fx.GraphModule:
    for placeholder in graph.find_nodes(op="placeholder"):
        placeholder.target = placeholder.name  # the argument in Python code; two operands may be one node
    owner = graph.owning_module
    return fx.GraphModule(owner if isinstance(owner, nn.Module) else nn.Module(), graph)


def _register(module: fx.GraphModule, before: fx.Node, kind: str, branch: fx.GraphModule) -> fx.Node:
    """The branch as an attribute of its own, and the node that reads it."""
    number = 0
    while hasattr(module, f"{kind}_{number}"):
        number += 1
    branch.graph.lint()
    branch.recompile()
    module.add_submodule(f"{kind}_{number}", branch)
    with module.graph.inserting_before(before):
        return module.graph.get_attr(f"{kind}_{number}")


def _call(
    graph: fx.Graph, before: fx.Node, target: Any, args: tuple[Any, ...], outputs: tuple[Any, ...], origin: fx.Node
) -> list[fx.Node]:
    """The call and one ``getitem`` for each output, with the source line and module of ``origin``."""
    meta = {key: origin.meta[key] for key in ORIGIN if key in origin.meta}
    with graph.inserting_before(before):
        call = graph.call_function(target, args)
        call.meta.update(meta, val=outputs)
        items = [graph.call_function(operator.getitem, (call, i)) for i in range(len(outputs))]
    for item, value in zip(items, outputs, strict=True):
        item.meta.update(meta, val=value)
    bindings = _bindings(outputs, args)
    if bindings:
        call.meta["unbacked_bindings"] = bindings
    return items


def _bindings(outputs: Sequence[Any], args: tuple[Any, ...]) -> dict[Any, tuple[Any, ...]]:
    """Where each unknown size that the call introduces is found in its result, as torch writes it down."""
    outside = free_unbacked_symbols(
        [node.meta.get("val") for node in pytree.tree_leaves(args) if isinstance(node, fx.Node)]
    )
    found: dict[Any, tuple[Any, ...]] = {}
    for position, value in enumerate(outputs):
        for dim, size in enumerate(value.shape):
            if isinstance(size, torch.SymInt) and size.node.expr in free_unbacked_symbols(size) - set(outside):
                path: tuple[Any, ...] = (pytree.SequenceKey(position), CallMethodKey("size"), pytree.SequenceKey(dim))
                found.setdefault(size.node.expr, path)
    return found


# -------------------------------------------------------------------- what fits


def _check_predicate(value: Any, name: str) -> None:
    if (
        not isinstance(value, torch.Tensor)
        or value.dtype != torch.bool
        or not statically_known_true(value.numel() == 1)
    ):
        what = form(value) if isinstance(value, torch.Tensor) else type(value).__name__
        raise CaptureError(f"{name} decides where to go and is {what}, not a bool tensor of one element")


def _check_placeholders(graph: fx.Graph, operands: Sequence[fx.Node]) -> None:
    placeholders = graph.find_nodes(op="placeholder")
    if len(placeholders) != len(operands):
        raise CaptureError(f"a graph with {len(placeholders)} placeholders was given {len(operands)} operands")
    for placeholder, operand in zip(placeholders, operands, strict=True):
        given, taken = operand.meta.get("val"), placeholder.meta.setdefault("val", operand.meta.get("val"))
        if isinstance(given, torch.Tensor) and not (isinstance(taken, torch.Tensor) and given.dtype == taken.dtype):
            raise CaptureError(f"{operand.name} is {form(given)}, its placeholder {placeholder.name} is not")
