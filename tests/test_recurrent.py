"""Recurrent layers: time and batch stay dynamic, in every format that can express it."""

from pathlib import Path

import pytest
import torch
from torch import nn

import fxexport


class Recurrent(nn.Module):
    """``[batch, time, 4] -> [batch, time, features]`` and the last hidden state."""

    def __init__(self, cell: type[nn.RNNBase], **options: object) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = cell(4, 6, batch_first=True, **options)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, object]:
        return self.layer(x)


BOTH = {"x": ["batch", "time", None]}
CELLS = [
    (nn.LSTM, {}),
    (nn.LSTM, {"num_layers": 2, "bidirectional": True}),
    (nn.GRU, {}),
    (nn.GRU, {"num_layers": 2, "bidirectional": True}),
]


@pytest.mark.parametrize("suffix", ["onnx", "pt", "pt2"])
@pytest.mark.parametrize(("cell", "options"), CELLS, ids=["lstm", "bilstm", "gru", "bigru"])
def test_time_and_batch_are_dynamic(
    cell: type[nn.RNNBase], options: dict[str, object], suffix: str, tmp_path: Path
) -> None:
    model = Recurrent(cell, **options).eval()
    artifact = fxexport.compile(model, tmp_path / f"m.{suffix}", torch.randn(2, 5, 4), dynamic=BOTH)
    assert artifact.outputs[0].axes[:2] == ("batch", "time")
    x = torch.randn(3, 19, 4)
    torch.testing.assert_close(artifact(x)[0], model(x)[0].detach(), rtol=1e-4, atol=1e-6)


ODD = [(nn.RNN, {}), (nn.RNN, {"nonlinearity": "relu", "bidirectional": True}), (nn.LSTM, {"proj_size": 3})]


@pytest.mark.parametrize(("cell", "options"), ODD, ids=["rnn", "rnn-relu", "lstm-projection"])
def test_what_onnx_has_no_operator_for(cell: type[nn.RNNBase], options: dict[str, object], tmp_path: Path) -> None:
    model, x = Recurrent(cell, **options).eval(), torch.randn(2, 5, 4)
    with pytest.raises(fxexport.LoweringError, match=r"layer is .* over a dynamic number of steps"):
        fxexport.compile(model, tmp_path / "m.onnx", x, dynamic=BOTH)
    fixed = fxexport.compile(model, tmp_path / "m.onnx", x, dynamic={"x": ["batch", None, None]})
    other = torch.randn(7, 5, 4)
    torch.testing.assert_close(fixed(other)[0], model(other)[0].detach(), rtol=1e-4, atol=1e-6)
    dynamic = fxexport.compile(model, tmp_path / "m.pt", x, dynamic=BOTH)
    longer = torch.randn(2, 11, 4)
    torch.testing.assert_close(dynamic(longer)[0], model(longer)[0].detach(), rtol=1e-4, atol=1e-6)


def test_the_shape_rules_leave_torch_as_it_was() -> None:
    kernels = dict(torch.ops.aten.lstm.input.py_kernels)
    fxexport.capture(Recurrent(nn.LSTM), torch.randn(2, 5, 4), dynamic=BOTH)
    assert torch.ops.aten.lstm.input.py_kernels == kernels
