"""Tidying the translated graph with the public passes of onnxscript and onnx_ir.

``torch.onnx`` runs pattern rewrites on the raw translation, where their cost grows with the square of its size. Folding
constants and merging equal nodes first leaves a fraction of the nodes (Swin: 4300 -> 1000) and the same result.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer, rewriter
from onnxscript.rewriter.rules.fusion._rms_normalization import fuse_rms_normalization


def optimize(model: ir.Model) -> None:
    """Folds constants, applies onnxscript's rewrite rules, merges equal nodes and weights; in place."""
    optimizer.inline(model)
    _shrink(model)
    rewriter.rewrite(model)
    _shrink(model)
    if model.opset_imports.get("", 0) >= 23:
        # Of onnxscript's fusions for opset 23 this one alone: its RotaryEmbedding, which torch.onnx takes too, is refused
        # by onnxruntime for batches of more than one row.
        fuse_rms_normalization(model)
    for step in (
        common.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
        common.RemoveUnusedOpsetsPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    ):
        step(model)


def _shrink(model: ir.Model) -> None:
    optimizer.fold_constants_ir(model, onnx_shape_inference=True)
    for step in (
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
    ):
        step(model)
