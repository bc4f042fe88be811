"""Copies of fx graphs, name for name and without generating Python code.

``copy.deepcopy`` of a ``GraphModule`` compiles its code again, and adding nodes one by one through ``fx.Graph`` chooses
their names anew (a node named like a Python builtin is renamed) at five times the price. So nodes are linked in here as
``fx.Graph.create_node`` does it, in the one place of this package that knows the inside of a graph.
"""

from __future__ import annotations

import copy
from typing import cast

from torch import fx, nn
from torch.fx._lazy_graph_module import _make_graph_module, _use_lazy_graph_module


def copy_graph(graph: fx.Graph) -> fx.Graph:
    """A graph with copies of all nodes: the same names, order and targets, a ``meta`` of their own with the same values.

    Names that ``graph`` ever gave away stay taken in the copy. The copy has no owning module.
    """
    twin = fx.Graph(tracer_cls=graph._tracer_cls, tracer_extras=graph._tracer_extras)
    twin.set_codegen(copy.deepcopy(graph._codegen))
    names, table = twin._graph_namespace, twin._find_nodes_lookup_table
    copies: dict[fx.Node, fx.Node] = {}
    find = copies.__getitem__
    for old in graph.nodes:
        args, kwargs = fx.map_arg(old.args, find), fx.map_arg(old.kwargs, find)
        new = fx.Node(twin, old.name, old.op, old.target, args, kwargs, old.type)
        new.meta.update(old.meta)
        names._obj_to_name[new] = old.name
        twin._root.prepend(new)
        table.insert(new)
        copies[old] = new
    twin._len = len(copies)
    names._used_names = set(graph._graph_namespace._used_names) | set(names._obj_to_name.values())
    names._base_count = dict(graph._graph_namespace._base_count)
    return twin


def copy_root(root: nn.Module, graph: fx.Graph) -> nn.Module:
    """A module that holds what ``graph`` reads from ``root`` (the branches of its control flow) and owns ``graph``.

    Branches are copied, so that they can be edited; their tensors are shared.
    """
    twin = nn.Module()
    twin.meta = dict(getattr(root, "meta", {}))  # type: ignore[assignment]
    for name in dict.fromkeys(str(node.target).split(".")[0] for node in graph.find_nodes(op="get_attr")):
        held = getattr(root, name)
        setattr(twin, name, _copy_branch(held) if isinstance(held, fx.GraphModule) else held)
    graph.owning_module = cast(fx.GraphModule, twin)  # fx asks it for attributes and hooks only
    return twin


def _copy_branch(module: fx.GraphModule) -> fx.GraphModule:
    """A copy whose Python code is made when it is first called: every pass works on a copy, few of them are run."""
    graph = copy_graph(module.graph)
    with _use_lazy_graph_module(should_use=True):
        twin = _make_graph_module(copy_root(module, graph), graph, class_name=type(module).__name__)
    twin.meta.update(module.meta)
    return twin
