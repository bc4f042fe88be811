"""Greedy decoding through an exported pipeline, in numpy: what a user of the files writes. No PyTorch here.

``python decoding.py pipeline.json transducer inputs.npz '{"blank": 10}'`` prints the tokens as JSON; it makes
``import torch`` fail first. The npz has the loop's arguments, numbered by batch: ``audio_signal_0``, ``length_0``, ...
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np

Tokens = list[list[int]]


def transducer(pipeline: Any, audio_signal: Any, length: Any, blank: int, most: int = 3, first: Any = None) -> Tokens:
    """Rows that found blank, or are at their end, keep label and state. ``first``: values of the states at first, where
    the pipeline does not know them."""
    state = pipeline.start(audio_signal=audio_signal, length=length).replace(first or {})
    frames, lengths = state["outputs"], state["encoded_lengths"]
    rows = len(lengths)
    last, one = np.full((rows, 1), blank, np.int32), np.ones(rows, np.int32)
    found: Tokens = [[] for _ in range(rows)]
    for frame in range(frames.shape[2]):
        finished = frame >= lengths
        for _ in range(most):
            cut = np.ascontiguousarray(frames[:, :, frame : frame + 1])
            outputs, after = pipeline.step(state, encoder_outputs=cut, targets=last, target_length=one)
            best = outputs["decoder_joint.outputs"][:, 0, 0].argmax(-1).astype(np.int32)
            finished = finished | (best == blank)
            if finished.all():
                break
            state = after.keep(finished, old=state)
            last = np.where(finished[:, None], last, best[:, None])
            for row in np.flatnonzero(~finished):
                found[row].append(int(best[row]))
    return found


def translator(
    pipeline: Any, input_ids: Any, attention_mask: Any, start: int, end: int, pad: int, most: int = 8
) -> Tokens:
    """Rows that found the end give padding from then on; stops when all did."""
    state = pipeline.start(input_ids=input_ids, attention_mask=attention_mask)
    token, going = np.full((len(input_ids), 1), start), np.ones((len(input_ids), 1), bool)
    found = []
    for _ in range(most):
        outputs, state = pipeline.step(state, token=token)
        token = np.where(going, outputs["logits"].argmax(-1), pad)
        found.append(token)
        going &= token != end
        if not going.any():
            break
    return np.concatenate(found, 1).tolist()  # type: ignore[no-any-return]


def without_torch() -> None:
    """From here on ``import torch`` fails as where it is not installed."""
    sys.modules["torch"] = None  # type: ignore[assignment]


def main(path: str, loop: str, inputs: str, options: str) -> None:
    without_torch()
    import fxexport

    pipeline = fxexport.Pipeline.load(path)
    given: dict[int, dict[str, Any]] = {}
    with np.load(inputs) as arrays:
        for name in arrays.files:
            argument, number = name.rsplit("_", 1)
            given.setdefault(int(number), {})[argument] = arrays[name]
    decode = globals()[loop]
    print(json.dumps([decode(pipeline, **given[number], **json.loads(options)) for number in sorted(given)]))


if __name__ == "__main__":
    main(*sys.argv[1:])
