"""Python arithmetic on what ``.item()`` takes out of a row: ``x[i, lengths[i] - 1]``."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from fxexport.capture.rows.building import Builder
from fxexport.capture.rows.values import Lone, Mixed, Number

aten = torch.ops.aten
CHECKS = (
    aten._assert_scalar.default,
    aten.sym_constrain_range.default,
    aten.sym_constrain_range_for_size.default,
)
"""What a graph checks of such a number; eager raises an error there, which no artifact does."""
_ARITHMETIC: dict[Any, Any] = {
    operator.add: aten.add.Scalar,
    operator.sub: aten.sub.Scalar,
    operator.mul: aten.mul.Scalar,
    operator.ge: aten.ge.Scalar,
    operator.gt: aten.gt.Scalar,
    operator.le: aten.le.Scalar,
    operator.lt: aten.lt.Scalar,
    operator.eq: aten.eq.Scalar,
    operator.ne: aten.ne.Scalar,
}


def computed(node: fx.Node, args: Sequence[Any], build: Builder) -> Number:
    """The Python operator of ``node`` on a number of a row and on plain numbers.

    Raises Mixed for anything else.
    """
    target: Any = node.target
    first, *others = args
    if (
        not isinstance(first, Number)
        or target not in _ARITHMETIC
        or not all(isinstance(o, int | float) for o in others)
    ):
        raise Mixed(f"{target} computes with rows in Python")
    return Number(Lone(build.call(_ARITHMETIC[target], (first.lone.node, *others)), first.turn))
