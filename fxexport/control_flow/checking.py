"""What must hold of a branch or a loop in a graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols, statically_known_true
from torch.utils import _pytree as pytree

from fxexport.control_flow.reading import COND, graphs_of, operands_of
from fxexport.errors import VerifyError


def check_call(module: nn.Module, call: fx.Node) -> None:
    """Checks that the graphs of ``call`` take what it gives them and return what it says it returns.

    Raises VerifyError naming the operand or result that does not fit in dtype, rank or known size.
    """
    for which, each in enumerate(graphs_of(module, call)):
        places = each.graph.find_nodes(op="placeholder")
        given = operands_of(call)
        if len(places) != len(given):
            raise VerifyError(f"{call.name} gives {len(given)} operands to a graph that takes {len(places)}")
        for place, operand in zip(places, given, strict=True):
            value = operand.meta.get("val") if isinstance(operand, fx.Node) else operand
            _check(f"operand {operand} of {call.name}", value, f"placeholder {place.name}", place.meta.get("val"))
        results = pytree.tree_leaves(each.graph.output_node().args[0])
        if call.target is not COND and which == 0:
            continue  # the condition of a loop, which returns one bool
        claimed = call.meta["val"]
        if len(results) != len(claimed):
            raise VerifyError(f"{call.name} has {len(claimed)} results, one of its graphs returns {len(results)}")
        for result, value in zip(results, claimed, strict=True):
            found = result.meta.get("val") if isinstance(result, fx.Node) else result
            _check(f"result {result} inside of {call.name}", found, "its value outside", value)


def _check(what: str, a: Any, other: str, b: Any) -> None:
    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
        return
    if a.dtype == b.dtype and a.dim() == b.dim() and all(map(_may_be_same, a.shape, b.shape)):
        return
    raise VerifyError(f"{what} is {a.dtype}{list(a.shape)}, {other} {b.dtype}{list(b.shape)}")


def _may_be_same(a: int | torch.SymInt, b: int | torch.SymInt) -> bool:
    return bool(free_unbacked_symbols([a, b])) or statically_known_true(a == b)
