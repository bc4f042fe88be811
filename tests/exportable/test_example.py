"""Examples from hooks, and disabled inputs in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fxexport.errors import InputError
from fxexport.exportable import ExportRequest, Part, prepared_part
from fxexport.tensor_types import Tensor

A, B, C = torch.full((2,), 1.0), torch.full((2,), 2.0), torch.full((2,), 3.0)


def prepared(model: nn.Module, example: Any = None) -> Part:
    with prepared_part(model, "self", ExportRequest(Path("/tmp/model.onnx")), example) as part:
        part.module(*part.args, **part.kwargs)
        return part


def model_of(forward: Callable[..., Any], **hooks: Any) -> nn.Module:
    return type("Model", (nn.Module,), {"forward": forward, **hooks})()


def sum_of(self: nn.Module, x: Any, y: Any = None, z: Any = None) -> Any:
    return x + (0 if y is None else 10 * y) + (0 if z is None else 100 * z)


RETURNS: list[tuple[Any, int, list[str]]] = [
    (A, 1, []),
    ((A,), 1, []),
    ([A, B], 2, []),
    ((A, {"z": C}), 1, ["z"]),
    (({"x": A, "y": B},), 0, ["x", "y"]),
    ({"x": A, "z": C}, 0, ["x", "z"]),
    ((A, {}), 1, []),
]


@pytest.mark.parametrize(("value", "count", "names"), RETURNS)
@pytest.mark.parametrize("kind", ["method", "property", "static", "attribute"])
def test_s16_what_input_example_may_return_and_be(value: Any, count: int, names: list[str], kind: str) -> None:
    hooks: dict[str, Any] = {
        "method": lambda self, max_batch=1, max_dim=8: value,
        "property": property(lambda self: value),
        "static": staticmethod(lambda: value),
        "attribute": value,
    }
    part = prepared(model_of(sum_of, input_example=hooks[kind]))
    assert len(part.args) == count
    assert list(part.kwargs) == names
    assert part.example_source == "Model.input_example()"


def test_a_dict_that_only_fits_as_an_argument_is_one() -> None:
    def forward(self: nn.Module, batch: Any, **rest: Any) -> Any:
        return batch["image"]

    assert len(prepared(model_of(forward, input_example={"image": A})).args) == 1
    assert len(prepared(model_of(forward, input_example=({"image": A},))).args) == 1
    assert list(prepared(model_of(forward, input_example={"batch": {"image": A}})).kwargs) == ["batch"]


def test_s16_sizes_are_given_where_the_hook_insists() -> None:
    def hook(self: nn.Module, max_batch: int, max_dim: int) -> Any:
        return torch.ones(max_batch, max_dim)

    assert prepared(model_of(sum_of, input_example=hook)).args[0].shape == (2, 256)

    def strange(self: nn.Module, speakers: int) -> Any:
        return torch.ones(speakers)

    with pytest.raises(InputError, match=r"Model\.input_example\(speakers: 'int'\).* needs speakers"):
        prepared(model_of(sum_of, input_example=strange))


def test_no_example_names_the_hook() -> None:
    with pytest.raises(InputError, match=r"no example input for Model: it has no input_example\(\) hook"):
        prepared(model_of(sum_of, input_types={"x": Tensor("batch")}))
    with pytest.raises(InputError, match=r"Model\.input_example\(\) returned None"):
        prepared(model_of(sum_of, input_example=lambda self: None))
    with pytest.raises(InputError, match=r"Model\.input_example\(\) must return .* found 'x'"):
        prepared(model_of(sum_of, input_example="x"))
    given = prepared(model_of(sum_of, input_example=lambda self: None), ((A,), {"z": C}))
    assert given.example_source == "given"


def test_an_example_that_unpacks_more_states_than_there_are() -> None:
    def hook(self: nn.Module) -> Any:
        first, second = (A,)
        return first, second

    with pytest.raises(
        InputError, match=r"Model\.input_example\(\) raised ValueError at .*not enough values"
    ) as caught:
        prepared(model_of(sum_of, input_example=hook))
    assert f"{__file__}:" in str(caught.value)
    assert len(prepared(model_of(sum_of, input_example=hook), ((A,), {})).args) == 1


def test_a_property_that_fails_says_so_itself() -> None:
    def broken(self: nn.Module) -> Any:
        return self.missing_part

    with pytest.raises(InputError, match=r"Model\.input_example raised AttributeError.*missing_part"):
        prepared(model_of(sum_of, input_example=property(broken)))


def test_an_example_that_does_not_fit() -> None:
    with pytest.raises(
        InputError, match=r"(?s)Model\.input_example\(\) does not fit forward.*too many.*signature.*given"
    ):
        prepared(model_of(sum_of, input_example=(A, A, A, A)))


def typed(*names: str) -> dict[str, Tensor]:
    return {name: Tensor("batch") for name in names}


def left_out(forward: Any, names: Any, disabled: Any, example: Any) -> tuple[list[float], dict[str, float], Part]:
    hooks = {"input_types": typed(*names), "disabled_deployment_input_names": disabled, "input_example": example}
    part = prepared(model_of(forward, **hooks))
    number = lambda value: None if value is None else float(value[0])  # noqa: E731
    return [number(v) for v in part.args], {k: number(v) for k, v in part.kwargs.items()}, part


def test_s21_the_example_lacks_the_disabled_input_already() -> None:
    assert left_out(sum_of, "xyz", {"y"}, (A, C))[:2] == ([1.0], {"z": 3.0})
    assert left_out(sum_of, "xyz", {"z"}, (A, B))[:2] == ([1.0, 2.0], {})


def test_s21_the_example_still_holds_the_disabled_input() -> None:
    args, kwargs, part = left_out(sum_of, "xyz", {"y"}, (A, B, C))
    assert (args, kwargs) == ([1.0], {"z": 3.0})
    assert part.disabled_inputs == {"y"}
    assert list(part.input_types or ()) == ["x", "z"]
    assert any("y of Model.input_example() left out" in note for note in part.notes)
    assert left_out(sum_of, "xyz", ["y", "z"], (A, B, C))[:2] == ([1.0], {})
    assert left_out(sum_of, "xyz", "y", (A, {"y": B, "z": C}))[:2] == ([1.0], {"z": 3.0})


def test_s21_types_in_another_order_than_forward() -> None:
    assert left_out(sum_of, "xzy", {"y"}, (A, B, C))[:2] == ([1.0], {"z": 3.0})
    assert left_out(sum_of, "zxy", {"y"}, (A, C))[:2] == ([1.0], {"z": 3.0})


def test_s21_names_that_are_not_parameters() -> None:
    def forward(self: nn.Module, input: Any, length: Any = None, cache: Any = None) -> Any:
        return sum_of(self, input, length, cache)

    names = ("audio_signal", "length", "cache")
    assert left_out(forward, names, {"length"}, (A, B, C))[:2] == ([1.0], {"cache": 3.0})
    assert left_out(forward, names, {"cache"}, (A, B))[:2] == ([1.0, 2.0], {})

    def without(self: nn.Module, input: Any, length: Any = None, cache: Any = None) -> Any:
        assert input is None
        return cache

    expected = ([], {"input": None, "cache": 3.0})
    assert left_out(without, names, {"audio_signal"}, ({"input": A, "cache": C},))[:2] == expected


def test_s21_a_forward_that_does_not_know_the_disabled_input() -> None:
    def forward(self: nn.Module, x: Any, z: Any) -> Any:
        return x + z

    assert left_out(forward, "xyz", {"y"}, (A, B, C))[:2] == ([1.0], {"z": 3.0})
    assert left_out(forward, "xyz", {"y"}, ({"x": A, "y": B, "z": C},))[:2] == ([], {"x": 1.0, "z": 3.0})


def test_s21_names_that_nothing_disables_do_not_shift_the_rest() -> None:
    def forward(self: nn.Module, x: Any, y: Any, cache: Any = None, bypass: Any = False) -> Any:
        assert cache is None
        return x + y

    assert left_out(forward, ("x", "y", "cache", "bypass"), {"cache"}, (A, B))[:2] == ([1.0, 2.0], {})


def test_s21_a_disabled_input_that_forward_requires() -> None:
    def tolerant(self: nn.Module, x: Any, length: Any, z: Any) -> Any:
        return x + z if length is None else x / 0

    args, kwargs, part = left_out(tolerant, ("x", "length", "z"), {"length"}, (A, B, C))
    assert (args, kwargs) == ([1.0], {"z": 3.0, "length": None})
    assert any("required by forward" in note for note in part.notes)

    def strict(self: nn.Module, x: Any, length: Any) -> Any:
        return x + length

    expected = (
        r"(?s)Model\.disabled_deployment_input_names disables length, but forward.*does not run with None.*TypeError"
    )
    with pytest.raises(InputError, match=expected):
        left_out(strict, ("x", "length"), {"length"}, (A, B))


def test_hooks_that_list_something_else_than_names() -> None:
    with pytest.raises(InputError, match=r"Model\.disabled_deployment_input_names must list names .* found 3"):
        left_out(sum_of, "xyz", 3, (A,))


class RNNEncoder(nn.Module):
    """Its example has batch 16, lengths not in order, and no arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 4, batch_first=True)

    def input_example(self) -> Any:
        return torch.rand(16, 9, 4), torch.randint(1, 9, (16,))

    def forward(self, audio_signal: Any, length: Any) -> Any:
        packed = nn.utils.rnn.pack_padded_sequence(audio_signal, length, batch_first=True, enforce_sorted=False)
        return self.lstm(packed)[0].data, length


def test_an_encoder_with_an_example_of_its_own_size(untouched: Any) -> None:
    model = RNNEncoder()
    with untouched(model):
        part = prepared(model)
    assert part.args[0].shape == (16, 9, 4)
    assert part.original is None, "nothing ran on it"


def test_input_types_that_are_no_mapping_name_the_hook() -> None:
    with pytest.raises(InputError, match=r"Model\.input_types"):
        prepared(model_of(sum_of, input_types=3, input_example=A))
