"""Wires, states and inputs from tensor identity, and what the recording contradicts."""

from dataclasses import replace

import pytest
import torch
from subnet_samples import (
    Transducer,
    Translator,
    generate,
    greedy,
    interface,
    transducer_interfaces,
    translator_interfaces,
)
from torch import Tensor, nn

from fxexport.pipeline.checking import check_spec
from fxexport.pipeline.ports import Initial, Port, View
from fxexport.pipeline.spec import PartFile, PipelineSpec, TensorPort
from fxexport.signature import Signature, TensorSpec, dtype_name
from fxexport.subnets.interface import PartInterface, contradictions
from fxexport.subnets.recording import Recording, record
from fxexport.subnets.wiring import Wiring, wire

AUDIO = (torch.randn(2, 4, 16), torch.tensor([16, 9]))


class Pair(nn.Module):
    """Two parts; what passes between them is the driver's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.first, self.second = nn.Linear(4, 4), nn.Bilinear(4, 4, 4)


def wired(
    driver: object, *inputs: Tensor, labels: dict | None = None, parts: tuple[str, ...] = ("first", "second")
) -> Wiring:
    recording = record(Pair(), driver, inputs, subnets=parts)  # type: ignore[arg-type]
    return wire(recording, [interface(recording, part, labels) for part in recording.parts])


def transducer() -> tuple[Recording, Wiring]:
    recording = record(Transducer(), greedy, AUDIO)
    return recording, wire(recording, transducer_interfaces(recording))


def test_transducer() -> None:
    _, wiring = transducer()
    assert wiring.order == ("encoder", "decoder_joint")
    assert wiring.loop == ("decoder_joint",)
    (encoded,) = wiring.wires
    assert (str(encoded.source), str(encoded.target)) == ("encoder.outputs", "decoder_joint.encoder_outputs")
    assert encoded.chosen
    assert encoded.through == (View("slice", (2, 0, 1, 1)),)
    zeros = Initial((1, "batch", 8), "float32", fill=0.0)
    assert [(s.input.name, s.output.name, s.through, s.initial) for s in wiring.states] == [
        ("input_states_1", "output_states_1", (), zeros),
        ("input_states_2", "output_states_2", (), zeros),
    ]
    inputs = {one.name: one for one in wiring.inputs}
    assert list(inputs) == ["audio", "lengths", "targets", "target_length"]
    assert inputs["audio"].note == ""
    assert "computed by subnet_samples.py:" in inputs["targets"].note
    assert "(where)" in inputs["targets"].note
    assert "decoder_joint.outputs" in inputs["targets"].note
    assert "(ones)" in inputs["target_length"].note
    assert any("the driver changes the state decoder_joint.input_states_1" in note for note in wiring.notes)
    assert Port("decoder_joint", "outputs") in wiring.outputs
    assert Port("decoder_joint", "output_states_1") not in wiring.outputs


def test_cache_that_starts_empty() -> None:
    recording = record(Translator(), generate, torch.randn(3, 5, 4))
    wiring = wire(recording, translator_interfaces(recording))
    assert [(str(w.source), str(w.target), w.through, w.chosen) for w in wiring.wires] == [
        ("encoder.output", "decoder.memory", (), False)
    ]
    assert {s.input.name: (s.output.name, s.initial) for s in wiring.states} == {
        "keys": ("new_keys", Initial(("batch", 0, 6), "float32", fill=0)),
        "values": ("new_values", Initial(("batch", 0, 6), "float32", fill=0)),
    }
    assert [one.name for one in wiring.inputs] == ["source", "token"]


def test_one_tensor_that_feeds_two_parts() -> None:
    wiring = wired(lambda m, x: m.second(m.first(x), x), torch.randn(3, 4))
    (x,) = wiring.inputs
    assert x.name == "x"
    assert list(map(str, x.feeds)) == ["first.input", "second.input2"]
    assert wiring.loop == ()


@pytest.mark.parametrize(
    ("glue", "views"),
    [
        (lambda y: y, ()),
        (lambda y: (y.clone(),)[0].contiguous(), ()),
        (lambda y: y[0:][:, :], ()),
        (lambda y: y.t().t(), (View("permute", (1, 0)), View("permute", (1, 0)))),
        (lambda y: y.flip(0), (View("flip", (0,)),)),
        (lambda y: y[None].squeeze(0), (View("unsqueeze", (0,)), View("squeeze", (0,)))),
        (lambda y: y.double().float(), (View("cast", ("float64",)), View("cast", ("float32",)))),
        (lambda y: torch.stack([y, y])[0], None),
        (lambda y: y * 1.0, None),
    ],
)
def test_views_between_parts(glue, views) -> None:  # type: ignore[no-untyped-def]
    wiring = wired(lambda m, x: m.second(glue(m.first(x)), x), torch.randn(4, 4))
    found = [w.through for w in wiring.wires]
    assert found == ([] if views is None else [views])
    if views is None:
        assert "computed by test_wiring.py:" in wiring.inputs[1].note
        assert "from first.output" in wiring.inputs[1].note


def test_rows_picked_by_select_split_and_negative_index() -> None:
    def pick(model: Pair, x: Tensor) -> Tensor:
        y = model.first(x)
        return model.second(y[-1], y.split(1)[0].squeeze(0))

    wiring = wired(pick, torch.randn(3, 4))
    assert [w.through for w in wiring.wires] == [
        (View("select", (0, -1)),),
        (View("slice", (0, 0, 1, 1)), View("squeeze", (0,))),
    ]


def test_a_write_in_between_is_no_wire() -> None:
    def write(model: Pair, x: Tensor) -> Tensor:
        y = model.first(x)
        y[0].zero_()
        return model.second(y, x)

    wiring = wired(write, torch.randn(3, 4))
    assert wiring.wires == ()
    assert "(zero_)" in wiring.inputs[1].note


def test_state_that_starts_from_another_part() -> None:
    def loop(model: Pair, x: Tensor) -> Tensor:
        h = model.first(x)
        for _ in range(3):
            h = model.second(h, x)
        return h

    wiring = wired(loop, torch.randn(3, 4))
    (state,) = wiring.states
    assert (str(state.input), str(state.output)) == ("second.input1", "second.output")
    assert state.initial.source == Port("first", "output")
    assert Port("first", "output") in wiring.outputs


def test_state_from_a_part_that_runs_later_in_the_step() -> None:
    def loop(model: Pair, x: Tensor) -> Tensor:
        h = torch.full((3, 4), 0.5)
        for _ in range(3):
            h = model.second(model.first(h), x)
        return h

    wiring = wired(loop, torch.randn(3, 4), labels={"input": {0: "batch"}, "input2": {0: "batch"}})
    (state,) = wiring.states
    assert (str(state.input), str(state.output)) == ("first.input", "second.output")
    assert state.initial == Initial((3, 4), "float32", fill=0.5)  # no other input of the part tells the batch
    assert [str(w) for w in wiring.wires] == ["first.output -> second.input1"]


def test_states_written_in_place_and_kept_by_python() -> None:
    def loop(model: Pair, x: Tensor) -> Tensor:
        h = torch.zeros(3, 4)
        for step in range(4):
            new = model.second(h, x)
            if step != 1:
                h[:2] = new[:2]
        return h

    wiring = wired(loop, torch.randn(3, 4), parts=("second",))
    (state,) = wiring.states
    assert str(state.output) == "second.output"
    assert any("(copy_)" in note for note in wiring.notes)

    def keep(model: Pair, x: Tensor) -> Tensor:
        h = torch.zeros(3, 4)
        for step in range(4):
            new = model.second(h, x)
            h = h if step in (0, 2) else new
        return h

    wiring = wired(keep, torch.randn(3, 4), parts=("second",))
    assert [str(s.output) for s in wiring.states] == ["second.output"]
    assert any("keeps an older second.input1" in note for note in wiring.notes)


def test_a_first_value_with_structure_is_written_down() -> None:
    def loop(model: Pair, x: Tensor) -> Tensor:
        h = torch.arange(4.0).expand(x.shape[0], 4)
        for _ in range(2):
            h = model.second(h, x)
        return h

    labels = {"input1": {0: "batch"}, "input2": {0: "batch"}}
    (state,) = wired(loop, torch.randn(3, 4), labels=labels, parts=("second",)).states
    assert state.initial == Initial(("batch", 4), "float32", values=[[0.0, 1.0, 2.0, 3.0]])


def test_random_first_values_stay_inputs() -> None:
    def loop(model: Pair, x: Tensor) -> Tensor:
        h = torch.randn_like(x)
        for _ in range(2):
            h = model.second(h, x)
        return h

    labels = {"input1": {0: "batch"}, "input2": {0: "batch"}}
    wiring = wired(loop, torch.randn(3, 4), labels=labels, parts=("second",))
    assert wiring.states == ()
    assert any("fed back from second.output, but is an input" in note for note in wiring.notes)


def test_an_output_that_is_an_input_passed_on_is_told_apart() -> None:
    class Passing(nn.Module):
        def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
            return x + 1, lengths

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Passing(), Passing()

    def uses_output(model: Model, x: Tensor, lengths: Tensor) -> Tensor:
        return model.second(*model.first(x, lengths))[0]

    def uses_input(model: Model, x: Tensor, lengths: Tensor) -> Tensor:
        return model.second(model.first(x, lengths)[0], lengths)[0]

    for driver, count in ((uses_output, 2), (uses_input, 1)):
        recording = record(Model(), driver, (torch.randn(2), torch.ones(2)), subnets=["first", "second"])
        assert len(wire(recording, [interface(recording, part) for part in recording.parts]).wires) == count


def test_contradictions() -> None:
    recording, _ = transducer()
    encoder, decoder = transducer_interfaces(recording)
    assert contradictions(recording, [encoder, decoder]) == []

    def with_input(place: int, **changes: object) -> list[str]:
        inputs = list(decoder.signature.inputs)
        inputs[place] = replace(inputs[place], **changes)
        return contradictions(
            recording, [PartInterface("decoder_joint", replace(decoder.signature, inputs=tuple(inputs)))]
        )

    (dtype,) = with_input(1, dtype=torch.int64)
    assert dtype.startswith(
        "input decoder_joint.targets is exported as int64, but was int32 in call 1 of decoder_joint at"
    )
    (fixed,) = with_input(1, axes=("batch", 3))
    assert "axis 1 had size 1" in fixed
    assert any("had shape [2, 1]" in text for text in with_input(1, axes=("batch",)))
    assert any("is 2 in" in text and "8 in" in text for text in with_input(0, axes=("batch", "batch", 1)))
    extra = Signature((*decoder.signature.inputs, TensorSpec("extra", torch.float32, (1,), "extra")), ())
    (missing,) = contradictions(recording, [PartInterface("decoder_joint", extra)])
    assert "(extra) is in no recorded call" in missing


def test_paths_of_another_forward_are_matched_by_order() -> None:
    recording, wiring = transducer()
    encoder, decoder = transducer_interfaces(recording)
    renamed = [TensorSpec(s.name, s.dtype, s.axes, f"other_{i}") for i, s in enumerate(encoder.signature.inputs)]
    other = PartInterface("encoder", Signature(tuple(renamed), encoder.signature.outputs))
    assert wire(recording, [other, decoder]) == wiring


def test_what_it_says_is_a_pipeline_that_can_run() -> None:
    def ports(specs: tuple[TensorSpec, ...]) -> tuple[TensorPort, ...]:
        return tuple(TensorPort(spec.name, dtype_name(spec.dtype), spec.axes) for spec in specs)

    translated = record(Translator(), generate, torch.randn(3, 5, 4))
    transduced = record(Transducer(), greedy, AUDIO)
    for recording, interfaces in (
        (translated, translator_interfaces(translated)),
        (transduced, transducer_interfaces(transduced)),
    ):
        wiring = wire(recording, interfaces)
        files = [
            PartFile(i.name, i.name, "", ports(i.signature.inputs), ports(i.signature.outputs)) for i in interfaces
        ]
        spec = PipelineSpec(
            "out.onnx", "onnx", tuple(files), wiring.loop, wiring.inputs, wiring.wires, wiring.states, wiring.outputs
        )
        check_spec(spec)
        assert PipelineSpec.from_json(spec.to_json()) == spec
