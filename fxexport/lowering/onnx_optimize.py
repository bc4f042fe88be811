"""Tidying the translated graph with the public passes of onnxscript and onnx_ir.

``torch.onnx`` runs pattern rewrites on the raw translation, where their cost grows with the square of its size. Folding
constants and merging equal nodes first leaves a fraction of the nodes (Swin: 4300 -> 1000) and the same result.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer, rewriter
from onnxscript.rewriter.rules.fusion._rms_normalization import fuse_rms_normalization

from fxexport.lowering.onnx_exact_rules import rewrite_rules


def optimize(model: ir.Model, *, fold_constants: bool = True, keep_weights: bool = False) -> None:
    """Applies onnxscript's rewrite rules, merges equal nodes and weights; in place.

    ``fold_constants``: what depends on constants alone is computed now. ``keep_weights``: no weight takes part in that,
    nor is merged with another: each keeps its name, its layout and its nodes, so that a caller may give it another
    value, and it alone is an initializer; constants of the translation are Constant nodes.
    """
    optimizer.inline(model)
    with _weights_as_inputs(model.graph) if keep_weights else nullcontext():
        _tidy(model, fold_constants)
        if keep_weights:
            _spell_out_constants(model.graph)
    _separate_outputs(model.graph)
    for step in (
        common.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
        common.RemoveUnusedOpsetsPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    ):
        step(model)


def _tidy(model: ir.Model, fold_constants: bool) -> None:
    _shrink(model, fold_constants)
    rewriter.rewrite(model, rewrite_rules())
    _shrink(model, fold_constants)
    if model.opset_imports.get("", 0) >= 23:
        # Of onnxscript's fusions for opset 23 this one alone: its RotaryEmbedding, which torch.onnx takes too, is refused
        # by onnxruntime for batches of more than one row.
        fuse_rms_normalization(model)
        common.RemoveUnusedNodesPass()(model)  # the weights that the fusion took in otherwise


def _shrink(model: ir.Model, fold_constants: bool) -> None:
    if fold_constants:
        optimizer.fold_constants_ir(model, onnx_shape_inference=True)
    for step in (
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
    ):
        step(model)


@contextmanager
def _weights_as_inputs(graph: ir.Graph) -> Iterator[None]:
    """Makes every initializer an input without a value meanwhile; those that nothing reads any more are left out after."""
    weights = list(graph.initializers.values())
    tensors = [weight.const_value for weight in weights]
    first = len(graph.inputs)
    graph.initializers.clear()
    for weight in weights:
        weight.const_value = None
    graph.inputs.extend(weights)
    yield
    del graph.inputs[first:]
    for weight, tensor in zip(weights, tensors, strict=True):
        weight.const_value = tensor
        if weight.uses() or weight.is_graph_output():
            graph.register_initializer(weight)


def _spell_out_constants(graph: ir.Graph) -> None:
    """Turns every initializer into a Constant node of the same name."""
    for value in list(graph.initializers.values()):
        assert value.const_value is not None, value.name
        del graph.initializers[str(value.name)]
        node = ir.node("Constant", [], {"value": value.const_value})
        constant = node.outputs[0]
        constant.type, constant.shape = value.type, value.shape
        value.replace_all_uses_with(constant)
        constant.name, value.name = value.name, None
        graph.insert_before(graph[0], node)


def _separate_outputs(graph: ir.Graph) -> None:
    """An output that is an input, a weight or another output gets an Identity of its own; so all keep their names."""
    seen: set[ir.Value] = set()
    for position, value in enumerate(list(graph.outputs)):
        if value in seen or value.is_graph_input() or value.is_initializer():
            node = ir.node("Identity", [value])
            graph.append(node)
            copy = node.outputs[0]
            copy.type, copy.shape = value.type, value.shape
            graph.outputs[position] = copy
        seen.add(graph.outputs[position])
