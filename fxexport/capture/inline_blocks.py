"""Blocks under ``torch.no_grad()`` or a disabled autocast -> their operators, inlined.

``torch.export`` captures ``with torch.no_grad():`` inside ``forward`` as a call of a sub-graph. In an inference program
such a block means nothing: ``wrap(block, x) -> block's operators on x``.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn

from fxexport.capture.sub_graphs import unused_name
from fxexport.control_flow import COND, WHILE_LOOP, control_flow, graphs_of, read_attribute

_GRAD = torch.ops.higher_order.wrap_with_set_grad_enabled
_AUTOCAST = torch.ops.higher_order.wrap_with_autocast


def inline_blocks(module: fx.GraphModule) -> bool:
    """Inlines every block it can, in place, those inside of branches and loop bodies too.

    Returns whether sub-graphs of another kind are left than those of ``torch.cond`` and ``torch.while_loop``.
    """
    left = []
    for call in control_flow(module.graph):
        for each in graphs_of(module, call):
            left.append(inline_blocks(each))
            each.recompile()
    for node in list(module.graph.nodes):
        block = _block_of(node)
        if block is not None:
            _inline(module, node, *block)
    for node in list(module.graph.nodes):
        if node.op == "get_attr" and not node.users:
            module.graph.erase_node(node)
    read = {str(node.target).split(".")[0] for node in module.graph.find_nodes(op="get_attr")}
    for name in [name for name, _ in module.named_children() if name not in read]:
        delattr(module, name)
    for node in module.graph.find_nodes(op="get_attr"):
        held = read_attribute(module, str(node.target))
        left.append(isinstance(held, nn.Module) and any(user.target not in (COND, WHILE_LOOP) for user in node.users))
    return any(left)


def _block_of(node: fx.Node) -> tuple[fx.Node, list[Any]] | None:
    """The sub-graph that ``node`` calls and its arguments, where the block changes nothing in inference."""
    if node.target is _GRAD:
        return node.args[1], list(node.args[2:])  # type: ignore[return-value]
    if node.target is _AUTOCAST and node.args[2] is False:
        return node.args[4], list(node.args[5:])  # type: ignore[return-value]
    return None


def _inline(module: fx.GraphModule, call: fx.Node, block: fx.Node, args: list[Any]) -> None:
    inner: Any = module.get_submodule(str(block.target))
    if inline_blocks(inner):
        return
    values: dict[fx.Node, Any] = dict(zip(inner.graph.find_nodes(op="placeholder"), args, strict=True))
    with module.graph.inserting_before(call):
        for node in inner.graph.nodes:
            if node.op == "get_attr":
                name = unused_name(module, str(node.target).replace(".", "_"))
                setattr(module, name, read_attribute(inner, str(node.target)))
                values[node] = module.graph.get_attr(name)
                values[node].meta = dict(node.meta)
            elif node.op == "call_function":
                values[node] = module.graph.node_copy(node, lambda n: values[n])
    results: Any = fx.map_arg(inner.graph.output_node().args[0], lambda n: values[n])
    for user in list(call.users):
        if user.target is operator.getitem:
            user.replace_all_uses_with(results[user.args[1]])
            module.graph.erase_node(user)
    if not call.users:
        module.graph.erase_node(call)
