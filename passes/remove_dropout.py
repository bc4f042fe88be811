"""Dropout does nothing in inference: remove it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from fxexport.program import Program
from fxexport.rewrite import NodePass, arguments, first_result

aten = torch.ops.aten


@dataclass(frozen=True)
class RemoveDropout(NodePass):
    """``dropout(x, p, train=False) -> x`` and ``dropout(x, 0, train) -> x``, for plain, alpha and feature dropout.

    Exact: PyTorch returns ``x`` itself in both cases. Dropout that is active in inference (``train=True``,
    ``p > 0``) draws random numbers and stays; so does one whose mask is read.
    """

    name: ClassVar[str] = "remove-dropout"
    default: ClassVar[bool] = True
    targets: ClassVar = (
        *(aten.dropout, aten.alpha_dropout, aten.feature_dropout, aten.feature_alpha_dropout),
        aten.native_dropout.default,
    )

    def rewrite(self, program: Program, node: fx.Node) -> fx.Node | str:
        """The input of an inactive dropout."""
        call = arguments(node)
        if call["train"] is not False and call["p"] != 0:
            return "it is active in inference"
        source: fx.Node = call["input"]
        return source if first_result(node) else "its mask is used"
