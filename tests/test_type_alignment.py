"""Declared types against real calls: names, labels of dynamic axes, contradictions."""

from __future__ import annotations

from collections.abc import Collection
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fxexport.errors import InputError
from fxexport.tensor_types import Tensor, TypedMap, read_types
from fxexport.type_alignment import AxisPlan, InputPlan, OutputPlan, plan_inputs, plan_outputs


def NT(axes: Any = None, optional: bool = False) -> SimpleNamespace:
    """A NeuralType as the toolboxes' users write it."""
    return SimpleNamespace(axes=axes, elements_type=None, optional=optional)


def typed(given: dict[str, Any]) -> TypedMap:
    types = read_types(given, hook="types", owner="Net")
    assert types is not None
    return types


def f(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


def inputs(types: dict[str, Any], **leaves: torch.Tensor) -> InputPlan:
    return inputs_at(types, list(leaves.items()))


def inputs_at(types: dict[str, Any], leaves: list[tuple[str, torch.Tensor]]) -> InputPlan:
    plan = plan_inputs(typed(types), leaves, owner="Net")
    assert len(set(plan.names)) == len(plan.names) == len(plan.axes) == len(leaves)
    assert all(axis.label.isidentifier() for axes in plan.axes for axis in axes.values())
    return plan


def labels(plan: InputPlan) -> list[dict[int, str]]:
    return [{position: axis.label for position, axis in axes.items()} for axes in plan.axes]


def outputs(types: dict[str, Any], leaves: list[tuple[str, Any]], disabled: Collection[str] = ()) -> OutputPlan:
    plan = plan_outputs(typed(types), leaves, disabled=disabled, owner="Net")
    kept = [name for name in plan.names if name is not None]
    assert len(set(kept)) == len(kept)
    assert len(plan.names) == len(plan.axes) == len(leaves)
    return plan


STATE = NT(("D", "B", "D"))


class TestInputs:
    def test_by_name_whatever_the_order(self) -> None:
        types = {"length": Tensor("batch", dtype=torch.int64), "audio": Tensor("batch", "channel", "time", "any")}
        plan = inputs(types, audio=f(2, 3, 40, 5), length=f(2, dtype=torch.int64))
        assert plan.names == ["audio", "length"]
        assert plan.axes == [
            {0: AxisPlan("batch", True), 2: AxisPlan("time", True), 3: AxisPlan("audio_dim_3", False)},
            {0: AxisPlan("batch", True)},
        ]
        assert plan.notes == []

    def test_a_first_parameter_of_another_name_takes_the_types_name(self) -> None:
        types = {"audio_signal": NT(("B", "D", "T")), "length": NT("B"), "cache": NT(("B", "T"), optional=True)}
        plan = inputs(types, input=f(2, 80, 40), length=f(2))
        assert plan.names == ["audio_signal", "length"]
        assert labels(plan) == [{0: "batch", 2: "time"}, {0: "batch"}]
        assert plan.notes == ["Net.input_types does not name input: by position that is 'audio_signal'"]

    def test_position_counts_optional_types_when_they_came(self) -> None:
        types = {"a": NT(("B",)), "b": NT(("B", "T"), optional=True)}
        assert inputs(types, p=f(2), q=f(2, 7)).names == ["a", "b"]

    def test_position_in_the_call_where_counts_differ(self) -> None:
        types = {"audio": NT(("B", "T")), "length": NT("B"), "mode": NT("B"), "more": NT("B")}
        plan = inputs(types, x=f(2, 7), length=f(2))
        assert plan.names == ["audio", "length"]
        assert "declares ['mode', 'more'], which the call does not have" in plan.notes[-1]

    def test_an_optional_type_without_a_tensor_is_left_alone(self) -> None:
        types = {"audio": NT(("B", "T")), "bypass_pre_encode": NT((), optional=True)}
        plan = inputs(types, audio=f(2, 7))
        assert plan.names == ["audio"]
        assert plan.notes == []
        extra = inputs(types, audio=f(2, 7), extra=f(2, 3))  # not forced on a tensor of another rank
        assert extra.names == ["audio", "extra"]
        assert extra.axes[1] == {}
        assert "no type for extra" in extra.notes[0]

    def test_a_type_without_a_tensor_is_noted(self) -> None:
        plan = inputs({"audio": NT(("B", "T")), "length": NT("B")}, audio=f(2, 7))
        assert plan.notes == ["Net.input_types declares ['length'], which the call does not have"]

    @pytest.mark.parametrize("states", [[STATE], (STATE, STATE), STATE])
    @pytest.mark.parametrize("paths", [["states[0]", "states[1]"], ["h", "c"]])
    def test_states_are_numbered(self, states: Any, paths: list[str]) -> None:
        leaves = [("targets", f(2, 5)), *((path, f(1, 2, 8)) for path in paths)]
        if states is STATE and paths == ["h", "c"]:
            plan = inputs_at({"targets": NT("BT"), "states": states}, leaves)  # one tensor declared, two came
            assert plan.names == ["targets", "states", "c"]
            assert "no type for c" in plan.notes[-1]
            return
        plan = inputs_at({"targets": NT("BT"), "states": states}, leaves)
        assert plan.names == ["targets", "input_states_1", "input_states_2"]
        assert labels(plan) == [{0: "batch", 1: "time"}, {1: "batch"}, {1: "batch"}]

    def test_a_state_of_one_tensor(self) -> None:
        for path in ("states[0]", "states"):
            assert inputs_at({"states": [NT(("B", "T"))]}, [(path, f(2, 3))]).names == ["input_states_1"]
        assert inputs({"states": NT(("B", "T"))}, states=f(2, 3)).names == ["states"]

    def test_names_that_are_numbered_already_stay(self) -> None:
        types = {"input_states_1": STATE, "input_states_2": STATE}
        names = ["input_states_1", "input_states_2"]
        assert inputs(types, input_states_1=f(1, 2, 8), input_states_2=f(1, 2, 8)).names == names
        assert inputs_at(types, [("states[0]", f(1, 2, 8)), ("states[1]", f(1, 2, 8))]).names == names
        assert inputs_at({"input_states": [STATE]}, [("s[0]", f(1, 2, 8)), ("s[1]", f(1, 2, 8))]).names == names

    def test_deep_states_and_states_with_keys(self) -> None:
        deep = [(f"states[{i}][{j}]", f(1, 2, 8)) for i in range(2) for j in range(2)]
        assert inputs_at({"states": [STATE]}, deep).names == [f"input_states_{i}" for i in (1, 2, 3, 4)]
        keyed = [(f"states[{key!r}]", f(1, 2, 8)) for key in ("h", "c")]
        assert inputs_at({"states": STATE}, keyed).names == ["states_h", "states_c"]

    def test_more_states_than_types(self) -> None:
        leaves = [(f"states[{i}]", f(1, 2, 8)) for i in range(3)]
        plan = inputs_at({"states": (STATE, NT("DBT"))}, leaves)
        assert labels(plan) == [{1: "batch"}, {1: "batch", 2: "time"}, {}]
        assert "declares 2 tensors for 'states'; the call has 3" in plan.notes[0]

    def test_entries_of_a_dict_parameter(self) -> None:
        types = {"image": Tensor("batch", 3), "mask": Tensor("batch")}
        leaves = [("batch['image']", f(2, 3)), ("batch['mask']", f(2)), ("batch['id']", f(2))]
        plan = inputs_at(types, leaves)
        assert plan.names == ["image", "mask", "batch_id"]
        two = inputs_at({"image": Tensor("batch")}, [("a['image']", f(2)), ("b['image']", f(2))])
        assert two.names == ["image", "b_image"]

    def test_no_name_twice(self) -> None:
        types = {"states": [STATE], "input_states_1": STATE}
        plan = inputs_at(types, [("states[0]", f(1, 2, 8)), ("input_states_1", f(1, 2, 8))])
        assert plan.names[1] == "input_states_1"  # the declared name stays
        assert any("'input_states_1' would name two tensors" in note for note in plan.notes)

    def test_unknown_axes(self) -> None:
        assert inputs({"x": NT(None)}, x=f(2, 3)).axes == [{}]


class TestLabels:
    def test_times_of_one_size_are_one_dimension(self) -> None:
        plan = inputs({"audio": NT("BT"), "mask": NT("BTT")}, audio=f(2, 7), mask=f(2, 7, 7))
        assert labels(plan) == [{0: "batch", 1: "time"}, {0: "batch", 1: "time", 2: "time"}]
        assert plan.notes == [
            "Net.input_types: the time axes of ['audio', 'mask'] have one size in the example; they are one dimension, "
            "'time'"
        ]

    def test_times_of_several_sizes_are_named_after_their_inputs(self) -> None:
        plan = inputs({"audio": NT("BT"), "mask": NT("BTT")}, audio=f(2, 9), mask=f(2, 7, 8))
        assert labels(plan) == [{0: "batch", 1: "audio_time"}, {0: "batch", 1: "mask_time_1", 2: "mask_time_2"}]

    def test_size_1_proves_nothing(self) -> None:
        assert labels(inputs({"a": NT("BT"), "b": NT("BT")}, a=f(2, 1), b=f(2, 1))) == [
            {0: "batch", 1: "a_time"},
            {0: "batch", 1: "b_time"},
        ]

    def test_our_own_time_and_a_toolbox_time(self) -> None:
        types = {"a": Tensor("batch", "time"), "b": NT("BT")}
        assert labels(inputs(types, a=f(2, 7), b=f(2, 7))) == [{0: "batch", 1: "time"}] * 2
        assert labels(inputs(types, a=f(2, 7), b=f(2, 9)))[1] == {0: "batch", 1: "b_time"}

    def test_labels_of_different_sizes_never_meet(self) -> None:
        types = {"own": Tensor("x_time"), "x": NT("T"), "y": NT("T"), "z-": NT(("any",)), "z_": NT(("any",))}
        leaves = [("own", f(3)), ("x", f(4)), ("y", f(5)), ("z-", f(6)), ("z_", f(7))]
        found = [axes[0] for axes in labels(inputs_at(types, leaves))]
        assert len(set(found)) == 5
        assert found[0] == "x_time"


class TestContradictions:
    @pytest.mark.parametrize(
        ("declared", "value", "problem"),
        [
            (Tensor("batch", dtype=torch.int64), f(2), "the dtype is float32"),
            (Tensor("batch", "time"), f(2), "2 axes are declared, the tensor has 1"),
            (Tensor("batch", 80), f(2, 64), "axis 1 has size 64"),
            (NT(("B", "D", "T")), f(2, 3), "3 axes are declared"),
        ],
    )
    def test_a_tensor_that_is_not_as_declared(self, declared: Any, value: torch.Tensor, problem: str) -> None:
        with pytest.raises(InputError, match=problem) as caught:
            inputs({"audio": declared}, audio=value)
        assert "Net.input_types declares 'audio'" in str(caught.value)

    @pytest.mark.parametrize("axes", [(Tensor("batch", "t"), Tensor("batch", "t")), (NT("BD"), NT("BD"))])
    def test_equal_names_are_equal_sizes(self, axes: Any) -> None:
        with pytest.raises(InputError, match=r"dimension '\w+' is 2 in 'a' .* and 3 in 'b'"):
            inputs({"a": axes[0], "b": axes[1]}, a=f(2, 2), b=f(3, 3))

    def test_kinds_are_no_names(self) -> None:
        types = {"a": Tensor("batch", "channel", "any"), "b": Tensor("batch", "channels", "any")}
        assert inputs(types, a=f(2, 3, 4), b=f(2, 5, 6)).notes == []


TWO = {"outputs": NT("BDT"), "lengths": NT("B")}


class TestOutputs:
    def test_a_single_tensor(self) -> None:
        plan = outputs({"logits": Tensor("batch", 10)}, [("output", f(2, 10))])
        assert (plan.names, plan.axes, plan.notes) == (["logits"], [{0: "batch"}], [])

    def test_a_tuple(self) -> None:
        plan = outputs(TWO, [("output[0]", f(2, 8, 7)), ("output[1]", f(2))])
        assert plan.names == ["outputs", "lengths"]
        assert plan.axes == [{0: "batch", 2: "outputs_time"}, {0: "batch"}]

    def test_a_mapping_by_key(self) -> None:
        leaves = [("output['lengths']", f(2)), ("output['extra']", f(4)), ("output['outputs']", f(2, 8, 7))]
        plan = outputs(TWO, leaves)
        assert plan.names == ["lengths", "extra", "outputs"]
        assert plan.axes[1] is None
        assert outputs(TWO, leaves, ["lengths"]).names == [None, "extra", "outputs"]
        assert outputs(TWO, leaves, ["extra"]).names == ["lengths", None, "outputs"]
        assert "['outputs'], which the call does not have" in outputs(TWO, leaves[:2]).notes[0]

    def test_a_mapping_of_other_keys_goes_by_position(self) -> None:
        assert outputs(TWO, [("output['y']", f(2, 8, 7)), ("output['n']", f(2))]).names == ["outputs", "lengths"]

    @pytest.mark.parametrize("states", [[STATE], (STATE, STATE), STATE])
    def test_nested_states(self, states: Any) -> None:
        head: list[tuple[str, Any]] = [("output[0]", f(2, 8, 7)), ("output[1]", f(2))]
        nested = [*head, ("output[2][0]", f(1, 2, 8)), ("output[2][1]", f(1, 2, 8))]
        expected = ["outputs", "lengths", "output_states_1", "output_states_2"]
        plan = outputs(TWO | {"states": states}, nested)
        assert plan.names == expected
        assert plan.axes[2:] == [{1: "batch"}, {1: "batch"}]
        if states is not STATE:  # the model may have flattened them
            flat = [*head, ("output[2]", f(1, 2, 8)), ("output[3]", f(1, 2, 8))]
            assert outputs(TWO | {"states": states}, flat).names == expected

    def test_states_under_names_of_their_own(self) -> None:
        types = TWO | {"output_states_1": STATE, "output_states_2": STATE}
        leaves = [("output[0]", f(2, 8, 7)), ("output[1]", f(2)), *((f"output[2][{i}]", f(1, 2, 8)) for i in (0, 1))]
        assert outputs(types, leaves).names == list(types)

    def test_the_result_is_one_state(self) -> None:
        leaves = [("output[0]", f(1, 2, 8)), ("output[1]", f(1, 2, 8))]
        assert outputs({"states": (STATE, STATE)}, leaves).names == ["output_states_1", "output_states_2"]
        assert outputs({"states": [STATE]}, [("output", f(1, 2, 8))]).names == ["output_states_1"]

    def test_none_is_left_out(self) -> None:
        types = {"spec": NT("BDT"), "pitch": NT("BT", optional=True), "lengths": NT("B")}
        leaves = [("output[0]", f(2, 8, 7)), ("output[1]", None), ("output[2]", f(2))]
        assert outputs(types, leaves).names == ["spec", None, "lengths"]
        fewer = {"spec": NT("BDT"), "lengths": NT("B")}  # the None is not declared at all
        assert outputs(fewer, leaves).names == ["spec", None, "lengths"]

    def test_absent_optional_ones(self) -> None:
        types = {"spec": NT("BDT"), "pitch": NT("BT", optional=True), "lengths": NT("B"), "c": NT("B", optional=True)}
        three = [("output[0]", f(2, 8, 7)), ("output[1]", f(2, 7)), ("output[2]", f(2))]
        assert outputs(types, three).names == ["spec", "pitch", "lengths"]
        assert outputs(types, [three[0], ("output[1]", f(2))]).names == ["spec", "lengths"]

    def test_disabled_ones_that_come_are_left_out(self) -> None:
        types = {"a": NT("BT"), "b": NT("B"), "c": NT("BT")}
        three = [("output[0]", f(2, 7)), ("output[1]", f(2)), ("output[2]", f(2, 7))]
        plan = outputs(types, three, {"b"})
        assert plan.names == ["a", None, "c"]
        assert plan.axes[1] is None
        assert plan.notes == []
        two = [("output[0]", f(2, 7)), ("output[1]", f(2, 7))]
        assert outputs(types, two, {"b"}).names == ["a", "c"]
        assert outputs({"a": NT("BT"), "c": NT("BT")}, two, {"b"}).names == ["a", "c"]

    def test_a_disabled_state_is_left_out_whole(self) -> None:
        leaves = [("output[0]", f(2, 7)), ("output[1][0]", f(1, 2, 8)), ("output[1][1]", f(1, 2, 8))]
        assert outputs({"y": NT("BT"), "states": [STATE]}, leaves, {"states"}).names == ["y", None, None]

    def test_more_outputs_than_types(self) -> None:
        plan = outputs({"logits": NT("BD")}, [("output[0]", f(2, 7)), ("output[1]", f(2))], {"hidden"})
        assert plan.names == ["output_0", "output_1"]
        assert plan.axes == [None, None]
        (note,) = plan.notes
        for text in ("Net.output_types declares ['logits']", "disabled: ['hidden']", "output[1]: float32[2]"):
            assert text in note

    def test_a_type_that_is_untrue_still_names(self) -> None:
        plan = outputs(TWO, [("output[0]", f(2, 8)), ("output[1]", f(2))])
        assert plan.names == ["outputs", "lengths"]
        assert plan.axes == [None, {0: "batch"}]
        assert "3 axes are declared, the tensor has 2" in plan.notes[0]

    def test_sizes_of_one_name_differ(self) -> None:
        types = {"a": Tensor("batch", "time"), "b": Tensor("batch", "time")}
        plan = outputs(types, [("output[0]", f(2, 7)), ("output[1]", f(2, 9))])
        assert plan.notes == ["Net.output_types: dimension 'time' is 7 in 'a' (axis 1) and 9 in 'b' (axis 1)"]

    def test_numbers_are_scalars(self) -> None:
        plan = outputs({"y": NT("B"), "loss": Tensor()}, [("output[0]", f(2)), ("output[1]", 0.5)])
        assert (plan.names, plan.axes[1], plan.notes) == (["y", "loss"], {}, [])

    def test_explicit_state_is_no_part_of_the_result(self) -> None:
        plan = outputs({"y": NT("B")}, [("output", f(2)), ("state['h']", f(3))])
        assert plan.names == ["y", "output_h"]

    def test_names_that_meet(self) -> None:
        types = {"states": [STATE], "output_states_1": NT("B")}
        plan = outputs(types, [("output[0][0]", f(1, 2, 8)), ("output[1]", f(2))])
        assert plan.names[1] == "output_states_1"
        assert "would name two tensors" in plan.notes[0]
