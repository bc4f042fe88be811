"""Small models of several parts, and what stands in for their artifacts: the parts themselves, by flat names."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxexport.capture.nesting import flatten
from fxexport.signature import Signature, TensorSpec
from fxexport.subnets.interface import PartInterface
from fxexport.subnets.parts import find_part
from fxexport.subnets.recording import Recording

Labels = Mapping[str, Mapping[int, str]]
BLANK = 5


def interface(
    recording: Recording, part: str, labels: Labels | None = None, names: Mapping[str, str] | None = None
) -> PartInterface:
    """What an export of ``part`` would say: axes of the first call, named by path and position where ``labels`` do."""
    call = recording.calls(part)[0]

    def specs(leaves: Mapping[str, object]) -> tuple[TensorSpec, ...]:
        made = []
        for path, leaf in leaves.items():
            axes = {**dict(enumerate(leaf.tensor.shape)), **(labels or {}).get(path, {})}  # type: ignore[attr-defined]
            name = (names or {}).get(path, path.replace("[", "_").replace("]", "").replace("'", ""))
            made.append(TensorSpec(name, leaf.tensor.dtype, tuple(axes.values()), path))  # type: ignore[attr-defined]
        return tuple(made)

    return PartInterface(part, Signature(specs(call.inputs), specs(call.outputs)))


def eager_parts(
    model: nn.Module, recording: Recording, interfaces: list[PartInterface]
) -> Callable[[str, dict[str, Tensor]], dict[str, Tensor]]:
    """Runs a part of ``model`` on flat inputs, as an artifact would."""
    signatures = {one.name: one.signature for one in interfaces}

    def run(name: str, feed: dict[str, Tensor]) -> dict[str, Tensor]:
        leaves, spec = flatten(recording.example(name))
        tensors = iter(feed[one.name] for one in signatures[name].inputs)
        values = [next(tensors) if leaf.is_tensor else leaf.value for leaf in leaves]
        args, kwargs = pytree.tree_unflatten(values, spec)
        with torch.no_grad():
            result = find_part(model.eval(), name)(*args, **kwargs)
        outputs = [leaf.value for leaf in flatten(result)[0]]
        return {one.name: value for one, value in zip(signatures[name].outputs, outputs, strict=True)}

    return run


class Encoder(nn.Module):
    """[batch, 4, time] and lengths -> [batch, 8, frames] and lengths of half the size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 8, 3, stride=2, padding=1)

    def forward(self, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return self.conv(audio), (lengths + 1) // 2


class DecoderJoint(nn.Module):
    """Built anew on each access; the model itself never calls it. Returns ``target_length`` as it came."""

    def __init__(self, embedding: nn.Module, lstm: nn.Module, joint: nn.Module) -> None:
        super().__init__()
        self.embedding, self.lstm, self.joint = embedding, lstm, joint

    def forward(
        self, encoder_outputs: Tensor, targets: Tensor, target_length: Tensor, states: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        predicted, states = self.lstm(self.embedding(targets).transpose(0, 1), states)
        both = encoder_outputs.transpose(1, 2) + predicted.transpose(0, 1)
        return self.joint(torch.tanh(both)), target_length, states


class Transducer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.encoder = Encoder()
        self.embedding, self.lstm, self.joint = nn.Embedding(6, 8), nn.LSTM(8, 8), nn.Linear(8, 6)

    @property
    def decoder_joint(self) -> nn.Module:
        return DecoderJoint(self.embedding, self.lstm, self.joint)

    def list_export_subnets(self) -> list[str]:
        return ["encoder", "decoder_joint"]


def greedy(model: Transducer, audio: Tensor, lengths: Tensor) -> Tensor:
    """One symbol a frame at most; finished rows keep label and states."""
    encoded, frames = model.encoder(audio, lengths=lengths)
    batch = audio.shape[0]
    h = c = torch.zeros(1, batch, 8)
    label = torch.full((batch, 1), BLANK, dtype=torch.int32)
    length = torch.ones(batch, dtype=torch.int32)
    tokens = []
    for t in range(encoded.shape[2]):
        logits, _, (new_h, new_c) = model.decoder_joint(encoded[:, :, t : t + 1], label, length, states=(h, c))
        best = logits[:, 0].argmax(-1)
        keep = (best == BLANK) | (t >= frames)
        h = torch.where(keep[None, :, None], h, new_h)
        c = torch.where(keep[None, :, None], c, new_c)
        label = torch.where(keep[:, None], label, best[:, None].to(torch.int32))
        tokens.append(label)
    return torch.cat(tokens, 1)


def transducer_interfaces(recording: Recording) -> list[PartInterface]:
    encoder = interface(
        recording,
        "encoder",
        {"audio": {0: "batch", 2: "time"}, "lengths": {0: "batch"}, "output[0]": {0: "batch", 2: "frames"},
         "output[1]": {0: "batch"}},
        {"output[0]": "outputs", "output[1]": "encoded_lengths"},
    )  # fmt: skip
    batch = {0: "batch"}
    state = {1: "batch"}
    decoder = interface(
        recording,
        "decoder_joint",
        {"encoder_outputs": batch, "targets": batch, "target_length": batch, "states[0]": state, "states[1]": state,
         "output[0]": batch, "output[1]": batch, "output[2][0]": state, "output[2][1]": state},
        {"states[0]": "input_states_1", "states[1]": "input_states_2", "output[0]": "outputs",
         "output[1]": "prednet_lengths", "output[2][0]": "output_states_1", "output[2][1]": "output_states_2"},
    )  # fmt: skip
    return [encoder, decoder]


class CachedDecoder(nn.Module):
    """One token and the cache so far -> logits and the longer cache; looks at the memory of the encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.qkv, self.out = nn.Embedding(7, 6), nn.Linear(6, 18), nn.Linear(6, 7)

    def forward(self, token: Tensor, memory: Tensor, keys: Tensor, values: Tensor) -> dict[str, Tensor]:
        q, k, v = self.qkv(self.embedding(token)).chunk(3, -1)
        keys, values = torch.cat([keys, k], 1), torch.cat([values, v], 1)
        mixed = torch.softmax(q @ keys.transpose(1, 2), -1) @ values + memory.mean(1, keepdim=True)
        return {"logits": self.out(mixed), "keys": keys, "values": values}


class Translator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.encoder, self.decoder = nn.Linear(4, 6), CachedDecoder()

    def list_export_subnets(self) -> list[str]:
        return ["encoder", "decoder"]


def generate(model: Translator, source: Tensor, steps: int = 4) -> Tensor:
    """Greedy, with a cache that starts empty."""
    memory = model.encoder(source)
    keys = values = torch.zeros(source.shape[0], 0, 6)
    token = torch.zeros(source.shape[0], 1, dtype=torch.int64)
    tokens = []
    for _ in range(steps):
        out = model.decoder(token, memory, keys, values)
        keys, values = out["keys"], out["values"]
        token = out["logits"][:, -1:].argmax(-1)
        tokens.append(token)
    return torch.cat(tokens, 1)


def translator_interfaces(recording: Recording) -> list[PartInterface]:
    rows, past, longer = {0: "batch"}, {0: "batch", 1: "past"}, {0: "batch", 1: "past + 1"}
    source = {0: "batch", 1: "time"}
    return [
        interface(recording, "encoder", {"input": source, "output": source}),
        interface(
            recording,
            "decoder",
            {
                "token": rows,
                "memory": source,
                "keys": past,
                "values": past,
                "output['logits']": rows,
                "output['keys']": longer,
                "output['values']": longer,
            },
            {f"output['{key}']": f"new_{key}" for key in ("logits", "keys", "values")},
        ),
    ]
