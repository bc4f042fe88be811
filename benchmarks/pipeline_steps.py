"""What a step of an exported pipeline costs: ``Pipeline.step`` beside eager PyTorch and a loop over onnxruntime by hand.

The model is the prediction network of a transducer (embedding, two LSTM layers of 640, a vocabulary of 1024), called once
for each symbol with its state carried on. Medians of interleaved runs; ratios below 1 are faster than the other.

    python benchmarks/pipeline_steps.py [--steps 64] [--rounds 15] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import nn

import fxexport

LAYERS, WIDTH, VOCABULARY = 2, 640, 1024


class Predictor(nn.Module):
    """``forward(targets [B, 1], (h, c)) -> logits [B, 1, vocabulary], (h, c)``."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.lstm = nn.LSTM(WIDTH, WIDTH, LAYERS, batch_first=True)
        self.out = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, targets: torch.Tensor, states: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, Any]:
        hidden, states = self.lstm(self.embed(targets), states)
        return self.out(hidden), states


def generate(model: nn.Module, first: torch.Tensor, steps: int = 4) -> torch.Tensor:
    """Greedy symbols [B, steps], each the likeliest after the one before."""
    states = (torch.zeros(LAYERS, first.shape[0], WIDTH), torch.zeros(LAYERS, first.shape[0], WIDTH))
    symbols = [first]
    for _ in range(steps):
        logits, states = model(symbols[-1], states)
        symbols.append(logits.argmax(-1))
    return torch.cat(symbols[1:], 1)


def by_pipeline(pipeline: fxexport.Pipeline, first: np.ndarray, steps: int) -> np.ndarray:
    """The same through ``Pipeline.step``."""
    state, symbols = None, [first]
    for _ in range(steps):
        outputs, state = pipeline.step(state, targets=symbols[-1])
        symbols.append(outputs["output_0"].argmax(-1))
    return np.concatenate(symbols[1:], 1)


def by_hand(session: onnxruntime.InferenceSession, first: np.ndarray, steps: int) -> np.ndarray:
    """The same over onnxruntime alone, written for this model."""
    names = [value.name for value in session.get_inputs()]
    states = [np.zeros((LAYERS, first.shape[0], WIDTH), np.float32) for _ in range(2)]
    symbols = [first]
    for _ in range(steps):
        logits, *states = session.run(None, dict(zip(names, [symbols[-1], *states], strict=True)))
        symbols.append(logits.argmax(-1))
    return np.concatenate(symbols[1:], 1)


def measure(steps: int, rounds: int) -> dict[str, float]:
    """Milliseconds of one step in each way, after checking that all give the same symbols."""
    torch.manual_seed(0)
    model, first = Predictor().eval(), torch.randint(VOCABULARY, (1, 1))
    with tempfile.TemporaryDirectory() as folder:
        pipeline = fxexport.compile(model, Path(folder) / "predictor.onnx", (first,), driver=generate)
        assert isinstance(pipeline, fxexport.Pipeline)
        options = onnxruntime.SessionOptions()
        session = onnxruntime.InferenceSession(str(Path(folder) / pipeline.spec.parts[0].file), options)
        with torch.no_grad():
            ways: dict[str, Callable[[], Any]] = {
                "eager": lambda: generate(model, first, steps).numpy(),
                "by hand": lambda: by_hand(session, first.numpy(), steps),
                "Pipeline.step": lambda: by_pipeline(pipeline, first.numpy(), steps),
            }
            expected = ways["eager"]()
            for name, way in ways.items():
                assert np.array_equal(way(), expected), f"{name} gives other symbols than eager"
            times: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(rounds):
                for name, way in ways.items():
                    start = time.perf_counter()
                    way()
                    times[name].append(1e3 * (time.perf_counter() - start) / steps)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    """Measures, prints, and writes JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found = measure(given.steps, given.rounds)
    for name, value in found.items():
        print(f"{name:14} {value:8.3f} ms a step   {value / found['eager']:.2f} of eager")
    if given.json:
        ratios = {f"{name} / eager": value / found["eager"] for name, value in found.items()}
        ratios["Pipeline.step / by hand"] = found["Pipeline.step"] / found["by hand"]
        given.json.write_text(json.dumps({"milliseconds a step": found, "ratios": ratios}, indent=1) + "\n")


if __name__ == "__main__":
    main()
