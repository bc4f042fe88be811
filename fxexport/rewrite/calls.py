"""A call as its operator and arguments in one normal form, whichever spelling the graph has."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from fxexport.rewrite.base import parameters

aten = torch.ops.aten

# In a functional graph these compute the same: nothing can see whether memory is shared.
_RESHAPES = (
    *(aten.reshape.default, aten.view.default, aten._unsafe_view.default),
    *(aten.flatten.using_ints, aten.unflatten.int, aten.unsqueeze.default),
    *(aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.ravel.default),
)
_PERMUTATIONS = (
    *(aten.permute.default, aten.transpose.int, aten.t.default, aten.numpy_T.default, aten.mT.default),
    *(aten.swapaxes.default, aten.swapdims.default, aten.movedim.int, aten.movedim.intlist),
    *(aten.moveaxis.int, aten.moveaxis.intlist),
)
_ALIASES = {
    **{
        aten.multiply.Tensor: aten.mul.Tensor,
        aten.subtract.Tensor: aten.sub.Tensor,
        aten.negative.default: aten.neg.default,
    },
    **{
        aten.divide.Tensor: aten.div.Tensor,
        aten.true_divide.Tensor: aten.div.Tensor,
        aten.clip.default: aten.clamp.default,
    },
    **{aten.absolute.default: aten.abs.default, aten.special_expit.default: aten.sigmoid.default},
    **{aten.concat.default: aten.cat.default, aten.concatenate.default: aten.cat.default},
    **{aten.max.other: aten.maximum.default, aten.min.other: aten.minimum.default},
}
_NORMAL = {
    **_ALIASES,
    **dict.fromkeys(_RESHAPES, aten.reshape.default),
    **dict.fromkeys(_PERMUTATIONS, aten.permute.default),
}
# The argument that says no more than the shape of the result: [-1, 768] and [batch * time, 768] may be the same.
SHAPE_ARGUMENT = {aten.reshape.default: 1, aten.expand.default: 1}
# The argument whose normal form depends on the rank.
RANK_ARGUMENT = {aten.permute.default: 1}
_WITHOUT_SHAPE = frozenset(_RESHAPES[3:])
COMMUTATIVE = {
    *(aten.add.Tensor, aten.mul.Tensor, aten.maximum.default, aten.minimum.default, aten.fmax.default),
    *(aten.fmin.default, aten.eq.Tensor, aten.ne.Tensor, aten.logical_and.default, aten.logical_or.default),
    *(aten.logical_xor.default, aten.bitwise_and.Tensor, aten.bitwise_or.Tensor, aten.bitwise_xor.Tensor),
}
_DIMENSIONS = {"dim", "dims", "dim0", "dim1", "start_dim", "end_dim"}
_ONE_MORE = {aten.stack.default, aten.diag_embed.default}
# Operators of several tensors whose dimensions are those of the first one.
_OF_THE_FIRST = {
    *(aten.gather.default, aten.index_select.default, aten.scatter.src, aten.scatter_add.default),
    *(aten.index_add.default, aten.index_copy.default, aten.masked_scatter.default),
}


def normal_target(target: Any) -> Any:
    """The operator that stands for ``target`` and all that compute the same."""
    return _NORMAL.get(target, target)


def spellings(target: Any) -> tuple[Any, ...]:
    """Every operator whose normal form is ``target``."""
    return tuple(dict.fromkeys([target, *(other for other, normal in _NORMAL.items() if normal == target)]))


def call_arguments(node: fx.Node) -> tuple[Any, ...]:
    """All arguments of a call in the order of its normal form's schema, defaults filled in."""
    if node.target in _PERMUTATIONS:
        return node.args[0], _permutation(node)
    if node.target in _WITHOUT_SHAPE:
        return node.args[0], list(node.meta["val"].shape)
    if not isinstance(node.target, OpOverload):
        return (*node.args, *(node.kwargs[key] for key in sorted(node.kwargs)))
    positional, defaults, _ = parameters(node.target)
    if not node.kwargs and len(node.args) == len(defaults):
        return node.args
    given = {**defaults, **dict(zip(positional, node.args, strict=False)), **node.kwargs}
    return tuple(given.values())


def _permutation(node: fx.Node) -> list[int]:
    source: Any = node.args[0]
    literals = tuple(tuple(value) if isinstance(value, list) else value for value in call_literals(node))
    return list(_permuted(node.target, source.meta["val"].dim(), literals))


def call_literals(node: fx.Node) -> list[Any]:
    """The arguments of a call after the first, as they stand in the graph."""
    return [*node.args[1:], *node.kwargs.values()]


@functools.lru_cache(maxsize=4096)
def _permuted(target: Any, rank: int, literals: tuple[Any, ...]) -> tuple[int, ...]:
    """Where each dimension of the result comes from, seen on a tensor whose sizes are all different."""
    result = target(torch.empty(list(range(2, rank + 2)), device="meta"), *literals)
    return tuple(size - 2 for size in result.shape)


def argument_name(target: Any, position: int) -> str:
    """The name of an argument in the operator's schema."""
    names = parameters(target)[2] if isinstance(target, OpOverload) else ()
    return names[position] if position < len(names) else f"argument {position}"


def same_dimensions(node: fx.Node, position: int, want: Any, have: Any) -> bool:
    """Whether two literals name the same dimensions of the tensor that ``node`` works on: -1 is 2 at rank 3."""
    if argument_name(node.target, position) not in _DIMENSIONS:
        return False
    if node.target == aten.norm_except_dim.default:  # -1 means: of everything
        return False
    first: Any = node.args[0] if node.args else None
    if len(node.all_input_nodes) > 1 and not isinstance(first, list | tuple) and node.target not in _OF_THE_FIRST:
        return False
    first = first[0] if isinstance(first, list | tuple) and first else first
    value = first.meta.get("val") if isinstance(first, fx.Node) else None
    if not isinstance(value, torch.Tensor):
        return False
    rank = value.dim() + (node.target in _ONE_MORE)
    left, right = _from_front(want, rank), _from_front(have, rank)
    return left is not None and left == right


def promotes(node: fx.Node) -> bool:
    """Whether the type of a number among the arguments can decide the dtype of the result: not beside a real tensor."""
    values = (used.meta.get("val") for used in node.all_input_nodes)
    return not any(isinstance(value, torch.Tensor) and value.is_floating_point() for value in values)


def _from_front(dims: Any, rank: int) -> Any:
    if isinstance(dims, list | tuple):
        return [_from_front(dim, rank) for dim in dims]
    whole = isinstance(dims, int) and not isinstance(dims, bool) and -rank <= dims < rank
    return dims % rank if whole else None


def seen_through(node: Any) -> Any:
    """``node``, or what it stands for where it is a call that changes nothing."""
    while isinstance(node, fx.Node) and node.op == "call_function" and is_transparent(node):
        node = node.args[0]
    return node


def is_transparent(node: fx.Node) -> bool:
    """Whether a call has the values, shape and dtype of its first argument: neither patterns nor programs mean it."""
    rule = _TRANSPARENT.get(node.target)
    return rule is not None and rule(node)


def _always(node: fx.Node) -> bool:
    return True


def _is_whole(node: fx.Node) -> bool:
    """``x[:]``, which captures write for every axis before the one that is sliced."""
    _, _, start, end, step = call_arguments(node)
    whole = end is None or (isinstance(end, int) and end >= sys.maxsize)
    return whole and start in (None, 0) and step == 1


def _keeps_kind(node: fx.Node) -> bool:
    source: Any = node.args[0]
    old, new = source.meta.get("val"), node.meta.get("val")
    if not isinstance(old, torch.Tensor) or not isinstance(new, torch.Tensor):
        return False
    return (old.dtype, old.device, old.layout) == (new.dtype, new.device, new.layout)


def _is_inactive(node: fx.Node) -> bool:
    return call_arguments(node)[2] is False


_TRANSPARENT: dict[Any, Callable[[fx.Node], bool]] = {
    **dict.fromkeys((aten.lift_fresh_copy.default, aten.detach.default, aten.detach_.default), _always),
    **dict.fromkeys((aten.alias.default, aten.contiguous.default, aten.clone.default), _always),
    **dict.fromkeys((aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten.to.other), _keeps_kind),
    aten._to_copy.default: _keeps_kind,
    **dict.fromkeys((aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default), _is_inactive),
    aten.slice.Tensor: _is_whole,
}
