"""Running products, maxima, minima and log-sums along an axis of open size, as a Scan in ONNX.

cumprod(x, dim)  ->  Transpose, Scan(h = h * x), Transpose        the others likewise
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, Union

import onnx_ir as ir
from onnxscript import DOUBLE, FLOAT, INT32, INT64, graph, opset18, script
from torch import ops

aten: Any = ops.aten
op: Any = opset18
_Number = TypeVar("_Number", bound=Union[FLOAT, DOUBLE, INT32, INT64])  # noqa: UP007 - as onnxscript reads it
_Place = TypeVar("_Place", bound=Union[INT32, INT64])  # noqa: UP007


@script()
def _products(x: _Number, first: _Number) -> tuple[_Number, _Number]:
    @graph()
    def body(h: _Number, x: _Number) -> tuple[_Number, _Number]:
        both = op.Mul(h, x)
        return both, op.Identity(both)

    last, y = op.Scan(first, x, body=body, num_scan_inputs=1)
    return y, last


@script()
def _log_sums(x: _Number, first: _Number) -> tuple[_Number, _Number]:
    """``larger + log(1 + exp(smaller - larger))``; of two equal infinities the difference is no number."""

    @graph()
    def body(h: _Number, x: _Number) -> tuple[_Number, _Number]:
        larger = op.Where(op.Less(h, x), x, h)
        smaller = op.Where(op.Less(h, x), h, x)
        one = op.CastLike(op.Constant(value_float=1.0), x)
        both = op.Add(larger, op.Log(op.Add(one, op.Exp(op.Sub(smaller, larger)))))
        both = op.Where(op.Equal(larger, smaller), op.Where(op.IsInf(op.Cast(larger, to=1)), larger, both), both)
        return both, op.Identity(both)

    last, y = op.Scan(first, x, body=body, num_scan_inputs=1)
    return y, last


@script()
def _maxima(x: _Number, places: _Place, first: _Number, place: _Place) -> tuple[_Number, _Place, _Number, _Place]:
    """The last of equal ones; NaN from where one is."""

    @graph()
    def body(h: _Number, k: _Place, x: _Number, place: _Place) -> tuple[_Number, _Place, _Number, _Place]:
        keep = op.Or(op.GreaterOrEqual(x, h), op.Not(op.Equal(x, x)))
        best = op.Where(keep, x, h)
        where = op.Where(keep, place, k)
        return best, where, op.Identity(best), op.Identity(where)

    last, last_place, y, found = op.Scan(first, place, x, places, body=body, num_scan_inputs=2)
    return y, found, last, last_place


@script()
def _minima(x: _Number, places: _Place, first: _Number, place: _Place) -> tuple[_Number, _Place, _Number, _Place]:
    """The last of equal ones; NaN from where one is."""

    @graph()
    def body(h: _Number, k: _Place, x: _Number, place: _Place) -> tuple[_Number, _Place, _Number, _Place]:
        keep = op.Or(op.LessOrEqual(x, h), op.Not(op.Equal(x, x)))
        best = op.Where(keep, x, h)
        where = op.Where(keep, place, k)
        return best, where, op.Identity(best), op.Identity(where)

    last, last_place, y, found = op.Scan(first, place, x, places, body=body, num_scan_inputs=2)
    return y, found, last, last_place


def _in_front(x: Any, dim: int) -> tuple[Any, list[int]]:
    """``x`` with its axis ``dim`` first; the order that undoes that is the same."""
    rank = len(x.shape)
    order = list(range(rank))
    order[0], order[dim % rank] = dim % rank, 0
    return op.Transpose(x, perm=order), order


def _filled(x: Any, value: float) -> Any:
    """The shape of one entry of ``x``, full of ``value``."""
    shape = op.Slice(op.Shape(x), [1], [2**31])
    return op.CastLike(op.ConstantOfShape(shape, value=ir.tensor([value])), x)


def _folded(scan: Any, start: float) -> Callable[..., Any]:
    def translation(self: Any, dim: int, dtype: int = -1) -> Any:
        if dtype != -1:
            self = op.Cast(self, to=dtype)
        x, back = _in_front(self, dim)
        return op.Transpose(scan(x, _filled(x, start))[0], perm=back)

    return translation


def _best(scan: Any) -> Callable[..., Any]:
    def translation(self: Any, dim: int) -> Any:
        x, back = _in_front(self, dim)
        count = op.Slice(op.Shape(x), [0], [1])
        places = op.Range(0, op.Squeeze(count), 1)
        for _ in back[1:]:
            places = op.Unsqueeze(places, [-1])
        places = op.Expand(places, op.Shape(x))
        first, place = (op.Squeeze(op.Slice(each, [0], [1], [0]), [0]) for each in (x, places))
        values, found, *_ = scan(x, places, first, place)
        return op.Transpose(values, perm=back), op.Transpose(found, perm=back)

    return translation


RUNNING_TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    aten.cumprod.default: _folded(_products, 1.0),
    aten.logcumsumexp.default: _folded(_log_sums, float("-inf")),
    aten.cummax.default: _best(_maxima),
    aten.cummin.default: _best(_minima),
}
"""Operator -> onnxscript function, in the form ``torch.onnx.export(custom_translation_table=)`` takes."""
