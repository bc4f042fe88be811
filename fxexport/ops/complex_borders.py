"""Branches and loops that take and return complex tensors take and return ``[..., 2]`` real ones instead.

    y = cond(p, f, g, (z,))[0]   ->   y = view_as_complex(cond(p, f, g, (view_as_real(z),))[0])

with ``view_as_complex`` of the operands and ``view_as_real`` of the results inside.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxexport.control_flow import COND, graphs_of
from fxexport.program import Program

aten = torch.ops.aten


def make_border_real(program: Program, module: nn.Module, call: fx.Node) -> None:
    """Changes the operands and results of one call of ``cond`` or ``while_loop``, and of the graphs that it runs."""
    _give_real(program, call)
    for index, each in enumerate(graphs_of(module, call)):
        _take_real(program, each.graph)
        if call.target is COND or index == 1:
            _return_real(program, each.graph)
    values = tuple(call.meta["val"])
    if not any(map(_is_complex, values)):
        return
    with program.fake_mode:
        call.meta["val"] = tuple(_as_real(value) if _is_complex(value) else value for value in values)
    for item in [user for user in call.users if user.target is operator.getitem]:
        if not _is_complex(item.meta["val"]):
            continue
        after = item.next
        item.meta["val"] = call.meta["val"][item.args[1]]
        back = program.insert(aten.view_as_complex.default, (item,), before=after, like=item)
        _read_instead(item, back)


def _give_real(program: Program, call: fx.Node) -> None:
    def real(operand: Any) -> Any:
        if not isinstance(operand, fx.Node) or not _is_complex(operand.meta.get("val")):
            return operand
        return program.insert(aten.view_as_real.default, (operand,), before=call)

    groups = list(call.args)
    for position in (3,) if call.target is COND else (2, 3):
        if position < len(groups):
            groups[position] = tuple(map(real, groups[position]))  # type: ignore[arg-type]
    call.args = tuple(groups)


def _take_real(program: Program, graph: fx.Graph) -> None:
    places = graph.find_nodes(op="placeholder")
    first = next(node for node in graph.nodes if node.op != "placeholder")
    for place in places:
        if not _is_complex(place.meta.get("val")):
            continue
        with program.fake_mode:
            place.meta["val"] = _as_real(place.meta["val"])
        back = program.insert(aten.view_as_complex.default, (place,), before=first)
        _read_instead(place, back)


def _return_real(program: Program, graph: fx.Graph) -> None:
    output = graph.output_node()

    def real(result: Any) -> Any:
        if not isinstance(result, fx.Node) or not _is_complex(result.meta.get("val")):
            return result
        return program.insert(aten.view_as_real.default, (result,), before=output, like=result)

    output.args = (tuple(map(real, output.args[0])),)  # type: ignore[arg-type]


def _read_instead(value: fx.Node, view: fx.Node) -> None:
    """All that read ``value`` read ``view``, which is made of it."""
    value.replace_all_uses_with(view, delete_user_cb=lambda user: user is not view)


def _as_real(value: Tensor) -> Tensor:
    return torch.view_as_real(value.resolve_conj())


def _is_complex(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_complex()
