"""Translating a program to ONNX operators: node by node where possible, else through ``torch.onnx.export``.

``torch.onnx.export`` re-traces the whole program to decompose it, which is most of its time. Where every operator of
the rewritten program already has a translation there is nothing to decompose, and the translator behind the public call
gives the same graph at once. That translator is private to torch: it is used only for versions the tests ran
on, only through this module, and ``torch.onnx.export`` is the fallback. Both are held to the same tests.
"""

from __future__ import annotations

import contextlib
import io
import logging
import operator
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir
import torch
from torch import fx
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.export.graph_signature import TensorArgument

from fxexport.errors import LoweringError
from fxexport.lowering.complex_values import refuse_complex_interface, untranslated_complex
from fxexport.lowering.decompose import decompose_nodes
from fxexport.lowering.masked_attention import legalize_masked_attention
from fxexport.lowering.onnx_optimize import optimize
from fxexport.lowering.recurrent import RECURRENT_TRANSLATIONS
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
    program = legalize_masked_attention(program, opset)
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
    table = _decomp.create_onnx_friendly_decomposition_table(set(_decomp.get_onnx_implemented_overloads(registry)))
    if any(node.op == "get_attr" for node in module.graph.nodes):
        return None  # control flow: its branches are graphs of their own
    decompose_nodes(module, lambda node: not _is_direct(node, registry), table)
    for spec, result in zip(exported.graph_signature.output_specs, module.graph.output_node().args[0], strict=True):
        spec.arg = TensorArgument(result.name)
    if not all(_is_direct(node, registry) for node in module.graph.nodes if node.op != "placeholder"):
        return None
    with shape_rules():
        _fx_passes.insert_type_promotion_nodes(exported.graph_module)
    _fx_passes.remove_assertion_nodes(exported.graph_module)
    result = _core._exported_program_to_onnx_program(exported, registry=registry)
    version_converter.convert_version(result.model, opset, fallback=True)
    return result


def _registry(opset: int) -> Any:
    """torch's translations for ``opset``: newer opsets have operators of their own for attention and norms."""
    from torch.onnx._internal.exporter import _constants, _registration

    registry = _registration.ONNXRegistry.from_torchlib(opset_version=max(opset, _constants.TORCHLIB_OPSET))
    for operator_, function in RECURRENT_TRANSLATIONS.items():
        registry.register_op(operator_, function)
    return registry


def _is_direct(node: fx.Node, registry: Any) -> bool:
    if node.op == "output" or node.target is operator.getitem:
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
    missing = _missing_operators(program, opset, table)
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


def _missing_operators(program: Program, opset: int, table: TranslationTable | None) -> dict[str, list[str]]:
    """Operators that neither have a translation nor can be decomposed into ones that have, with their modules."""
    registry = _registry(opset)
    known = set(table or ())
    found: dict[str, list[str]] = {}
    for node in program.graph.nodes:
        target = node.target
        if not isinstance(target, OpOverload) or target in known or target.overloadpacket in known:
            continue
        if registry.is_registered(target) or _decomposes(target) or _is_assertion(target):
            continue
        places = found.setdefault(str(target), [])
        place = module_path(node) or "the model itself"
        if place not in places:
            places.append(place)
    return found


def _decomposes(target: OpOverload) -> bool:
    return target in torch.export.default_decompositions() or target._can_decompose()


def _stub(name: str) -> str:
    function = re.sub(r"\W", "_", name.removesuffix(".default"))
    return (
        f"  def {function}(*args):\n"
        "      return op.SomeOnnxOperator(*args)  # from onnxscript import opset20 as op\n"
        f"  fxexport.compile(..., custom_translation_table={{torch.ops.{name}: {function}}})"
    )
