"""The direct route to ONNX: every node translated as it stands, without re-tracing the program.

The translator behind ``torch.onnx.export`` is private to torch: it is used only for versions the tests ran on, and only
through this module. What has no translation of its own is decomposed first, node by node, in branches and loops, too.
"""

from __future__ import annotations

import copy
import functools
import operator
from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
import torch
from onnxscript import opset18
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import TensorArgument

from fxexport.control_flow import SubGraph, nested_graphs, own_outputs
from fxexport.errors import LoweringError
from fxexport.lowering.decompose import decompose_nodes
from fxexport.lowering.onnx_norms import norm_translations
from fxexport.lowering.onnx_spellings import SPELLINGS, spell_out
from fxexport.lowering.recurrent import RECURRENT_TRANSLATIONS
from fxexport.lowering.running_scans import RUNNING_TRANSLATIONS
from fxexport.lowering.type_promotion import write_out_casts
from fxexport.shape_rules import shape_rules

onnx_operators: Any = opset18
_DIRECT_VERSIONS = ("2.13.",)
OWN_TRANSLATIONS: dict[Any, Any] = {
    **RECURRENT_TRANSLATIONS,
    **RUNNING_TRANSLATIONS,
    torch.ops.aten.sym_numel.default: lambda x: onnx_operators.Size(x),
}
"""Operator -> onnxscript function, as ``torch.onnx.export(custom_translation_table=)`` takes it."""
_ROUNDS = 4
"""How often what an operator consists of is decomposed again: a distance into norms, those into sums."""


def try_directly(exported: ExportedProgram, opset: int, table: Mapping[Any, Any]) -> tuple[Any, list[fx.Node]]:
    """The program translated without re-tracing, to opset 18 or later, and the nodes that stand in the way of it.

    ``table``: translations by the user, as :func:`registry_for` takes them. The result is None where there are such nodes,
    or the attempt fails: the public call decides then, and its error is the one told. ``exported`` is changed.
    """
    if not torch.__version__.startswith(_DIRECT_VERSIONS):
        return None, []
    registry = registry_for(opset, table)
    try:
        left = _decompose_all(exported, registry, table)
        return (None, left) if left else (_translated(exported, opset, registry), [])
    except LoweringError:
        raise
    except Exception:  # noqa: BLE001 - a shortcut through private code may fail in any way
        return None, []


def _decompose_all(exported: ExportedProgram, registry: Any, known: Mapping[Any, Any]) -> list[fx.Node]:
    """Decomposes what has no translation, until all has; the nodes that neither has nor can be."""
    from torch.onnx._internal.exporter import _decomp

    module = exported.graph_module
    graphs = list(nested_graphs(module, module.graph))
    for path, _, graph in graphs:
        if path:
            own_outputs(graph)  # the body of an If returns values of its own
    table: dict[Any, Any] = {}
    left = _left(graphs, registry)
    for _ in range(_ROUNDS):
        if not left:
            break
        table = table or _decomp.create_onnx_friendly_decomposition_table(
            set(_decomp.get_onnx_implemented_overloads(registry))
        )
        for _, _, graph in graphs:
            decompose_nodes(graph, lambda node: not is_direct(node, registry), table, SPELLINGS)
            spell_out(graph, known)
        before, left = left, _left(graphs, registry)
        if [node.target for node in left] == [node.target for node in before]:
            break
    for spec, result in zip(exported.graph_signature.output_specs, module.graph.output_node().args[0], strict=True):
        spec.arg = TensorArgument(result.name)
    return left


def _translated(exported: ExportedProgram, opset: int, registry: Any) -> Any:
    from onnxscript import version_converter
    from torch.onnx._internal.exporter import _core, _fx_passes

    with shape_rules():
        write_out_casts(exported.graph_module)
    _fx_passes.remove_assertion_nodes(exported.graph_module)
    for _, _, graph in nested_graphs(exported.graph_module, exported.graph_module.graph):
        for node in graph.find_nodes(op="call_function", target=torch.ops.aten._linalg_check_errors.default):
            graph.erase_node(node)
    result = _core._exported_program_to_onnx_program(exported, registry=registry)
    _agree_on_versions(result.model)
    version_converter.convert_version(result.model, max(opset, 18), fallback=True)
    return result


def _agree_on_versions(model: ir.Model) -> None:
    """Functions that call functions, such as a loop in a branch: torch gives their domains the version of the operators."""
    own = {domain for domain, _, _ in model.functions}
    holders: list[ir.Model | ir.Function] = [model, *model.functions.values()]
    for each in holders:
        each.opset_imports.update((domain, 1) for domain in own if domain in each.opset_imports)


def registry_for(opset: int, table: Mapping[Any, Any] | None = None) -> Any:
    """torch's translations for ``opset`` (newer opsets have operators of their own for attention and norms), with ours
    and, before both, those of ``table``: operator -> one function, or several."""
    registry = _torch_registry(opset)
    if not table:
        return registry
    own = copy.copy(registry)
    own.functions = {target: list(entries) for target, entries in registry.functions.items()}
    for target, functions in table.items():
        for function in functions if isinstance(functions, list | tuple) else [functions]:
            own.register_op(target, function)
    return own


@functools.cache
def _torch_registry(opset: int) -> Any:
    """Made once: torch reads the source of all its translations for it, which takes longer than to lower a small model."""
    from torch.onnx._internal.exporter import _constants, _registration

    registry = _registration.ONNXRegistry.from_torchlib(opset_version=max(opset, _constants.TORCHLIB_OPSET))
    for operator_, function in {**OWN_TRANSLATIONS, **norm_translations(opset)}.items():
        registry.register_op(operator_, function)
    return registry


def _left(graphs: list[SubGraph], registry: Any) -> list[fx.Node]:
    return [n for _, _, graph in graphs for n in graph.nodes if n.op != "placeholder" and not is_direct(n, registry)]


def is_direct(node: fx.Node, registry: Any) -> bool:
    """Whether a node needs no decomposition."""
    if node.op in ("output", "get_attr") or node.target is operator.getitem:
        return True
    if node.op != "call_function" or is_assertion(node.target):
        return node.op == "call_function"
    return bool(registry.is_registered(node.target))


def is_assertion(target: Any) -> bool:
    """Assertions have no form in ONNX and are left out: the captured graph holds where its signature says."""
    return any(part in str(target) for part in ("assert", "sym_constrain", "_linalg_check_errors"))
