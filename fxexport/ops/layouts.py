"""Calls that only move elements, in one form: what shape or order their result has, whichever spelling the graph has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sympy
import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from fxexport.rewrite.calls import call_arguments, normal_target, spellings

aten = torch.ops.aten
RESHAPES = tuple(target for target in spellings(aten.reshape.default) if target is not aten.ravel.default)
"""Every operator that gives the elements of its first argument in the same order with another shape."""
PERMUTATIONS = spellings(aten.permute.default)
"""Every operator that only reorders the axes of its first argument."""


def order_of(node: Any) -> list[int] | None:
    """For each axis of a permuted tensor the axis of its source; None where ``node`` is no call that permutes."""
    if not isinstance(node, fx.Node) or normal_target(node.target) is not aten.permute.default:
        return None
    rank = node.meta["val"].dim()
    return [axis % rank for axis in call_arguments(node)[1]]


def is_reshape(node: Any) -> bool:
    """Whether ``node`` is a call of one of ``RESHAPES``."""
    return isinstance(node, fx.Node) and node.target in RESHAPES


def same_sizes(a: Sequence[Any], b: Sequence[Any]) -> bool:
    """Whether two shapes are equal for every input, by what is known of their symbolic sizes."""
    return len(a) == len(b) and all(statically_known_true(m == n) for m, n in zip(a, b, strict=True))


def plain_sizes(shape: Sequence[int | torch.SymInt]) -> list[int] | None:
    """``shape`` as the argument of ``reshape`` without any node: -1 for its one dynamic size.

    None where two sizes are dynamic, and where a fixed one is 0, beside which -1 has no meaning.
    """
    known = [fixed(size) for size in shape]
    if known.count(None) > 1 or (None in known and 0 in known):
        return None
    return [-1 if size is None else size for size in known]


def fixed(size: int | torch.SymInt) -> int | None:
    """The number that a size is, or None where it differs from input to input."""
    if isinstance(size, int):
        return size
    found = expression(size)
    return int(found) if found.is_Integer else None


def expression(size: int | torch.SymInt) -> sympy.Expr:
    """A size as a formula of the dynamic sizes, as short as what is known of their ranges makes it."""
    if isinstance(size, int):
        return sympy.Integer(size)
    env = size.node.shape_env
    return sympy.sympify(env.simplify(size.node.expr) if env is not None else size.node.expr)
