"""Masks that an assumption makes trivial go, others stay; numbers are those of eager on inputs that meet it."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxexport.assumptions import bind
from fxexport.capture.pipeline import Captured, capture_model
from fxexport.input_assumption import met
from fxexport.passes import DisableMasks, RemoveAssertions, RemoveNoops
from fxexport.program import Program
from fxexport.rewrite import PassManager, PassRecord
from fxexport.validation.numbers import run_eager
from fxexport.validation.sweep import points

aten = torch.ops.aten
ATTENTION = aten.scaled_dot_product_attention.default
MASKING = (aten.masked_fill, aten.where, aten.mul, aten.lt, aten.ge, aten.arange, aten.bitwise_and, aten.logical_and)
SPEECH = {"x": ["batch", None, "time"], "length": ["batch"]}
TEXT = {"x": ["batch", "time", None], "mask": ["batch", "time"]}
FULL = {"length": "full"}
ONES = {"mask": "ones"}


def disabled(
    model: nn.Module, example: tuple[Tensor, ...], dynamic: Any, assume: dict[str, str]
) -> tuple[Captured, Program, PassRecord]:
    """The captured model, its program after the pass, and the pass's record."""
    example = tuple(t.double() if t.is_floating_point() else t for t in example)  # so that rounding hides nothing
    captured = capture_model(model.double().eval(), example, dynamic=dynamic)
    captured.program.assumptions = bind(captured.program, assume, captured.examples)
    after, records = PassManager([RemoveNoops(), RemoveAssertions(), DisableMasks()]).run(captured.program)
    return captured, after, records[-1]


def agrees(captured: Captured, after: Program) -> None:
    """Eager and ``after`` give the same on inputs that meet the assumption, at every size that eager takes."""
    names = [spec.name for spec in captured.program.signature.inputs]
    compared = 0
    for point in points(captured.program.signature, captured.examples):
        inputs = met(captured.program.assumptions, names, point.inputs)
        try:
            expected = captured.reference.run(inputs)
        except RuntimeError:  # a size that eager refuses
            continue
        got = run_eager(after, inputs)
        torch.testing.assert_close(got, tuple(expected), rtol=1e-6, atol=1e-9, equal_nan=True)
        compared += 1
    assert compared > 1


def calls(program: Program, *packets: Any) -> list[str]:
    return [n.name for n in program.graph.nodes if getattr(n.target, "overloadpacket", None) in packets]


def is_read(program: Program, name: str) -> bool:
    names = [spec.name for spec in program.signature.inputs]
    return bool(program.input_nodes[names.index(name)].users)


def gone(captured: Captured, after: Program, name: str, *packets: Any) -> None:
    assert not is_read(after, name)
    assert calls(after, *packets) == []
    agrees(captured, after)


# ---------------------------------------------------------------- masked convolutions


class MaskedConv(nn.Module):
    """As in Jasper: what is past the length is zeroed by a mask from a buffer; the length follows the convolution."""

    def __init__(self, channels: int, kernel: int, stride: int, dilation: int = 1, wrong: int = 0) -> None:
        super().__init__()
        self.padding = dilation * (kernel - 1) // 2
        self.conv = nn.Conv1d(channels, channels, kernel, stride, self.padding, dilation)
        self.wrong = wrong
        self.register_buffer("steps", torch.arange(512), persistent=False)

    def forward(self, x: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        mask = self.steps[: x.size(2)].expand(length.size(0), -1) >= length.unsqueeze(1)
        x = self.conv(x.masked_fill(mask.unsqueeze(1).to(device=x.device), 0))
        kernel = self.conv.dilation[0] * (self.conv.kernel_size[0] - 1) - self.wrong
        length = torch.div(length + 2 * self.padding - kernel - 1, self.conv.stride[0], rounding_mode="trunc") + 1
        return x, length


class SqueezeExcite(nn.Module):
    """As in Citrinet: the mean over valid frames gates the channels."""

    def __init__(self, channels: int, window: int = -1) -> None:
        super().__init__()
        self.gate, self.window = nn.Linear(channels, channels, bias=False), window

    def forward(self, x: Tensor, length: Tensor) -> Tensor:
        mask = torch.arange(x.shape[-1], device=x.device)[None, :] < length[:, None]
        mask = ~(~mask).unsqueeze(1)
        y = x.double().masked_fill(~mask, 0.0)
        if self.window < 0:
            y = torch.sum(y, dim=-1, keepdim=True) / mask.sum(dim=-1, keepdim=True).type(y.dtype)
        else:
            y = y[:, :, : self.window].sum(-1, keepdim=True) / mask[:, :, : self.window].sum(-1, keepdim=True)
        return x * torch.sigmoid(self.gate(y.transpose(1, -1)).transpose(1, -1))


class Speech(nn.Module):
    def __init__(self, *convolutions: MaskedConv, window: int | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(convolutions)
        self.excite = None if window is None else SqueezeExcite(4, window)

    def forward(self, x: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        for layer in self.layers:
            x, length = layer(x, length)
            x = x.relu() if self.excite is None else self.excite(x, length)
        return x, length


def speech(rows: int = 2, time: int = 40) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, 4, time), torch.full((rows,), time)


@pytest.mark.parametrize(
    "layers",
    [[(5, 1)], [(11, 2)], [(5, 2), (3, 3)], [(3, 2, 2), (5, 2), (7, 2)]],
    ids=["plain", "strided", "two strides", "dilated"],
)
@pytest.mark.parametrize("window", [None, -1, 3], ids=["plain", "excite", "excite over a window"])
def test_masked_convolutions(layers: list[tuple[int, ...]], window: int | None) -> None:
    model = Speech(*(MaskedConv(4, *layer) for layer in layers), window=window)
    captured, after, record = disabled(model, speech(), SPEECH, FULL)
    gone(captured, after, "length", aten.masked_fill, aten.lt, aten.ge, aten.arange)
    assert record.count
    assert record.nodes_after < record.nodes_before
    if window == -1:  # the mean over all frames is a sum and a division by their number
        assert len(calls(after, aten.sum)) == len(layers)


def test_a_mask_stays_where_length_and_size_differ() -> None:
    """The length formula forgets a frame: the mask cuts off the last one, and that is the model."""
    model = Speech(MaskedConv(4, 5, 2, wrong=-2), MaskedConv(4, 3, 1))
    captured, after, _record = disabled(model, speech(), SPEECH, FULL)
    agrees(captured, after)
    assert len(calls(after, aten.masked_fill)) == 1  # the first one is trivial


def test_lengths_by_floating_point() -> None:
    """Subsampling as in Conformer: floor((length + padding - kernel) / stride + 1) in float32, twice."""

    class Subsampling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Sequential(nn.Conv2d(1, 3, 3, 2, 1), nn.ReLU(), nn.Conv2d(3, 3, 3, 2, 1))

        def forward(self, x: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
            for _ in range(2):
                length = torch.floor(torch.div(length.to(dtype=torch.float) + (2 - 3), 2) + 1.0)
            length = length.to(torch.int)
            x = self.conv(x.transpose(1, 2).unsqueeze(1)).transpose(1, 2).flatten(2)
            valid = torch.arange(0, x.size(1)).expand(length.size(0), -1) < length.unsqueeze(-1)
            return torch.where(valid.unsqueeze(-1), x, 0.0), length

    captured, after, _ = disabled(Subsampling(), speech(), SPEECH, FULL)
    gone(captured, after, "length", aten.where, aten.lt, aten.arange)


@pytest.mark.parametrize("pool", ["mean", "statistics", "last"])
def test_pooling_by_length(pool: str) -> None:
    class Pool(nn.Module):
        def forward(self, x: Tensor, length: Tensor) -> Tensor:
            mask = (torch.arange(x.shape[2])[None] < length[:, None]).unsqueeze(1)
            if pool == "last":
                return x.gather(2, (length - 1)[:, None, None].expand(-1, x.shape[1], 1)).squeeze(2)
            total = mask.sum(2, keepdim=True)
            mean = (x * mask).sum(2, keepdim=True) / total
            if pool == "mean":
                return mean
            weights = torch.softmax(x.masked_fill(mask == 0, float("-inf")), dim=2)
            deviation = (((x - mean) ** 2) * mask).sum(2, keepdim=True) / total
            return torch.cat((mean, (weights * x).sum(2, keepdim=True), deviation.clamp(min=1e-8).sqrt()), dim=1)

    captured, after, _ = disabled(Pool(), speech(), SPEECH, FULL)
    gone(captured, after, "length", aten.masked_fill, aten.lt, aten.arange)


# ---------------------------------------------------------------- attention


class Attention(nn.Module):
    """Scores from one projection, masked in the way that ``function(self, scores, mask)`` does."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function, self.project = function, nn.Linear(8, 24)
        self.register_buffer("triangle", torch.full((64, 64), float("-inf")).triu(1), persistent=False)
        self.register_buffer("seen", torch.ones(64, 64).tril().bool()[None, None], persistent=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.project(x).unsqueeze(1).chunk(3, dim=-1)
        return self.function(self, q, k, v, mask)


def text(dtype: torch.dtype = torch.int64) -> tuple[Tensor, Tensor]:
    return torch.randn(2, 7, 8), torch.ones(2, 7, dtype=dtype)


def weigh(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return torch.softmax(q @ k.transpose(-1, -2) / 3 + bias, dim=-1) @ v


def extended(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:  # BERT
    return weigh(q, k, v, (1.0 - mask[:, None, None, :].to(q.dtype)) * torch.finfo(q.dtype).min)


def conformer(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    pad = mask.bool().unsqueeze(1).repeat([1, mask.size(1), 1])
    hidden = ~torch.logical_and(pad, pad.transpose(1, 2)).unsqueeze(1)
    scores = (q @ k.transpose(-1, -2)).masked_fill(hidden, -10000.0)
    return torch.softmax(scores, dim=-1).masked_fill(hidden, 0.0) @ v


def filled(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:  # DistilBERT
    scores = q @ k.transpose(-1, -2)
    hidden = (mask == 0).view(mask.shape[0], 1, 1, -1).expand_as(scores)
    return torch.softmax(scores.masked_fill(hidden, -1e9), dim=-1) @ v


def plain_sdpa(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask.bool()[:, None, None, :])


@pytest.mark.parametrize("function", [extended, conformer, filled, plain_sdpa], ids=lambda f: f.__name__)
def test_padding_masks_of_attention_go(function: Any) -> None:
    captured, after, _ = disabled(Attention(function), text(), TEXT, ONES)
    gone(captured, after, "mask", aten.masked_fill, aten.where, aten.eq, aten.expand)
    for node in after.find(ATTENTION):
        assert len(node.args) < 4 or node.args[3] is None


def test_a_mask_of_zeros() -> None:
    """``key_padding_mask`` and the like are True where padded."""

    def padded(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        bias = torch.zeros(mask.shape[0], 1, 1, mask.shape[1]).masked_fill(mask[:, None, None], float("-inf"))
        return F.scaled_dot_product_attention(q, k, v, bias)

    x, _ = text()
    example = (x, torch.zeros(2, 7, dtype=torch.bool))
    captured, after, _ = disabled(Attention(padded), example, TEXT, {"mask": "zeros"})
    gone(captured, after, "mask", aten.masked_fill)


def test_the_encoder_layer_of_torch() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.layer(x, src_key_padding_mask=mask)

    example = (torch.randn(2, 7, 8), torch.zeros(2, 7, dtype=torch.bool))
    captured, after, _ = disabled(Encoder(), example, TEXT, {"mask": "zeros"})
    gone(captured, after, "mask", aten.masked_fill)


def causal_bool(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:  # LLaMA
    places = torch.arange(q.shape[2])
    seen = (places[None, :] <= places[:, None])[None, None] & mask.bool()[:, None, None, :]
    return F.scaled_dot_product_attention(q, k, v, seen)


def causal_float(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    lowest = torch.finfo(q.dtype).min
    bias = (
        torch.full((q.shape[2], q.shape[2]), lowest, dtype=q.dtype).triu(1)[None, None].expand(mask.shape[0], 1, -1, -1)
    )
    bias = bias.masked_fill((mask == 0)[:, None, None, :], lowest)
    return F.scaled_dot_product_attention(q, k, v, bias)


def causal_buffer(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    size = q.shape[2]
    seen = torch.logical_and(self.seen[:, :, :size, :size], mask[:, None, None, :].bool())
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)


def causal_infinite(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    size = q.shape[2]
    bias = self.triangle[:size, :size] + torch.where(mask.bool(), 0.0, float("-inf"))[:, None, None, :]
    return F.scaled_dot_product_attention(q, k, v, bias)


@pytest.mark.parametrize(
    "function", [causal_bool, causal_float, causal_buffer, causal_infinite], ids=lambda f: f.__name__
)
def test_a_causal_mask_stays_causal(function: Any) -> None:
    captured, after, _ = disabled(Attention(function), text(), TEXT, ONES)
    gone(captured, after, "mask", aten.masked_fill, aten.bitwise_and, aten.logical_and, aten.arange)
    (attention,) = after.find(ATTENTION)
    assert attention.kwargs.get("is_causal", len(attention.args) > 5 and attention.args[5]) is True


def test_a_causal_mask_with_a_past_is_no_plain_triangle() -> None:
    """Queries are the last rows: the mask is shifted, and stays, without the padding."""

    def with_past(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        k, v = torch.cat((k[:, :, :3] * 2, k), 2), torch.cat((v[:, :, :3], v), 2)
        rows, columns = torch.arange(q.shape[2]) + 3, torch.arange(k.shape[2])
        seen = (columns[None, :] <= rows[:, None])[None, None] & mask.bool()[:, None, None, :1]
        return F.scaled_dot_product_attention(q, k, v, seen)

    captured, after, _ = disabled(Attention(with_past), text(), TEXT, ONES)
    assert not is_read(after, "mask")
    (attention,) = after.find(ATTENTION)
    assert attention.args[3] is not None
    assert not attention.kwargs.get("is_causal")
    agrees(captured, after)


def test_a_window_is_no_triangle() -> None:
    def window(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        places = torch.arange(q.shape[2])
        near = (places[None, :] <= places[:, None]) & (places[None, :] > places[:, None] - 3)
        return F.scaled_dot_product_attention(q, k, v, near[None, None] & mask.bool()[:, None, None, :])

    captured, after, _ = disabled(Attention(window), text(), TEXT, ONES)
    assert not is_read(after, "mask")
    (attention,) = after.find(ATTENTION)
    assert attention.args[3] is not None
    agrees(captured, after)


def test_scores_added_by_hand_keep_the_triangle() -> None:
    def eager(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        size = q.shape[2]
        hidden = ~(self.seen[:, :, :size, :size] & mask.bool()[:, None, None, :])
        return weigh(q, k, v, torch.zeros(mask.shape[0], 1, size, size).masked_fill(hidden, float("-inf")))

    captured, after, _ = disabled(Attention(eager), text(), TEXT, ONES)
    assert not is_read(after, "mask")
    agrees(captured, after)


# ---------------------------------------------------------------- what masks are made into


class Uses(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, mask: Tensor) -> Any:
        return self.function(x, mask)


USES = {
    "positions": lambda x, m: x + (torch.cumsum(m, 1) * m - 1)[..., None],
    "broadcast": lambda x, m: x[:, :1] * m[..., None],
    "int by float": lambda x, m: x.long() * m[..., None].double(),
    "mean": lambda x, m: (x * m[..., None]).sum(1) / m.sum(1, keepdim=True).clamp(min=1),
    "division": lambda x, m: x / m.double()[..., None],
    "subtraction": lambda x, m: x - (1 - m)[..., None] * 5,
    "last": lambda x, m: x[torch.arange(x.shape[0]), m.sum(1) - 1],
    "returned": lambda x, m: (x, m.sum(1), m.bool().all(1), m.flip(1)),
    "padded": lambda x, m: x * F.pad(m[:, 1:], (1, 0), value=1)[..., None],
    "shape only": lambda x, m: x[:, : m.shape[1]] + torch.zeros(m.shape)[..., None],
    "half": lambda x, m: (x.half() * m[..., None].half()).double(),
    "choice": lambda x, m: torch.where(m.sum() > 0, x, -x),
    "index": lambda x, m: x * m[torch.arange(x.shape[0])[:, None], torch.arange(x.shape[1])[None]][..., None],
    "written": lambda x, m: x.masked_fill(m.logical_not()[..., None].repeat(1, 1, x.shape[2]), 7.0),
}


@pytest.mark.parametrize("name", USES)
def test_uses_of_a_mask(name: str) -> None:
    captured, after, _ = disabled(Uses(USES[name]), text(), TEXT, ONES)
    gone(captured, after, "mask", aten.cumsum, aten.flip, aten.masked_fill)


def test_places_written_through_a_mask() -> None:
    """As in wav2vec2: the last valid frame is marked, and a running sum from behind makes the mask of it."""

    def by_marks(x: Tensor, mask: Tensor) -> Tensor:
        length = mask.cumsum(-1)[:, -1] // 2
        marks = torch.zeros(x.shape[0], x.shape[1] // 2, dtype=mask.dtype)
        marks[(torch.arange(x.shape[0]), length - 1)] = 1
        valid = marks.flip([-1]).cumsum(-1).flip([-1]).bool()
        y = x[:, : x.shape[1] // 2] * 2
        y[~valid.unsqueeze(-1).repeat(1, 1, y.shape[2])] = 0
        return y

    captured, after, _ = disabled(Uses(by_marks), text(), TEXT, ONES)
    gone(captured, after, "mask", aten.cumsum, aten.flip, aten.index_put)


def test_many_random_masks() -> None:
    """Comparisons, shifts and logic of full lengths: whatever is simplified, the numbers stay."""
    draw = random.Random(7)

    def mask(rows: Tensor, columns: Tensor, length: Tensor, depth: int) -> Tensor:
        if depth and draw.random() < 0.6:
            left, right = (mask(rows, columns, length, depth - 1) for _ in range(2))
            kind = draw.choice(["and", "or", "xor", "not", "where"])
            if kind == "not":
                return ~left
            other = mask(rows, columns, length, 0)
            return {"and": left & right, "or": left | right, "xor": left ^ right}.get(
                kind, torch.where(left, right, other)
            )
        compare = draw.choice([torch.lt, torch.le, torch.gt, torch.ge, torch.eq, torch.ne])
        side = draw.choice([rows, columns])
        other = draw.choice([length, length - 1, length // 2, (length + 1) // 3, columns, rows + 1, length * 0])
        return compare(side + draw.randint(-1, 1), other)

    class Masks(nn.Module):
        def forward(self, x: Tensor, length: Tensor) -> tuple[Tensor, ...]:
            draw.seed(7)
            steps = torch.arange(x.shape[2])
            args = steps[None, :, None], steps[None, None, :], length[:, None, None]
            found = [mask(*args, 2).expand(x.shape[0], x.shape[2], x.shape[2]) for _ in range(14)]
            return tuple(x[:, :1].masked_fill(each, 0.5).sum(1) for each in found)

    captured, after, record = disabled(Masks(), speech(2, 9), SPEECH, FULL)
    agrees(captured, after)
    assert record.count > 5


# ---------------------------------------------------------------- when nothing happens


def test_nothing_without_an_assumption() -> None:
    captured = capture_model(Speech(MaskedConv(4, 5, 2)).eval(), speech(), dynamic=SPEECH)
    after, (record,) = PassManager([DisableMasks()]).run(captured.program)
    assert record.count == 0
    assert after.node_count() == captured.program.node_count()


def test_a_second_run_changes_nothing() -> None:
    _, after, _ = disabled(Speech(MaskedConv(4, 5, 2), window=-1), speech(), SPEECH, FULL)
    again, (record,) = PassManager([DisableMasks()]).run(after)
    assert record.count == 0
    assert again.node_count() == after.node_count()


def test_weights_of_ones_are_no_mask() -> None:
    """A scale that happens to be 1 is the model's, whatever is assumed of an input."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(8))

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return x * self.scale * mask[..., None]

    captured, after, _ = disabled(Scaled(), text(), TEXT, ONES)
    assert len(calls(after, aten.mul)) == 1
    assert not is_read(after, "mask")
    agrees(captured, after)


def test_what_stays_is_told() -> None:
    model = Uses(lambda x, m: torch.softmax(x * torch.sin(m.float())[..., None], -1) * m[..., None])
    captured, after, record = disabled(model, text(), TEXT, ONES)
    assert not is_read(after, "mask")
    assert len(calls(after, aten.sin)) == 1
    agrees(captured, after)
    assert any("assumed to be all ones" in note for note in record.notes)
