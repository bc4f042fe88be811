"""Which operators of a file compute in a type that the runtime may have no kernels for."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx_ir as ir

from fxexport.lowering import format_of
from fxexport.precision.kinds import Precision

_TYPES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}


def unsupported(path: Path, precision: Precision | None, error: str, provider: str = "CPUExecutionProvider") -> str:
    """What to say where the runtime refused to load a file for its type (``error``): the operators in that type, and the
    way out; '' where that was not why."""
    wanted = _TYPES.get(precision.name) if precision is not None else None
    if wanted is None or format_of(path) != "onnx" or "NOT_IMPLEMENTED" not in error:
        return ""
    counts = Counter(
        node.op_type
        for node in ir.traversal.RecursiveGraphIterator(ir.load(path).graph)
        if any(v is not None and v.dtype == wanted for v in (*node.inputs, *node.outputs)) and node.op_type != "Cast"
    )
    told = ", ".join(f"{name} ({count})" for name, count in sorted(counts.items()))
    return (
        f"{provider} has few kernels for {wanted.name.lower()}, in which the file computes {told}: use precision='fp16', "
        "which it can run, or write a .pt2 or .pt file"
    )
