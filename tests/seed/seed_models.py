"""Small models with export hooks, in plain torch, and what the tests of the seed's rows look at."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import nn

import fxexport
from fxexport import Exportable, Tensor


class Recognizer(nn.Module):
    """[batch, time, 8] frames and their lengths -> [batch, time, 4] scores and the lengths; hooks, and no base class."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.linear = nn.Linear(8, 4)

    def input_example(self) -> Any:
        return torch.randn(2, 6, 8), torch.tensor([6, 4])

    @property
    def input_types(self) -> Any:
        return {"audio": Tensor("batch", "time", 8), "length": Tensor("batch", dtype=torch.int64)}

    @property
    def output_types(self) -> Any:
        return {"scores": Tensor("batch", "time", "channel"), "lengths": Tensor("batch", dtype=torch.int64)}

    def forward(self, audio: torch.Tensor, length: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mask = torch.arange(audio.size(1)) < length[:, None]
        return self.linear(audio) * mask[..., None], length * 1


class ExportableRecognizer(Recognizer, Exportable):
    """The same with the mix-in."""


class Affine(nn.Module):
    """[batch, 3] -> [batch, 4]; no hook at all."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.linear = nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.linear(x))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(8, 6, 3, stride=2, padding=1)

    @property
    def input_types(self) -> Any:
        return {"audio": Tensor("batch", 8, "time")}

    @property
    def output_types(self) -> Any:
        return {"encoded": Tensor("batch", "dimension", "frames")}

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        return self.conv(audio)


class Decoder(nn.Module):
    """One frame [batch, 6] and the state [batch, 5] -> logits [batch, 3] and the next state."""

    input_types: ClassVar[Any] = {"frame": Tensor("batch", 6), "state": Tensor("batch", 5)}
    output_types: ClassVar[Any] = {"logits": Tensor("batch", 3), "next_state": Tensor("batch", 5)}

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.Linear(11, 5), nn.Linear(5, 3)

    def forward(self, frame: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        state = torch.tanh(self.cell(torch.cat([frame, state], 1)))
        return self.out(state), state


class Listener(nn.Module, Exportable):
    """Encoder, then the decoder once a frame, as two subnets. The decoder never gets what the encoder gives whole."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.encoder, self.decoder = Encoder(), Decoder()

    def input_example(self, max_batch: int | None = None, max_dim: int | None = None) -> Any:
        return torch.randn(2, 8, 10)

    def list_export_subnets(self) -> list[str]:
        return ["encoder", "decoder"]

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        encoded = self.encoder(audio)
        state, logits = torch.zeros(audio.size(0), 5), []
        for t in range(encoded.size(2)):
            step, state = self.decoder(encoded[:, :, t], state)
            logits.append(step)
        return torch.stack(logits, 1)


def onnx_io(path: Path) -> tuple[dict[str, list[int | str]], dict[str, list[int | str]]]:
    """Inputs and outputs of an ONNX file, by name in order, with their axes."""

    def axes(value: Any) -> list[int | str]:
        return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]

    graph = onnx.load(path).graph
    return {v.name: axes(v) for v in graph.input}, {v.name: axes(v) for v in graph.output}


def operators(path: Path) -> Counter[str]:
    """How often each operator is in the main graph of an ONNX file."""
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def run_onnx(path: Path, **inputs: torch.Tensor) -> list[np.ndarray]:
    """The outputs of an ONNX file in onnxruntime itself, without anything of fxexport."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return list(session.run(None, {name: value.numpy() for name, value in inputs.items()}))


def assert_close(got: Any, want: Any) -> None:
    """Outputs of an artifact (arrays or tensors) against those of eager."""
    got, want = ([each] if isinstance(each, torch.Tensor | np.ndarray) else list(each) for each in (got, want))
    assert len(got) == len(want)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(torch.as_tensor(g), w.detach(), rtol=1e-4, atol=1e-5)


def exported(model: nn.Module, out: Path, *example: Any, **options: Any) -> fxexport.Artifact:
    """``compile`` for a model that becomes one file."""
    artifact = fxexport.compile(model, out, *example, **options)
    assert isinstance(artifact, fxexport.Artifact)
    return artifact
