"""Root-mean-square normalization spelled out: one operator."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from fxexport.ops import Normalization, fixed_sizes, multiplied, read_normalization, widened
from fxexport.program import Program
from fxexport.rewrite import NodePass

aten = torch.ops.aten


@dataclass(frozen=True)
class ReplaceRmsNorm(NodePass):
    """``x * rsqrt(mean(x ** 2) + eps) -> rms_norm(x, eps)``, in every spelling: exact up to rounding.

    Zhang & Sennrich 2019, arXiv:1910.07467. The mean may be a sum over n, the square ``x * x``, ``square`` or a vector
    norm, the root a power, a reciprocal or a quotient; factors on either side stay factors, for ``fold-norm-affine`` to
    take in. ``x * rsqrt(sum(x ** 2) + e)`` is ``rms_norm(x, eps=e / n)`` with weights of ``1 / sqrt(n)``. The normalization
    is computed in the dtype in which it is written: values that are widened to float32 first are so in front of it.

    Not exact, and left: eps outside of the root, squares in half precision, intermediate values that are read elsewhere.
    Over other axes than the last ones it is moved there and back where it is one row per batch (measured in onnxruntime:
    twice as fast for a batch of 1, up to three times slower for others).
    """

    name: ClassVar[str] = "replace-rms-norm"
    default: ClassVar[bool] = True
    after: ClassVar[tuple[str, ...]] = ("remove-noops", "remove-assertions", "remove-dropout")
    targets: ClassVar = (aten.mul.Tensor, aten.div.Tensor)

    def rewrite(self, program: Program, node: fx.Node) -> fx.Node | str | None:
        """The normalization, times what else is multiplied."""
        found = read_normalization(program, node)
        if isinstance(found, str | None):
            return found
        if found.centered or found.floor is not None:
            return None  # for replace-layer-norm, replace-l2-normalize
        if found.eps < 0 or (found.eps == 0 and not math.isclose(found.factor, 1.0, rel_tol=1e-9)):
            return None
        sizes = fixed_sizes(found.x, found.dims)
        if sizes is None:
            return "it is over an axis of dynamic size"
        rank = found.x.meta["val"].dim()
        order = [dim for dim in range(rank) if dim not in found.dims] + list(found.dims)
        if order != list(range(rank)) and fixed_sizes(found.x, (0,)) != [1]:
            return "it is not over the last axes: to move them there costs more than it saves, but for a batch of 1"
        return self._norm(program, node, found, sizes, order)

    def _norm(
        self, program: Program, node: fx.Node, found: Normalization, sizes: list[int], order: list[int]
    ) -> fx.Node:
        x = widened(program, found.x, node.meta["val"].dtype, node)
        moved = order != sorted(order)
        if moved:
            x = program.insert(aten.permute.default, (x, order), before=node)
        weight = None
        if not math.isclose(found.factor, 1.0, rel_tol=1e-9):
            like = x.meta["val"]
            values = torch.full(sizes, found.factor, dtype=like.dtype, device=like.device)
            weight = self.constant(program, "rms_norm.weight", values)
        x = program.insert(aten.rms_norm.default, (x, sizes, weight, found.eps), before=node)
        if moved:
            back = [order.index(dim) for dim in range(len(order))]
            x = program.insert(aten.permute.default, (x, back), before=node)
        return multiplied(program, x, found.others, node)
