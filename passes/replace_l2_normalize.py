"""Division by the Euclidean length spelled out: the operators of ``torch.nn.functional.normalize``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from fxexport.ops import Normalization, fixed_sizes, multiplied, read_normalization, widened
from fxexport.program import Program
from fxexport.rewrite import NodePass, arguments

aten = torch.ops.aten


@dataclass(frozen=True)
class ReplaceL2Normalize(NodePass):
    """``x / sqrt(sum(x ** 2)) -> x / linalg_vector_norm(x)`` and ``x / max(sqrt(sum(x ** 2)), eps) ->
    x / clamp_min(linalg_vector_norm(x), eps)``, in every spelling: exact up to rounding.

    A clamp under the root is one outside of it, by the root of its bound; the length is not expanded to the shape of
    ``x``, which division does by itself. ``LpNormalization`` of ONNX has no eps, gives 0 for a vector of zeros where
    eager without a clamp gives NaN, and is twice as slow in onnxruntime: it is not used. With eps under the root it is
    ``replace-rms-norm`` that comes in; ``x / (norm(x) + eps)`` is neither, and stays.
    """

    name: ClassVar[str] = "replace-l2-normalize"
    default: ClassVar[bool] = True
    after: ClassVar[tuple[str, ...]] = ("replace-rms-norm",)
    targets: ClassVar = (aten.mul.Tensor, aten.div.Tensor)

    def rewrite(self, program: Program, node: fx.Node) -> fx.Node | str | None:
        """The division by the vector norm, times what else is multiplied."""
        if _holds_canonical(node):
            return None
        found = read_normalization(program, node)
        if isinstance(found, str | None):
            return found
        sizes = fixed_sizes(found.x, found.dims)
        if found.centered or found.eps or sizes is None:
            return None
        return self._divided(program, node, found, math.sqrt(math.prod(sizes)))

    def _divided(self, program: Program, node: fx.Node, found: Normalization, root: float) -> fx.Node:
        """``root`` of the number of elements turns the root of their mean into that of their sum."""
        x = widened(program, found.x, node.meta["val"].dtype, node)
        dims = list(found.dims)
        length = program.insert(aten.linalg_vector_norm.default, (x, 2.0, dims, True), before=node)
        if found.floor is not None:
            eps = float(f"{found.floor * root:.15g}")
            length = program.insert(aten.clamp_min.default, (length, eps), before=node)
        result = program.insert(aten.div.Tensor, (x, length), before=node)
        return multiplied(program, result, (found.factor * root, *found.others), node)


def _holds_canonical(node: Any) -> bool:
    """Whether a division as this pass writes it is a call, or a factor of what the call multiplies."""
    if not isinstance(node, fx.Node) or node.target not in ReplaceL2Normalize.targets:
        return False
    return _is_canonical(node) or any(map(_holds_canonical, node.args))


def _is_canonical(node: fx.Node) -> bool:
    """Whether a call is a division as this pass writes it."""
    if node.target is not aten.div.Tensor:
        return False
    length: Any = node.args[1]
    if isinstance(length, fx.Node) and length.target is aten.clamp_min.default:
        length = length.args[0]
    if not isinstance(length, fx.Node) or length.target is not aten.linalg_vector_norm.default:
        return False
    call = arguments(length)
    return bool(call["self"] is node.args[0] and call["keepdim"] and call["ord"] == 2)
