"""Grouped products become one product an expert; anything else that is called so stays."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fxexport.passes import DecomposeGroupedMm
from fxexport.testing import assert_rewrites, assert_unchanged

aten = torch.ops.aten


@torch.library.custom_op("transformers::grouped_mm_fallback", mutates_args=())
def grouped_mm_fallback(input: Tensor, weight: Tensor, offs: Tensor) -> Tensor:
    """The operator of Hugging Face by its contract, so that the test needs no model library."""
    output, start = input.new_zeros(input.shape[0], weight.shape[2]), 0
    for expert, end in enumerate(offs.tolist()):
        output[start:end] = input[start:end] @ weight[expert]
        start = end
    return output


@grouped_mm_fallback.register_fake
def _(input: Tensor, weight: Tensor, offs: Tensor) -> Tensor:
    return input.new_empty(input.shape[0], weight.shape[2])


class Experts(nn.Module):
    """Rows sorted into experts by their first column, as a mixture-of-experts layer does it."""

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(experts, 4, 5))

    def forward(self, x: Tensor, choice: Tensor) -> Tensor:
        choice, order = torch.sort(choice, stable=True)
        every = torch.arange(self.weight.shape[0], dtype=choice.dtype)
        ends = (choice[:, None] == every[None, :]).sum(0).cumsum(0).to(torch.int32)
        return torch.ops.transformers.grouped_mm_fallback(x[order], self.weight, ends)


def test_every_row_meets_its_own_expert() -> None:
    inputs = (torch.randn(7, 4), torch.tensor([2, 0, 2, 2, 0, 3, 3]))  # expert 1 has no row
    program = assert_rewrites(
        DecomposeGroupedMm(),
        Experts(4),
        None,
        inputs,
        gone=(torch.ops.transformers.grouped_mm_fallback.default,),
        ops={aten.mm.default: 4},
        count=1,
        dynamic={"x": ["rows", None], "choice": ["rows"]},
    )
    assert program.signature.outputs[0].axes == ("rows", 5)


def test_rows_of_other_experts_do_not_leak_not_even_as_nan() -> None:
    model = Experts(2)
    with torch.no_grad():
        model.weight[1] = float("inf")
    x, choice = torch.randn(3, 4), torch.zeros(3, dtype=torch.int64)
    program = assert_rewrites(DecomposeGroupedMm(), model, None, (x, choice), count=1)
    assert program.run(x, choice)[0].isfinite().all()


def test_an_ordinary_product_stays() -> None:
    assert_unchanged(DecomposeGroupedMm(), nn.Linear(4, 5), (torch.randn(2, 4),))
