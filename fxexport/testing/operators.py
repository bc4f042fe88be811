"""The operators that random programs are made of: each draws its operands and options from a ``Draft``."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from fxexport.testing.draft import Draft, Refused, dtype_of, shape_of
from fxexport.testing.layers import LAYERS

aten = torch.ops.aten
Operator = Callable[[Draft], fx.Node | Sequence[fx.Node]]


def _unary(target: Any, kind: str = "float", *more: Any) -> Operator:
    return lambda d: d.call(target, d.tensor(kind), *more)


def _of_positive(target: Any) -> Operator:
    """Of numbers between 0 and 1; in a wild program of any number."""

    def make(d: Draft) -> fx.Node:
        x = d.tensor("float")
        return d.call(target, x if d.wild else d.call(aten.sigmoid.default, x))

    return make


def _maximum(d: Draft) -> fx.Node:
    x = d.tensor("number")
    return d.call(aten.maximum.default, x, d.pick([v for v in reversed(d.values) if dtype_of(v) == dtype_of(x)]))


def _binary(target: Any, kind: str = "number") -> Operator:
    def make(d: Draft) -> fx.Node:
        x = d.tensor(kind)
        return d.call(target, x, d.partner(x))

    return make


def _scaled_sum(target: Any) -> Operator:
    """``x + alpha * y``: not commutative."""

    def make(d: Draft) -> fx.Node:
        x = d.tensor("number")
        alpha = d.pick([2, -1, 3]) if dtype_of(x) == torch.int64 else d.pick([2, 0.5, -1.0])
        return d.call(target, x, d.partner(x), alpha=alpha)

    return make


def _compare(d: Draft) -> fx.Node:
    x = d.tensor("number")
    y = d.partner(x)
    name = d.pick(["gt", "le", "eq", "ne"])
    return d.call(getattr(getattr(aten, name), "Tensor" if isinstance(y, fx.Node) else "Scalar"), x, y)


def _power(d: Draft) -> fx.Node:
    x = d.tensor("number")
    return d.call(aten.pow.Tensor_Scalar, x, d.pick([2, 3, 2.0, 0.5, -1]))


def _where(d: Draft) -> fx.Node:
    x = d.tensor("number")
    return d.call(aten.where.self, d.call(aten.gt.Scalar, x, 0), x, d.pick([x, d.tensor("number")]))


def _masked_fill(d: Draft) -> fx.Node:
    x = d.tensor("float")
    mask = d.call(aten.lt.Scalar, x, d.pick([0.0, -1.0]))
    return d.call(aten.masked_fill.Scalar, x, mask, d.pick([0.0, -1e4, -math.inf]))


def _cast(d: Draft) -> fx.Node:
    x = d.tensor("any")
    dtype = d.pick([torch.float32, dtype_of(x), torch.float64, torch.int64, torch.bool])
    return d.call(aten.to.dtype, x, dtype)


def _copy(d: Draft) -> fx.Node:
    x = d.tensor("any")
    dtype = dtype_of(x)
    calls: list[Callable[[], fx.Node]] = [
        lambda: d.call(aten.clone.default, x),
        lambda: d.call(aten.contiguous.default, x),
        lambda: d.call(aten.detach.default, x),
        lambda: d.call(aten.alias.default, x),
        lambda: d.call(aten.to.dtype, x, dtype),
        lambda: d.call(aten.to.device, x, torch.device("cpu"), dtype),
        lambda: d.call(aten._to_copy.default, x, dtype=dtype),
        lambda: d.call(aten.lift_fresh_copy.default, x),
        lambda: d.call(aten.clone.default, x, memory_format=torch.contiguous_format),
    ]
    return d.pick(calls)()


# ---------------------------------------------------------------- shapes


def _transpose(d: Draft) -> fx.Node:
    x = d.tensor("any", range(1, 6))
    return d.call(aten.transpose.int, x, d.axis(x), d.axis(x))


def _permute(d: Draft) -> fx.Node:
    x = d.tensor("any", range(1, 6))
    rank = len(shape_of(x))
    order = [*range(rank - 1, -1, -1)], [*range(1, rank), 0], [*range(rank)], [*range(-rank, 0)]
    return d.call(aten.permute.default, x, d.pick(order))


def _reshape(d: Draft) -> fx.Node:
    """To one axis less, one more, the same, or two dimensions: with -1, or all sizes given."""
    x = d.tensor("any", range(1, 5))
    sizes = [d.size(x, i) for i in range(len(shape_of(x)))]
    forms = [[*sizes[:-1], -1], [-1], [*sizes, 1], [sizes[0], -1], sizes]
    if isinstance(sizes[-1], int) and sizes[-1] % 2 == 0:
        forms.append([*sizes[:-1], 2, sizes[-1] // 2])
    if len(sizes) > 1:
        forms.append([-1, *sizes[2:]])
    return d.call(d.pick([aten.view.default, aten.reshape.default]), x, d.pick(forms))


def _flatten(d: Draft) -> fx.Node:
    x = d.tensor("any", range(1, 6))
    return d.call(aten.flatten.using_ints, x, d.pick([0, 1, -1]), -1)


def _squeeze(d: Draft) -> fx.Node:
    x = d.tensor("any", range(1, 6))
    return d.call(aten.squeeze.dim, x, d.axis(x))


def _unsqueeze(d: Draft) -> fx.Node:
    x = d.tensor("any", range(0, 5))
    return d.call(aten.unsqueeze.default, x, d.pick([0, -1, 1]))


def _expand(d: Draft) -> fx.Node:
    """To the same shape, along an axis of size one, or with a new axis in front."""
    x = d.tensor("any", range(1, 5))
    kept = [-1] * len(shape_of(x))
    wider = [3 if size == 1 else -1 for size in shape_of(x)]
    return d.call(aten.expand.default, x, d.pick([kept, wider, [2, *kept]]))


def _slice(d: Draft) -> fx.Node:
    x = d.tensor("any", range(1, 6))
    start, end, step = d.pick([(0, 2**63 - 1, 1), (1, 2**63 - 1, 1), (0, -1, 1), (0, 2, 1), (-2, 1000, 1), (0, 100, 2)])
    return d.call(aten.slice.Tensor, x, d.axis(x), start, end, step)


def _select(d: Draft) -> fx.Node:
    x = d.tensor("any", range(1, 6))
    return d.call(aten.select.int, x, d.axis(x), d.pick([0, -1, 1]))


def _joined(target: Any) -> Operator:
    def make(d: Draft) -> fx.Node:
        x = d.tensor("any", range(1, 5))
        y = d.pick([v for v in reversed(d.values) if dtype_of(v) == dtype_of(x)])
        return d.call(target, d.pick([[x], [x, x], [x, y], [y, x, y]]), d.axis(x))

    return make


def _split(d: Draft) -> list[fx.Node]:
    x = d.tensor("any", range(1, 6))
    parts = d.call(d.pick([aten.split.Tensor, aten.chunk.default]), x, d.pick([2, 1, 3]), d.axis(x))
    count = len(parts.meta["val"])
    wanted = d.pick([[0], [*range(count)], [count - 1]])
    return [d.call(operator.getitem, parts, i) for i in wanted]


def _repeat(d: Draft) -> fx.Node:
    x = d.tensor("any", range(1, 5))
    once = [1] * len(shape_of(x))
    return d.call(d.pick([aten.repeat.default, aten.tile.default]), x, d.pick([once, [*once[:-1], 2], [2, *once]]))


def _flip(d: Draft) -> fx.Node:
    x = d.tensor("any", range(1, 6))
    return d.call(aten.flip.default, x, [d.axis(x)])


def _pad(d: Draft) -> fx.Node:
    x = d.tensor("float", range(1, 5))
    amount = d.pick([[0, 0], [1, 0], [0, 1], [1, -1], [0, 0, 0, 0]])
    return d.call(d.pick([aten.pad.default, aten.constant_pad_nd.default]), x, amount)


def _as_strided(d: Draft) -> fx.Node:
    """The first elements in memory: what a pass that moves memory must not change."""
    x = d.tensor("float", range(1, 5))
    if not all(isinstance(size, int) for size in shape_of(x)) or not x.meta["val"].is_contiguous():
        raise Refused("needs a fixed layout")
    count = max(1, math.prod(shape_of(x)) // 2)
    return d.call(aten.as_strided.default, x, [count], [1])


# ---------------------------------------------------------------- reductions and others


def _reduction(target: Any) -> Operator:
    def make(d: Draft) -> fx.Node:
        x = d.tensor("float", range(1, 6))
        return d.call(target, x, [d.axis(x)], d.pick([False, True]))

    return make


def _along(target: Any, *more: Any) -> Operator:
    def make(d: Draft) -> fx.Node:
        x = d.tensor("float", range(1, 6))
        return d.call(target, x, d.axis(x), *more)

    return make


def _everything(d: Draft) -> fx.Node:
    x = d.tensor("bool")
    return d.call(d.pick([aten.all.default, aten.any.default]), x)


def _assertion(d: Draft) -> list[fx.Node]:
    x = d.tensor("number")
    if d.pick([False, True]):
        d.call(aten._assert_tensor_metadata.default, x, dtype=dtype_of(x))
        return []
    numbers = d.call(aten.all.default, d.call(aten.eq.Tensor, x, x))
    d.call(aten._assert_async.msg, numbers, "these are numbers")
    return []


GROUPS: dict[str, dict[str, Operator]] = {
    "elementwise": {
        **{
            n: _unary(getattr(aten, n).default)
            for n in ("relu", "sigmoid", "tanh", "neg", "abs", "sin", "silu", "gelu")
        },
        **{n: _unary(getattr(aten, n).default) for n in ("exp", "reciprocal", "floor", "erf")},
        **{"sqrt": _of_positive(aten.sqrt.default), "log": _of_positive(aten.log.default)},
        **{n: _binary(getattr(aten, n).Tensor) for n in ("add", "mul", "sub", "div")},
        **{"add_scaled": _scaled_sum(aten.add.Tensor), "sub_scaled": _scaled_sum(aten.sub.Tensor)},
        **{"maximum": _maximum, "pow": _power, "where": _where, "masked_fill": _masked_fill},
        **{"compare": _compare, "not": _unary(aten.logical_not.default, "any")},
    },
    "copies": {"cast": _cast, "copy": _copy},
    "shapes": {
        **{"transpose": _transpose, "permute": _permute, "reshape": _reshape, "flatten": _flatten},
        **{"squeeze": _squeeze, "unsqueeze": _unsqueeze, "expand": _expand, "slice": _slice, "select": _select},
        **{"cat": _joined(aten.cat.default), "stack": _joined(aten.stack.default), "split": _split},
        **{"repeat": _repeat, "flip": _flip, "pad": _pad, "as_strided": _as_strided},
    },
    "reductions": {
        **{
            "sum": _reduction(aten.sum.dim_IntList),
            "mean": _reduction(aten.mean.dim),
            "amax": _reduction(aten.amax.default),
        },
        **{"softmax": _along(aten.softmax.int), "cumsum": _along(aten.cumsum.default)},
        **{"argmax": _along(aten.argmax.default), "all": _everything},
    },
    "layers": LAYERS,
    "assertions": {"assert": _assertion},
}
"""Group -> name -> operator of random programs."""

OPERATORS: dict[str, Operator] = {name: make for group in GROUPS.values() for name, make in group.items()}
"""Name -> operator of random programs."""
