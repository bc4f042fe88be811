"""A value found in the cache is the value that the operator itself gives, whatever its arguments."""

from __future__ import annotations

import copy
import operator

import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxexport.capture import capture
from fxexport.program import Program
from fxexport.value_cache import ValueCache

aten = torch.ops.aten


class Net(nn.Module):
    """Pairs of tensors of one form (x and y, i and j), so that the second call can be answered from the first."""

    def forward(self, x: Tensor, y: Tensor, i: Tensor, j: Tensor) -> tuple[Tensor, ...]:
        return x + y, i + j


@pytest.fixture(scope="module")
def captured() -> Program:
    x, i = torch.randn(3, 5, 4), torch.arange(6).reshape(2, 3)
    dynamic = {name: {0: "batch", 1: "length"} for name in "xy"}
    return capture(Net(), (x, x.clone(), i, i.clone()), dynamic=dynamic)


@pytest.fixture
def program(captured: Program) -> Program:
    return captured.clone()


def call(program: Program, target, args, kwargs=None) -> fx.Node:
    return program.insert(target, args, kwargs, before=program.graph.output_node())


def plain(program: Program, node: fx.Node):
    """The value without any memory of earlier calls."""
    return ValueCache(program.fake_mode).value(node)


def describe(value) -> list[object]:
    leaves, form = pytree.tree_flatten(value)
    return [form, *map(_describe_leaf, leaves)]


def _describe_leaf(leaf) -> object:
    if not isinstance(leaf, Tensor):
        return type(leaf), str(leaf)
    sizes = [str(s) for s in (*leaf.shape, *leaf.stride(), leaf.storage_offset())]
    return type(leaf), leaf.dtype, leaf.device, leaf.layout, leaf.requires_grad, sizes


FLOAT_CALLS = [
    (aten.relu.default, ()),
    *[
        (op, (number,))
        for op in (aten.add.Tensor, aten.mul.Scalar, aten.pow.Tensor_Scalar)
        for number in (1, 1.0, True)
    ],
    (aten.eq.Scalar, (0.0,)),
    (aten.transpose.int, (0, 1)),
    (aten.permute.default, ([2, 0, 1],)),
    (aten.unsqueeze.default, (-1,)),
    (aten.slice.Tensor, (1, 1, 3)),
    (aten.slice.Tensor, (1, 1, 9223372036854775807)),
    (aten.select.int, (0, 0)),
    (aten.expand.default, ([2, -1, -1, -1],)),
    (aten.view.default, ([-1, 4],)),
    (aten.reshape.default, ([-1, 2, 2],)),
    (aten.flatten.using_ints, (0, 1)),
    (aten.sum.dim_IntList, ([1], False)),
    (aten.sum.dim_IntList, ([1], True)),
    (aten.mean.dim, ([0, -1],)),
    (aten.max.dim, (1,)),
    (aten.topk.default, (2,)),
    (aten.split.Tensor, (2, 2)),
    (aten.argmax.default, ()),
    (aten.argmax.default, (-1,)),
    (aten.to.dtype, (torch.float64,)),
    (aten.to.dtype, (torch.int32,)),
    (aten.to.dtype, (torch.float32,)),
    (aten.softmax.int, (-1,)),
    (aten.softmax.int, (-1, torch.float64)),
    (aten.layer_norm.default, ([4],)),
    (aten.sym_size.int, (0,)),
    (aten.sym_size.int, (2,)),
    (aten.contiguous.default, ()),
    (aten.clone.default, ()),
    (aten.pad.default, ([1, 1, 0, 2],)),
    (aten.cumsum.default, (1,)),
    (aten.bernoulli.p, (0.5,)),
]
WHOLE_CALLS = [
    *[(op, (number,)) for op in (aten.add.Tensor, aten.mul.Tensor, aten.sub.Tensor) for number in (2, 2.0, True)],
    *[(aten.div.Tensor, (number,)) for number in (2, 2.0)],
    (aten.sum.default, ()),
    (aten.bitwise_and.Scalar, (1,)),
    (aten.one_hot.default, (6,)),
    (aten.where.ScalarOther, ()),
]


def _check_pair(program: Program, target, first: fx.Node, second: fx.Node, rest) -> None:
    if target is aten.where.ScalarOther:
        first, second, rest = call(program, aten.gt.Scalar, (first, 0)), call(program, aten.gt.Scalar, (second, 0)), ()
        calls = [call(program, target, (mask, program.input_nodes[2], 1)) for mask in (first, second)]
    else:
        calls = [call(program, target, (node, *rest)) for node in (first, second)]
    for made in calls:
        assert describe(made.meta["val"]) == describe(plain(program, made))


def test_calls_agree_with_plain_propagation(program: Program) -> None:
    """One cache for all calls, so that a key that says too little mixes up two of them."""
    x, y, i, j = program.input_nodes
    tanh = [call(program, aten.tanh.default, (node,)) for node in (x, y)]
    turned = [call(program, aten.transpose.int, (node, 0, 1)) for node in tanh]
    for target, rest in FLOAT_CALLS:
        _check_pair(program, target, *tanh, rest)
    for target, rest in FLOAT_CALLS:
        if target is not aten.view.default:  # which needs other strides
            _check_pair(program, target, *turned, rest)
    for target, rest in WHOLE_CALLS:
        _check_pair(program, target, i, j, rest)


def test_calls_of_one_form_share_one_value(program: Program) -> None:
    x, y, *_ = program.input_nodes
    first, second = (call(program, aten.add.Tensor, (node, 1.0)) for node in (x, y))
    assert first.meta["val"] is second.meta["val"]
    twin = program.clone()
    assert call(twin, aten.add.Tensor, (twin.input_nodes[1], 1.0)).meta["val"] is first.meta["val"]


@pytest.mark.parametrize(("one", "other"), [(1, 1.0), (1, True), (1.0, True), (0.0, -0.0), ([1], (1,)), (None, 0)])
def test_keys_differ_where_the_arguments_do(program: Program, one, other) -> None:
    cache = program._values
    assert cache._sign(one) != cache._sign(other)
    assert cache._sign(one) == cache._sign(copy.copy(one))


def test_nan_is_one_key(program: Program) -> None:
    assert program._values._sign(float("nan")) == program._values._sign(float("nan"))


def test_forms_differ_in_strides_offset_and_gradient(program: Program) -> None:
    with program.fake_mode:
        base = torch.empty(4, 4)
        forms = [base, base.t(), base[1:, 1:], torch.empty(3, 3), base.double(), torch.empty(4, 4, requires_grad=True)]
        forms += [torch.empty(16)[:8], torch.empty(8), torch.empty(4, 4, dtype=torch.complex64).conj()]
        equal = torch.empty(4, 4)
    numbers = [program._values._sign(tensor) for tensor in forms]
    assert len(set(numbers)) == len(forms)
    assert program._values._sign(equal) == numbers[0]


def test_symbolic_sizes_are_arguments_by_expression(program: Program) -> None:
    x, y, *_ = program.input_nodes
    batch, length = (call(program, aten.sym_size.int, (x, dim)) for dim in (0, 1))
    again = call(program, aten.sym_size.int, (y, 0))
    ones = [call(program, aten.ones.default, ([size, 2],)) for size in (batch, length, again)]
    assert ones[0].meta["val"] is ones[2].meta["val"]
    assert describe(ones[0].meta["val"]) != describe(ones[1].meta["val"])
    doubled = [call(program, operator.mul, (size, 2)) for size in (batch, length)]
    assert [str(n.meta["val"]) for n in doubled] == [str(n.meta["val"] * 2) for n in (batch, length)]


def test_two_tensors_of_one_form_have_unknown_sizes_of_their_own(program: Program) -> None:
    """How many elements are not zero is not a matter of form: each tensor has a number of its own."""
    x, y, *_ = program.input_nodes
    masks = [call(program, aten.gt.Scalar, (node, 0)) for node in (x, y)]
    assert masks[0].meta["val"] is masks[1].meta["val"]
    counts = [call(program, aten.nonzero.default, (mask,)).meta["val"].shape[0] for mask in masks]
    assert str(counts[0]) != str(counts[1])
    again = call(program, aten.nonzero.default, (masks[0],)).meta["val"].shape[0]
    assert str(again) == str(counts[0])
    items = [call(program, aten.item.default, (call(program, aten.sum.default, (n,)),)) for n in (x, y)]
    assert str(items[0].meta["val"]) != str(items[1].meta["val"])


def test_the_default_dtype_and_autocast_are_seen(program: Program) -> None:
    x, _, i, _ = program.input_nodes
    args = (i, 2)
    assert call(program, aten.div.Tensor, args).meta["val"].dtype == torch.float32
    torch.set_default_dtype(torch.float64)
    try:
        assert call(program, aten.div.Tensor, args).meta["val"].dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    turned = call(program, aten.transpose.int, (x, 1, 2))
    assert call(program, aten.matmul.default, (x, turned)).meta["val"].dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert call(program, aten.matmul.default, (x, turned)).meta["val"].dtype == torch.bfloat16
    assert call(program, aten.matmul.default, (x, turned)).meta["val"].dtype == torch.float32


def test_an_argument_returned_as_it_is_stays_with_its_node(program: Program) -> None:
    x, y, *_ = program.input_nodes
    assert call(program, aten.contiguous.default, (x,)).meta["val"] is not y.meta["val"]
    assert call(program, aten.contiguous.default, (y,)).meta["val"] is not x.meta["val"]
