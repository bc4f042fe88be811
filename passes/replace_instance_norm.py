"""Instance normalization spelled out: one operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from fxexport.ops import fixed_sizes, multiplied, read_normalization, widened
from fxexport.program import Program
from fxexport.rewrite import NodePass

aten = torch.ops.aten


@dataclass(frozen=True)
class ReplaceInstanceNorm(NodePass):
    """``(x - mean(x)) / sqrt(var(x) + eps) -> instance_norm(x, eps)`` over all axes after the first two, in every
    spelling, and over all but the first ``-> group_norm(x, 1, eps)``: exact up to rounding.

    Ulyanov, Vedaldi & Lempitsky 2016, arXiv:1607.08022. The number of channels is fixed, other sizes may be dynamic.
    Over the last axis of three, where that is of fixed size, ``replace-layer-norm`` comes in. Factors and shifts are for
    ``fold-norm-affine`` to take in; what is left is what ``replace-layer-norm`` leaves.
    """

    name: ClassVar[str] = "replace-instance-norm"
    default: ClassVar[bool] = True
    after: ClassVar[tuple[str, ...]] = ("remove-noops", "remove-assertions", "remove-dropout")
    targets: ClassVar = (aten.mul.Tensor, aten.div.Tensor)

    def rewrite(self, program: Program, node: fx.Node) -> fx.Node | str | None:
        """The normalization, times what else is multiplied."""
        found = read_normalization(program, node)
        if isinstance(found, str | None):
            return found
        rank, known = found.x.meta["val"].dim(), fixed_sizes(found.x, found.dims) is not None
        if not found.centered or found.eps < 0 or found.floor is not None:
            return None
        single, whole = found.dims == tuple(range(2, rank)), found.dims == tuple(range(1, rank))
        if (rank < 4 and known) or not (single or whole) or (whole and known):
            return None
        if fixed_sizes(found.x, (1,)) is None:
            return "its number of channels is dynamic"
        x = widened(program, found.x, node.meta["val"].dtype, node)
        if whole:
            x = program.insert(aten.group_norm.default, (x, 1, None, None, found.eps, False), before=node)
        else:
            options = (None, None, None, None, True, 0.1, found.eps, False)
            x = program.insert(aten.instance_norm.default, (x, *options), before=node)
        return multiplied(program, x, (found.factor, *found.others), node)
