"""Recurrent layers in ONNX where torch has no translation, or none that keeps the number of steps dynamic.

    rnn_tanh, rnn_relu            ->  RNN, one for each layer and direction
    lstm with projections         ->  Scan over the steps: ONNX's LSTM has no projection
    any of them in float64        ->  Scan: runtimes have the recurrent operators in float32 alone
    any of them in half precision ->  in float32, and back

lstm and gru in float32 go to torch's own translation. Layouts: input ``[time, batch, features]`` or batch first, states
``[layers * directions, batch, size]``, all as PyTorch has them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir
import torch
from onnxscript import opset18
from onnxscript.function_libs.torch_lib.ops import core

from fxexport.lowering import recurrent_steps as steps

aten = torch.ops.aten
op: Any = opset18
_TORCH_LSTM: Any = core.aten_lstm
_TORCH_GRU: Any = core.aten_gru

Step = Callable[[Any, list[Any], "_Weights", bool], tuple[Any, list[Any]]]
"""(input ``[time, batch, features]``, states ``[1, batch, size]`` each, weights, reverse) -> output, final states."""


class _Weights:
    """The parameters of one layer in one direction, as PyTorch lists them."""

    def __init__(self, values: Sequence[Any], has_biases: bool) -> None:
        self.input, self.hidden = values[:2]
        self.biases = tuple(values[2:4]) if has_biases else ()
        self.projection = values[-1] if len(values) % 2 else None
        self.size = int(self.hidden.shape[0])
        """Rows of the weights: the hidden size times the number of gates."""

    def projected_input(self, x: Any, biases: int = 2) -> Any:
        """What the input contributes to the gates, all steps at once, with the first ``biases`` biases."""
        gates = op.MatMul(x, op.Transpose(self.input, perm=[1, 0]))
        for bias in self.biases[:biases]:
            gates = op.Add(gates, bias)
        return gates

    def hidden_transposed(self) -> Any:
        return op.Transpose(self.hidden, perm=[1, 0])


def _layers(
    x: Any,
    states: Sequence[Any],
    params: Sequence[Any],
    has_biases: bool,
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
    step: Step,
) -> tuple[Any, ...]:
    """Stacks ``step`` over layers and directions: the outputs in the layout of ``x``, then the final states."""
    directions = 2 if bidirectional else 1
    size = len(params) // (num_layers * directions)
    finals: list[list[Any]] = [[] for _ in states]
    if batch_first:
        x = op.Transpose(x, perm=[1, 0, 2])
    for layer in range(num_layers):
        outputs = []
        for place in range(layer * directions, (layer + 1) * directions):
            own = [op.Slice(state, [place], [place + 1], [0]) for state in states]
            weights = _Weights(params[place * size : (place + 1) * size], has_biases)
            y, last = step(x, own, weights, place % directions == 1)
            outputs.append(y)
            for found, state in zip(finals, last, strict=True):
                found.append(state)
        x = op.Concat(*outputs, axis=-1)
    if batch_first:
        x = op.Transpose(x, perm=[1, 0, 2])
    return (x, *(op.Concat(*found, axis=0) for found in finals))


# -------------------------------------------------------------------- plain RNN


def _rnn_operator(activation: str) -> Step:
    def step(x: Any, states: list[Any], weights: _Weights, reverse: bool) -> tuple[Any, list[Any]]:
        first = [op.Unsqueeze(weight, [0]) for weight in (weights.input, weights.hidden)]
        bias = op.Unsqueeze(op.Concat(*weights.biases, axis=0), [0]) if weights.biases else None
        y, last = op.RNN(
            x,
            *first,
            bias,
            None,
            states[0],
            activations=[activation],
            direction="reverse" if reverse else "forward",
            hidden_size=weights.size,
        )
        return op.Squeeze(y, [1]), [last]

    return step


# -------------------------------------------------------------------- step by step


def _scan(step: Callable[[Any, list[Any], _Weights], tuple[Any, ...]]) -> Step:
    """A ``Step`` from one that runs forward on states ``[batch, size]``."""

    def both(x: Any, states: list[Any], weights: _Weights, reverse: bool) -> tuple[Any, list[Any]]:
        flat = [op.Squeeze(state, [0]) for state in states]
        y, *last = step(_reversed(x) if reverse else x, flat, weights)
        return _reversed(y) if reverse else y, [op.Unsqueeze(state, [0]) for state in last]

    return both


def _reversed(x: Any) -> Any:
    return op.Slice(x, [-1], [-(2**63)], [0], [-1])


def _split(gates: int) -> Any:
    """The shape that takes ``[batch, gates * size]`` apart."""
    return op.Constant(value_ints=[0, gates, -1])


def _lstm_steps(x: Any, states: list[Any], weights: _Weights) -> tuple[Any, ...]:
    gates, hidden, split = weights.projected_input(x), weights.hidden_transposed(), _split(4)
    if weights.projection is None:
        return tuple(steps.LSTM(gates, *states, hidden, split))
    return tuple(steps.PROJECTED_LSTM(gates, *states, hidden, op.Transpose(weights.projection, perm=[1, 0]), split))


def _gru_steps(x: Any, states: list[Any], weights: _Weights) -> tuple[Any, ...]:
    zero = op.CastLike(op.Constant(value_floats=[0.0]), weights.hidden)
    bias = weights.biases[1] if weights.biases else zero
    hidden = weights.hidden_transposed()
    return tuple(steps.GRU(weights.projected_input(x, biases=1), *states, hidden, bias, _split(3)))


def _rnn_steps(function: Any) -> Callable[[Any, list[Any], _Weights], tuple[Any, ...]]:
    return lambda x, states, weights: tuple(function(weights.projected_input(x), *states, weights.hidden_transposed()))


# -------------------------------------------------------------------- translations


def _recurrent(operator: Step | None, by_step: Callable[..., Any], own: Callable[..., Any] | None = None) -> Any:
    """A translation: ``own`` where that is right (torch's), else ``operator`` in float32 and ``by_step`` in float64.

    Half precision is computed in float32: runtimes have no recurrent operators for it, and onnxruntime crashes on a
    Scan in it.
    """

    def translation(
        input: Any,
        hx: Any,
        params: Any,
        has_biases: Any,
        num_layers: Any,
        dropout: Any,
        train: Any,
        bidirectional: Any,
        batch_first: Any,
    ) -> Any:
        states = list(hx) if isinstance(hx, Sequence) else [hx]
        half = input.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
        x, states, weights = _to_float32(input, states, params) if half else (input, states, params)
        projected = len(states) == 2 and hx[0].shape[-1] != hx[1].shape[-1]
        single = half or input.dtype == ir.DataType.FLOAT
        if single and own is not None and not projected:
            given = states if len(states) == 2 else states[0]
            results = own(x, given, weights, has_biases, num_layers, dropout, train, bidirectional, batch_first)
        else:
            step = operator if single and operator is not None else _scan(by_step)
            results = _layers(x, states, weights, has_biases, num_layers, bidirectional, batch_first, step)
        return tuple(op.CastLike(result, input) for result in results) if half else results

    return translation


def _to_float32(x: Any, states: list[Any], params: Sequence[Any]) -> tuple[Any, list[Any], list[Any]]:
    single = [op.Cast(value, to=ir.DataType.FLOAT) for value in (x, *states, *params)]
    for value, source in zip(single, (x, *states, *params), strict=True):
        value.shape, value.dtype = source.shape, ir.DataType.FLOAT
    return single[0], single[1 : 1 + len(states)], single[1 + len(states) :]


RECURRENT_TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    aten.lstm.input: _recurrent(None, _lstm_steps, _TORCH_LSTM.func),
    aten.gru.input: _recurrent(None, _gru_steps, _TORCH_GRU.func),
    aten.rnn_tanh.input: _recurrent(_rnn_operator("Tanh"), _rnn_steps(steps.RNN_TANH)),
    aten.rnn_relu.input: _recurrent(_rnn_operator("Relu"), _rnn_steps(steps.RNN_RELU)),
}
"""Operator -> onnxscript function, in the form ``torch.onnx.export(custom_translation_table=)`` takes."""
