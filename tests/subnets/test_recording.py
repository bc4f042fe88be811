"""What a recording holds: calls, examples, varying axes; and that it leaves everything as it was."""

import pytest
import torch
from subnet_samples import Encoder, Transducer, Translator, generate, greedy, transducer_interfaces
from torch import Tensor, nn
from torch.nn.modules import module as torch_modules

from fxexport.errors import InputError
from fxexport.subnets.recording import record
from fxexport.subnets.wiring import wire

AUDIO = (torch.randn(2, 4, 16), torch.tensor([16, 9]))


def test_a_part_built_on_the_fly_is_recognised() -> None:
    recording = record(Transducer(), greedy, AUDIO)
    assert recording.parts == {"encoder": "Encoder", "decoder_joint": "DecoderJoint"}
    assert [len(recording.calls(part)) for part in recording.parts] == [1, 8]
    call = recording.calls("decoder_joint")[2]
    assert call.label == "call 3 of decoder_joint"
    assert list(call.inputs) == ["encoder_outputs", "targets", "target_length", "states[0]", "states[1]"]
    assert list(call.outputs) == ["output[0]", "output[1]", "output[2][0]", "output[2][1]"]
    assert "subnet_samples.py:" in call.place
    assert recording.uncalled == []


def test_values_are_those_of_eager_and_copies() -> None:
    model = Transducer()
    audio, lengths = AUDIO
    recording = record(model, greedy, (audio, lengths))
    call = recording.calls("encoder")[0]
    want = model.encoder(audio, lengths)
    assert torch.equal(call.outputs["output[0]"].tensor, want[0])
    assert torch.equal(recording.runs[0].result[0].tensor, greedy(model, audio, lengths))
    args, kwargs = recording.example("encoder")
    args[0].zero_()
    assert list(kwargs) == ["lengths"]
    assert torch.equal(recording.example("encoder")[0][0], audio)


def test_nothing_is_left_behind() -> None:
    model = Transducer().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    hooks = [len(table) for table in (
        torch_modules._global_forward_hooks, torch_modules._global_forward_pre_hooks,
        torch_modules._global_module_registration_hooks, torch_modules._global_parameter_registration_hooks,
    )]  # fmt: skip
    audio = AUDIO[0].clone()

    def failing(copy: nn.Module, audio: Tensor) -> None:
        copy.encoder(audio, AUDIO[1])
        audio.zero_()
        copy.encoder.conv.weight.data.zero_()
        raise KeyError("mine")

    torch.manual_seed(11)
    want = torch.rand(1)
    torch.manual_seed(11)
    with pytest.raises(KeyError, match="mine"):
        record(model, failing, audio)
    assert torch.equal(torch.rand(1), want)
    assert model.training
    assert torch.is_grad_enabled()
    assert torch.equal(audio, AUDIO[0])
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    assert hooks == [len(table) for table in (
        torch_modules._global_forward_hooks, torch_modules._global_forward_pre_hooks,
        torch_modules._global_module_registration_hooks, torch_modules._global_parameter_registration_hooks,
    )]  # fmt: skip
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_part_inside_a_part_belongs_to_the_outer_one() -> None:
    recording = record(Transducer(), greedy, AUDIO, subnets=["encoder", "encoder.conv", "decoder_joint"])
    assert recording.uncalled == ["encoder.conv"]
    assert "encoder.conv was never called as a module" in str(recording)
    with pytest.raises(InputError, match=r"no example of encoder.conv: .*never called"):
        recording.example("encoder.conv")


def test_a_call_that_raised_is_no_call() -> None:
    def stubborn(model: Transducer, audio: Tensor, lengths: Tensor) -> Tensor:
        with pytest.raises(RuntimeError):
            model.encoder(audio[:, :3], lengths)
        return model.encoder(audio, lengths)[0]

    recording = record(Transducer(), stubborn, AUDIO, subnets=["encoder"])
    assert len(recording.calls("encoder")) == 1


def test_axes_that_vary_and_the_example_to_export_from() -> None:
    recording = record(Translator(), generate, torch.randn(3, 5, 4))
    assert recording.varying_axes("decoder") == {"keys": {1}, "values": {1}}
    args, _ = recording.example("decoder")
    assert args[2].shape == (3, 3, 6)  # the longest cache; the first is empty, the second has one entry
    sizes = [args[2].shape[1] for args, _ in recording.further_examples("decoder")]
    assert sizes == [0, 1, 2]
    assert len(recording.further_examples("decoder", limit=1)) == 1


def test_several_runs_and_sizes() -> None:
    def short(model: Transducer, audio: Tensor, lengths: Tensor) -> Tensor:
        return greedy(model, audio[:1, :, :6], lengths[1:] - 3)

    recording = record(Transducer(), [greedy, short], AUDIO)
    assert [len(tape.calls("decoder_joint")) for tape in recording.runs] == [8, 3]
    assert recording.varying_axes("encoder") == {"audio": {0, 2}, "lengths": {0}}
    assert "float32 [1..2, 4, 6..16]" in str(recording)
    first, _ = recording.example("encoder")
    assert first[0].shape == (2, 4, 16)


def test_the_model_itself_without_a_driver() -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.head = Encoder(), nn.Linear(8, 3)

        def input_example(self) -> tuple[Tensor, dict[str, Tensor]]:
            return torch.randn(2, 4, 6), {"lengths": torch.tensor([6, 2])}

        def forward(self, audio: Tensor, lengths: Tensor) -> Tensor:
            return self.head(self.encoder(audio, lengths)[0].transpose(1, 2))

    recording = record(Whole(), subnets=["encoder", "head"])
    assert [call.part for call in recording.runs[0].calls()] == ["encoder", "head"]
    assert [one.name for one in recording.runs[0].outside.values()] == ["audio", "lengths"]


def test_what_is_refused() -> None:
    model = Transducer()
    with pytest.raises(InputError, match=r"no submodule 'encoder.nothing'"):
        record(model, greedy, AUDIO, subnets=["encoder.nothing"])
    with pytest.raises(InputError, match="name one part twice"):
        record(model, greedy, AUDIO, subnets=["encoder", "encoder"])
    with pytest.raises(InputError, match=r"the driver greedy.*cannot be called"):
        record(model, greedy, AUDIO[0])
    with pytest.raises(InputError, match="the driver called none of encoder as a module"):
        record(model, lambda m, audio: audio, AUDIO[0], subnets=["encoder"])


def test_tensors_hidden_in_an_object_are_told() -> None:
    class Box:
        def __init__(self) -> None:
            self.past = torch.zeros(2)

    class Part(nn.Module):
        def forward(self, x: Tensor, box: Box) -> Tensor:
            box.past = box.past + x
            return box.past

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = Part()

    recording = record(Whole(), lambda m, x: m.part(x, Box()), torch.randn(2), subnets=["part"])
    assert any("part is given a Box as box" in note for note in recording.notes)


def test_inference_mode_in_the_driver() -> None:
    def inferring(model: Transducer, audio: Tensor, lengths: Tensor) -> Tensor:
        with torch.inference_mode():
            return greedy(model, audio, lengths)

    recording = record(Transducer(), inferring, AUDIO)
    plain = record(Transducer(), greedy, AUDIO)
    wirings = [wire(one, transducer_interfaces(one)) for one in (recording, plain)]
    assert wirings[0].states == wirings[1].states
    assert wirings[0].wires == wirings[1].wires


def test_a_part_that_writes_into_its_input_is_told() -> None:
    class Writer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = nn.ReLU(inplace=True)

    recording = record(Writer(), lambda m, x: m.part(x), torch.randn(4), subnets=["part"])
    assert any("part writes into its input input" in note for note in recording.notes)
