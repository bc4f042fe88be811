"""Recurrent layers on dense tensors with lengths, exactly as on packed sequences.

A forward direction runs over the padding too, which comes after everything that is kept; a backward one reads every
sequence reversed within its length. Outputs are chosen by the lengths, final hidden states gathered at them. An LSTM
gives its cell state only after the last step, so the one at the length is summed up from the gates:

    c_t = f_t c_(t-1) + i_t g_t   ->   c_n = sum_t i_t g_t exp(sum_(s>t) log f_s) + c_0 exp(sum_s log f_s)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_check: Any = torch._check


@dataclass
class Packing:
    """What ``batch_sizes`` of a packed sequence stands for.

    ``steps`` is ``[time, 1]`` and ``lengths`` ``[batch]``, both on the device of the data; ``given`` are the lengths as
    they came; ``longest`` is set once asked for.
    """

    batch_sizes: Tensor
    steps: Tensor
    lengths: Tensor
    given: Tensor
    longest: torch.SymInt | int | None = None

    @property
    def time(self) -> int:
        return self.steps.shape[0]

    def inside(self) -> Tensor:
        """``[time, batch, 1]``: whether a step lies within the length."""
        return (self.steps < self.lengths).unsqueeze(-1)

    def reverse(self, x: Tensor) -> Tensor:
        """``x`` ``[time, batch, features]`` with every sequence reversed within its length."""
        mirrored = self.lengths - 1 - self.steps
        return _at(x, torch.where(mirrored >= 0, mirrored, self.steps))

    def last(self, x: Tensor) -> Tensor:
        """``[1, batch, features]``: ``x`` at the last step of every sequence."""
        return _at(x, (self.lengths - 1).unsqueeze(0))

    def longest_length(self) -> torch.SymInt | int:
        """The number of steps after unpadding; it depends on the values of the lengths."""
        if self.longest is None:
            longest: Any = self.lengths.max().item()
            _check(longest >= 1)
            _check(longest <= self.time)
            self.longest = longest
        assert self.longest is not None
        return self.longest

    def rows(self, data: Tensor) -> Tensor:
        """``[time * batch, ...]`` -> ``[time, batch, ...]``."""
        return data.view(self.time, self.lengths.shape[0], *data.shape[1:])


def _at(x: Tensor, steps: Tensor) -> Tensor:
    return x.gather(0, steps.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def run(
    packing: Packing,
    cell: str,
    data: Tensor,
    batch_sizes: Tensor,
    hx: Tensor | Sequence[Tensor],
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
) -> tuple[Tensor, ...]:
    """The data after all layers, then the final states ``[layers * directions, batch, size]``."""
    states = [hx] if isinstance(hx, Tensor) else list(hx)
    for state in states:
        _check(state.shape[1] == packing.lengths.shape[0])
    directions = 2 if bidirectional else 1
    size = len(params) // (num_layers * directions)
    x, finals = packing.rows(data), []
    for layer in range(num_layers):
        outputs = []
        for place in range(layer * directions, (layer + 1) * directions):
            own = [state[place : place + 1] for state in states]
            weights = list(params[place * size : (place + 1) * size])
            backward = place % directions == 1
            read = packing.reverse(x) if backward else x
            y, last = _run_direction(packing, cell, read, own, weights, has_biases)
            outputs.append(packing.reverse(y) if backward else y)
            finals.append(last)
        x = torch.cat(outputs, -1)
    return (x.flatten(0, 1), *(torch.cat(found) for found in zip(*finals, strict=True)))


def _run_direction(
    packing: Packing, cell: str, x: Tensor, states: list[Tensor], weights: list[Tensor], has_biases: bool
) -> tuple[Tensor, list[Tensor]]:
    hx = states if cell == "lstm" else states[0]
    y = getattr(torch._VF, cell)(x, hx, weights, has_biases, 1, 0.0, False, False, False)[0]
    last = [packing.last(y)]
    if cell == "lstm":
        last.append(_final_cell(packing, x, y, states, weights, has_biases))
    return y, last


def _final_cell(
    packing: Packing, x: Tensor, y: Tensor, states: list[Tensor], weights: list[Tensor], has_biases: bool
) -> Tensor:
    """The cell state ``[1, batch, size]`` after the last step of every sequence; see the formula at the top."""
    h, c = states
    input_bias, hidden_bias = weights[2:4] if has_biases else (None, None)
    before = torch.cat([h, y[:-1]])
    gates = F.linear(x, weights[0], input_bias) + F.linear(before, weights[1], hidden_bias)
    i, f, g, _ = gates.chunk(4, -1)
    inside = packing.inside()
    added = torch.where(inside, i.sigmoid() * g.tanh(), 0.0)
    kept = torch.where(inside, F.logsigmoid(f), 0.0).flip(0).cumsum(0).flip(0)
    later = torch.cat([kept[1:], torch.zeros_like(kept[:1])])
    return (added * later.exp()).sum(0, keepdim=True) + kept[:1].exp() * c


def pad(
    packing: Packing,
    data: Tensor,
    batch_sizes: Tensor,
    batch_first: bool,
    padding_value: float,
    total_length: int,
) -> tuple[Tensor, Tensor]:
    """The data unpacked to ``total_length`` steps, with ``padding_value`` beyond every length; and the lengths."""
    x = packing.rows(data)
    shape = [*packing.steps.shape, *([1] * (x.dim() - 2))]
    x = torch.where(packing.steps.view(shape) < packing.lengths.view(1, -1, *shape[2:]), x, padding_value)
    if total_length is packing.longest:
        x = x.narrow(0, 0, total_length)
    else:
        x = F.pad(x, [0] * (2 * x.dim() - 1) + [total_length - packing.time], value=padding_value)
    return x.transpose(0, 1) if batch_first else x, packing.given
