"""Equal runs of nodes -> one ONNX function and one call for each run."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from fxexport.lowering.onnx_structure import (
    Structure,
    Use,
    constant_key,
    constant_tensor,
    is_plain_constant,
    with_bodies,
)

DOMAIN = "fxexport.modules"
_VERSION = 1


@dataclass(frozen=True)
class Call:
    """The nodes of one call of a module: its path, its qualified class, and what it computes."""

    path: str
    class_name: str
    nodes: list[ir.Node]
    form: Structure


@dataclass(frozen=True)
class _Read:
    """One value of the outside, as the function sees it.

    Attributes:
        values: what each call reads.
        sources: a place in each call that reads it.
        uses: all places of the first call that do.
        is_inside: whether the function itself holds the constant that every call reads here.
    """

    values: tuple[ir.Value, ...]
    sources: tuple[Use, ...]
    uses: list[Use]
    is_inside: bool

    def now(self, number: int) -> ir.Value | None:
        """What call ``number`` reads: the same value, or the output of a call that has taken its place since."""
        node, position = self.sources[number]
        return node.inputs[position]


def replace_by_calls(model: ir.Model, calls: Sequence[Call], weights: Collection[str]) -> list[ir.Node]:
    """Moves the nodes of the first of ``calls``, all of equal structure, into a function; every one becomes a call of it.

    ``weights`` are the initializers that stay such. The graph is left unsorted. Returns the new nodes, one for each call.
    """
    graph, name = model.graph, _function_name(model, calls[0].class_name)
    reads = _reads(calls, weights)
    inputs = [read for read in reads if not read.is_inside]
    inputs.sort(key=lambda read: read.values[0].is_initializer())
    results = _results(calls)
    made = []
    for number, call in enumerate(calls):
        arguments = [read.now(number) for read in inputs]
        node = ir.Node(DOMAIN, name, arguments, num_outputs=len(results), name=call.nodes[0].name)
        graph.insert_after(call.nodes[-1], node)
        _take_over(node, [call.nodes[k].outputs[i] for k, i in results], call)
        if number:
            for inner in _own(call):  # a removed node lets go of its inputs, its branches do not
                for position in range(len(inner.inputs)):
                    inner.replace_input_with(position, None)
        graph.remove(call.nodes, safe=number > 0)
        made.append(node)
    function = _function(name, calls[0], reads, inputs, results)
    function.opset_imports.update(_imports(function, model))
    model.functions[function.identifier()] = function
    model.opset_imports[DOMAIN] = _VERSION
    _drop_unread(graph, [value for read in reads if read.is_inside for value in read.values])
    return made


def _function_name(model: ir.Model, class_name: str) -> str:
    taken = {name for domain, name, _ in model.functions if domain == DOMAIN}
    simple = class_name.rpartition(".")[2]
    return _unique(simple if simple.isidentifier() else "Module", taken)


def _unique(name: str, taken: set[str]) -> str:
    chosen, count = name, 0
    while chosen in taken:
        count += 1
        chosen = f"{name}_{count}"
    taken.add(chosen)
    return chosen


def _reads(calls: Sequence[Call], weights: Collection[str]) -> list[_Read]:
    """Places of the function that read one and the same value in every call share one entry."""
    found: dict[tuple[ir.Value, ...], _Read] = {}
    for position, (use, _) in enumerate(calls[0].form.reads):
        sources, values = zip(*(call.form.reads[position] for call in calls), strict=True)
        if values not in found:
            equal = len({constant_key(value) for value in values}) == 1 and values[0].name not in weights
            found[values] = _Read(values, sources, [], equal and is_plain_constant(values[0]))
        found[values].uses.append(use)
    return list(found.values())


def _results(calls: Sequence[Call]) -> list[tuple[int, int]]:
    """Node and output number of every value that at least one call gives to the outside."""
    found: set[tuple[int, int]] = set()
    for call in calls:
        own = _own(call)
        for k, node in enumerate(call.nodes):
            for i, value in enumerate(node.outputs):
                if value.is_graph_output() or any(user not in own for user, _ in value.uses()):
                    found.add((k, i))
    return sorted(found)


def _own(call: Call) -> set[ir.Node]:
    return {each for node in call.nodes for each in with_bodies(node)}


def _take_over(node: ir.Node, olds: Sequence[ir.Value], call: Call) -> None:
    """The outputs of ``node`` get name and type of ``olds`` and their readers outside of the call."""
    own = _own(call)
    for new, old in zip(node.outputs, olds, strict=True):
        new.name, new.type, new.shape = old.name, old.type, old.shape
        for user, position in list(old.uses()):
            if user not in own:
                user.replace_input_with(position, new)
        outputs = node.graph.outputs if node.graph is not None else []
        for position, value in enumerate(list(outputs)):
            if value is old:
                outputs[position] = new


def _function(
    name: str, call: Call, reads: Sequence[_Read], inputs: Sequence[_Read], results: Sequence[tuple[int, int]]
) -> ir.Function:
    taken = {str(value.name) for node in _own(call) for value in node.outputs}
    constants, arguments = [], []
    for read in [*inputs, *(read for read in reads if read.is_inside)]:
        if read.is_inside:
            node = ir.node("Constant", [], {"value": constant_tensor(read.values[0])})
            value = node.outputs[0]
            value.name = _unique("constant", taken)
            constants.append(node)
        else:
            value = ir.Value(name=_unique(_argument_name(read.values[0], call.path), taken))
            arguments.append(value)
        value.type = read.values[0].type
        for user, position in read.uses:
            user.replace_input_with(position, value)
    outputs = [call.nodes[k].outputs[i] for k, i in results]
    for node in _own(call):
        for value in node.outputs:
            value.shape = None  # that of the first call need not be that of the others
    body = ir.Graph(arguments, outputs, nodes=[*constants, *call.nodes], name=name)
    return ir.Function(DOMAIN, name, graph=body, attributes=[])


def _argument_name(value: ir.Value, path: str) -> str:
    """The name of a weight within its module; ``input`` for anything else."""
    inside = str(value.name).partition(f"{path}.")[2]
    return inside if value.is_initializer() and inside else "input"


def _imports(function: ir.Function, model: ir.Model) -> dict[str, int]:
    domains = {each.domain for node in function for each in with_bodies(node)} | {""}
    return {domain: model.opset_imports[domain] for domain in sorted(domains)}


def _drop_unread(graph: ir.Graph, constants: Sequence[ir.Value]) -> None:
    for value in dict.fromkeys(constants):
        if value.uses() or value.is_graph_output():
            continue
        if value.is_initializer():
            del graph.initializers[str(value.name)]
        elif (node := value.producer()) is not None and node.graph is graph:
            graph.remove(node, safe=True)
