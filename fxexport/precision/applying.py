"""A precision brought to a captured program: ranges, what is kept, the rewrite, and what the report says of it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, fx

from fxexport.precision.dynamic_int8 import quantize_file, rounded_to_uint8, works_as_int8
from fxexport.precision.half import LowerPrecision
from fxexport.precision.keeping import by_module, calls, is_constant, lies_in, module_of, most_moved, reasons_to_keep
from fxexport.precision.kinds import Precision
from fxexport.precision.operators import is_filled, is_wide, numbers_beyond, tensors_of
from fxexport.precision.ranges import record_ranges
from fxexport.precision.record import PrecisionRecord
from fxexport.program import Program
from fxexport.rewrite import PassManager, PassRecord

_GROWTH = 1.0  # where weights are used in both dtypes, both are constants
_SLOW = "onnxruntime's CPU provider computes most float16 operators in float32: there the file is smaller, not faster"


@dataclass(frozen=True)
class Applied:
    """What became of a program.

    ``pass_`` and its ``entry`` in the ledger, for float16 and bfloat16; ``after``: what is done to the written file, for
    int8.
    """

    program: Program
    record: PrecisionRecord
    pass_: LowerPrecision | None = None
    entry: PassRecord | None = None
    after: Callable[[Path, bool | None], list[Path]] | None = None


def apply_precision(
    program: Program,
    precision: Precision,
    examples: Sequence[Sequence[Tensor]],
    keep_fp32: Sequence[str] = (),
    *,
    to_onnx: bool = True,
    rtol: float | None = None,
    atol: float | None = None,
) -> Applied:
    """``program`` in ``precision``, its ranges recorded on ``examples`` (flat inputs); ``keep_fp32``: modules to leave.
    ``record.lowered`` is 0 where nothing in the program can have that precision.
    """
    record = PrecisionRecord(precision.name, precision.rtol, precision.atol, rtol, atol)
    if precision.dtype is None:
        return _int8(program, precision, examples, keep_fp32, record)
    dtype = precision.dtype

    def rounding(tensor: Tensor) -> Tensor:
        return tensor.to(dtype).to(tensor.dtype)

    seen = record_ranges(program, examples, rounding, lambda node: not is_wide(node))
    reasons, record.sensitive = reasons_to_keep(program, seen, precision), most_moved(program, seen)
    pass_ = LowerPrecision(dtype, tuple(sorted(reasons)), tuple(keep_fp32))
    after, entries = PassManager([pass_], max_growth=_GROWTH).run(program)
    record.lowered, record.total = entries[0].count, sum(map(_computes, calls(program)))
    why = {node: _why_kept(program, node, reasons, pass_) for node in program.graph.nodes}
    record.kept = by_module((node, reason) for node, reason in why.items() if reason)
    if to_onnx and precision.name == "fp16":
        record.notes.append(_SLOW)
    if any(True for path, _, _ in program.graphs() if path):
        record.notes.append("what branches and loops compute inside stays in float32")
    return Applied(after, record, pass_, entries[0])


def _why_kept(program: Program, node: fx.Node, reasons: dict[str, str], pass_: LowerPrecision) -> str:
    if node.name in reasons:
        return reasons[node.name]
    if node.op != "call_function" or not _computes(node) or is_constant(program, node):
        return ""
    if lies_in(module_of(node), pass_.modules):
        return "asked for by keep_fp32"
    if is_wide(node):
        return "it needs float32 inside"
    beyond = numbers_beyond(node, pass_.dtype)
    return f"holds the number {beyond[0]:g}" if beyond else ""


def _computes(node: fx.Node) -> bool:
    """Whether a call makes float32 numbers of others."""
    if is_filled(node) or node.target is operator.getitem:
        return False
    value = node.meta.get("val")
    return isinstance(value, Tensor | tuple | list) and any(t.dtype == torch.float32 for t in tensors_of(node))


def _int8(
    program: Program,
    precision: Precision,
    examples: Sequence[Sequence[Tensor]],
    keep_fp32: Sequence[str],
    record: PrecisionRecord,
) -> Applied:
    candidates = [node for node in calls(program) if works_as_int8(program, node)]
    seen = record_ranges(program, examples, rounded_to_uint8, lambda node: works_as_int8(program, node))
    reasons, record.sensitive = reasons_to_keep(program, seen, precision), most_moved(program, seen)
    kept = {
        node: "asked for by keep_fp32" if lies_in(module_of(node), keep_fp32) else reasons.get(node.name, "")
        for node in candidates
    }
    record.kept = by_module((node, reason) for node, reason in kept.items() if reason)
    record.total = len(candidates)
    left = frozenset(module_of(node) for node, reason in kept.items() if reason)

    def after(path: Path, external_data: bool | None) -> list[Path]:
        files, record.lowered = quantize_file(path, left, external_data)
        return files

    record.notes.append(
        "products with weights run as MatMulInteger: weights int8 of 7 bits, one scale for each output channel; inputs "
        "uint8 with a scale for each call. Convolutions, recurrent layers and embeddings stay in float32"
    )
    return Applied(program, record, after=after)
