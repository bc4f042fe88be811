"""What the clean-up passes look for, drawn at random, with all that is nearly it: steps of random programs."""

from __future__ import annotations

import operator

import torch
from torch import fx

from fxexport.testing import Draft
from fxexport.testing.draft import shape_of
from fxexport.testing.layers import LAYERS

aten = torch.ops.aten


def of_weights(d: Draft) -> fx.Node:
    w = d.constant([3, 4])
    return d.call(aten.mul.Tensor, d.call(aten.add.Tensor, w, d.pick([1.0, 2, w])), d.pick([1, 0.5]))


def there_and_back(d: Draft) -> fx.Node:
    x = d.tensor("float", range(2, 5))
    axes = d.axis(x), d.axis(x)
    y = d.call(d.pick([aten.relu.default, aten.neg.default]), d.call(aten.transpose.int, x, *axes))
    return d.call(aten.transpose.int, d.call(aten.mul.Tensor, y, d.pick([2, 1, 0.5])), *axes[:: d.pick([1, -1])])


def cut_and_joined(d: Draft) -> fx.Node:
    x = d.tensor("any", range(1, 4))
    axis, at = d.axis(x), d.pick([1, 2, 0, -1])
    end = d.pick([at, at, at + 1])
    first = d.call(aten.slice.Tensor, x, axis, 0, end)
    return d.call(aten.cat.default, [first, d.call(aten.slice.Tensor, x, axis, at, 2**63 - 1)], axis)


def joined_and_cut(d: Draft) -> fx.Node:
    x = d.tensor("float", range(1, 4))
    axis = d.axis(x)
    both = d.call(aten.cat.default, [x, d.call(aten.sin.default, x)], axis)
    return d.call(aten.slice.Tensor, both, axis, *d.pick([(d.size(x, axis), 2**63 - 1), (0, d.size(x, axis)), (1, 3)]))


def converted_twice(d: Draft) -> fx.Node:
    x = d.tensor("any")
    dtypes = [torch.float32, torch.float64, torch.int64, torch.float16, torch.bool]
    return d.call(aten._to_copy.default, d.call(aten._to_copy.default, x, dtype=d.pick(dtypes)), dtype=d.pick(dtypes))


def twice(d: Draft) -> fx.Node:
    x = d.tensor("float")
    same = [d.call(aten.exp.default, d.call(aten.sigmoid.default, x)) for _ in range(2)]
    return d.call(aten.sub.Tensor, *same)


def neutral(d: Draft) -> fx.Node:
    x = d.tensor("number")
    y = d.call(aten.mul.Tensor, x, d.pick([1, 1.0]))
    return d.call(d.pick([aten.sub.Tensor, aten.add.Tensor]), y, d.pick([0, 0.0, -0.0]))


def reshaped_twice(d: Draft) -> fx.Node:
    x = d.tensor("any", range(1, 5))
    sizes = [d.size(x, axis) for axis in range(len(x.meta["val"].shape))]
    flat = d.call(aten.reshape.default, x, d.pick([[-1], [1, *sizes], [*sizes, 1]]))
    return d.call(aten.reshape.default, flat, d.pick([sizes, [-1], [sizes[0], -1]]))


def with_a_size(d: Draft) -> fx.Node:
    x = d.tensor("any", range(1, 5))
    axis = d.axis(x) % len(shape_of(x))
    size = d.size(d.call(aten.clone.default, x), axis)
    if isinstance(size, fx.Node):
        size = d.call(operator.floordiv, d.call(operator.mul, size, 4), d.pick([4, 2, 8]))
    sizes = [d.size(x, each) for each in range(len(shape_of(x)))]
    return d.call(aten.reshape.default, x, [*sizes[:axis], size, d.pick([1, 2, -1]), *sizes[axis + 1 :]])


def scaled_layer(d: Draft) -> fx.Node:
    y = LAYERS[d.pick(["linear", "conv"])](d)
    assert isinstance(y, fx.Node)
    channels = [shape_of(y)[-1]] if y.target is aten.linear.default else [shape_of(y)[1], *[1] * (len(shape_of(y)) - 2)]
    return d.call(d.pick([aten.mul.Tensor, aten.add.Tensor]), y, d.pick([d.constant(channels), 2.0]))


LEFTOVERS = {
    **{of_weights: 8, there_and_back: 6, neutral: 4, cut_and_joined: 5, joined_and_cut: 5, converted_twice: 6},
    **{twice: 3, reshaped_twice: 6, with_a_size: 5, scaled_layer: 5},
}
"""Step -> how often it is drawn."""
