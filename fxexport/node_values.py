"""What the nodes of a captured graph say of themselves: where they come from, and whether two have the same form."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch._ops import OpOverloadPacket
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import statically_known_true

from fxexport.errors import VerifyError

Watch = Callable[[fx.Node, tuple[Any, ...], dict[str, Any], Any], None]
"""Told of a call of a graph that was run: the node, the values of its arguments, its result."""
_NOT_USER_CODE = tuple(os.path.dirname(file) + os.sep for file in (str(torch.__file__), __file__))


def module_path(node: fx.Node) -> str:
    """The qualified name of the user's module that made ``node``: ``"encoder.layer.0.attention"``; '' for the root."""
    stack = node.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0]) if stack else ""


def source_line(node: fx.Node) -> str:
    """``file:line`` of the innermost line of user code that made ``node``, or '' where none was recorded."""
    frames = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines()]
    places = [line.split('"')[1] + ":" + line.split("line ")[1].split(",")[0] for line in frames if line[:5] == "File "]
    places = [place for place in places if not place.startswith("<")]  # code that was generated while tracing
    own = [place for place in places if not place.startswith(_NOT_USER_CODE)]
    return (own or places or [""])[-1]


def check_same_value(old: fx.Node, new: fx.Node) -> None:
    """Raises VerifyError unless the tensors of two nodes agree in dtype and (symbolic) shape."""
    a, b = old.meta.get("val"), new.meta.get("val")
    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
        return
    if a is b:
        return
    if a.dtype != b.dtype or a.dim() != b.dim() or not all(map(same_size, a.shape, b.shape)):
        raise VerifyError(
            f"{new.name} {b.dtype}{tuple(b.shape)} cannot stand for {old.name} {a.dtype}{tuple(a.shape)}"
            f" made at {source_line(old) or 'an unknown line'}"
        )


def same_size(a: int | torch.SymInt, b: int | torch.SymInt) -> bool:
    """Whether two sizes are known to be equal, without assuming anything about the symbolic ones."""
    if type(a) is int and type(b) is int:
        return a == b
    if isinstance(a, torch.SymInt) and isinstance(b, torch.SymInt) and a.node.expr == b.node.expr:
        return True
    return statically_known_true(a == b)


def resolve_overload(packet: OpOverloadPacket, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[..., Any]:
    """The overload of a packet that takes the values of the arguments. Raises VerifyError where none does."""
    values, named = fx.map_arg((args, kwargs), lambda n: n.meta["val"])
    try:
        name = torch._C._jit_resolve_packet(packet._qualified_op_name, *values, **named)
    except RuntimeError as error:
        raise VerifyError(f"no overload of {packet} accepts its arguments: {error}") from error
    overload: Callable[..., Any] = getattr(packet, name)
    return overload


def fake_mode_of(graph: fx.Graph) -> FakeTensorMode:
    """The mode in which the values of a graph live, or a new one."""
    for node in graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, FakeTensor):
            return value.fake_mode
    return FakeTensorMode()


class Watched(fx.Interpreter):
    """Runs a graph, and tells ``watch`` of every call."""

    def __init__(self, root: nn.Module, graph: fx.Graph, watch: Watch | None = None) -> None:
        super().__init__(root, graph=graph)
        self.watch = watch

    def run_node(self, n: fx.Node) -> Any:
        """The result of one node."""
        result = super().run_node(n)
        if self.watch is not None and n.op == "call_function":
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            self.watch(n, args, kwargs, result)
        return result
