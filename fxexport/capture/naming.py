"""From torch.export's names to the user's: inputs, outputs, qualified names, module paths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from fxexport.capture.axes import NamedAxes
from fxexport.capture.binding import ExampleCall
from fxexport.capture.flat_model import ResultLayout
from fxexport.program import Program
from fxexport.signature import Signature, TensorSpec


def rename_inputs(exported: ExportedProgram, names: Sequence[str]) -> list[fx.Node]:
    """Gives the input placeholders the artifact's names and takes the wrapper's prefix off every qualified name."""
    signature = exported.graph_signature
    by_name = {spec.arg.name: spec for spec in signature.input_specs}
    inputs: list[fx.Node] = []
    for node in exported.graph.find_nodes(op="placeholder"):
        spec = by_name[node.name]
        if spec.kind == InputKind.USER_INPUT:
            name = names[len(inputs)]
            node._rename("self_" if name == "self" else name)  # the generated code has a ``self`` of its own
            node.target = node.name
            spec.arg = replace(spec.arg, name=node.name)
            inputs.append(node)
        elif spec.target is not None:
            spec.target = spec.target.removeprefix("model.")
    for table in (exported.state_dict, exported.constants):
        for key in [key for key in table if key.startswith("model.")]:
            table[key.removeprefix("model.")] = table.pop(key)
    _strip_module_paths(exported.graph)
    return inputs


def _strip_module_paths(graph: fx.Graph) -> None:
    """Module paths as the user's own ``named_modules`` has them: the flat wrapper is not part of the model."""
    for node in graph.nodes:
        stack = node.meta.get("nn_module_stack")
        if stack:
            rest = [(key, entry) for key, entry in stack.items() if entry[0] != ""]
            node.meta["nn_module_stack"] = {
                key: (entry[0].removeprefix("model").removeprefix("."), *entry[1:]) for key, entry in rest
            }


def merge_tied(program: Program) -> None:
    """One constant for one tensor, however many names it has in the model; constants that nothing reads go."""
    first: dict[Any, fx.Node] = {}
    for node in program.graph.find_nodes(op="placeholder"):
        value = program.constant_value(node)
        if value is not None and value.numel():
            key = (value.data_ptr(), value.shape, value.stride(), value.dtype)
            if first.setdefault(key, node) is not node:
                node.replace_all_uses_with(first[key])
    program.erase_dead()


def make_signature(
    exported: ExportedProgram,
    inputs: list[fx.Node],
    names: Sequence[str],
    outputs: Sequence[str],
    call: ExampleCall,
    layout: ResultLayout,
    axes: NamedAxes,
) -> Signature:
    pairs = {call.paths[i] for i in call.pairs or ()}

    def spec(name: str, node: Any, path: str, pairs: bool) -> TensorSpec:
        return TensorSpec(name, node.meta["val"].dtype, axes.axes_of(node.meta["val"]), path, pairs)

    results: Any = exported.graph.output_node().args[0]
    rename = dict(zip(layout.names, outputs, strict=True))
    return Signature(
        inputs=tuple(map(spec, names, inputs, call.paths, [path in pairs for path in call.paths])),
        outputs=tuple(map(spec, outputs, results, layout.paths, [path in layout.pairs for path in layout.paths])),
        structure=_renamed(layout.structure, rename),
        dimensions=axes.dimensions,
        guards=axes.guards,
        baked=call.baked,
        dropped=layout.dropped,
        parameters=call.parameters,
    )


def _renamed(structure: Any, names: dict[str, str]) -> Any:
    if structure is None or isinstance(structure, str):
        return names.get(structure) if structure else None
    if "tuple" in structure:
        return {"tuple": [_renamed(child, names) for child in structure["tuple"]]}
    return {"dict": {key: _renamed(child, names) for key, child in structure["dict"].items()}}
