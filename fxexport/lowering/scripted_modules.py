"""Calls of TorchScript modules, as capture and passes see them, become those modules again.

    [y] = fxexport_script::call([x], 7, 0)  ->  y = self.scripted_block(x)

They are attributes of the lowered module, which scripting leaves as they are.
"""

from __future__ import annotations

import operator
import re

import torch
from torch import fx

from fxexport.exportable.scripted import CALL, CallForm, script_of


def restore_scripted(module: fx.GraphModule) -> None:
    """Puts every TorchScript module that the graph calls into ``module``, once, and calls it, in place."""
    names: dict[int, str] = {}
    for node in module.graph.find_nodes(op="call_function", target=CALL):
        tensors, number, index = node.args
        script = script_of(number)
        if number not in names:
            names[number] = f"scripted_{len(names)}_{re.sub(r'[^0-9A-Za-z_]', '_', script.path)}"
            module.add_module(names[number], _typed(script.module))
        form = script.forms[index]
        args, kwargs = form.arguments(tensors)
        with module.graph.inserting_before(node):
            call = module.graph.call_module(names[number], args, kwargs)
        _read_results(module.graph, node, call, form)
        module.graph.erase_node(node)


def _typed(module: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    """``module`` with the type that scripting asks of a submodule; ``torch.jit.freeze`` leaves it out."""
    if "_concrete_type" in vars(module):
        return module
    typed: torch.jit.ScriptModule = torch.jit._recursive.wrap_cpp_module(module._c)  # type: ignore[no-untyped-call]
    return typed


def _read_results(graph: fx.Graph, node: fx.Node, call: fx.Node, form: CallForm) -> None:
    """Reads of ``node``, a flat list, as reads of what the module returns."""
    for user in list(node.users):
        assert user.target is operator.getitem
        with graph.inserting_before(user):
            result = call
            if form.keys is not None:
                result = graph.call_function(operator.getitem, (call, form.keys[user.args[1]]))  # type: ignore[index]
            # Views after it were captured for the memory layout that the operator promises.
            user.replace_all_uses_with(graph.call_method("contiguous", (result,)))
        graph.erase_node(user)
