"""Which ATen operators gain by fewer bits, which need float32 inside, and which only pass numbers on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.utils import _pytree as pytree


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Products: their sums run in float32 inside of every kernel in use, and they are where weights and time are.
PRODUCTS = _names(
    "linear matmul mm bmm mv dot addmm baddbmm addbmm addmv bilinear einsum convolution _convolution conv1d conv2d "
    "conv3d conv_transpose1d conv_transpose2d conv_transpose3d embedding scaled_dot_product_attention lstm gru "
    "rnn_tanh rnn_relu"
)
# Computed in float32: sums, quotients of small numbers and large powers. The result of the first kind is of moderate size
# whatever goes in, and is rounded afterwards; that of the second may be far out, and stays in float32.
_BOUNDED_INSIDE = _names(
    "softmax _softmax log_softmax _log_softmax batch_norm _native_batch_norm_legit_no_training layer_norm "
    "native_layer_norm rms_norm group_norm native_group_norm instance_norm sin cos cosine_similarity"
)
_WIDE = _names(
    "exp exp2 expm1 log log2 log10 log1p pow square reciprocal rsqrt sum mean var std var_mean std_mean cumsum cumprod "
    "prod norm logsumexp logcumsumexp logaddexp softplus cdist _cdist_forward dist stft istft grid_sampler "
    "grid_sampler_2d grid_sampler_3d nonzero item _local_scalar_dense"
)
_BOUNDED = _names("sigmoid tanh erf hardsigmoid hardtanh")
_MIXING = _names(
    "add sub rsub mul div true_divide floor_divide remainder fmod maximum minimum where atan2 addcmul addcdiv"
)
_FILLED = _names("full zeros ones scalar_tensor")


def name_of(node: fx.Node) -> str:
    """The operator's bare name: ``"layer_norm"``; '' for what is no operator of PyTorch's own."""
    target = node.target
    if not isinstance(target, OpOverload) or target.namespace != "aten":
        return ""
    return target._schema.name.removeprefix("aten::")


def is_product(node: fx.Node) -> bool:
    """Whether a call multiplies by weights or sums products."""
    return name_of(node) in PRODUCTS


def is_bounded(node: fx.Node) -> bool:
    """Whether the result is of moderate size whatever goes in."""
    return name_of(node) in _BOUNDED_INSIDE | _BOUNDED


def is_wide(node: fx.Node) -> bool:
    """Whether a call must run in float32: by its operator, since it says so, or since it is nothing that we know."""
    name = name_of(node)
    if (
        not name
        or name in _BOUNDED_INSIDE | _WIDE
        or name.startswith(("fft_", "_fft", "linalg_", "_linalg", "view_as"))
    ):
        return True
    if node.meta.get("unbacked_bindings") or node.target == torch.ops.aten.view.dtype:
        return True
    leaves = pytree.tree_leaves((node.args, node.kwargs))
    squares = name == "mul" and len(node.all_input_nodes) == 1 and leaves[0] is leaves[1]
    return squares or torch.float32 in leaves or any(t.is_complex() for t in tensors_of(node))


def is_filled(node: fx.Node) -> bool:
    """Whether a call only writes a number that its arguments hold, or turns True and False into 1 and 0."""
    if name_of(node) in _FILLED:
        return True
    if name_of(node) not in ("_to_copy", "to"):
        return False
    sources = (operand.meta["val"] for operand in node.all_input_nodes)
    return all(isinstance(s, Tensor) and s.dtype == torch.bool for s in sources)


def mixes_integers(node: fx.Node) -> bool:
    """Whether integers that are not True and False become numbers of the result."""
    values = [operand.meta.get("val") for operand in node.all_input_nodes]
    whole = (v for v in values if isinstance(v, Tensor) and not v.dtype.is_floating_point and not v.dtype.is_complex)
    return name_of(node) in _MIXING and any(v.dtype != torch.bool for v in whole)


def tensors_of(node: fx.Node) -> Iterator[Tensor]:
    """The (fake) tensors among operands and results."""
    values = [*(operand.meta.get("val") for operand in node.all_input_nodes), node.meta.get("val")]
    return (leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor))


def numbers_beyond(node: fx.Node, dtype: torch.dtype) -> list[float]:
    """Python numbers among the arguments that ``dtype`` cannot hold: too large, or so small that they become zero."""
    info = torch.finfo(dtype)
    given: list[Any] = [leaf for leaf in pytree.tree_leaves((node.args, node.kwargs)) if isinstance(leaf, float)]
    return [x for x in given if math.isfinite(x) and (abs(x) > info.max or 0 < abs(x) < info.tiny)]
