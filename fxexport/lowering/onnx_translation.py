"""Translating a program to ONNX operators: node by node where possible, else through ``torch.onnx.export``.

``torch.onnx.export`` re-traces the whole program to decompose it, which is most of its time. Where every operator of
the rewritten program already has a translation there is nothing to decompose, and the translator behind the public call
gives the same graph at once. That translator is private to torch: it is used only for versions the tests ran
on, only through this module, and ``torch.onnx.export`` is the fallback. Both are held to the same tests.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import operator
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir
import torch
from torch import fx
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.export.graph_signature import TensorArgument

from fxexport.control_flow import SubGraph, nested_graphs, own_outputs
from fxexport.errors import LoweringError
from fxexport.lowering.complex_values import refuse_complex_interface, untranslated_complex
from fxexport.lowering.decompose import decompose_nodes
from fxexport.lowering.masked_attention import legalize_masked_attention
from fxexport.lowering.onnx_optimize import optimize
from fxexport.lowering.onnx_spellings import respell
from fxexport.lowering.recurrent import RECURRENT_TRANSLATIONS
from fxexport.lowering.type_promotion import write_out_casts
from fxexport.program import Program, module_path
from fxexport.shape_rules import shape_rules

aten = torch.ops.aten

TranslationTable = dict[Callable[..., Any], Callable[..., Any]]
"""Operator -> onnxscript function, as ``torch.onnx.export(custom_translation_table=)`` takes it."""

_DIRECT_VERSIONS = ("2.13.",)


def translate(
    program: Program,
    opset: int,
    table: TranslationTable | None = None,
    *,
    fold_constants: bool = True,
    keep_weights: bool = False,
) -> ir.Model:
    """``program`` as an ONNX model of ``opset``, tidied as :func:`optimize` says.

    Raises LoweringError listing every operator without a translation, with its module path and a stub to fill in.
    """
    refuse_complex_interface(program)
    program = respell(legalize_masked_attention(program, opset), table or ())
    with _quiet(), torch.no_grad():
        result = None if table else _try_directly(program.to_exported(), opset)
        if result is None:
            try:
                with shape_rules():
                    result = torch.onnx.export(
                        program.to_exported(),
                        dynamo=True,
                        opset_version=opset,
                        custom_translation_table={**RECURRENT_TRANSLATIONS, **(table or {})},
                        verbose=False,
                        optimize=False,
                    )
            except Exception as error:
                raise LoweringError(_explain(program, opset, error, table)) from error
        assert result is not None
        optimize(result.model, fold_constants=fold_constants, keep_weights=keep_weights)
    model: ir.Model = result.model
    return model


def _try_directly(exported: ExportedProgram, opset: int) -> Any:
    """:func:`_translate_directly`, or None where it fails: the public call decides then, and its error is the one told."""
    try:
        return _translate_directly(exported, opset)
    except LoweringError:
        raise
    except Exception:  # noqa: BLE001 - a shortcut through private code may fail in any way
        return None


def _translate_directly(exported: ExportedProgram, opset: int) -> Any:
    """The program translated without re-tracing, or None where something in it needs torch's decompositions."""
    if not torch.__version__.startswith(_DIRECT_VERSIONS):
        return None
    from onnxscript import version_converter
    from torch.onnx._internal.exporter import _core, _decomp, _fx_passes

    registry = _registry(opset)
    module = exported.graph_module
    graphs = list(nested_graphs(module, module.graph))
    for path, _, graph in graphs:
        if path:
            own_outputs(graph)  # the body of an If returns values of its own
    if not _are_direct(graphs, registry):
        table = _decomp.create_onnx_friendly_decomposition_table(set(_decomp.get_onnx_implemented_overloads(registry)))
        for _, _, graph in graphs:
            decompose_nodes(graph, lambda node: not _is_direct(node, registry), table)
    for spec, result in zip(exported.graph_signature.output_specs, module.graph.output_node().args[0], strict=True):
        spec.arg = TensorArgument(result.name)
    if not _are_direct(graphs, registry):
        return None
    with shape_rules():
        write_out_casts(exported.graph_module)
    _fx_passes.remove_assertion_nodes(exported.graph_module)
    result = _core._exported_program_to_onnx_program(exported, registry=registry)
    _agree_on_versions(result.model)
    version_converter.convert_version(result.model, opset, fallback=True)
    return result


def _agree_on_versions(model: ir.Model) -> None:
    """Functions that call functions, such as a loop in a branch: torch gives their domains the version of the operators."""
    own = {domain for domain, _, _ in model.functions}
    holders: list[ir.Model | ir.Function] = [model, *model.functions.values()]
    for each in holders:
        each.opset_imports.update((domain, 1) for domain in own if domain in each.opset_imports)


def _registry(opset: int) -> Any:
    """torch's translations for ``opset``: newer opsets have operators of their own for attention and norms."""
    from torch.onnx._internal.exporter import _constants

    return _torch_registry(max(opset, _constants.TORCHLIB_OPSET))


@functools.cache
def _torch_registry(opset: int) -> Any:
    """Made once: torch reads the source of all its translations for it, which takes longer than to lower a small model."""
    from torch.onnx._internal.exporter import _registration

    registry = _registration.ONNXRegistry.from_torchlib(opset_version=opset)
    for operator_, function in RECURRENT_TRANSLATIONS.items():
        registry.register_op(operator_, function)
    return registry


def _are_direct(graphs: list[SubGraph], registry: Any) -> bool:
    return all(_is_direct(n, registry) for _, _, graph in graphs for n in graph.nodes if n.op != "placeholder")


def _is_direct(node: fx.Node, registry: Any) -> bool:
    if node.op in ("output", "get_attr") or node.target is operator.getitem:
        return True
    if node.op != "call_function" or _is_assertion(node.target):
        return node.op == "call_function"
    return bool(registry.is_registered(node.target))


def _is_assertion(target: Any) -> bool:
    """Assertions have no form in ONNX and are left out: the captured graph holds where its signature says."""
    return "assert" in str(target) or "sym_constrain" in str(target)


@contextmanager
def _quiet() -> Iterator[None]:
    """torch.onnx logs and prints what is checked here in other words; errors still come as exceptions."""
    loggers = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir", "onnx")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


# -------------------------------------------------------------------- when it fails


def _explain(program: Program, opset: int, error: Exception, table: TranslationTable | None) -> str:
    missing = missing_operators(program, opset, table)
    on_complex = untranslated_complex(program, _registry(opset), table or ())
    if not missing and on_complex:
        return on_complex
    if not missing:
        cause = error.__cause__ or error
        lines = [line for line in str(cause).splitlines() if line.strip()]
        return f"torch.onnx could not translate the program: {type(cause).__name__}: {' '.join(lines[:3])[:600]}"
    rows = [f"  {name}  used in {', '.join(places)}" for name, places in missing.items()]
    return "\n".join(
        [
            f"{len(missing)} operator{'s have' if len(missing) > 1 else ' has'} no ONNX translation:",
            *rows,
            "Give one translation function for each (onnxscript):",
            *(_stub(name) for name in missing),
        ]
    )


def missing_operators(program: Program, opset: int, table: TranslationTable | None) -> dict[str, list[str]]:
    """Operators that neither have a translation nor can be decomposed into ones that have, with their modules."""
    nodes = [node for node in program.graph.nodes if isinstance(node.target, OpOverload)]
    missing = untranslated([node.target for node in nodes], opset, table)
    found: dict[str, list[str]] = {}
    for node in nodes:
        if node.target not in missing:
            continue
        places = found.setdefault(str(node.target), [])
        place = module_path(node) or "the model itself"
        if place not in places:
            places.append(place)
    return found


def untranslated(targets: Iterable[OpOverload], opset: int, table: TranslationTable | None = None) -> set[OpOverload]:
    """Those of ``targets`` that neither have a translation nor can be decomposed into operators that have."""
    with _quiet():
        registry = _registry(opset)
    known = set(table or ())
    unknown = {target for target in targets if target not in known and target.overloadpacket not in known}
    return {t for t in unknown if not (registry.is_registered(t) or _decomposes(t) or _is_assertion(t))}


def _decomposes(target: OpOverload) -> bool:
    return target in torch.export.default_decompositions() or target._can_decompose()


def _stub(name: str) -> str:
    function = re.sub(r"\W", "_", name.removesuffix(".default"))
    return (
        f"  def {function}(*args):\n"
        "      return op.SomeOnnxOperator(*args)  # from onnxscript import opset20 as op\n"
        f"  fxexport.compile(..., custom_translation_table={{torch.ops.{name}: {function}}})"
    )
