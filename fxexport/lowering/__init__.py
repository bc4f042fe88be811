"""From a ``Program`` to a file: one module a format, chosen by the extension of the path."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from fxexport.errors import InputError
from fxexport.lowering.custom_operators import refuse_custom_operators
from fxexport.lowering.onnx import DEFAULT_OPSET, OPSETS, check_opset, lower_onnx
from fxexport.lowering.onnx_functions import FunctionRecord
from fxexport.lowering.onnx_translation import TranslationTable
from fxexport.lowering.pt2 import lower_pt2
from fxexport.lowering.torchscript import lower_torchscript
from fxexport.program import Program

Format = Literal["onnx", "torchscript", "pt2"]
FORMATS: dict[str, Format] = {".onnx": "onnx", ".pt": "torchscript", ".ts": "torchscript", ".pt2": "pt2"}

__all__ = ["DEFAULT_OPSET", "FORMATS", "OPSETS", "Format", "TranslationTable", "check_opset", "format_of", "lower"]


def format_of(path: Path) -> Format:
    """The format that the extension of ``path`` asks for; case does not matter."""
    return FORMATS[path.suffix.lower()]


def lower(
    program: Program,
    path: Path,
    metadata: Mapping[str, Any] | None = None,
    *,
    opset_version: int | None = None,
    external_data: bool | None = None,
    custom_translation_table: TranslationTable | None = None,
    do_constant_folding: bool = True,
    keep_initializers_as_inputs: bool = False,
    functions: bool | Collection[Any] = False,
    function_records: list[FunctionRecord] | None = None,
    after: Callable[[Path, bool | None], list[Path]] | None = None,
) -> list[Path]:
    """Writes ``program`` in the format of ``path``'s extension; nothing is validated here. Returns the files written.

    The options are those of :func:`lower_onnx`. TorchScript and pt2 files never have constants folded, so
    ``do_constant_folding`` changes nothing there. ``after(path, external_data)`` rewrites an ONNX file that is written,
    and returns the files there are then.

    Raises InputError for an option that the format does not have, LoweringError where the format cannot express the
    program, OSError where the file cannot be written.
    """
    described = dict(metadata or {"signature": program.signature.to_json()})
    kind = format_of(path)
    if kind != "onnx":
        refuse_options(path, kind, keep_initializers_as_inputs=keep_initializers_as_inputs, functions=functions)
        refuse_custom_operators(program, kind)
    if kind == "torchscript":
        return lower_torchscript(program, path, described)
    if kind == "pt2":
        return lower_pt2(program, path, described)
    written = lower_onnx(
        program,
        path,
        described,
        opset_version=opset_version,
        external_data=external_data,
        custom_translation_table=custom_translation_table,
        do_constant_folding=do_constant_folding,
        keep_initializers_as_inputs=keep_initializers_as_inputs,
        functions=functions,
        function_records=function_records,
    )
    return after(path, external_data) if after is not None else written


def refuse_options(path: Path, kind: Format, **options: object) -> None:
    """Raises InputError where an option of ``.onnx`` files was given for another format."""
    for name, value in options.items():
        if value:
            raise InputError(f"{name} is for .onnx files; {path.name} is {kind}: leave it out, or export to .onnx")
