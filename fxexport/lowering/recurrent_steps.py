"""Recurrent cells over time as ONNX functions: a Scan whose body is one step.

``x`` is what the input contributes to the gates, ``[time, batch, gates * size]``; ``hidden`` the transposed hidden weight;
``split`` the shape ``[0, gates, -1]`` that takes gates apart. Each gives the outputs ``[time, batch, size]``, then the
final states ``[batch, size]``.
"""

from __future__ import annotations

from typing import Any, TypeVar, Union

from onnxscript import BFLOAT16, DOUBLE, FLOAT, FLOAT16, INT64, graph, opset18, script

_Float = TypeVar("_Float", bound=Union[FLOAT, FLOAT16, BFLOAT16, DOUBLE])  # noqa: UP007 - as onnxscript reads it
op: Any = opset18


@script()
def _projected_lstm(
    x: _Float, h: _Float, c: _Float, hidden: _Float, projection: _Float, split: INT64
) -> tuple[_Float, _Float, _Float]:
    @graph()
    def body(h: _Float, c: _Float, x: _Float) -> tuple[_Float, _Float, _Float]:
        gates = op.Reshape(op.Add(x, op.MatMul(h, hidden)), split)
        i, f = op.Sigmoid(op.Gather(gates, 0, axis=1)), op.Sigmoid(op.Gather(gates, 1, axis=1))
        g, o = op.Tanh(op.Gather(gates, 2, axis=1)), op.Sigmoid(op.Gather(gates, 3, axis=1))
        cell = op.Add(op.Mul(f, c), op.Mul(i, g))
        state = op.MatMul(op.Mul(o, op.Tanh(cell)), projection)
        return state, cell, op.Identity(state)

    last_h, last_c, y = op.Scan(h, c, x, body=body, num_scan_inputs=1)
    return y, last_h, last_c


@script()
def _lstm(x: _Float, h: _Float, c: _Float, hidden: _Float, split: INT64) -> tuple[_Float, _Float, _Float]:
    @graph()
    def body(h: _Float, c: _Float, x: _Float) -> tuple[_Float, _Float, _Float]:
        gates = op.Reshape(op.Add(x, op.MatMul(h, hidden)), split)
        i, f = op.Sigmoid(op.Gather(gates, 0, axis=1)), op.Sigmoid(op.Gather(gates, 1, axis=1))
        g, o = op.Tanh(op.Gather(gates, 2, axis=1)), op.Sigmoid(op.Gather(gates, 3, axis=1))
        cell = op.Add(op.Mul(f, c), op.Mul(i, g))
        state = op.Mul(o, op.Tanh(cell))
        return state, cell, op.Identity(state)

    last_h, last_c, y = op.Scan(h, c, x, body=body, num_scan_inputs=1)
    return y, last_h, last_c


@script()
def _gru(x: _Float, h: _Float, hidden: _Float, bias: _Float, split: INT64) -> tuple[_Float, _Float]:
    """``bias`` is the hidden one: the reset gate acts on it too."""

    @graph()
    def body(h: _Float, x: _Float) -> tuple[_Float, _Float]:
        given = op.Reshape(x, split)
        kept = op.Reshape(op.Add(op.MatMul(h, hidden), bias), split)
        r = op.Sigmoid(op.Add(op.Gather(given, 0, axis=1), op.Gather(kept, 0, axis=1)))
        z = op.Sigmoid(op.Add(op.Gather(given, 1, axis=1), op.Gather(kept, 1, axis=1)))
        new = op.Tanh(op.Add(op.Gather(given, 2, axis=1), op.Mul(r, op.Gather(kept, 2, axis=1))))
        state = op.Add(new, op.Mul(z, op.Sub(h, new)))
        return state, op.Identity(state)

    last, y = op.Scan(h, x, body=body, num_scan_inputs=1)
    return y, last


@script()
def _rnn_tanh(x: _Float, h: _Float, hidden: _Float) -> tuple[_Float, _Float]:
    @graph()
    def body(h: _Float, x: _Float) -> tuple[_Float, _Float]:
        state = op.Tanh(op.Add(x, op.MatMul(h, hidden)))
        return state, op.Identity(state)

    last, y = op.Scan(h, x, body=body, num_scan_inputs=1)
    return y, last


@script()
def _rnn_relu(x: _Float, h: _Float, hidden: _Float) -> tuple[_Float, _Float]:
    @graph()
    def body(h: _Float, x: _Float) -> tuple[_Float, _Float]:
        state = op.Relu(op.Add(x, op.MatMul(h, hidden)))
        return state, op.Identity(state)

    last, y = op.Scan(h, x, body=body, num_scan_inputs=1)
    return y, last


# onnxscript types a function as one that takes nothing.
LSTM: Any = _lstm
PROJECTED_LSTM: Any = _projected_lstm
GRU: Any = _gru
RNN_TANH: Any = _rnn_tanh
RNN_RELU: Any = _rnn_relu
