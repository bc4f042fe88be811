"""Reading declared types: our own ``Tensor`` and imitations of the toolboxes' NeuralType."""

from __future__ import annotations

import copy
import dataclasses
import enum
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fxexport.errors import InputError
from fxexport.tensor_types import Tensor, TypedAxis, TypedMap, TypedTensor, read_types


class AxisKind(enum.Enum):
    """As NeMo's, aliases included."""

    Batch = 0
    Time = 1
    Dimension = 2
    Channel = 2
    Width = 3
    Height = 4
    Any = 5
    Sequence = 6
    FlowGroup = 7
    Singleton = 8


class AxisType:
    def __init__(self, kind: Any, size: int | None = None, is_list: bool = False) -> None:
        self.kind, self.size, self.is_list = kind, size, is_list


class NeuralType:
    def __init__(self, axes: Any = None, elements_type: Any = None, optional: bool = False) -> None:
        self.axes, self.elements_type, self.optional = axes, elements_type, optional


def neural(*kinds: AxisKind, optional: bool = False) -> NeuralType:
    return NeuralType(tuple(AxisType(kind) for kind in kinds), object(), optional)


def read(given: object) -> TypedMap:
    types = read_types(given, hook="input_types", owner="Encoder")
    assert types is not None
    return types


def read_one(value: object) -> TypedTensor:
    found = read({"x": value})["x"]
    assert isinstance(found, TypedTensor)
    return found


def kinds(typed: TypedTensor) -> list[tuple[str, str]]:
    assert typed.axes is not None
    return [(axis.kind, axis.dynamic) for axis in typed.axes]


def test_tensor_is_an_immutable_value() -> None:
    tensor = Tensor("batch", 80, "time", dtype=torch.float32, optional=True)
    assert repr(tensor) == "Tensor('batch', 80, 'time', dtype=torch.float32, optional=True)"
    assert eval(repr(tensor)) == tensor
    assert repr(Tensor()) == "Tensor()"
    assert len({tensor, Tensor("batch", 80, "time", dtype=torch.float32, optional=True), Tensor("batch")}) == 2
    assert copy.deepcopy(tensor) == tensor == pickle.loads(pickle.dumps(tensor))
    with pytest.raises(dataclasses.FrozenInstanceError):
        tensor.axes = ()  # type: ignore[misc]


@pytest.mark.parametrize("axis", ["", "2d", "a b", "a-b", "zeit\u00e4", -1, True, None, 1.5])
def test_an_axis_is_an_identifier_or_a_size(axis: Any) -> None:
    with pytest.raises(InputError, match="must be an identifier"):
        Tensor("batch", axis)


def test_a_dtype_must_be_torchs() -> None:
    with pytest.raises(InputError, match=r"torch\.float32"):
        Tensor("batch", dtype="float32")  # type: ignore[arg-type]


def test_our_own_axes() -> None:
    typed = read_one(Tensor("batch", "channels", "Feature", 80, "any", "Time", "T_mel", dtype=torch.float64))
    assert typed.axes == (
        TypedAxis("batch", dynamic="declared", shared=True),
        TypedAxis("channel"),
        TypedAxis("feature"),
        TypedAxis("80", 80),
        TypedAxis("any", dynamic="allowed"),
        TypedAxis("time", dynamic="declared", shared=True),
        TypedAxis("T_mel", dynamic="declared", shared=True),
    )
    assert typed.dtype == torch.float64
    assert read_one(Tensor()).axes == ()
    assert str(typed) == "float64[batch, channel, feature, 80, any, time, T_mel]"


def test_neural_type_axes() -> None:
    typed = read_one(neural(*AxisKind))
    assert kinds(typed) == [
        ("batch", "declared"),
        ("time", "declared"),
        ("dimension", "fixed"),
        ("width", "declared"),
        ("height", "declared"),
        ("any", "allowed"),
        ("sequence", "declared"),
        ("flowgroup", "fixed"),
        ("singleton", "fixed"),
    ]
    assert typed.axes is not None
    assert [axis.kind for axis in typed.axes if axis.shared] == ["batch"]
    assert typed.dtype is None
    assert not typed.optional


def test_a_users_own_axis_kinds() -> None:
    Own = enum.Enum("Own", ["Beam", "Duration"])
    assert kinds(read_one(neural(Own.Beam, Own.Duration))) == [("beam", "fixed"), ("duration", "declared")]  # type: ignore[arg-type]
    assert kinds(read_one(NeuralType((AxisType("batch"), AxisType("beam"))))) == [
        ("batch", "declared"),
        ("beam", "fixed"),
    ]


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        (("B", "T", "D"), ["batch", "time", "dimension"]),
        (["n", "C", "H", "W"], ["batch", "channel", "height", "width"]),
        (("batch", "T_text", "seq", "S", "any"), ["batch", "time", "sequence", "singleton", "any"]),
        ((AxisKind.Batch, AxisKind.Time), ["batch", "time"]),
        (("T"), ["time"]),  # no tuple, as it is sometimes written
        ("BT", ["batch", "time"]),
        ("time", ["time"]),
        ((), []),
    ],
)
def test_string_axes(axes: Any, expected: list[str]) -> None:
    assert [kind for kind, _ in kinds(read_one(NeuralType(axes)))] == expected


def test_fixed_sizes_lists_and_unknown_axes() -> None:
    sized = read_one(NeuralType((AxisType(AxisKind.Batch), AxisType(AxisKind.Time, 80))))
    assert sized.axes == (TypedAxis("batch", None, "declared", True), TypedAxis("time", 80))
    in_list = read_one(NeuralType((AxisType(AxisKind.Batch, is_list=True), AxisType(AxisKind.Time))))
    assert kinds(in_list) == [("time", "declared")]
    assert read_one(NeuralType(None, optional=True)) == TypedTensor(None, None, True)
    assert str(read_one(NeuralType())) == "any dtype[...]"
    bare = SimpleNamespace(axes=("B",))  # no elements_type, no optional
    assert read_one(bare) == TypedTensor((TypedAxis("batch", None, "declared", True),))


def test_nested_states_in_lists_and_tuples() -> None:
    state = neural(AxisKind.Dimension, AxisKind.Batch, AxisKind.Dimension, optional=True)
    types = read({"one": [state], "two": (state, Tensor("batch")), "deep": [[state, state], (state,)]})
    counts = {name: len(entry) if isinstance(entry, tuple) else None for name, entry in types.items()}
    assert counts == {"one": 1, "two": 2, "deep": 3}
    assert list(types) == ["one", "two", "deep"]


def test_none_means_nothing_declared() -> None:
    assert read_types(None, hook="output_types", owner="Encoder") is None
    assert read_types({}, hook="output_types", owner="Encoder") == {}


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ([Tensor("batch")], r"Encoder\.input_types gave \[Tensor\('batch'\)\] \(list\)"),
        (lambda: {}, r"function\).*is it a method"),
        ({1: Tensor("batch")}, "the name 1"),
        ({"": Tensor("batch")}, "the name ''"),
        ({"x": 3}, r"Encoder\.input_types\['x'\] is 3 \(int\)"),
        ({"x": None}, "None"),
        ({"x": ("B", "T")}, r"'B' \(str\)"),
        ({"x": Tensor}, "the class Tensor itself"),
        ({"x": NeuralType}, "the class NeuralType itself"),
        ({"x": []}, "is empty"),
        ({"x": NeuralType(("B", "Tiem"))}, "'Tiem'.*no known kind.*'time'"),
        ({"x": NeuralType("Bxy")}, "'x'"),
        ({"x": NeuralType(7)}, r"\.axes is 7"),
        ({"x": NeuralType((AxisType(3),))}, "no known kind"),
        ({"x": NeuralType((AxisType(AxisKind.Batch, True),))}, "of size True"),
        ({"x": NeuralType((AxisType(AxisKind.Batch, -2),))}, "of size -2"),
    ],
)
def test_anything_else_is_refused_by_name(given: object, found: str) -> None:
    with pytest.raises(InputError, match=rf"(?s){found}") as caught:
        read(given)
    assert "Encoder.input_types" in str(caught.value)
