"""Masked attention as ONNX runtimes compute it right.

Eager gives 0 for a query whose keys are all masked. ONNX leaves softmax over such a row to the runtime, and onnxruntime
gives the mean of the values. So the result is chosen by the mask itself. The Attention operator of opset 23 also wants a
mask with a row for every query, where PyTorch broadcasts one:

    attention(q, k, v, mask)  ->  where(any(mask, keys), attention(q, k, v, mask), 0)
    mask [..., 1, keys]       ->  expand(mask, [..., queries, keys])                        (opset 23)
"""

from __future__ import annotations

import torch
from torch import fx

from fxexport.program import Program

aten = torch.ops.aten


def legalize_masked_attention(program: Program, opset: int) -> Program:
    """A program with the rewrites above where it has masked attention; ``program`` itself is not changed."""
    nodes = [node for _, _, graph in program.graphs() for node in graph.nodes]
    if not any(node.target == aten.scaled_dot_product_attention.default and _mask(node) for node in nodes):
        return program
    legal = program.clone()
    for part in legal.parts():
        for node in part.find(aten.scaled_dot_product_attention.default):
            mask = _mask(node)
            if mask is None:
                continue
            _choose_by_mask(part, node, mask)
            if opset >= 23:
                _expand(part, node, mask)
    return legal


def _mask(node: fx.Node) -> fx.Node | None:
    mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
    return mask if isinstance(mask, fx.Node) else None


def _choose_by_mask(program: Program, node: fx.Node, mask: fx.Node) -> None:
    after = node.next
    if mask.meta["val"].dtype != torch.bool:
        mask = program.insert(aten.gt.Scalar, (mask, float("-inf")), before=after, like=node)
    sees = program.insert(aten.any.dim, (mask, -1, True), before=after, like=node)
    chosen = program.insert(aten.where.ScalarOther, (sees, node, 0.0), before=after, like=node)
    node.replace_all_uses_with(chosen, delete_user_cb=lambda user: user is not chosen, propagate_meta=False)


def _expand(program: Program, node: fx.Node, mask: fx.Node) -> None:
    shape = mask.meta["val"].shape
    if not isinstance(shape[-2], int) or shape[-2] != 1:
        return
    queries = program.insert(aten.sym_size.int, (node.args[0], -2), before=node)
    sizes = [*([-1] * (len(shape) - 2)), queries, -1]
    node.replace_input_with(mask, program.insert(aten.expand.default, (mask, sizes), before=node))
