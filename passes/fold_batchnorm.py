"""Batch normalization by fixed statistics is a multiply and an add per channel: move it into the weights."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from fxexport.program import Program, module_path
from fxexport.rewrite import Pass, PassResult, arguments

aten = torch.ops.aten
BATCHNORMS = (aten.batch_norm.default, aten._native_batch_norm_legit_no_training.default)
TRANSPOSED = (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
LAYERS = (
    *(aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.convolution.default, *TRANSPOSED),
    *(aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding, aten.linear.default),
)


@dataclass(frozen=True)
class FoldBatchnorm(Pass):
    """``layer . batch_norm -> layer'``, ``batch_norm . layer -> layer'``, or ``batch_norm -> mul . add``.

    A layer is a convolution, a transposed convolution (only before the batchnorm) or a linear layer. With
    fixed statistics ``scale = gamma / sqrt(var + eps)`` and ``shift = beta - mean * scale`` per channel
    (Ioffe & Szegedy 2015, arXiv:1502.03167, algorithm 2, line 11), so

    - the layer before gets ``W' = scale * W``, ``b' = scale * b + shift``: exact where nothing else reads its
      output;
    - the layer after (``into_next``) gets ``W' = W * scale``, ``b' = b + sum(W * shift)``: exact where
      nothing else reads the normalized value, and the layer pads with no zeros (a padded zero is not shifted)
      or ``shift`` is 0.

    Constants are computed in float64 and rounded once, to the dtype of the weight; a rounding that would lose
    them (overflow or subnormals in float16) is not done. No tensor of the model is written to: each call of a
    shared layer gets constants of its own. Batchnorm that uses the statistics of the batch, or computed ones,
    stays, with a note.
    """

    name: ClassVar[str] = "fold-batchnorm"
    default: ClassVar[bool] = True
    into_next: bool = True

    def run(self, program: Program) -> PassResult:
        """Replaces every batch normalization whose statistics are constants."""
        made: Made = {}
        rewrites = [_into_previous, *([_into_next] if self.into_next else []), _as_multiply_add]
        count, notes = 0, []
        for node in program.find(*BATCHNORMS):
            norm = _read(program, node)
            if isinstance(norm, _Norm) and any(rewrite(program, norm, made) for rewrite in rewrites):
                count += 1
                continue
            reason = norm if isinstance(norm, str) else "its scale is not finite, or too small for its dtype"
            notes.append(f"{node.name} in {module_path(node) or 'the model'} stays: {reason}")
        return PassResult(count, tuple(notes))


@dataclass(frozen=True)
class _Norm:
    """``result = source * scale + shift`` along axis 1; ``scale``, ``shift``: float64 of [channels]."""

    source: fx.Node
    result: fx.Node
    scale: Tensor
    shift: Tensor
    key: tuple[Hashable, ...]
    path: str


@dataclass(frozen=True)
class _Layer:
    """A call of a layer with constant weights, the channels of whose output are axis 1."""

    node: fx.Node
    call: dict[str, Any]
    weight: Tensor
    bias: Tensor | None
    transposed: bool

    def scaled(self, factor: Tensor, axis: int) -> tuple[Tensor, Tensor | None]:
        """``W * factor`` with ``factor`` along axis 1 or 2 of [groups, rows / group, columns, kernel].

        In float64 of that shape, and rounded in the shape and dtype of the weight (None where that loses it).
        """
        groups, (rows, columns) = self.call.get("groups", 1), self.weight.shape[:2]
        matrix = _double(self.weight).reshape(groups, rows // groups, columns, math.prod(self.weight.shape[2:]))
        exact = matrix * factor.reshape((groups, -1, 1, 1) if axis == 1 else (groups, 1, -1, 1))
        return exact, _rounded(exact, self.weight, (3 - axis, 3), self.weight.shape)

    def pads_zeros(self) -> bool:
        """Whether some output reads zeros that are not in the input."""
        padding = self.call.get("padding", [0])
        if isinstance(padding, str):
            return padding != "valid" and any(size != 1 for size in self.weight.shape[2:])
        return any(p != 0 for p in (padding if isinstance(padding, (list, tuple)) else [padding]))


Made = dict[tuple[Hashable, ...], list[fx.Node]]
"""Constants made so far, by what they were made of: two calls of the same pair of modules share theirs."""


def _into_previous(program: Program, norm: _Norm, made: Made) -> bool:
    layer = _read_layer(program, norm.source)
    if layer is None or len(_readers(norm.source)) != 1:
        return False

    def build() -> list[Tensor | None]:
        bias = norm.shift if layer.bias is None else norm.shift + norm.scale * _double(layer.bias)
        weight = layer.scaled(norm.scale, 2 if layer.transposed else 1)[1]
        return [weight, _rounded(bias, layer.weight, (0,), bias.shape)]

    new = _rebuild(program, layer, norm, build, made)
    if new is None:
        return False
    _replace(program, norm, new)
    program.replace(layer.node, new)
    return True


def _into_next(program: Program, norm: _Norm, made: Made) -> bool:
    readers = _readers(norm.result)
    layer = _read_layer(program, readers[0]) if len(readers) == 1 else None
    # The borders of a transposed convolution sum fewer taps: a constant input gives no constant.
    if layer is None or layer.transposed or (layer.pads_zeros() and bool(norm.shift.any())):
        return False

    def build() -> list[Tensor | None]:
        shift = layer.scaled(norm.shift, 2)[0].sum((2, 3)).flatten()
        bias = shift if layer.bias is None else shift + _double(layer.bias)
        return [layer.scaled(norm.scale, 2)[1], _rounded(bias, layer.weight, (0,), bias.shape)]

    new = _rebuild(program, layer, norm, build, made)
    if new is None:
        return False
    program.replace(layer.node, new)
    _replace(program, norm, norm.source)
    return True


def _as_multiply_add(program: Program, norm: _Norm, made: Made) -> bool:
    """float16 and bfloat16 are computed in float32, as batchnorm itself does."""
    value, x, before = norm.result.meta["val"], norm.source, norm.result
    narrow = value.dtype in (torch.float16, torch.bfloat16)
    like = torch.empty(0, dtype=torch.float32 if narrow else value.dtype, device=value.device)
    shape = (norm.scale.numel(), *(1 for _ in value.shape[2:]))

    def build() -> list[Tensor | None]:
        return [_rounded(norm.scale[:, None], like, (1,), shape), _rounded(norm.shift, like, (0,), shape)]

    names = [f"{norm.path}.scale", f"{norm.path}.shift"]
    constants = _constants(program, (*norm.key, like.dtype, shape), names, build, made)
    if constants is None:
        return False
    if narrow:
        x = program.insert(aten._to_copy.default, (x,), {"dtype": like.dtype}, before=before)
    x = program.insert(aten.mul.Tensor, (x, constants[0]), before=before)
    x = program.insert(aten.add.Tensor, (x, constants[1]), before=before)
    if narrow:
        x = program.insert(aten._to_copy.default, (x,), {"dtype": value.dtype}, before=before)
    _replace(program, norm, x)
    return True


# ---------------------------------------------------------------- reading


def _read(program: Program, node: fx.Node) -> _Norm | str:
    """What a batchnorm computes, or why that is not known before it runs."""
    call = arguments(node)
    if call.get("training"):
        return "it normalizes by the statistics of the batch"
    inputs = [call[key] for key in ("weight", "bias", "running_mean", "running_var")]
    found = [program.constant_value(n) for n in inputs]
    if any(n is not None and value is None for n, value in zip(inputs, found, strict=True)):
        return "its statistics or weights are computed"
    results = [node] if node.target == BATCHNORMS[0] else _readers(node)
    if len(results) != 1 or (results[0] is not node and results[0].args[1] != 0):
        return "its saved statistics are read"
    gamma, beta, mean, var = [None if value is None else _double(value) for value in found]
    if mean is None or var is None:
        return "it has no statistics of its own"
    scale = (torch.ones_like(var) if gamma is None else gamma) / torch.sqrt(var + call["eps"])
    shift = (0 if beta is None else beta) - mean * scale
    path = program.constant_name(call["running_mean"]).rpartition(".")[0] or "batchnorm"
    return _Norm(call["input"], results[0], scale, shift, (*inputs, call["eps"]), path)


def _read_layer(program: Program, node: fx.Node) -> _Layer | None:
    if node.target not in LAYERS:
        return None
    call = arguments(node)
    weight, bias = program.constant_value(call["weight"]), program.constant_value(call["bias"])
    # Without a batch axis, or for a linear layer on [batch, time, channels], axis 1 is not the channels.
    if weight is None or node.meta["val"].dim() != weight.dim() or (call["bias"] is not None and bias is None):
        return None
    return _Layer(node, call, weight, bias, node.target in TRANSPOSED or call.get("transposed", False))


def _readers(node: fx.Node) -> list[fx.Node]:
    """What reads ``node``; parts of its result that nothing reads do not count."""
    return [user for user in node.users if user.target is not operator.getitem or user.users]


# ---------------------------------------------------------------- editing


def _rebuild(
    program: Program, layer: _Layer, norm: _Norm, build: Callable[[], list[Tensor | None]], made: Made
) -> fx.Node | None:
    """``layer`` and ``norm`` as one call of the layer, with the weight and bias that ``build`` gives."""
    first = norm.source is layer.node
    path = program.constant_name(layer.call["weight"]).removesuffix("_folded")
    names = [f"{path}_folded", f"{path.removesuffix('weight')}bias_folded"]
    use = (first, layer.transposed, layer.call.get("groups", 1))
    key = (*norm.key, *use, layer.call["weight"], layer.call["bias"])
    constants = _constants(program, key, names, build, made)
    if constants is None:
        return None
    source = layer.call["input"] if first else norm.source
    args = {**layer.call, "input": source, "weight": constants[0], "bias": constants[1]}
    return program.insert(layer.node.target, tuple(args.values()), before=layer.node)  # type: ignore[arg-type]


def _constants(
    program: Program,
    key: tuple[Hashable, ...],
    names: list[str],
    build: Callable[[], list[Tensor | None]],
    made: Made,
) -> list[fx.Node] | None:
    if key not in made:
        values = [value for value in build() if value is not None]
        if len(values) != len(names):
            return None
        made[key] = [program.add_constant(name, value) for name, value in zip(names, values, strict=True)]
    return made[key]


def _replace(program: Program, norm: _Norm, new: fx.Node) -> None:
    node = norm.result
    call = node.args[0] if node.target is operator.getitem else None
    program.replace(node, new)
    if isinstance(call, fx.Node):
        for part in [*call.users, call]:
            program.graph.erase_node(part)


def _double(value: Tensor) -> Tensor:
    return value.detach().to("cpu", torch.float64)


def _rounded(exact: Tensor, like: Tensor, dims: tuple[int, ...], shape: Sequence[int]) -> Tensor | None:
    """``exact`` with dtype and device of ``like``; None where a channel (all axes but ``dims``) is lost."""
    rounded, limits = exact.to(like.dtype), torch.finfo(like.dtype)
    peak = torch.linalg.vector_norm(exact, math.inf, dims)
    if bool(((limits.tiny / limits.eps <= peak) & (peak <= limits.max)).all()):
        return rounded.to(like.device).reshape(*shape)  # far from where rounding loses a channel
    error, size = ((t.abs().sum(dims)) for t in (rounded.double() - exact, exact))
    kept = bool((error <= torch.finfo(like.dtype).eps * size).all())
    return rounded.to(like.device).reshape(*shape) if kept else None
