"""Complex numbers in ONNX: none at the border of a model, and inside only where each operator is translated for them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload
from torch.utils import _pytree as pytree

from fxexport.errors import LoweringError
from fxexport.program import Program, module_path, source_line
from fxexport.signature import dtype_name


def refuse_complex_interface(program: Program) -> None:
    """Raises LoweringError naming every complex input and output: ONNX runtimes take and give none."""
    signature = program.signature
    sides = (("input", signature.inputs), ("output", signature.outputs))
    rows = [
        f"  {side} {spec.name!r} is {dtype_name(spec.dtype)} {list(spec.axes)}"
        for side, specs in sides
        for spec in specs
        if spec.dtype.is_complex
    ]
    if rows:
        raise LoweringError(
            "ONNX runtimes have no complex inputs or outputs:\n" + "\n".join(rows) + "\n  Return "
            "torch.view_as_real(z) instead of z, and take a real tensor of which forward makes "
            "torch.view_as_complex(x); both have a last axis of 2, real and imaginary part. Or export to .pt or .pt2."
        )


def untranslated_complex(program: Program, registry: Any, known: Collection[Any] = ()) -> str:
    """The calls on complex numbers that have no ONNX translation, each with module and line; '' where there are none.

    ``registry`` is torch.onnx's table of translations, ``known`` are operators that have one elsewhere.
    """
    missing = [node for node in program.graph.nodes if _reads_complex(node) and not _translated(node, registry, known)]
    if not missing:
        return ""
    rows = [
        f"  {node.target}  used in {module_path(node) or 'the model itself'} at {source_line(node) or 'an unknown line'}"
        for node in missing
    ]
    return (
        "no ONNX translation on complex numbers:\n" + "\n".join(rows) + "\n  Take the real parts before that line "
        "(torch.view_as_real, z.real, z.imag, z.abs()) and compute with those."
    )


def _reads_complex(node: fx.Node) -> bool:
    values = pytree.tree_leaves([operand.meta.get("val") for operand in node.all_input_nodes])
    return isinstance(node.target, OpOverload) and any(isinstance(v, torch.Tensor) and v.is_complex() for v in values)


def _translated(node: fx.Node, registry: Any, known: Collection[Any]) -> bool:
    own = node.target in known or getattr(node.target, "overloadpacket", None) in known
    return own or any(entry.is_complex for entry in registry.get_decomps(node.target))
