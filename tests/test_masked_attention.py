"""Attention whose mask hides every key from some query: 0, as in eager, at every opset."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

import fxexport
from fxexport.lowering.masked_attention import legalize_masked_attention

aten = torch.ops.aten
Q, K, V = (torch.randn(2, 4, 6, 8, generator=torch.Generator().manual_seed(i)) for i in range(3))


class Attention(nn.Module):
    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return scaled_dot_product_attention(q, k, v, attn_mask=mask)


class Unmasked(nn.Module):
    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return scaled_dot_product_attention(q, k, v, is_causal=True)


def masks() -> dict[str, torch.Tensor]:
    causal = torch.ones(2, 1, 6, 6, dtype=torch.bool).tril()
    left_padded = causal & torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]], dtype=torch.bool)[:, None, None, :]
    return {
        "bool": left_padded,
        "additive": torch.zeros(2, 1, 6, 6).masked_fill(~left_padded, float("-inf")),
        "keys": torch.tensor([[1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]], dtype=torch.bool)[:, None, None, :],
        "shared": left_padded[1, 0],
    }


@pytest.mark.parametrize("opset", [18, 20, 23])
@pytest.mark.parametrize("kind", ["bool", "additive", "keys", "shared"])
def test_fully_masked_rows_are_zero(kind: str, opset: int, tmp_path: Path) -> None:
    inputs = (Q, K, V, masks()[kind])
    artifact = fxexport.compile(Attention(), tmp_path / "a.onnx", inputs, opset_version=opset)
    expected = Attention()(*inputs)
    assert (expected == 0).all(-1).any(), "the case is about rows that see nothing"
    torch.testing.assert_close(artifact(*inputs), expected, rtol=1e-4, atol=1e-6)


def test_the_choice_is_exact_and_leaves_the_program_alone() -> None:
    inputs = (Q, K, V, masks()["bool"])
    program = fxexport.capture(Attention(), inputs)
    before = program.node_count()
    legal = legalize_masked_attention(program, 20)
    legal.verify()
    assert torch.equal(legal.run(*inputs)[0], Attention()(*inputs))
    assert program.node_count() == before
    assert [n.target for n in legal.graph.nodes][-2] == aten.where.ScalarOther


def test_attention_without_a_mask_is_left_alone() -> None:
    program = fxexport.capture(Unmasked(), (Q, K, V))
    assert legalize_masked_attention(program, 20) is program
