"""``torch.cond`` and ``torch.while_loop`` as the ``if`` and ``while`` of TorchScript.

y = cond(predicate, true_graph, false_graph, (a, n))      ->  y = self.cond_0(predicate, a, n)

def forward(self, predicate: Tensor, a0: Tensor, a1: int):    # self.cond_0
    if bool(predicate):
        return self.when_true(a0, a1)
    else:
        return self.when_false(a0, a1)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from fxexport.control_flow import COND, control_flow, graphs_of, operands_of

Scripting = Callable[[fx.GraphModule], torch.jit.ScriptModule]


def script_control_flow(module: fx.GraphModule, script: Scripting) -> None:
    """Replaces every branch and loop of ``module`` by the call of a TorchScript module, in place.

    ``script`` makes one of a graph, and sees to what control flow that graph has itself.
    """
    for number, call in enumerate(control_flow(module.graph)):
        is_cond = call.target is COND
        parts = [script(_typed(each)) for each in graphs_of(module, call)]
        holder = nn.Module()
        for name, part in zip(("when_true", "when_false") if is_cond else ("condition", "body"), parts, strict=True):
            holder.add_module(name, part)
        made = torch.jit.script(holder)
        made.define(_branch(call) if is_cond else _loop(call))
        name = f"cond_{number}" if is_cond else f"while_loop_{number}"
        module.add_submodule(name, made)
        given = operands_of(call)
        with module.graph.inserting_before(call):
            replaced = module.graph.call_module(name, (call.args[0], *given) if is_cond else given)
        replaced.meta = dict(call.meta)
        call.replace_all_uses_with(replaced)
        module.graph.erase_node(call)
    for node in module.graph.find_nodes(op="get_attr"):
        if not node.users:
            module.graph.erase_node(node)
            delattr(module, str(node.target))


def _typed(module: fx.GraphModule) -> fx.GraphModule:
    """Placeholders are tensors to TorchScript unless they say otherwise; and it reads Python code that is there already."""
    for place in module.graph.find_nodes(op="placeholder"):
        place.type = {"Tensor": None, "int": int, "float": float, "bool": bool}[_type_name(place)]
    return fx.GraphModule(module, module.graph)


def _branch(call: fx.Node) -> str:
    names = [f"a{i}" for i, _ in enumerate(operands_of(call))]
    declared = ", ".join(["self", f"predicate: {_type_name(call.args[0])}", *_declared(call, names)])
    given = ", ".join(names)
    return (
        f"def forward({declared}):\n"
        "    if bool(predicate):\n"
        f"        return self.when_true({given})\n"
        "    else:\n"
        f"        return self.when_false({given})\n"
    )


def _loop(call: fx.Node) -> str:
    names = [f"a{i}" for i, _ in enumerate(operands_of(call))]
    carried = names[: len(call.args[2])]  # type: ignore[arg-type]
    given = ", ".join(names)
    lines = [
        f"def forward({', '.join(['self', *_declared(call, names)])}):",
        f"    while bool(self.condition({given})):",
        f"        after = self.body({given})",
        *(f"        {name} = after[{i}]" for i, name in enumerate(carried)),
        f"    return ({', '.join(carried)},)",
    ]
    return "\n".join(lines) + "\n"


def _declared(call: fx.Node, names: list[str]) -> list[str]:
    return [f"{name}: {_type_name(operand)}" for name, operand in zip(names, operands_of(call), strict=True)]


def _type_name(operand: Any) -> str:
    """The TorchScript type of a node's value, or of a number."""
    value = operand.meta["val"] if isinstance(operand, fx.Node) else operand
    if isinstance(value, bool | torch.SymBool):
        return "bool"
    if isinstance(value, int | torch.SymInt):
        return "int"
    return "float" if isinstance(value, float | torch.SymFloat) else "Tensor"
