"""Recurrent layers: time and batch stay dynamic in every format, for dense and for packed sequences."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ProveEverywhere
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import fxexport
from fxexport.session import open_session

BOTH = {"x": ["batch", "time", None]}
LENGTHS = {**BOTH, "lengths": ["batch"]}


class Recurrent(nn.Module):
    """``[batch, time, 4] -> [batch, time, features]`` and the last states."""

    def __init__(self, cell: Callable[..., nn.RNNBase], **options: object) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = cell(4, 6, batch_first=True, **options)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, object]:
        return self.layer(x)


DEEP = {"num_layers": 2, "bidirectional": True}
CELLS: list[tuple[Callable[..., nn.RNNBase], dict[str, object]]] = [
    (nn.LSTM, DEEP),
    (nn.GRU, DEEP),
    (nn.RNN, {}),
    (nn.RNN, {"nonlinearity": "relu", "bias": False, **DEEP}),
    (nn.LSTM, {"proj_size": 3}),
    (nn.LSTM, {"proj_size": 3, "bias": False, **DEEP}),
]
NAMES = ["lstm", "gru", "rnn", "rnn-relu", "projection", "projection-deep"]


@pytest.mark.parametrize(("cell", "options"), CELLS, ids=NAMES)
def test_time_and_batch_are_dynamic(cell: type[nn.RNNBase], options: dict[str, object], prove: ProveEverywhere) -> None:
    captured = prove(Recurrent(cell, **options).eval(), torch.randn(2, 5, 4), dynamic=BOTH)
    assert captured.program.signature.outputs[0].axes[:2] == ("batch", "time")


@pytest.mark.parametrize("cell", [nn.RNN, nn.GRU, nn.LSTM])
def test_what_the_runtime_has_in_float32_alone_works_in_float64(cell: type[nn.RNNBase], prove: ProveEverywhere) -> None:
    model = Recurrent(cell, bidirectional=True).eval().double()
    prove(model, torch.randn(2, 5, 4, dtype=torch.float64), dynamic=BOTH, formats=["onnx"])


def test_half_precision_in_onnx(tmp_path: Path) -> None:
    model, x = Recurrent(nn.LSTM, proj_size=3).eval(), torch.randn(2, 9, 4)
    want = model(x)[0]
    artifact = fxexport.compile(model.half(), tmp_path / "m.onnx", x.half(), dynamic=BOTH, rtol=1e-2, atol=1e-2)
    got = artifact(x.half())[0]
    assert got.dtype == torch.float16
    torch.testing.assert_close(got.float(), want.detach(), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("opset", [17, 23])
@pytest.mark.parametrize("options", [{"proj_size": 3}, {}], ids=["projection", "plain"])
def test_every_opset(opset: int, options: dict[str, object], tmp_path: Path) -> None:
    model, x = Recurrent(nn.LSTM if options else nn.RNN, **options).eval(), torch.randn(2, 5, 4)
    artifact = fxexport.compile(model, tmp_path / "m.onnx", x, dynamic=BOTH, opset_version=opset)
    longer = torch.randn(3, 200, 4)
    torch.testing.assert_close(artifact(longer)[0], model(longer)[0].detach(), rtol=1e-4, atol=1e-5)


def test_the_shape_rules_leave_torch_as_it_was() -> None:
    kernels = dict(torch.ops.aten.lstm.input.py_kernels)
    fxexport.capture(Recurrent(nn.LSTM), torch.randn(2, 5, 4), dynamic=BOTH)
    assert torch.ops.aten.lstm.input.py_kernels == kernels


class Prediction(nn.Module):
    """One step of a transducer's prediction net: tokens and states in, scores and states out."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.layer = nn.LSTM(8, 6, num_layers=2, **options)
        self.scores = nn.Linear(options.get("proj_size", 6), 5)

    def forward(self, tokens: torch.Tensor, states: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, Any]:
        y, after = self.layer(self.embedding(tokens.transpose(0, 1)), states)
        return self.scores(y), after


@pytest.mark.parametrize("options", [{}, {"proj_size": 3}], ids=["plain", "projection"])
def test_a_prediction_net_with_states_in_and_out(options: dict[str, int], prove: ProveEverywhere) -> None:
    states = (torch.randn(2, 1, options.get("proj_size", 6)), torch.randn(2, 1, 6))
    axes = {"tokens": ["batch", None], "states": [[None, "batch", None]] * 2}
    captured = prove(Prediction(**options).eval(), (torch.tensor([[3]]), states), dynamic=axes)
    signature = captured.program.signature
    assert [spec.name for spec in signature.inputs] == ["tokens", "states_0", "states_1"]
    assert [spec.axes for spec in signature.outputs[1:]] == [spec.axes for spec in signature.inputs[1:]]


# -------------------------------------------------------------------- packed sequences


class Packed(nn.Module):
    """Packs, runs, unpacks; returns the outputs, the lengths and the last states."""

    def __init__(
        self,
        cell: Callable[..., nn.RNNBase],
        *,
        whole: bool = True,
        sort: bool = False,
        first: bool = True,
        **options: Any,
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = cell(4, 6, batch_first=first, **options)
        self.whole, self.sort, self.first = whole, sort, first

    def forward(self, x: torch.Tensor, lengths: torch.Tensor, *states: torch.Tensor) -> tuple[Any, ...]:
        packed = pack_padded_sequence(x, lengths, batch_first=self.first, enforce_sorted=self.sort)
        y, last = self.layer(packed, states if len(states) > 1 else states[0] if states else None)
        size = x.size(1 if self.first else 0) if self.whole else None
        return (*pad_packed_sequence(y, batch_first=self.first, total_length=size), last)


UNSORTED = torch.tensor([4, 7, 2])
PACKED: list[tuple[Callable[..., nn.RNNBase], dict[str, Any]]] = [
    (nn.LSTM, {}),
    (nn.LSTM, DEEP),
    (nn.LSTM, {"proj_size": 3, "bias": False, "bidirectional": True}),
    (nn.GRU, {**DEEP, "whole": False}),
    (nn.RNN, {"nonlinearity": "relu", "bidirectional": True}),
]
PACKED_NAMES = ["lstm", "bilstm", "projection", "bigru", "rnn"]


@pytest.mark.parametrize(("cell", "options"), PACKED, ids=PACKED_NAMES)
def test_packed_sequences(cell: Callable[..., nn.RNNBase], options: dict[str, Any], prove: ProveEverywhere) -> None:
    captured = prove(Packed(cell, **options).eval(), (torch.randn(3, 7, 4), UNSORTED), dynamic=LENGTHS)
    outputs = captured.program.signature.outputs
    assert outputs[0].axes[0] == outputs[1].axes[0] == outputs[2].axes[1] == "batch"
    assert (outputs[0].axes[1] == "time") == options.get("whole", True)


@pytest.mark.parametrize("suffix", ["onnx", "pt", "pt2"])
def test_any_lengths_and_states_with_time_first(suffix: str, tmp_path: Path) -> None:
    model = Packed(nn.LSTM, whole=False, first=False, **DEEP).eval()
    axes = {"x": ["time", "batch", None], "lengths": ["batch"], "states": [[None, "batch", None]] * 2}
    example = (torch.randn(7, 3, 4), UNSORTED, torch.randn(4, 3, 6), torch.randn(4, 3, 6))
    fxexport.compile(model, tmp_path / f"m.{suffix}", example, dynamic=axes)
    session = open_session(tmp_path / f"m.{suffix}")
    for time, lengths in [(9, [1, 1]), (300, [17, 290, 3, 111]), (1, [1]), (5, [5, 5, 5])]:
        states = [torch.randn(4, len(lengths), 6) for _ in range(2)]
        inputs = [torch.randn(time, len(lengths), 4), torch.tensor(lengths), *states]
        with torch.no_grad():
            y, given, last = model(*inputs)
        got = session(["x", "lengths", "states_0", "states_1"], inputs)
        assert got[0].shape[0] == max(lengths)
        for result, want in zip(got, (y, given, *last), strict=True):
            torch.testing.assert_close(result, want, rtol=1e-4, atol=1e-5)


def test_sorted_lengths_and_what_lies_beyond_them(tmp_path: Path) -> None:
    model = Packed(nn.LSTM, sort=True, bidirectional=True).eval()
    x, lengths = torch.randn(3, 7, 4), torch.tensor([6, 4, 2])
    artifact = fxexport.compile(model, tmp_path / "m.onnx", (x, lengths), dynamic=LENGTHS)
    clean = artifact(x, lengths)
    beyond = torch.arange(7).unsqueeze(0) >= lengths.unsqueeze(1)
    dirty = artifact(x.masked_fill(beyond.unsqueeze(-1), float("nan")), lengths)
    assert not clean[0][beyond].any()
    for a, b in zip((*clean[:2], *clean[2]), (*dirty[:2], *dirty[2]), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


class OnPackedData(nn.Module):
    """Packs tokens, applies ``change`` to the packed data, runs a layer."""

    def __init__(self, change: Callable[[Any, PackedSequence], Any]) -> None:
        super().__init__()
        self.embedding, self.linear, self.layer = nn.Embedding(9, 4), nn.Linear(4, 4), nn.GRU(4, 6, batch_first=True)
        self.change = change

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> Any:
        packed = pack_padded_sequence(tokens, lengths.cpu(), batch_first=True, enforce_sorted=False)
        return self.change(self, packed)


def _with_data(packed: PackedSequence, data: torch.Tensor) -> PackedSequence:
    return PackedSequence(data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)


def _embedded(model: Any, packed: PackedSequence) -> Any:
    data = torch.relu(model.linear(model.embedding(packed.data)))
    return pad_packed_sequence(model.layer(_with_data(packed, data))[0], batch_first=True, padding_value=-1.5)[0]


TOKENS = (torch.randint(0, 9, (3, 7)), UNSORTED)
TOKEN_AXES = {"tokens": ["batch", "time"], "lengths": ["batch"]}


def test_layers_on_packed_data(prove: ProveEverywhere) -> None:
    prove(OnPackedData(_embedded).eval(), TOKENS, dynamic=TOKEN_AXES)


REFUSED: dict[str, tuple[Callable[[Any, PackedSequence], Any], str]] = {
    "mean": (lambda model, packed: model.embedding(packed.data).mean(), "mean on the data of a PackedSequence"),
    "sizes": (lambda model, packed: packed.batch_sizes + 1, "batch_sizes of a PackedSequence"),
    "result": (lambda model, packed: packed, "forward returns .* PackedSequence"),
    "too-short": (
        lambda model, packed: pad_packed_sequence(packed, batch_first=True, total_length=9)[0],
        r"test_recurrent.py:\d+.*give that size as total_length",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_has_no_form_with_open_lengths_is_refused(kind: str) -> None:
    change, message = REFUSED[kind]
    with pytest.raises(fxexport.CaptureError, match=message):
        fxexport.capture(OnPackedData(change).eval(), TOKENS, dynamic=TOKEN_AXES)


def test_length_zero_is_refused_as_in_eager(tmp_path: Path) -> None:
    model = Packed(nn.GRU).eval()
    with pytest.raises(RuntimeError, match="greater than 0"):
        fxexport.compile(model, tmp_path / "m.onnx", (torch.randn(2, 3, 4), torch.tensor([3, 0])), dynamic=LENGTHS)
    assert not any(tmp_path.iterdir())
