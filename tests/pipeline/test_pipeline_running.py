"""Calls, steps and states of a pipeline."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper
from sample_pipelines import save, transducer, transducer_spec, write

from fxexport.errors import InputError, ValidationError
from fxexport.pipeline import Pipeline, PipelineState
from fxexport.pipeline.spec import Initial, Outside, PartFile, PipelineSpec, Port, State, TensorPort, View, Wire

AUDIO = np.arange(40, dtype=np.float32).reshape(2, 4, 5)
LENGTH = np.array([5, 3])
LABELS = np.array([[1], [2]], np.int32)


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    return Pipeline.load(transducer(tmp_path))


@pytest.fixture
def state(pipeline: Pipeline) -> PipelineState:
    return pipeline.start(audio=AUDIO, length=LENGTH)


def frame(state: PipelineState, t: int) -> np.ndarray:
    return state["outputs"][:, :, t : t + 1]


def test_steps_compute_what_the_parts_compute(pipeline: Pipeline, state: PipelineState) -> None:
    memory = np.zeros((1, 2, 3), np.float32)
    for t in range(5):
        outputs, state = pipeline.step(state, encoder_outputs=frame(state, t), targets=LABELS)
        expected = 2 * AUDIO[:, :, t] + LABELS + memory.sum((0, 2))[:, None]
        np.testing.assert_array_equal(outputs["logits"], expected)
        memory = memory + LABELS + 1
        np.testing.assert_array_equal(state["input_states_1"], memory)
    assert set(outputs) == {"logits"}


def test_the_start_holds_outputs_of_the_encoder_and_initial_states(state: PipelineState) -> None:
    np.testing.assert_array_equal(state["outputs"], 2 * AUDIO)
    np.testing.assert_array_equal(state["encoded_lengths"], LENGTH)
    np.testing.assert_array_equal(state["input_states_1"], np.zeros((1, 2, 3), np.float32))
    assert "input_states_1: float32[1, 2, 3]" in repr(state)


def test_a_step_changes_neither_the_old_state_nor_what_the_caller_gave(
    pipeline: Pipeline, state: PipelineState
) -> None:
    before = {name: value.copy() for name, value in state.values.items()}
    outputs, _ = pipeline.step(state, encoder_outputs=frame(state, 0), targets=LABELS)
    outputs["logits"][:] = 99
    for name, value in before.items():
        np.testing.assert_array_equal(state[name], value)
    with pytest.raises(ValueError, match="read-only"):
        state["input_states_1"][:] = 1
    with pytest.raises(TypeError):
        state.values["input_states_1"] = AUDIO  # type: ignore[index]


def test_results_are_not_the_memory_of_the_inputs(pipeline: Pipeline) -> None:
    length = LENGTH.copy()
    result = pipeline.run("encoder", audio=AUDIO, length=length)
    result["encoded_lengths"][:] = 99
    np.testing.assert_array_equal(length, LENGTH)


def test_a_step_without_a_state_begins_with_the_start(pipeline: Pipeline, state: PipelineState) -> None:
    chosen = {"encoder_outputs": frame(state, 2), "targets": LABELS}
    wanted, after = pipeline.step(state, **chosen)
    found, also_after = pipeline.step(None, audio=AUDIO, length=LENGTH, **chosen)
    np.testing.assert_array_equal(found["logits"], wanted["logits"])
    np.testing.assert_array_equal(also_after["input_states_1"], after["input_states_1"])
    np.testing.assert_array_equal(also_after["outputs"], after["outputs"])


def test_a_chosen_value_must_be_given_and_may_go_by_its_whole_name(pipeline: Pipeline, state: PipelineState) -> None:
    with pytest.raises(InputError, match=r"decoder_joint.encoder_outputs .*cut from encoder.outputs"):
        pipeline.step(state, targets=LABELS)
    whole = {"decoder_joint.encoder_outputs": frame(state, 0), "decoder_joint.targets": LABELS}
    short = {"encoder_outputs": frame(state, 0), "targets": LABELS}
    np.testing.assert_array_equal(
        pipeline.step(state, **whole)[0]["logits"], pipeline.step(state, **short)[0]["logits"]
    )
    with pytest.raises(InputError, match="given twice"):
        pipeline.step(state, **whole, targets=LABELS)
    with pytest.raises(InputError, match=r"anew for each step: give it to step\(\)"):
        pipeline.start(audio=AUDIO, length=LENGTH, encoder_outputs=frame(state, 0))


def test_an_input_given_at_the_start_serves_every_step_and_a_step_may_differ(pipeline: Pipeline) -> None:
    state = pipeline.start(audio=AUDIO, length=LENGTH, targets=LABELS)
    first, state = pipeline.step(state, encoder_outputs=frame(state, 0))
    np.testing.assert_array_equal(first["logits"], 2 * AUDIO[:, :, 0] + LABELS)
    other, _ = pipeline.step(state, encoder_outputs=frame(state, 0), targets=LABELS * 0)
    np.testing.assert_array_equal(other["logits"], first["logits"] - LABELS + 3 * (LABELS + 1))


def test_missing_inputs_are_told_with_part_and_note(pipeline: Pipeline, state: PipelineState) -> None:
    with pytest.raises(InputError, match=r"'targets' \(int32\[batch, labels\]\) for decoder_joint.targets: computed by "
                                         r"driver.py:12") as caught:  # fmt: skip
        pipeline(audio=AUDIO)
    assert "'length' (int64[batch]) for encoder.length" in str(caught.value)
    with pytest.raises(InputError, match="'length'"):
        pipeline.start(audio=AUDIO)
    empty = pipeline.start()
    assert not empty.values, "nothing is known of the batch"
    outputs, after = pipeline.step(empty, encoder_outputs=frame(state, 0), targets=LABELS)
    assert after["input_states_1"].shape == (1, 2, 3), "the size came with the first step"
    assert outputs["logits"].shape == (2, 4)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"audio": AUDIO.astype(np.float64)}, "'audio' is float32, got float64"),
        ({"audio": AUDIO[0]}, r"'audio' has 3 axes \[batch, 4, time\], got shape \[4, 5\]"),
        ({"audio": AUDIO[:, :3]}, "3 is not 4"),
        ({"length": np.array([1, 2, 3])}, "'batch' is 2 in the input 'audio', here 3"),
        ({"length": [1.5, 2.5]}, r"cannot hold \[1.5, 2.5\]"),
        ({"length": "long"}, "got str"),
        ({"length": [[1], [2, 3]]}, "lists of equal length"),
        ({"lengths": LENGTH}, "did you mean 'length'"),
        ({"outputs": AUDIO}, "no input 'outputs'"),
        ({"input_states_1": AUDIO}, r"is a state, .*state.replace\(\)"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(pipeline: Pipeline, inputs: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        pipeline.start(**{"audio": AUDIO, "length": LENGTH, **inputs})


def test_numbers_lists_and_tensors_are_taken(pipeline: Pipeline, state: PipelineState) -> None:
    import torch

    other = pipeline.start(audio=torch.from_numpy(AUDIO).requires_grad_(), length=[5, 3])
    np.testing.assert_array_equal(other["outputs"], state["outputs"])
    with pytest.raises(InputError, match="'audio' is float32, got float16"):
        pipeline.start(audio=torch.from_numpy(AUDIO).half(), length=[5, 3])


def test_sizes_must_agree_between_the_start_and_a_step(pipeline: Pipeline, state: PipelineState) -> None:
    with pytest.raises(InputError, match="'batch' is 2 in"):
        pipeline.step(state, encoder_outputs=frame(state, 0), targets=np.ones((3, 1), np.int32))
    with pytest.raises(InputError, match=r"audio: for parts that run once"):
        pipeline.step(state, audio=AUDIO, encoder_outputs=frame(state, 0), targets=LABELS)


def test_a_runtime_failure_names_the_part_and_its_inputs(pipeline: Pipeline, state: PipelineState) -> None:
    with pytest.raises(ValidationError, match=r"part 'decoder_joint' failed on .*encoder_outputs float32\[2, 4, 2\]"):
        pipeline.step(state, encoder_outputs=state["outputs"][:, :, :2], targets=LABELS)


def test_one_part_runs_alone(pipeline: Pipeline) -> None:
    found = pipeline.run("encoder", **{"audio": AUDIO, "encoder.length": LENGTH})
    assert set(found) == {"outputs", "encoded_lengths"}
    with pytest.raises(InputError, match="lacks length"):
        pipeline.run("encoder", audio=AUDIO)
    with pytest.raises(InputError, match="no part 'coder'"):
        pipeline.run("coder")
    with pytest.raises(InputError, match="did you mean 'audio'"):
        pipeline.run("encoder", audios=AUDIO, length=LENGTH)


def test_rows_that_are_finished_keep_their_old_values(pipeline: Pipeline, state: PipelineState) -> None:
    _, new = pipeline.step(state, encoder_outputs=frame(state, 0), targets=LABELS)
    kept = new.keep(np.array([True, False]), state)
    np.testing.assert_array_equal(kept["input_states_1"][0, 0], state["input_states_1"][0, 0])
    np.testing.assert_array_equal(kept["input_states_1"][0, 1], new["input_states_1"][0, 1])
    np.testing.assert_array_equal(kept["outputs"], state["outputs"])
    with pytest.raises(InputError, match="cannot keep 3 rows"):
        new.keep([True, False, True], state)
    with pytest.raises(InputError, match="rows is bool, got int64"):
        new.keep(np.array([1, 0]), state)


def test_a_value_of_a_state_can_be_replaced(pipeline: Pipeline, state: PipelineState) -> None:
    given = np.ones((1, 2, 3), np.float32)
    other = state.replace(input_states_1=given)
    given[:] = 7
    outputs, _ = pipeline.step(other, encoder_outputs=frame(state, 0), targets=LABELS)
    np.testing.assert_array_equal(outputs["logits"], 2 * AUDIO[:, :, 0] + LABELS + 3)
    assert not state["input_states_1"].any()
    with pytest.raises(InputError, match="did you mean 'input_states_1'"):
        state.replace(input_states_2=given)
    with pytest.raises(InputError, match="is float32, got float64"):
        state.replace(input_states_1=given.astype(np.float64))
    with pytest.raises(InputError, match=r"axes \[1, batch, 3\], got shape \[3\]"):
        state.replace(input_states_1=given[0, 0])


def test_call_runs_once_through_views_in_order(tmp_path: Path) -> None:
    spec = transducer_spec(tmp_path)
    wire = replace(spec.wires[0], chosen=False, through=(View("flip", (2,)), View("slice", (2, 0, 1, 1))))
    pipeline = Pipeline.load(write(tmp_path, replace(spec, wires=(wire,))))
    found = pipeline(audio=AUDIO, length=LENGTH, targets=LABELS)
    np.testing.assert_array_equal(found["logits"], 2 * AUDIO[:, :, 4] + LABELS)
    np.testing.assert_array_equal(found["encoded_lengths"], LENGTH)
    with pytest.raises(InputError, match=r"comes from encoder\.outputs"):
        pipeline(audio=AUDIO, length=LENGTH, targets=LABELS, encoder_outputs=AUDIO)


@pytest.mark.parametrize(
    ("initial", "expected"),
    [
        (Initial((1, "batch", 3), "float32", fill=float("-inf")), np.full((1, 2, 3), -np.inf)),
        (Initial((1, "batch", 3), "float32", values=[[[1.0, 2.0, 3.0]]]), np.tile([1.0, 2.0, 3.0], (1, 2, 1))),
        (
            Initial(
                (),
                "float32",
                source=Port("encoder", "outputs"),
                through=(View("slice", (1, 0, 3, 1)), View("select", (2, 0)), View("unsqueeze", (0,))),
            ),
            2 * AUDIO[None, :, :3, 0],
        ),
    ],
)
def test_a_state_starts_as_declared(tmp_path: Path, initial: Initial, expected: np.ndarray) -> None:
    spec = transducer_spec(tmp_path)
    spec = replace(spec, states=(replace(spec.states[0], initial=initial),))
    state = Pipeline.load(write(tmp_path, spec)).start(audio=AUDIO, length=LENGTH)
    np.testing.assert_array_equal(state["input_states_1"], expected.astype(np.float32))


def test_a_state_that_grows_starts_empty_and_formulas_are_computed(tmp_path: Path) -> None:
    past = TensorPort("past", "float32", ("batch", "2*seen"))
    part = PartFile(
        "model",
        "m.onnx",
        "",
        (TensorPort("x", "float32", ("batch", "seen")), past),
        (TensorPort("present", "float32", ("batch", "total")),),
    )
    part = save(tmp_path, [helper.make_node("Concat", ["past", "x"], ["present"], axis=1)], part)
    part = replace(part, inputs=(part.inputs[0], replace(past, axes=("batch", "past"))))
    state = State(Port("model", "past"), Port("model", "present"), (), Initial(("batch", "2*seen"), "float32", fill=5))
    outside = Outside("x", (Port("model", "x"),), "float32", ("batch", "seen"))
    spec = PipelineSpec("m", "onnx", (part,), ("model",), (outside,), (), (state,), (Port("model", "present"),))
    pipeline = Pipeline.load(write(tmp_path, spec))
    outputs, after = pipeline.step(None, x=[[1.0], [2.0]])
    np.testing.assert_array_equal(outputs["present"], [[5, 5, 1], [5, 5, 2]])
    outputs, after = pipeline.step(after, x=[[3.0], [4.0]])
    assert outputs["present"].shape == (2, 4)
    with pytest.raises(InputError, match="cannot keep 2 rows"):
        after.keep([True, False], pipeline.step(None, x=[[1.0], [2.0]])[1])
    empty = replace(spec, states=(replace(state, initial=Initial(("batch", 0), "float32", fill=0)),))
    write(tmp_path, empty)
    assert Pipeline.load(tmp_path).step(None, x=[[1.0]])[0]["present"].tolist() == [[1.0]]


def test_bfloat16_flows_from_part_to_part(tmp_path: Path) -> None:
    import ml_dtypes

    parts = []
    for name, source, target in (("first", "a", "b"), ("second", "b", "c")):
        part = PartFile(
            name,
            f"{name}.onnx",
            "",
            (TensorPort(source, "bfloat16", ("n",)),),
            (TensorPort(target, "bfloat16", ("n",)),),
        )
        nodes = [
            helper.make_node("Cast", [source], ["wide"], to=TensorProto.FLOAT),
            helper.make_node("Neg", ["wide"], ["negative"]),
            helper.make_node("Cast", ["negative"], [target], to=TensorProto.BFLOAT16),
        ]
        parts.append(save(tmp_path, nodes, part))
    spec = PipelineSpec(
        "b",
        "onnx",
        tuple(parts),
        inputs=(Outside("a", (Port("first", "a"),), "bfloat16", ("n",)),),
        wires=(Wire(Port("first", "b"), Port("second", "b")),),
        outputs=(Port("first", "b"), Port("second", "c")),
    )
    pipeline = Pipeline.load(write(tmp_path, spec))
    given = np.array([1.5, -2.0], ml_dtypes.bfloat16)
    found = pipeline(a=given)
    assert found["b"].dtype == given.dtype
    assert found["b"].tolist() == [-1.5, 2.0]
    assert found["c"].tolist() == [1.5, -2.0]
    assert pipeline(a=[1.5, -2.0])["c"].tolist() == [1.5, -2.0]
    with pytest.raises(InputError, match="no part is called step by step"):
        pipeline.step(None, a=given)


def test_parts_after_the_loop_run_in_a_call_and_alone(tmp_path: Path) -> None:
    spec = transducer_spec(tmp_path)
    bias = TensorPort("bias", "float32", ())
    after = PartFile(
        "after", "after.onnx", "", (TensorPort("x", "float32", ("n", 4)), bias), (TensorPort("y", "float32", ("n", 4)),)
    )
    after = save(tmp_path, [helper.make_node("Add", ["x", "bias"], ["y"])], after)
    spec = replace(
        spec,
        parts=(*spec.parts, after),
        wires=(replace(spec.wires[0], chosen=False), Wire(Port("decoder_joint", "logits"), Port("after", "x"))),
        inputs=(*spec.inputs, Outside("bias", (Port("after", "bias"),), "float32", ())),
        outputs=(Port("after", "y"),),
    )
    pipeline = Pipeline.load(write(tmp_path, spec))
    found = pipeline(audio=AUDIO, length=LENGTH, targets=LABELS, bias=100.0)
    np.testing.assert_array_equal(found["y"], 2 * AUDIO[:, :, 0] + LABELS + 100)
    with pytest.raises(InputError, match=r"after.bias: of a part that needs what the loop gives; call it with run\(\)"):
        pipeline.start(audio=AUDIO, length=LENGTH, bias=100.0)
    state = pipeline.start(audio=AUDIO, length=LENGTH)
    assert pipeline.step(state, targets=LABELS)[0] == {}, "the loop gives no output of the pipeline"


def test_an_input_of_several_parts_is_given_once_or_to_each(tmp_path: Path) -> None:
    parts, feeds = [], []
    for name in ("left", "right"):
        part = PartFile(
            name, f"{name}.onnx", "", (TensorPort("x", "float32", ("n",)),), (TensorPort("y", "float32", ("n",)),)
        )
        parts.append(save(tmp_path, [helper.make_node("Neg", ["x"], ["y"])], part))
        feeds.append(Port(name, "x"))
    outside = Outside("x", tuple(feeds), "float32", ("n",))
    outputs = (Port("left", "y"), Port("right", "y"))
    spec = PipelineSpec("two", "onnx", tuple(parts), ("left", "right"), (outside,), outputs=outputs)
    pipeline = Pipeline.load(write(tmp_path, spec))
    assert {name: value.tolist() for name, value in pipeline(x=[1.0]).items()} == {"left.y": [-1], "right.y": [-1]}
    assert pipeline(**{"left.x": [1.0], "right.x": [2.0]})["right.y"].tolist() == [-2]
    with pytest.raises(InputError, match=r"for right\.x"):
        pipeline(**{"left.x": [1.0]})
    with pytest.raises(InputError, match="given twice"):
        pipeline(x=[1.0], **{"left.x": [1.0]})
    with pytest.raises(InputError, match="'n' is 1 in the input 'x', here 2"):
        pipeline(**{"left.x": [1.0], "right.x": [2.0, 3.0]})
    with pytest.raises(InputError, match=r"give start\(\) one value by that name"):
        pipeline.start(**{"left.x": [1.0]})
    assert pipeline.step(pipeline.start(x=[1.0]), x=[3.0])[0]["left.y"].tolist() == [-3]
