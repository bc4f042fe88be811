"""A call as the simpler calls it consists of, by PyTorch's own decomposition."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, fx
from torch._decomp import decomposition_table
from torch._dispatch.python import enable_python_dispatcher
from torch._ops import OpOverload
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from fxexport.program import Program


def unfold(program: Program, node: fx.Node) -> list[fx.Node] | None:
    """Puts the calls that ``node`` consists of in its place; they, in order, or None where PyTorch has no decomposition."""
    target: Any = node.target
    composite = isinstance(target, OpOverload) and target._can_decompose()
    if not isinstance(target, OpOverload) or not (composite or target in decomposition_table):
        return None
    traced = _traced(program, node)
    calls = [inner for inner in traced.graph.nodes if inner.op != "placeholder" and inner.op != "output"]
    if any(call.op != "call_function" or call.target is target for call in calls):
        return None
    stands: dict[fx.Node, Any] = dict(zip(traced.graph.find_nodes(op="placeholder"), node.all_input_nodes, strict=True))
    for call in calls:
        args, kwargs = fx.map_arg((call.args, call.kwargs), stands.__getitem__)
        stands[call] = program.insert(call.target, args, kwargs, before=node)
    result = fx.map_arg(traced.graph.output_node().args[0], stands.__getitem__)
    if isinstance(result, fx.Node):
        program.replace(node, result)
    else:
        for part in list(node.users):
            program.replace(part, cast(Any, result)[part.args[1]])
        program.erase(node)
    return [stands[call] for call in calls]


def _traced(program: Program, node: fx.Node) -> fx.GraphModule:
    target: Any = node.target
    inputs = node.all_input_nodes
    table = {target: decomposition_table[target]} if target in decomposition_table else {}

    def call(*values: Any) -> Any:
        args, kwargs = fx.map_arg((node.args, node.kwargs), dict(zip(inputs, values, strict=True)).__getitem__)
        return target(*args, **kwargs)

    # Calls of one form share one value, which would make one placeholder of several arguments.
    examples = pytree.tree_map_only(torch.Tensor, Tensor.detach, [n.meta["val"] for n in inputs])
    with program.fake_mode, enable_python_dispatcher(), torch.no_grad():
        return make_fx(call, decomposition_table=table, tracing_mode="real")(*examples)
