"""Nested arguments and results: stable names, structure kept, what no artifact can hold refused by name."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from fxexport.capture import bind_example
from fxexport.capture.flat_model import FlatModel
from fxexport.capture.nesting import flatten
from fxexport.errors import CaptureError

X = torch.ones(2, 3)
Pair = namedtuple("Pair", "first second")


@dataclass
class Box:
    a: Any
    b: Any
    note: Any = None


torch.export.register_dataclass(Box)


@dataclass
class Loose:
    a: Any


class Returns(nn.Module):
    def __init__(self, result: Any) -> None:
        super().__init__()
        self.result = result

    def forward(self, x: torch.Tensor) -> Any:
        return self.result(x)


def layout(result: Any) -> Any:
    model = Returns(result)
    flat = FlatModel(model, bind_example(model, X, None))
    flat(X)
    assert flat.results is not None
    return flat.results


@pytest.mark.parametrize(
    ("value", "paths"),
    [
        (X, [()]),
        ((X, [X, X]), [(0,), (1, 0), (1, 1)]),
        (OrderedDict(b=X, a=X), [("b",), ("a",)]),
        ({"b": X, "a": {"c": X}}, [("b",), ("a", "c")]),
        (Pair(X, (X,)), [("first",), ("second", 0)]),
        (Box(X, X + 1), [("a",), ("b",)]),
        ([None, 3], [(0,), (1,)]),
    ],
)
def test_paths(value: Any, paths: list[Any]) -> None:
    leaves, _ = flatten(value)
    assert [leaf.path for leaf in leaves if leaf.path != ("note",)] == paths


def test_output_names() -> None:
    assert layout(lambda x: x).names == ["output"]
    assert layout(lambda x: (x, x)).names == ["output_0", "output_1"]
    assert layout(lambda x: {"logits": x, "st": [x, x]}).names == ["logits", "st_0", "st_1"]
    assert layout(lambda x: Pair(x, x)).names == ["first", "second"]
    assert layout(lambda x: Box(x, x)).names == ["a", "b"]
    assert layout(lambda x: ({"a": x}, {"a": x})).names == ["output_0_a", "output_1_a"]


def test_structure_keeps_what_was_dropped_in_its_place() -> None:
    found = layout(lambda x: (None, {"y": x, "n": None}, [3, 2.5, True]))
    assert found.structure == {
        "tuple": [
            None,
            {"dict": {"y": "output_1_y", "n": None}},
            {"tuple": ["output_2_0", "output_2_1", "output_2_2"]},
        ]
    }
    assert found.dropped == ("output[0]", "output[1]['n']")
    assert found.numbers == ("output[2][0]", "output[2][1]", "output[2][2]")


def test_numbers_become_tensors_of_their_kind() -> None:
    model = Returns(lambda x: (3, 2.5, True, x))
    results = FlatModel(model, bind_example(model, X, None))(X)
    assert [(t.dtype, t.shape) for t in results[:3]] == [
        (torch.int64, ()),
        (torch.float32, ()),
        (torch.bool, ()),
    ]


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda x: (x, "hello"), r"a str at output\[1\] \('hello'\)"),
        (lambda x: {"o": [x, {1, 2}]}, r"a set at output\['o'\]\[1\]"),
        (lambda x: Loose(x), r"Loose at output.*register_dataclass\(Loose\)"),
        (lambda x: None, "there is no tensor to export"),
        (lambda x: (), "there is no tensor to export"),
    ],
)
def test_what_no_artifact_can_hold(result: Any, message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        layout(result)
