"""Writes of every kind become pure operators, and state that forward updates is reported."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import ProveEverywhere, Untouched
from torch import nn

X = torch.randn(3, 3)


def relu_(x: Any) -> Any:
    y = x * 2
    y.relu_()
    return y


def slices(x: Any) -> Any:
    y = x * 2
    y[:, 0] = 1
    y[:, 1:] += x[:, :1]
    return y


def index_put(x: Any) -> Any:
    y = x.clone()
    y[torch.tensor([0])] = 5.0
    y[x > 0] = 0
    return y


def view_is_returned_with_its_base(x: Any) -> Any:
    y = torch.zeros_like(x)
    y.copy_(x)
    z = y.view(-1)
    z.mul_(2)
    return y, z


def masked_fill_on_a_view(x: Any) -> Any:
    y = x + 0
    v = y.transpose(0, 1)
    v.masked_fill_(v > 0, 0.5)
    return y


def overloads_with_other_names(x: Any) -> Any:
    y = x * 2
    y **= 2
    y -= 1
    y.clamp_(0, 1)
    return y


def alias_without_saying_so(x: Any) -> Any:
    """The schemas of meshgrid, type_as and broadcast_tensors do not say that they return views."""
    y = x[0] * 2
    a, _ = torch.meshgrid(y, y, indexing="ij")
    z = y.type_as(x)
    z.add_(1)
    b, _ = torch.broadcast_tensors(y, x)
    y.mul_(3)
    return y, a, z, b


def unbind_and_split(x: Any) -> Any:
    y = x.clone()
    a = y.unbind(1)[0]
    a.add_(10)
    y.split(1, 1)[1].zero_()
    return y, a


def dropout_returns_its_input(x: Any) -> Any:
    y = x * 2
    z = F.dropout(y, 0.5, training=False)
    z.add_(1)
    return y, z


def shape_changing(x: Any) -> Any:
    y = x.clone()
    y[:, 0], y[:, 1] = y[:, 1].clone(), y[:, 0].clone()
    y.t_()
    return y


def out_argument(x: Any) -> Any:
    result = torch.empty_like(x)
    torch.add(x, 1, out=result)
    return result


def integers(x: Any) -> Any:
    y = (x * 10).int()
    y += 1
    y <<= 1
    return y


def python_list(x: Any) -> Any:
    seen = []
    for i in range(3):
        seen.append(x * i)
        seen[-1].add_(1)
    return torch.stack(seen)


def under_no_grad(x: Any) -> Any:
    with torch.no_grad():
        y = x * 2
        y.add_(1)
    return y + x


class Free(nn.Module):
    def __init__(self, forward: Any) -> None:
        super().__init__()
        self.forward = forward


WRITES = [
    relu_,
    slices,
    index_put,
    view_is_returned_with_its_base,
    masked_fill_on_a_view,
    overloads_with_other_names,
    alias_without_saying_so,
    unbind_and_split,
    dropout_returns_its_input,
    shape_changing,
    out_argument,
    integers,
    python_list,
    under_no_grad,
]


@pytest.mark.parametrize("forward", WRITES, ids=lambda f: f.__name__)
def test_writes(forward: Any, prove: ProveEverywhere) -> None:
    captured = prove(Free(forward).eval(), X, dynamic={"x": ["batch", None]}, formats=["pt"])
    assert captured.program.signature.inputs[0].axes == ("batch", 3)
    schemas = [n.target._schema for n in captured.program.graph.nodes if hasattr(n.target, "_schema")]
    assert schemas
    assert not any(schema.is_mutable for schema in schemas)
    assert not captured.program.notes, "writing into one's own tensors is nobody's business"


class Counting(nn.Module):
    """Updates state in every way: a buffer in place, by slice, by assignment; attribute, list, dict."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("rows", torch.zeros(4, 3))
        self.register_buffer("mean", torch.zeros(3))
        self.last: Any = None
        self.seen: list[Any] = []
        self.cache: dict[str, Any] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.rows[:1] = x[:1]
        self.mean = self.mean + x.mean(0)
        self.last = x if self.last is None else self.last + x
        self.seen.append(x)
        self.cache["k"] = self.cache.get("k", 0) + x
        return x + self.calls + self.rows.sum() + self.mean + self.last + sum(self.seen) + self.cache["k"]


def test_state_is_reported_and_the_model_keeps_its_own(prove: ProveEverywhere, untouched: Untouched) -> None:
    model = Counting().eval()
    with untouched(model):
        notes = prove(model, X, dynamic={"x": ["n", None]}, formats=["pt"]).program.notes
    assert any("state 'calls' is updated by forward" in note for note in notes), notes
    assert any("keeps state" in note for note in notes)
    assert model.last is None
    assert model.seen == []


def test_a_write_into_an_input_is_reported_by_the_name_of_the_input(prove: ProveEverywhere) -> None:
    def forward(image: torch.Tensor) -> torch.Tensor:
        image += 1
        image[:, 0].mul_(3)
        return image * 2

    example = X.clone()
    notes = prove(Free(forward).eval(), example, formats=["pt"]).program.notes
    assert notes == ["input 'image' is written to by forward: the artifact leaves its inputs as they are"]
    assert torch.equal(example, X), "the user's example is not written to"
