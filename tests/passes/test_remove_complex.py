"""Complex numbers made from real parts are read as real parts again; where they go elsewhere they stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fxexport.passes import RemoveComplex
from fxexport.testing import assert_rewrites, assert_unchanged

aten = torch.ops.aten
A, B = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
BATCH = {"a": ["batch", None, None], "b": ["batch", None, None]}


def test_an_absolute_value_is_a_root() -> None:
    assert_rewrites(
        RemoveComplex(),
        lambda a, b: torch.complex(a, b).abs(),
        lambda a, b: torch.sqrt(a * a + b * b),
        (A, B),
        dynamic=BATCH,
    )


def test_parts_are_the_tensors_themselves() -> None:
    def forward(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        z = torch.complex(a, b)
        return z.real + 1, z.imag + 2, torch.view_as_real(z)

    assert_rewrites(RemoveComplex(), forward, lambda a, b: (a + 1, b + 2, torch.stack([a, b], -1)), (A, B))


@pytest.mark.parametrize(
    "way",
    [
        lambda z, r: z.conj() * z,
        lambda z, r: z * r + z / 2,
        lambda z, r: r * z - z / (r * r + 1),
        lambda z, r: (z + 3).transpose(0, 1)[1:].unsqueeze(-1).flatten(0, 1),
        lambda z, r: -z.reshape(-1, 3).sum(0),
    ],
)
def test_what_lies_between_becomes_real(way: Callable[[Tensor, Tensor], Tensor]) -> None:
    def forward(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        z = way(torch.complex(a, b), a + b)
        return z.real + 0.5, z.imag + 0.5, z.abs(), z.angle().cos()

    program = assert_rewrites(
        RemoveComplex(), forward, None, (A, B), gone=[aten.complex.default, aten.abs.default], dynamic=BATCH
    )
    assert not any(isinstance(n.meta.get("val"), Tensor) and n.meta["val"].is_complex() for n in program.graph.nodes)


def test_another_operator_keeps_its_complex_numbers() -> None:
    def forward(a: Tensor, b: Tensor) -> Any:
        return torch.exp(torch.complex(a, b)).abs()

    assert_unchanged(RemoveComplex(), forward, (A, B))
    assert_unchanged(RemoveComplex(), lambda a, b: (a + b).abs(), (A, B))


def test_a_product_with_other_complex_numbers_stays() -> None:
    def forward(a: Tensor, b: Tensor, z: Tensor) -> Tensor:
        return torch.view_as_real(torch.complex(a, b) * z)

    assert_unchanged(RemoveComplex(), forward, (A, B, torch.complex(A, B)), reason="was not made from real parts")
