"""``Program`` -> ONNX: translated by torch.onnx, then named, cleaned and checked here."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from fxexport.errors import InputError, LoweringError
from fxexport.lowering.onnx_file import check_onnx, write_onnx
from fxexport.lowering.onnx_functions import FunctionRecord, number_calls, outline_functions
from fxexport.lowering.onnx_translation import TranslationTable, translate
from fxexport.program import Program
from fxexport.signature import Axis, TensorSpec, dtype_name

DEFAULT_OPSET = 20
OPSETS = range(17, 24)
METADATA_KEY = "fxexport"


def lower_onnx(
    program: Program,
    path: Path,
    metadata: Mapping[str, Any],
    *,
    opset_version: int | None = None,
    external_data: bool | None = None,
    custom_translation_table: TranslationTable | None = None,
    do_constant_folding: bool = True,
    keep_initializers_as_inputs: bool = False,
    functions: bool | Collection[Any] = False,
    function_records: list[FunctionRecord] | None = None,
) -> list[Path]:
    """Writes ``program`` as an ONNX file at ``path`` (and one data file where the weights do not fit inside).

    The file holds standard operators of exactly ``opset_version``, the names and axes of ``program.signature``,
    ``metadata`` as JSON, and nothing that depends on the machine or directory: same program, same bytes.

    ``do_constant_folding=False`` leaves in the graph what depends on weights and constants alone.
    ``keep_initializers_as_inputs`` lists every initializer as an input, too, after those of the signature: whoever runs
    the file may give it another value, so nothing is folded into it. ``functions`` (True, or module classes by type or
    name) writes modules of equal structure as one ONNX function, and adds what it did to ``function_records``.

    Returns the files written. Raises InputError for an opset that cannot be produced and LoweringError naming every
    operator that has no translation.
    """
    opset = check_opset(opset_version)
    if functions:
        program = number_calls(program)
    model = translate(
        program,
        opset,
        custom_translation_table,
        fold_constants=do_constant_folding,
        keep_weights=keep_initializers_as_inputs,
    )
    produced = model.opset_imports.get("", None)
    if produced != opset:
        raise LoweringError(
            f"opset {opset} was asked, but the operators of this model need opset {produced}: "
            f"give opset_version={produced} or a later one (up to {OPSETS[-1]})"
        )
    if functions:
        found = outline_functions(model, program, functions)
        if function_records is not None:
            function_records += found
    _name_interface(model.graph, program)
    _strip(model, _pass_history(program))
    model.metadata_props[METADATA_KEY] = json.dumps(metadata)
    if keep_initializers_as_inputs:
        model.graph.inputs.extend(model.graph.initializers.values())
    check_onnx(model)
    return write_onnx(model, path, external_data=external_data)


def check_opset(version: int | None) -> int:
    """The opset to write. Raises InputError unless it is one that can be produced exactly."""
    if version is None:
        return DEFAULT_OPSET
    if type(version) is not int or version not in OPSETS:
        raise InputError(
            f"opset_version {version!r} cannot be produced; give one from {OPSETS[0]} to {OPSETS[-1]} "
            f"(default {DEFAULT_OPSET})"
        )
    return version


# -------------------------------------------------------------------- names and axes


def _name_interface(graph: ir.Graph, program: Program) -> None:
    """Gives inputs and outputs exactly the names and axes of the signature, each name used once in the file."""
    signature = program.signature
    if len(graph.inputs) != len(signature.inputs) or len(graph.outputs) != len(signature.outputs):
        raise LoweringError(
            f"torch.onnx produced {len(graph.inputs)} inputs and {len(graph.outputs)} outputs for a signature of "
            f"{len(signature.inputs)} and {len(signature.outputs)}"
        )
    wanted = [spec.name for spec in (*signature.inputs, *signature.outputs)]
    interface = [*graph.inputs, *graph.outputs]
    _free_names(graph, set(wanted), interface)
    for position, value in enumerate(interface):
        value.name = f"fxexport_interface_{position}"
    for value, spec in zip(interface, (*signature.inputs, *signature.outputs), strict=True):
        value.name = spec.name
        value.shape = ir.Shape([_dim(axis) for axis in spec.axes])
        value.metadata_props.clear()
    _check_dtypes(interface, (*signature.inputs, *signature.outputs))


def _dim(axis: Axis) -> int | ir.SymbolicDim:
    return axis if isinstance(axis, int) else ir.SymbolicDim(axis)


def _check_dtypes(values: Sequence[ir.Value], specs: Sequence[TensorSpec]) -> None:
    for value, spec in zip(values, specs, strict=True):
        expected = ir.DataType[_ONNX_NAMES.get(dtype_name(spec.dtype), dtype_name(spec.dtype).upper())]
        if value.dtype is None:
            value.dtype = expected
        if value.dtype != expected:
            raise LoweringError(f"{spec.name!r} is {spec.dtype} in the model and {value.dtype} in ONNX")


_ONNX_NAMES = {"float32": "FLOAT", "float64": "DOUBLE"}


def _free_names(graph: ir.Graph, wanted: set[str], interface: Sequence[ir.Value]) -> None:
    """Renames inner values and weights that hold a name which an input or output is to have."""
    own = set(interface)
    values = [v for node in ir.traversal.RecursiveGraphIterator(graph) for v in node.outputs]
    taken = {v.name for v in values} | set(graph.initializers) | wanted
    for value in values:
        if value.name in wanted and value not in own:
            value.name = _fresh(str(value.name), taken)
    for name in [name for name in graph.initializers if name in wanted]:
        value = graph.initializers.pop(name)
        value.name = _fresh(name, taken)
        graph.initializers[value.name] = value


def _fresh(name: str, taken: set[str | None]) -> str:
    count = 1
    while f"{name}_{count}" in taken:
        count += 1
    taken.add(f"{name}_{count}")
    return f"{name}_{count}"


# -------------------------------------------------------------------- what the file may say


def _pass_history(program: Program) -> dict[str, str]:
    """Captured node -> the passes that made or changed it."""
    nodes = (node for _, _, graph in program.graphs() for node in graph.nodes)
    made = ((node.name, node.meta.get("custom", {}).get("fxexport_passes", ())) for node in nodes)
    return {name: ",".join(passes) for name, passes in made if passes}


def _strip(model: ir.Model, history: Mapping[str, str]) -> None:
    """Removes what depends on machine and directory; keeps the module path and the passes of every node."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.graph.name = "main_graph"
    model.doc_string = model.graph.doc_string = None
    model.producer_name, model.producer_version = "fxexport", None
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for graph in graphs:
        for node in ir.traversal.RecursiveGraphIterator(graph):
            path = _module_path(node.metadata_props)
            captured = re.match(r"%(\w+)", node.metadata_props.get("pkg.torch.onnx.fx_node", ""))
            node.metadata_props.clear()
            if captured and captured[1] in history:
                node.metadata_props["fxexport.passes"] = history[captured[1]]
            node.doc_string = None
            if path:
                node.metadata_props["fxexport.module"] = path
            for value in node.outputs:
                value.metadata_props.clear()
                value.doc_string = None
    for value in model.graph.initializers.values():
        value.metadata_props.clear()
        if value.const_value is not None:
            value.const_value.name = value.name
    _name_inner_axes(model.graph)


def _module_path(metadata: Mapping[str, str]) -> str:
    """The innermost module of ``pkg.torch.onnx.name_scopes``, whose last entry is the operator itself."""
    scopes = json.loads(metadata.get("pkg.torch.onnx.name_scopes", "[]").replace("'", '"'))
    return str(scopes[-2]) if len(scopes) > 1 else ""


def _name_inner_axes(graph: ir.Graph) -> None:
    """Drops torch's internal symbols (``s77``) from inner values: only the interface has names that mean something."""
    interface = {*graph.inputs, *graph.outputs}
    for node in graph:
        for value in node.outputs:
            if value in interface or value.shape is None:
                continue
            value.shape = ir.Shape([d if isinstance(d, int) else ir.SymbolicDim(None) for d in value.shape])
