"""Names of dimensions: the user's, else stable ones, never torch's own symbols."""

from __future__ import annotations

from typing import Any

import torch
from conftest import ProveEverywhere
from torch import nn
from torch.export import Dim

from fxexport.capture.pipeline import capture_model


class Free(nn.Module):
    def __init__(self, forward: Any) -> None:
        super().__init__()
        self.forward = forward


class Product(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x @ y


def inputs_of(model: Any, *example: torch.Tensor, **options: Any) -> list[tuple[Any, ...]]:
    return [s.axes for s in capture_model(model, example or None, **options).program.signature.inputs]


def test_one_name_for_one_size_across_inputs() -> None:
    model = Free(lambda x, y: x + y).eval()
    assert inputs_of(model, torch.ones(2, 3), torch.ones(2, 3), dynamic=True) == [("batch", "x_dim_1")] * 2


def test_sizes_the_model_does_not_tie_keep_names_of_their_own() -> None:
    model = Free(lambda x, y: (x * 2, y * 2)).eval()
    assert inputs_of(model, torch.ones(2, 3), torch.ones(4, 3), dynamic=True) == [
        ("batch", "x_dim_1"),
        ("batch_1", "y_dim_1"),
    ]


def test_equal_names_are_one_dimension(prove: ProveEverywhere) -> None:
    model = Free(lambda x, y: (x * 2, y * 2)).eval()
    captured = prove(
        model,
        (torch.ones(2, 3), torch.ones(2, 5)),
        dynamic={"x": ["n", None], "y": ["n", None]},
        formats=["pt"],
    )
    assert [d.name for d in captured.program.signature.dimensions] == ["n"]


def test_an_exported_program_brings_its_dynamic_axes_under_stable_names(prove: ProveEverywhere) -> None:
    auto = {0: Dim.AUTO, 1: Dim.AUTO}
    exported = torch.export.export(
        Product().eval(), (torch.ones(2, 3), torch.ones(3, 5)), dynamic_shapes={"x": auto, "y": auto}
    )
    signature = prove(exported, formats=["pt"]).program.signature
    assert [s.axes for s in signature.inputs] == [("batch", "x_dim_1"), ("x_dim_1", "y_dim_1")]
    assert signature.outputs[0].axes == ("batch", "y_dim_1")


def test_an_exported_program_with_other_examples_and_no_training_note() -> None:
    exported = torch.export.export(Product(), (torch.ones(2, 3), torch.ones(3, 5)))
    assert exported.graph_module is not None
    captured = capture_model(exported, (torch.zeros(2, 3), torch.zeros(3, 5)))
    assert captured.program.notes == []
    assert not captured.expected[0].any()


def test_a_traced_graph_module_is_put_into_eval_mode(prove: ProveEverywhere) -> None:
    traced = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout()).train())
    notes = prove(traced, torch.randn(4, 3), dynamic=True, formats=["pt"]).program.notes
    assert any("was in training mode: captured in eval mode" in note for note in notes)
    assert traced.training
