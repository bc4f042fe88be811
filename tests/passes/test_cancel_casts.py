"""Conversions that lose nothing on the way are one; a rounding stays."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxexport.passes import CancelCasts, RemoveAssertions
from fxexport.passes.cancel_casts import LOSSLESS
from fxexport.testing import assert_rewrites, assert_unchanged

F16, BF16, F32, F64, I32, I64 = torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32, torch.int64
FIRST = [RemoveAssertions()]


class Casts(nn.Module):
    def __init__(self, *dtypes: torch.dtype) -> None:
        super().__init__()
        self.dtypes = dtypes

    def forward(self, x: Tensor) -> Tensor:
        x = x.neg() if x.dtype != torch.bool else x.logical_not()
        for dtype in self.dtypes:
            x = x.to(dtype)
        return x


def example(dtype: torch.dtype) -> Tensor:
    values = torch.tensor([-3.7, -0.0, 0.0, 1.4, 100.0, 60000.0]).repeat(2, 1)
    return values.to(dtype) if dtype != torch.uint8 else values.abs().clamp(max=255).to(dtype)


WIDEN = [
    (F16, F32, F16),
    (BF16, F32, BF16),
    (F16, F32, F64),
    (F32, F64, I64),
    (I32, F64, F32),
    (torch.bool, I64, torch.bool),
]


@pytest.mark.parametrize("chain", WIDEN, ids=lambda chain: "-".join(str(d)[6:] for d in chain))
def test_widened_and_converted(chain: tuple[torch.dtype, ...]) -> None:
    first, *others = chain
    program = assert_rewrites(
        CancelCasts(), Casts(*others), None, (example(first),), dynamic={"x": {0: "n"}}, first=FIRST, rtol=0, atol=0
    )
    assert program.node_count() == (1 if first == others[-1] else 2)


NARROW = [(F32, F16, F32), (F64, F32, F64), (F32, BF16, F32), (I64, F32, I64), (F32, I64, F32), (F16, BF16, F32)]


@pytest.mark.parametrize("chain", NARROW, ids=lambda chain: "-".join(str(d)[6:] for d in chain))
def test_a_rounding_stays(chain: tuple[torch.dtype, ...]) -> None:
    first, *others = chain
    assert_unchanged(CancelCasts(), Casts(*others), (example(first),), first=FIRST, reason="does not hold every value")


def test_the_table_of_dtypes_is_true() -> None:
    for narrow, wide in ((a, b) for a, wider in LOSSLESS.items() for b in wider):
        if narrow == torch.bool:
            values = torch.tensor([False, True])
        elif narrow.itemsize <= 2:
            bits = torch.arange(-(2**15), 2**15).to(torch.int16) if narrow.itemsize == 2 else torch.arange(256)
            values = bits.view(narrow) if narrow.itemsize == 2 else bits.to(torch.uint8).view(narrow)
        elif narrow.is_floating_point:
            values = torch.tensor([torch.finfo(narrow).max, torch.finfo(narrow).smallest_normal, 1.1], dtype=narrow)
        else:
            info = torch.iinfo(narrow)
            values = torch.tensor([info.max, info.min, info.max - 1], dtype=narrow)
        back = values.to(wide).to(narrow)
        same = (back == values) | ((back != back) & (values != values))
        assert bool(same.all()), (narrow, wide)


def test_read_between() -> None:
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        y = x.to(F64)
        return y.to(torch.int64), y.sin()

    assert_unchanged(CancelCasts(), forward, (torch.randn(3),), first=FIRST, reason="is read elsewhere")
