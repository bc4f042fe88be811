"""Where the nodes of several runs become nodes of one graph, and of the graphs that its branches and loops have."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.fx.experimental.symbolic_shapes import compute_unbacked_bindings, free_unbacked_symbols
from torch.utils import _pytree as pytree

from fxexport.control_flow import read_attribute
from fxexport.graph_copy import copy_root
from fxexport.value_cache import ValueCache

_SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)
_OF_SIZES = (torch.ops.aten.sym_size.int, torch.sym_max, torch.sym_min, torch.sym_not, torch.sym_float, torch.sym_ite)


class Target:
    """A graph in the making. What it needs from the graph around it, ``outer``, becomes a placeholder: ``captured``."""

    def __init__(self, values: ValueCache, outer: Target | None = None) -> None:
        self.graph, self.outer = fx.Graph(), outer
        self.holder = fx.GraphModule(nn.Module(), self.graph)
        self.captured: dict[fx.Node, fx.Node] = {}
        self._sizes: dict[fx.Node, fx.Node] = {}
        self._values = values
        self._last_placeholder: fx.Node | None = None

    def bring_in(self, node: fx.Node) -> fx.Node:
        """The node of this graph that has the value of ``node``, which is of this graph or of one around it."""
        if node.graph is self.graph:
            return node
        assert self.outer is not None, f"{node.name} is of no graph around this one"
        node = self.outer.bring_in(node)
        if node in self._sizes:
            return self._sizes[node]
        computed = node.target in _OF_SIZES or getattr(node.target, "__module__", "") in (
            operator.__name__,
            "_operator",
        )
        if isinstance(node.meta.get("val"), _SYMBOLIC) and computed:  # sizes are computed anew from what has them
            self._sizes[node] = copied = self.graph.node_copy(node, self.bring_in)
            return copied
        if node not in self.captured:
            self.captured[node] = self.placeholder(node.name, node.meta["val"])
        return self.captured[node]

    def placeholder(self, name: str, value: Any) -> fx.Node:
        """A new placeholder after the others."""
        first = next(iter(self.graph.nodes), None)
        after = self._last_placeholder
        with self.graph.inserting_after(after) if after else self.graph.inserting_before(first):
            node = self.graph.placeholder(name)
        node.meta["val"] = value
        self._last_placeholder = node
        return node

    def copy(self, node: fx.Node, args: dict[fx.Node, fx.Node], root: nn.Module) -> fx.Node:
        """``node`` of another graph, whose module is ``root``, with its arguments exchanged."""
        new = self.graph.node_copy(node, args.__getitem__)
        if node.op == "get_attr":
            name = f"{node.target}_{len(self.holder._modules)}".replace(".", "_")
            setattr(self.holder, name, read_attribute(copy_root(root, node.graph), str(node.target)))
            new.target = name
        elif any(old.meta.get("val") is not arg.meta.get("val") for old, arg in args.items()):
            self._evaluate(new)
        return new

    def _evaluate(self, node: fx.Node) -> None:
        """Computes the value of a node; sizes that the data decides are new ones here, and bound to it."""
        node.meta["val"] = self._values.value(node)
        node.meta.pop("unbacked_bindings", None)
        sizes = self._values.mode.shape_env
        if sizes is not None and sizes.pending_fresh_unbacked_symbols:
            own = free_unbacked_symbols(node.meta["val"])  # trying the operator first may have made others
            pending = sizes.pending_fresh_unbacked_symbols
            pending[:] = [symbol for symbol in pending if symbol in own]
            node.meta["unbacked_bindings"] = compute_unbacked_bindings(sizes, node.meta["val"])

    def copy_with(self, node: fx.Node, args: Sequence[fx.Node]) -> fx.Node:
        """The call ``node`` of another graph on other nodes, one for each place where it has one."""
        leaves, layout = pytree.tree_flatten((node.args, node.kwargs))
        feed = iter(args)
        given = [next(feed) if isinstance(leaf, fx.Node) else leaf for leaf in leaves]
        positional, named = pytree.tree_unflatten(given, layout)
        new = self.graph.call_function(node.target, positional, named)  # type: ignore[arg-type]
        new.meta.update(node.meta)
        self._evaluate(new)
        return new

    def call(self, target: Any, args: tuple[Any, ...], like: fx.Node) -> fx.Node:
        """A new call at the end of the graph, with the source line of ``like``."""
        node = self.graph.call_function(target, args)
        node.meta.update((k, like.meta[k]) for k in ("nn_module_stack", "stack_trace") if k in like.meta)
        self._evaluate(node)
        return node


class Scope:
    """What the nodes of runs are in a target, here and in the scopes around it."""

    def __init__(self, target: Target, outer: Scope | None = None) -> None:
        self.target, self._outer = target, outer
        self._known: dict[fx.Node, fx.Node] = {}

    def __setitem__(self, node: fx.Node, value: fx.Node) -> None:
        self._known[node] = value

    def get(self, node: fx.Node) -> fx.Node | None:
        """The value of a run's node in this scope's target, or None."""
        scope: Scope | None = self
        while scope is not None:
            if node in scope._known:
                return self.target.bring_in(scope._known[node])
            scope = scope._outer
        return None
