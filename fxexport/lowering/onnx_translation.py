"""Translating a program to ONNX operators: node by node where possible, else through ``torch.onnx.export``.

``torch.onnx.export`` re-traces the whole program to decompose it, which is most of its time. Where every operator of
the rewritten program already has a translation, or can be decomposed by itself, the translator behind the public call
gives the same graph at once (``onnx_direct``), and ``torch.onnx.export`` is the fallback. Both are held to the same tests.
"""

from __future__ import annotations

import contextlib
import io
import logging
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

from fxexport.control_flow import copied_outputs, nested_graphs
from fxexport.errors import LoweringError
from fxexport.lowering.complex_values import refuse_complex_interface, untranslated_complex
from fxexport.lowering.decompose import DECOMPOSED
from fxexport.lowering.masked_attention import legalize_masked_attention
from fxexport.lowering.onnx_direct import OWN_TRANSLATIONS, is_assertion, registry_for, try_directly
from fxexport.lowering.onnx_opset17 import to_opset_17
from fxexport.lowering.onnx_optimize import optimize
from fxexport.lowering.onnx_spellings import count_from_front, respell
from fxexport.program import Program, module_path, source_line
from fxexport.shape_rules import shape_rules

TranslationTable = dict[Callable[..., Any], Callable[..., Any]]
"""Operator -> onnxscript function, as ``torch.onnx.export(custom_translation_table=)`` takes it."""


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
    table = dict(table or {})
    program = respell(legalize_masked_attention(program, opset), table)
    with _quiet(), torch.no_grad():
        result, left = try_directly(_exported(program), opset, table)
        if result is None:
            try:
                result = _translate_publicly(_exported(program), opset, table)
            except Exception as error:
                raise LoweringError(_explain(program, opset, error, table, left)) from error
        assert result is not None
        optimize(result.model, fold_constants=fold_constants, keep_weights=keep_weights)
        if opset < 18:
            to_opset_17(result.model)
    model: ir.Model = result.model
    return model


def _exported(program: Program) -> ExportedProgram:
    exported = program.to_exported()
    for _, _, graph in nested_graphs(exported.graph_module, exported.graph_module.graph):
        count_from_front(graph)
    return exported


def _translate_publicly(exported: ExportedProgram, opset: int, table: TranslationTable) -> Any:
    for path, _, graph in nested_graphs(exported.graph_module, exported.graph_module.graph):
        if path:
            copied_outputs(graph)  # torch refuses a branch that returns an operand or a view of one
    with shape_rules():
        return torch.onnx.export(
            exported,
            dynamo=True,
            opset_version=max(opset, 18),
            custom_translation_table={**OWN_TRANSLATIONS, **table},
            verbose=False,
            optimize=False,
        )


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


def _explain(
    program: Program, opset: int, error: Exception, table: TranslationTable, left: Iterable[fx.Node] = ()
) -> str:
    """``left``: what stood in the way of the direct route."""
    missing = missing_operators(program, opset, table)
    on_complex = untranslated_complex(program, registry_for(opset), table)
    if not missing and on_complex:
        return on_complex
    nodes = _untranslated_nodes(program, opset, table) or list(left)
    if not nodes:
        cause = error.__cause__ or error
        lines = [line for line in str(cause).splitlines() if line.strip()]
        where = _place_told(program, str(cause))
        return f"torch.onnx could not translate the program{where}: {type(cause).__name__}: {' '.join(lines[:3])[:600]}"
    rows: dict[str, dict[str, None]] = {}
    for node in nodes:
        line = source_line(node)
        place = (module_path(node) or "the model itself") + (f" at {line}" if line else "")
        if node.meta.get(DECOMPOSED, str(node.target)) != str(node.target):
            place += f" (for its {node.target})"
        rows.setdefault(node.meta.get(DECOMPOSED, str(node.target)), {})[place] = None
    return "\n".join(
        [
            f"{len(rows)} operator{'s have' if len(rows) > 1 else ' has'} no ONNX translation:",
            *(f"  {name}  used in {', '.join(places)}" for name, places in rows.items()),
            "Give one translation function for each (onnxscript):",
            *(_stub(name) for name in rows),
        ]
    )


def _place_told(program: Program, message: str) -> str:
    """`` at file:line`` of the node that an error of torch.onnx names, where the program has it."""
    named = re.search(r"translating node %(\w+) .*?target=torch\.ops\.([\w.]+)\]", message)
    nodes = [node for _, _, graph in program.graphs() for node in graph.nodes]
    found = [n for n in nodes if named and n.name == named[1] and str(n.target) == named[2]]
    return f" at {source_line(found[0])}" if found and source_line(found[0]) else ""


def missing_operators(program: Program, opset: int, table: TranslationTable | None) -> dict[str, list[str]]:
    """Operators that neither have a translation nor can be decomposed into ones that have, with their modules."""
    found: dict[str, list[str]] = {}
    for node in _untranslated_nodes(program, opset, table):
        places = found.setdefault(str(node.target), [])
        place = module_path(node) or "the model itself"
        if place not in places:
            places.append(place)
    return found


def _untranslated_nodes(program: Program, opset: int, table: TranslationTable | None) -> list[fx.Node]:
    nodes = [node for _, _, graph in program.graphs() for node in graph.nodes]
    missing = untranslated([node.target for node in nodes if isinstance(node.target, OpOverload)], opset, table)
    return [node for node in nodes if node.target in missing]


def untranslated(targets: Iterable[OpOverload], opset: int, table: TranslationTable | None = None) -> set[OpOverload]:
    """Those of ``targets`` that neither have a translation nor can be decomposed into operators that have."""
    with _quiet():
        registry = registry_for(opset)
    known = set(table or ())
    unknown = {target for target in targets if target not in known and target.overloadpacket not in known}
    return {t for t in unknown if not (registry.is_registered(t) or _decomposes(t) or is_assertion(t))}


def _decomposes(target: OpOverload) -> bool:
    return target in torch.export.default_decompositions() or target._can_decompose()


def _stub(name: str) -> str:
    function = re.sub(r"\W", "_", name.removesuffix(".default"))
    return (
        f"  def {function}(*args):\n"
        "      return op.SomeOnnxOperator(*args)  # from onnxscript import opset20 as op\n"
        f"  fxexport.compile(..., custom_translation_table={{torch.ops.{name}: {function}}})"
    )
