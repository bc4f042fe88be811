"""The graph at any number of rows: every call once, however many rows make it."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo.source import ConstantSource
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic
from torch.utils import _pytree as pytree

from fxexport.capture.rows.values import Filled, Lone, Mixed, Rows
from fxexport.shape_rules import shape_rules

aten = torch.ops.aten
_ORIGIN = ("nn_module_stack", "stack_trace", "custom")


class Builder:
    """Adds calls to ``graph``. Calls with one target and the same arguments are one node, so that equal nodes mean equal
    computations.

    ``rows`` is the symbolic number of rows, ``rows_node`` the node that reads it from an input; ``constants`` has a
    placeholder for each constant by its content.
    """

    def __init__(self, mode: Any, example: int) -> None:
        self.graph = fx.Graph()
        self.mode = mode
        env, source = mode.shape_env, ConstantSource("number_of_rows")
        self.symbol = env.create_symbol(example, source, DimDynamic.DYNAMIC, None)
        self.rows = env.create_symintnode(self.symbol, hint=example, source=source)
        self.rows_node: fx.Node | None = None
        self.origin: dict[str, Any] = {}
        self.constants: dict[Any, fx.Node] = {}
        self._made: dict[Any, fx.Node] = {}

    def at(self, node: fx.Node) -> None:
        """Calls made from here on have the source line and the module of ``node``."""
        self.origin = {key: node.meta[key] for key in _ORIGIN if key in node.meta}

    def placeholder(self, old: fx.Node, value: Any) -> fx.Node:
        """A placeholder of the name of ``old`` for ``value``."""
        node = self.graph.placeholder(old.name)
        node.meta.update(old.meta, val=value)
        return node

    def input(self, old: fx.Node, axis: int) -> fx.Node:
        """The input ``old`` at any number of rows."""
        value = old.meta["val"]
        shape = [self.rows if i == axis else size for i, size in enumerate(value.shape)]
        with self.mode:
            return self.placeholder(old, torch.empty(shape, dtype=value.dtype, device=value.device))

    def call(self, target: Any, args: Any, kwargs: dict[str, Any] | None = None) -> fx.Node:
        """The call of ``target``. Raises Mixed where it does not work for every number of rows."""
        args, kwargs = self._plain((tuple(args), kwargs or {}))
        key = (target, _key((args, kwargs)))
        if key not in self._made:
            node = self.graph.call_function(target, args, kwargs)
            node.meta.update(self.origin, val=self._value(target, args, kwargs))
            self._made[key] = node
        return self._made[key]

    def _value(self, target: Any, args: Any, kwargs: Any) -> Any:
        given, named = fx.map_arg((args, kwargs), lambda n: n.meta["val"])
        try:
            with self.mode, enable_python_dispatcher(), shape_rules(), torch.no_grad():
                value = target(*given, **named)
        except Exception as error:
            raise Mixed(f"{target} does not take another number of rows ({str(error).splitlines()[0]})") from error
        self._check_open(target)
        return value

    def _check_open(self, target: Any) -> None:
        if self.symbol in self.mode.shape_env.replacements:
            raise Mixed(f"{target} works for one number of rows only")

    def _plain(self, args: Any) -> Any:
        """Arguments with nodes in the place of values."""
        return pytree.tree_map(self.shared, args, is_leaf=lambda leaf: isinstance(leaf, Filled | Rows | Lone))

    def shared(self, value: Any) -> Any:
        """``value`` as an argument of a call."""
        if isinstance(value, Filled):
            options = {"dtype": value.dtype, "device": value.device}
            return self.call(aten.full.default, (list(value.shape), value.number), options)
        return value.node if isinstance(value, Rows | Lone) else value

    def times(self, factor: int) -> fx.Node:
        """The node of the size ``factor * rows``."""
        assert self.rows_node is not None
        return self.rows_node if factor == 1 else self.call(operator.mul, (self.rows_node, factor))

    def alone(self, rows: Rows) -> Lone:
        """The rows of ``rows``, which has a turn, along a new first axis."""
        assert rows.turn is not None
        node, axis = rows.node, rows.axis
        rank = node.meta["val"].dim()
        if axis:
            node = self.call(aten.permute.default, (node, [axis, *(i for i in range(rank) if i != axis)]))
        shape = node.meta["val"].shape
        if shape[0].node.expr == self.symbol:
            node = self.call(aten.unsqueeze.default, (node, 1 + axis))
            return Lone(node, rows.turn)
        node = self.call(aten.unflatten.int, (node, 0, [self.rows_node, -1]))
        order = [0, *range(2, 2 + axis), 1, *range(2 + axis, rank + 1)]
        return Lone(self.call(aten.permute.default, (node, order)) if axis else node, rows.turn)

    def placed(self, lone: Lone, axis: int) -> Rows:
        """``lone`` with the rows along ``axis``, one element each."""
        rank = lone.node.meta["val"].dim()
        order = [*range(1, axis + 1), 0, *range(axis + 1, rank)]
        return Rows(self.call(aten.permute.default, (lone.node, order)) if axis else lone.node, axis, lone.turn)

    def one_row(self, target: Any, args: Any, kwargs: Any) -> Any:
        """``target`` on every row by itself (``torch.vmap``): each ``Lone`` among the arguments is its row, the rest is
        shared. Returns nodes in the structure of the result, the rows along a new first axis.

        Raises Mixed where PyTorch has no rule to batch ``target``.
        """
        leaves, spec = pytree.tree_flatten((args, kwargs), is_leaf=lambda leaf: isinstance(leaf, Filled | Rows | Lone))
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, fx.Node | Filled | Lone)]
        nodes = [self.shared(leaves[i]) for i in places]
        key = (target, "each", spec, _key(tuple(leaves)))
        if key not in self._made:
            dims = [0 if isinstance(leaves[i], Lone) else None for i in places]
            self._made[key] = self._inlined(_each(target, leaves, spec, places, dims), nodes, target)
        return self._made[key]

    def _inlined(self, function: Any, nodes: Sequence[fx.Node], target: Any) -> Any:
        functorch: Any = torch._C._functorch
        enabled = functorch._is_vmap_fallback_enabled()
        functorch._set_vmap_fallback_enabled(False)  # it is a loop over the rows itself
        try:
            with self.mode, enable_python_dispatcher(), shape_rules(), torch.no_grad():
                traced = make_fx(function)(*(node.meta["val"] for node in nodes))
        except Exception as error:
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise Mixed(f"PyTorch does not say how {target} runs on many rows at once ({first})") from error
        finally:
            functorch._set_vmap_fallback_enabled(enabled)
        self._check_open(target)
        traced.graph.eliminate_dead_code()
        feed, found = iter(nodes), {}
        for node in traced.graph.nodes:
            if node.op == "placeholder":
                found[node] = next(feed)
            elif node.op == "call_function":
                args, kwargs = fx.map_arg((node.args, node.kwargs), found.__getitem__)
                found[node] = self.call(node.target, args, kwargs)
            elif node.op != "output":
                raise Mixed(f"{target} makes a constant for every row")
        return fx.map_arg(traced.graph.output_node().args[0], found.__getitem__)


def _each(target: Any, leaves: Sequence[Any], spec: Any, places: Sequence[int], dims: Sequence[int | None]) -> Any:
    def one(*given: Any) -> Any:
        filled = list(leaves)
        for place, value in zip(places, given, strict=True):
            filled[place] = value
        args, kwargs = pytree.tree_unflatten(filled, spec)
        return target(*args, **kwargs)

    return torch.vmap(one, in_dims=tuple(dims))


def _key(value: Any) -> Any:
    """Arguments as something that can be compared: 1, 1.0 and True are three things."""
    if isinstance(value, list | tuple):
        return type(value).__name__, tuple(map(_key, value))
    if isinstance(value, dict):
        return tuple((name, _key(value[name])) for name in sorted(value))
    if isinstance(value, Lone):
        return "row", value.node  # whichever row it is
    return (type(value).__name__, repr(value)) if isinstance(value, bool | int | float | complex) else value


def constant_of(exported: ExportedProgram, name: str) -> Any:
    """What tells the constant behind a placeholder from others: its content where it is small, else its name; None for
    an input."""
    spec = next(spec for spec in exported.graph_signature.input_specs if spec.arg.name == name)
    value = exported.state_dict.get(str(spec.target), exported.constants.get(str(spec.target)))
    if not isinstance(value, torch.Tensor):
        return None if spec.target is None else str(spec.target)
    if spec.kind != InputKind.CONSTANT_TENSOR:
        return str(spec.target)
    if value.numel() > 4096 or value.is_quantized or value.layout != torch.strided:
        return str(spec.target)
    plain = value.detach().resolve_conj().contiguous().reshape(-1).view(torch.uint8)
    return value.dtype, tuple(value.shape), bytes(plain.tolist())
