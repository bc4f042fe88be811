"""The graphs that ``torch.cond`` and ``torch.while_loop`` run, made like the main graph: lifted, and with their places.

torch.export lifts parameters out of them, but leaves tensors that a branch makes from numbers as attributes of the branch,
and writes down the line of the code it generated instead of the user's.
"""

from __future__ import annotations

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument

from fxexport.control_flow import add_operand, control_flow, graphs_of, read_attribute
from fxexport.program import source_line


def lift_sub_graphs(exported: ExportedProgram) -> None:
    """Makes every tensor that a branch or loop body holds a constant of the program, handed down as an operand; in place."""
    module = exported.graph_module
    if not control_flow(module.graph):
        return
    _raise_constants(module, module.graph)
    for node in module.graph.find_nodes(op="get_attr"):
        if not isinstance(read_attribute(module, str(node.target)), nn.Module):
            _as_constant(exported, node)
    module.graph.lint()
    module.recompile()


def locate_sub_graphs(module: nn.Module, graph: fx.Graph) -> None:
    """Gives the nodes inside of branches and loop bodies the module of their call, and its line where they have none."""
    for call in control_flow(graph):
        for each in graphs_of(module, call):
            for node in each.graph.nodes:
                if node.op != "call_function":
                    continue
                if not node.meta.get("nn_module_stack") and "nn_module_stack" in call.meta:
                    node.meta["nn_module_stack"] = call.meta["nn_module_stack"]
                if not source_line(node) and "stack_trace" in call.meta:
                    node.meta["stack_trace"] = call.meta["stack_trace"]
            locate_sub_graphs(each, each.graph)


def _raise_constants(module: nn.Module, graph: fx.Graph) -> None:
    """Tensors read inside of control flow are read in ``graph`` instead, and given to it as operands."""
    for call in control_flow(graph):
        for each in graphs_of(module, call):
            _raise_constants(each, each.graph)
            readers = each.graph.find_nodes(op="get_attr")
            for target in dict.fromkeys(str(node.target) for node in readers):
                held = read_attribute(each, target)
                if not isinstance(held, nn.Module):
                    _raise(module, call, each, [node for node in readers if node.target == target], held)
            each.recompile()


def _raise(module: nn.Module, call: fx.Node, inner: fx.GraphModule, readers: list[fx.Node], held: torch.Tensor) -> None:
    """``readers`` in one graph of ``call`` read a new operand of it, which is an attribute of the outer graph."""
    name = unused_name(module, str(readers[0].target).replace(".", "_"))
    module.register_buffer(name, held)
    with call.graph.inserting_before(call):
        outer = call.graph.get_attr(name)
    outer.meta["val"] = readers[0].meta["val"]
    places = add_operand(module, call, outer)
    for node in readers:
        node.replace_all_uses_with(next(place for place in places if place.graph is inner.graph))
        inner.graph.erase_node(node)


def unused_name(module: nn.Module, name: str) -> str:
    """``name``, with a number where ``module`` has an attribute of that name."""
    number, found = 0, name
    while hasattr(module, found):
        number += 1
        found = f"{name}_{number}"
    return found


def _as_constant(exported: ExportedProgram, node: fx.Node) -> None:
    """A tensor attribute of the main graph as a constant placeholder, before the inputs."""
    graph, signature = exported.graph_module.graph, exported.graph_signature
    target = unused_name(exported.graph_module, "lifted" + str(node.target))
    while target in exported.constants or target in exported.state_dict:
        target += "_"
    specs = signature.input_specs
    position = next((i for i, spec in enumerate(specs) if spec.kind == InputKind.USER_INPUT), len(specs))
    placeholders = graph.find_nodes(op="placeholder")
    with graph.inserting_before(placeholders[position] if position < len(placeholders) else next(iter(graph.nodes))):
        constant = graph.placeholder(f"c_{target}")
    constant.target = constant.name
    constant.meta["val"] = node.meta["val"]
    specs.insert(position, InputSpec(InputKind.CONSTANT_TENSOR, TensorArgument(constant.name), target))
    exported.constants[target] = read_attribute(exported.graph_module, str(node.target))
    node.replace_all_uses_with(constant)
    graph.erase_node(node)
    delattr(exported.graph_module, str(node.target))
