"""Casts behind permutations: ``to(permute(x))`` in place of ``permute(to(x))``."""

from __future__ import annotations

import torch
from torch import fx

from fxexport.program import Program

aten = torch.ops.aten
_PERMUTATIONS = (aten.permute.default, aten.transpose.int, aten.t.default)


def casts_behind_permutations(program: Program, dtype: torch.dtype) -> None:
    """``permute(to(x, dtype)) -> to(permute(x), dtype)``, in place and exact.

    onnxruntime 1.32 dies while it loads ``Cast -> Transpose(perm=[1, 0, 2]) -> MatMul`` in float16 (its fusion of a
    transpose of the leading axes into a product, on the CPU); it takes ``Transpose -> Cast -> MatMul``.
    """
    for node in list(program.graph.nodes):
        if node.target not in _PERMUTATIONS:
            continue
        cast = node.args[0]
        if (
            not isinstance(cast, fx.Node)
            or cast.target != aten._to_copy.default
            or dict(cast.kwargs) != {"dtype": dtype}
        ):
            continue
        moved = program.insert(node.target, (cast.args[0], *node.args[1:]), dict(node.kwargs), before=node)
        program.replace(node, program.insert(aten._to_copy.default, (moved,), {"dtype": dtype}, before=node, like=node))
