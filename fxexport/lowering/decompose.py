"""Decomposing just the nodes that need it, instead of re-tracing the whole program.

    x.to(torch.float32)             ->  _to_copy(x, dtype=torch.float32)
    adaptive_avg_pool2d(x, [1, 1])  ->  mean(x, [-2, -1], True)

One node at a time is traced with symbolic sizes under torch's own decompositions, and spliced in. What PyTorch writes
in place on its way, such as the gates of a GRU cell, is written as new tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from typing import Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch._subclasses.functional_tensor import dispatch_functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

DECOMPOSED = "fxexport_decomposed"
"""Key of ``node.meta``: the operator of the program that a node was part of."""


def _adaptive_avg_pool(x: torch.Tensor, size: list[int]) -> torch.Tensor:
    """PyTorch's own decomposition to size 1 restores a channels-last layout with ``as_strided_``, a write."""
    if all(n == 1 for n in size):
        return x.mean([-i for i in range(len(size), 0, -1)], keepdim=True)
    return torch.ops.aten.adaptive_avg_pool2d.default(x, size)  # type: ignore[no-any-return]


def _masked_select(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """An index by a mask of the same shape, which ONNX has a form of."""
    values, chosen = torch.ops.aten.broadcast_tensors.default([x, mask])
    return torch.ops.aten.index.Tensor(values, [chosen])  # type: ignore[no-any-return]


_RESPELLED: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.adaptive_avg_pool2d.default: _adaptive_avg_pool,
    torch.ops.aten.masked_select.default: _masked_select,
}


def decompose_nodes(
    graph: fx.Graph,
    needs_it: Callable[[fx.Node], bool],
    table: Mapping[Any, Callable[..., Any]],
    whole: Container[Any] = (),
) -> None:
    """Replaces every node for which ``needs_it`` by the operators it consists of, in place.

    ``table``: operator -> decomposition; composite operators without an entry are decomposed as PyTorch runs them. Those
    in ``whole`` are decomposed where they are nodes of ``graph``, not as parts of others.
    """
    parts = {target: words for target, words in table.items() if target not in whole}
    fake = fake_mode_of(graph)
    for node in list(graph.nodes):
        if node.op == "call_function" and needs_it(node):
            splice(graph, node, _RESPELLED.get(node.target, node.target), _with(node.target, parts, table), fake)


def _with(target: Any, parts: Mapping[Any, Any], table: Mapping[Any, Any]) -> Mapping[Any, Any]:
    return {**parts, target: table[target]} if target in table and target not in parts else parts


def fake_mode_of(graph: fx.Graph) -> FakeTensorMode:
    """The mode of the fake tensors of ``graph``; a new one where it has none."""
    values = pytree.tree_leaves([node.meta.get("val") for node in graph.nodes])
    return next((value.fake_mode for value in values if isinstance(value, FakeTensor)), None) or FakeTensorMode()


def splice(
    graph: fx.Graph, node: fx.Node, call: Any, table: Mapping[Any, Callable[..., Any]], fake: FakeTensorMode
) -> None:
    """Replaces ``node`` by the operators that ``call`` runs on its arguments, decomposed by ``table``, in place."""
    inputs = list(
        dict.fromkeys(leaf for leaf in pytree.tree_leaves((node.args, node.kwargs)) if isinstance(leaf, fx.Node))
    )
    traced = _trace(node, call, inputs, dict(table), fake)
    values: dict[fx.Node, Any] = dict(zip(traced.graph.find_nodes(op="placeholder"), inputs, strict=True))
    with graph.inserting_before(node):
        for inner in traced.graph.nodes:
            if inner.op in ("placeholder", "output"):
                continue
            copy = graph.node_copy(inner, values.__getitem__)
            copy.meta = {DECOMPOSED: str(node.target)} | {k: v for k, v in node.meta.items() if k != "val"}
            copy.meta["val"] = inner.meta.get("val")
            values[inner] = copy
    result = fx.map_arg(traced.graph.output_node().args[0], values.__getitem__)
    _replace(graph, node, result)


def _trace(
    node: fx.Node, call: Any, inputs: list[fx.Node], table: dict[Any, Callable[..., Any]], fake: FakeTensorMode
) -> fx.GraphModule:
    def run(*values: Any) -> Any:
        given = dict(zip(inputs, values, strict=True))
        args, kwargs = fx.map_arg((node.args, node.kwargs), given.__getitem__)
        return call(*args, **kwargs)

    # Calls of one form share one value, which would make one placeholder of several arguments.
    examples = [n.meta["val"].detach() if isinstance(n.meta["val"], torch.Tensor) else n.meta["val"] for n in inputs]
    with fake, enable_python_dispatcher(), torch.no_grad():
        traced = make_fx(run, decomposition_table=table, tracing_mode="real")(*examples)
        if any(_writes(inner) for inner in traced.graph.nodes):
            functional = dispatch_functionalize(run)
            traced = make_fx(functional, decomposition_table=table, tracing_mode="real")(*examples)
    return traced


def _writes(node: fx.Node) -> bool:
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


def _replace(graph: fx.Graph, node: fx.Node, result: Any) -> None:
    """``node`` stands for ``result``: one node, or a tuple that its users take apart by index."""
    if isinstance(result, fx.Node):
        node.replace_all_uses_with(result)
    else:
        for user in list(node.users):
            user.replace_all_uses_with(result[user.args[1]])
            graph.erase_node(user)
    graph.erase_node(node)
