"""The grouped matrix product of mixture-of-experts layers, in operators that every format has."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import fx

from fxexport.program import Program
from fxexport.rewrite import NodePass

aten = torch.ops.aten


@dataclass(frozen=True)
class DecomposeGroupedMm(NodePass):
    """``grouped_mm(x, w, ends) -> sum over e of where(expert(row) == e, x @ w[e], 0)``.

    ``x`` [rows, in], sorted by expert; ``w`` [experts, in, out]; ``ends`` [experts]: the row at which each expert ends.
    Exact: every row is the product with its own expert, other products are not added but replaced by 0. All experts are
    computed for all rows, so the work grows with the number of experts. Rows after the last end are 0.
    """

    name: ClassVar[str] = "decompose-grouped-mm"
    default: ClassVar[bool] = True
    # PyTorch's operator, and the stand-in that Hugging Face registers for dtypes and devices PyTorch's does not serve.
    targets: ClassVar = ("aten::_grouped_mm", "transformers::grouped_mm_fallback")

    def rewrite(self, program: Program, node: fx.Node) -> fx.Node | str:
        """The sum over experts."""
        operands = [value for value in node.args[:3] if isinstance(value, fx.Node)]
        others = [*node.args[3:], *node.kwargs.values()]
        if [v.meta["val"].dim() for v in operands] != [2, 3, 1] or any(value is not None for value in others):
            return "it is not a matrix times a stack of matrices"
        x, weight, ends = operands
        insert = partial(program.insert, before=node)
        device = {"dtype": torch.int64, "device": ends.meta["val"].device}
        rows = insert(aten.arange.default, (insert(aten.sym_size.int, (x, 0)),), device)
        ended = insert(aten.ge.Tensor, (insert(aten.unsqueeze.default, (rows, 1)), ends))
        expert = insert(aten.unsqueeze.default, (insert(aten.sum.dim_IntList, (ended, [1])), 1))
        total: fx.Node | None = None
        for index in range(weight.meta["val"].shape[0]):
            product = insert(aten.mm.default, (x, insert(aten.select.int, (weight, 0, index))))
            own = insert(aten.where.ScalarOther, (insert(aten.eq.Scalar, (expert, index)), product, 0.0))
            total = own if total is None else insert(aten.add.Tensor, (total, own))
        assert total is not None, "a stack of matrices has at least one"
        return total
