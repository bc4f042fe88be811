"""A transducer (RNN-T) of the usual kind in plain torch, with the hooks that toolboxes use, and its greedy decoding.

Two encoders: masked convolutions with squeeze-excite, and a conformer with relative positions. Two prediction networks:
LSTM with two states, and a stateless one whose single state is the last labels. ``decoder_joint`` builds a new module on
each access and the model itself never calls it: ``transcribe`` is eager decoding by other methods, to be compared with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import fxexport

FEATURES, WIDTH, HIDDEN, VOCABULARY = 8, 16, 12, 10
BLANK_BIAS = 0.5
Types = dict[str, fxexport.Tensor]
Tokens = list[list[int]]


def valid(frames: int, lengths: Tensor) -> Tensor:
    """True [B, frames] where a frame belongs to its row."""
    return torch.arange(frames, device=lengths.device) < lengths[:, None]


# ---------------------------------------------------------------- encoders


class MaskedConv(nn.Module):
    """A convolution over time that sees zeros after each row's end, and the lengths after it."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, 3, stride=stride, padding=1)
        self.stride = stride

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        x = x * valid(x.size(2), lengths)[:, None]
        return self.conv(x), torch.div(lengths - 1, self.stride, rounding_mode="floor") + 1


class SqueezeExcite(nn.Module):
    """Scales channels by their mean over each row's own frames."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(channels, 4), nn.ReLU(), nn.Linear(4, channels), nn.Sigmoid())

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        mask = valid(x.size(2), lengths)[:, None]
        mean = (x * mask).sum(2) / lengths[:, None].clamp(min=1)
        scaled: Tensor = x * self.gate(mean)[:, :, None]
        return scaled


class Encoder(nn.Module, fxexport.Exportable):
    """Names and types of every encoder here; its example has one row, as in the toolboxes."""

    @property
    def input_types(self) -> Types:
        return {
            "audio_signal": fxexport.Tensor("batch", "feature", "time"),
            "length": fxexport.Tensor("batch", dtype=torch.int64),
        }

    @property
    def output_types(self) -> Types:
        return {
            "outputs": fxexport.Tensor("batch", "dimension", "frames"),
            "encoded_lengths": fxexport.Tensor("batch", dtype=torch.int64),
        }

    def input_example(self, max_batch: int = 1, max_dim: int = 32) -> tuple[Tensor, Tensor]:
        return torch.randn(max_batch, FEATURES, max_dim), torch.full((max_batch,), max_dim)


class ConvEncoder(Encoder):
    """Two masked convolutions, the first of stride 2, batchnorm and squeeze-excite."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = MaskedConv(FEATURES, WIDTH, 2), MaskedConv(WIDTH, WIDTH)
        self.norm, self.excite = nn.BatchNorm1d(WIDTH), SqueezeExcite(WIDTH)

    def forward(self, audio_signal: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        x, length = self.first(audio_signal, length)
        x, length = self.second(x.relu(), length)
        return self.excite(self.norm(x), length) * valid(x.size(2), length)[:, None], length


class RelativeAttention(nn.Module):
    """Self-attention with relative positions as in Transformer-XL: position scores shifted row by row."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.position, self.out = nn.Linear(width, width, bias=False), nn.Linear(width, width)
        self.content_bias = nn.Parameter(0.1 * torch.randn(heads, self.size))
        self.position_bias = nn.Parameter(0.1 * torch.randn(heads, self.size))

    def _split(self, x: Tensor) -> Tensor:
        return x.view(x.size(0), -1, self.heads, self.size).transpose(1, 2)

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        query = self.query(x).view(x.size(0), -1, self.heads, self.size)
        key, value = self._split(self.key(x)), self._split(self.value(x))
        position = self._split(self.position(positions))
        content = (query + self.content_bias).transpose(1, 2) @ key.transpose(-2, -1)
        relative = (query + self.position_bias).transpose(1, 2) @ position.transpose(-2, -1)
        b, h, t, p = relative.shape
        relative = nn.functional.pad(relative, (1, 0)).view(b, h, p + 1, t)[:, :, 1:].view(b, h, t, p)[..., :t]
        scores = ((content + relative) / math.sqrt(self.size)).masked_fill(mask, -10000.0)
        weights = scores.softmax(-1).masked_fill(mask, 0.0)
        attended: Tensor = self.out((weights @ value).transpose(1, 2).reshape(b, t, h * self.size))
        return attended


class ConformerBlock(nn.Module):
    """Half feed-forward, attention, convolution, half feed-forward, each with a residual."""

    def __init__(self, width: int = WIDTH, heads: int = 2) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(5))
        self.feeds = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Dropout(0.1), nn.Linear(2 * width, width))
            for _ in range(2)
        )
        self.attention = RelativeAttention(width, heads)
        self.widen, self.narrow = nn.Conv1d(width, 2 * width, 1), nn.Conv1d(width, width, 1)
        self.depthwise, self.norm = nn.Conv1d(width, width, 5, padding=2, groups=width), nn.BatchNorm1d(width)

    def _convolved(self, x: Tensor, padding: Tensor) -> Tensor:
        y = nn.functional.glu(self.widen(x.transpose(1, 2)), dim=1).masked_fill(padding[:, None], 0.0)
        return self.narrow(nn.functional.silu(self.norm(self.depthwise(y)))).transpose(1, 2)  # type: ignore[no-any-return]

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor, padding: Tensor) -> Tensor:
        x = x + 0.5 * self.feeds[0](self.norms[0](x))
        x = x + self.attention(self.norms[1](x), positions, mask)
        x = x + self._convolved(self.norms[2](x), padding)
        x = x + 0.5 * self.feeds[1](self.norms[3](x))
        return self.norms[4](x)  # type: ignore[no-any-return]


class ConformerEncoder(Encoder):
    """Subsampling by 4 in two masked convolutions, then conformer blocks; at most ``LONGEST`` frames after it."""

    LONGEST = 64

    def __init__(self, blocks: int = 1) -> None:
        super().__init__()
        self.first, self.second = MaskedConv(FEATURES, WIDTH, 2), MaskedConv(WIDTH, WIDTH, 2)
        self.blocks = nn.ModuleList(ConformerBlock() for _ in range(blocks))
        steps = torch.arange(self.LONGEST - 1, -self.LONGEST, -1.0)[:, None]
        speeds = torch.exp(torch.arange(0, WIDTH, 2) * (-math.log(10000.0) / WIDTH))
        table = torch.stack([(steps * speeds).sin(), (steps * speeds).cos()], 2).flatten(1)
        self.register_buffer("positions", table[None], persistent=False)
        self.positions: Tensor

    def forward(self, audio_signal: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        x, length = self.first(audio_signal, length)
        x, length = self.second(x.relu(), length)
        x = x.relu().transpose(1, 2)
        frames, centre = x.size(1), self.LONGEST - 1
        positions = self.positions[:, centre - frames + 1 : centre + frames]
        own = valid(frames, length)
        mask = ~(own[:, None, :, None] & own[:, None, None, :])
        for block in self.blocks:
            x = block(x, positions, mask, ~own)
        return x.transpose(1, 2), length


# ---------------------------------------------------------------- prediction networks and joint


class Decoder(nn.Module):
    """Embedding and a two-layer LSTM; a label of ``blank`` is the start."""

    LAYERS = 2

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY + 1, HIDDEN, padding_idx=VOCABULARY)
        self.lstm = nn.LSTM(HIDDEN, HIDDEN, self.LAYERS)

    def initialize_state(self, batch: int) -> list[Tensor]:
        return [torch.zeros(self.LAYERS, batch, HIDDEN) for _ in range(2)]

    def state_types(self) -> list[fxexport.Tensor]:
        return [fxexport.Tensor(self.LAYERS, "batch", "dimension")] * 2

    def predict(self, targets: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """``targets`` [B, U] -> [B, U, hidden], and the states after them."""
        outputs, after = self.lstm(self.embed(targets).transpose(0, 1), tuple(states))
        return outputs.transpose(0, 1), list(after)

    def forward(self, targets: Tensor, target_length: Tensor, states: Sequence[Tensor]) -> tuple[Any, ...]:
        outputs, after = self.predict(targets, states)
        return outputs.transpose(1, 2), target_length, after


class StatelessDecoder(nn.Module):
    """A layer over the last two labels, which are its only state."""

    CONTEXT = 2

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY + 1, HIDDEN, padding_idx=VOCABULARY)
        self.mix = nn.Linear(self.CONTEXT * HIDDEN, HIDDEN)

    def initialize_state(self, batch: int) -> list[Tensor]:
        return [torch.full((batch, self.CONTEXT), VOCABULARY, dtype=torch.int64)]

    def state_types(self) -> list[fxexport.Tensor]:
        return [fxexport.Tensor("batch", "dimension", dtype=torch.int64)]

    def predict(self, targets: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """``targets`` [B, 1] -> [B, 1, hidden], and the labels after them."""
        labels = torch.cat([states[0], targets.to(torch.int64)], 1)[:, -self.CONTEXT :]
        return self.mix(self.embed(labels).flatten(1)).tanh()[:, None], [labels]

    forward = Decoder.forward


class Joint(nn.Module):
    """Scores of every label and blank for each frame and each label so far."""

    def __init__(self) -> None:
        super().__init__()
        self.enc, self.pred = nn.Linear(WIDTH, 20), nn.Linear(HIDDEN, 20)
        self.out = nn.Linear(20, VOCABULARY + 1)

    def joint_after_projection(self, frames: Tensor, labels: Tensor) -> Tensor:
        scores: Tensor = self.out((frames[:, :, None] + labels[:, None]).tanh())
        return scores

    def forward(self, encoder_outputs: Tensor, decoder_outputs: Tensor) -> Tensor:
        frames, labels = self.enc(encoder_outputs.transpose(1, 2)), self.pred(decoder_outputs.transpose(1, 2))
        return self.joint_after_projection(frames, labels)


class DecoderJoint(nn.Module, fxexport.Exportable):
    """One step of decoding; its states are numbered inputs and outputs of their own."""

    def __init__(self, decoder: Any, joint: nn.Module) -> None:
        super().__init__()
        self.decoder, self.joint = decoder, joint

    @property
    def input_types(self) -> Types:
        states = {f"input_states_{i}": kind for i, kind in enumerate(self.decoder.state_types(), 1)}
        return {
            "encoder_outputs": fxexport.Tensor("batch", "dimension", "frames"),
            "targets": fxexport.Tensor("batch", "symbols", dtype=torch.int32),
            "target_length": fxexport.Tensor("batch", dtype=torch.int32),
            **states,
        }

    @property
    def output_types(self) -> Types:
        states = {f"output_states_{i}": kind for i, kind in enumerate(self.decoder.state_types(), 1)}
        return {
            "outputs": fxexport.Tensor("batch", "frames", "symbols", "dimension"),
            "prednet_lengths": fxexport.Tensor("batch", dtype=torch.int32),
            **states,
        }

    def input_example(self, max_batch: int = 1, max_dim: int = 1) -> tuple[Tensor, ...]:
        """One row, whatever ``max_batch`` says."""
        targets, one = torch.full((1, 1), 3, dtype=torch.int32), torch.ones(1, dtype=torch.int32)
        return torch.randn(1, WIDTH, 5), targets, one, *self.decoder.initialize_state(1)

    def step(
        self, encoder_outputs: Tensor, targets: Tensor, target_length: Tensor, *states: Tensor
    ) -> tuple[Tensor, ...]:
        labels, lengths, after = self.decoder(targets, target_length, states)
        return self.joint(encoder_outputs, labels), lengths, *after


class RecurrentDecoderJoint(DecoderJoint):
    """With the two states of an LSTM."""

    def forward(
        self,
        encoder_outputs: Tensor,
        targets: Tensor,
        target_length: Tensor,
        input_states_1: Tensor,
        input_states_2: Tensor,
    ) -> tuple[Tensor, ...]:
        return self.step(encoder_outputs, targets, target_length, input_states_1, input_states_2)


class StatelessDecoderJoint(DecoderJoint):
    """With the one state of a stateless decoder."""

    def forward(
        self, encoder_outputs: Tensor, targets: Tensor, target_length: Tensor, input_states_1: Tensor
    ) -> tuple[Tensor, ...]:
        return self.step(encoder_outputs, targets, target_length, input_states_1)


class Transducer(nn.Module, fxexport.Exportable):
    """Encoder, prediction network and joint. ``forward`` is that of training: every frame with every label."""

    def __init__(self, encoder: type[Encoder] = ConvEncoder, decoder: type[Any] = Decoder) -> None:
        super().__init__()
        self.encoder, self.decoder, self.joint = encoder(), decoder(), Joint()
        with torch.no_grad():
            for layer, factor in ((self.joint.enc, 6.0), (self.joint.pred, 12.0), (self.joint.out, 4.0)):
                layer.weight.mul_(factor)  # livelier than they are drawn, so that labels and blanks mix
            self.joint.out.bias[VOCABULARY] += BLANK_BIAS

    def list_export_subnets(self) -> list[str]:
        return ["encoder", "decoder_joint"]

    @property
    def decoder_joint(self) -> DecoderJoint:
        stateless = isinstance(self.decoder, StatelessDecoder)
        return (StatelessDecoderJoint if stateless else RecurrentDecoderJoint)(self.decoder, self.joint)

    def forward(self, audio_signal: Tensor, length: Tensor, targets: Tensor) -> Tensor:
        frames, _ = self.encoder(audio_signal, length)
        start = torch.full_like(targets[:, :1], VOCABULARY)
        states = self.decoder.initialize_state(targets.size(0))
        labels, _ = self.decoder.predict(torch.cat([start, targets], 1), states)
        scores: Tensor = self.joint(frames, labels.transpose(1, 2))
        return scores


def make(encoder: type[Encoder] = ConvEncoder, decoder: type[Any] = Decoder, seed: int = 0) -> Transducer:
    """The model in eval mode with unsettled batchnorm statistics, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Transducer(encoder, decoder)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.get_buffer("running_mean").normal_(0, 0.2)
                module.get_buffer("running_var").uniform_(0.5, 1.5)
        return model.eval()


def batch(*lengths: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Ragged rows of those lengths, with noise where the padding is: only masks keep it out."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(lengths), FEATURES, max(lengths), generator=generator), torch.tensor(lengths)


# ---------------------------------------------------------------- greedy decoding


@torch.no_grad()
def transcribe(model: Transducer, audio_signal: Tensor, length: Tensor, most: int = 3) -> Tokens:
    """Eager decoding row by row on each row alone, without ``decoder_joint``: what every other way must agree with."""
    found: Tokens = []
    frames, lengths = model.encoder(audio_signal, length)
    projected = model.joint.enc(frames.transpose(1, 2))
    for row, count in enumerate(lengths.tolist()):
        labels: list[int] = []
        states, last = model.decoder.initialize_state(1), VOCABULARY
        for frame in range(count):
            for _ in range(most):
                label, after = model.decoder.predict(torch.tensor([[last]], dtype=torch.int32), states)
                scores = model.joint.joint_after_projection(projected[row, frame][None, None], model.joint.pred(label))
                best = int(scores.argmax())
                if best == VOCABULARY:
                    break
                labels.append(best)
                states, last = after, best
        found.append(labels)
    return found


def greedy(model: Transducer, audio_signal: Tensor, length: Tensor, most: int = 3) -> Tokens:
    """Batched decoding as toolboxes do it: rows that found blank, or are at their end, keep label and state."""
    frames, lengths = model.encoder(audio_signal, length)
    rows = frames.size(0)
    step, states = model.decoder_joint, model.decoder.initialize_state(rows)
    last, one = torch.full((rows, 1), VOCABULARY, dtype=torch.int32), torch.ones(rows, dtype=torch.int32)
    found: Tokens = [[] for _ in range(rows)]
    for frame in range(frames.size(2)):
        finished = frame >= lengths
        for _ in range(most):
            scores, _, *after = step(frames[:, :, frame : frame + 1], last, one, *states)
            best = scores[:, 0, 0].argmax(-1).to(torch.int32)
            finished = finished | (best == VOCABULARY)
            if bool(finished.all()):
                break
            states = [
                torch.where(_along_batch(finished, new), old, new) for old, new in zip(states, after, strict=True)
            ]
            last = torch.where(finished[:, None], last, best[:, None])
            for row in range(rows):
                if not finished[row]:
                    found[row].append(int(best[row]))
    return found


def _along_batch(rows: Tensor, state: Tensor) -> Tensor:
    return rows[:, None] if state.dim() == 2 else rows[None, :, None]
