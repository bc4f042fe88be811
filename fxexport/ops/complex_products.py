"""Products of complex tensors: matrices, sums over letters, convolutions, along an axis."""

from __future__ import annotations

from typing import Any

import torch

from fxexport.ops.complex_call import Call, Result, Rule, multilinear
from fxexport.ops.complex_pair import Pair
from fxexport.ops.real_calls import Real

aten = torch.ops.aten


def product_of(*operands: str) -> Rule:
    """A rule for an operator that is linear in each of ``operands``."""
    return lambda call: _product(call, operands)


def _product(call: Call, operands: tuple[str, ...]) -> Pair:
    """An operator that is linear in each of ``operands``, on their parts."""

    def product(*parts: Real) -> Real:
        return call.site.call(call.node.target, *{**given, **dict(zip(operands, parts, strict=True))}.values())

    given = dict(call.args)
    return multilinear([call.pair(call.args[name]) for name in operands], product)


def einsum(call: Call) -> Result:
    pairs = [call.pair(operand) for operand in call.args["tensors"]]
    return multilinear(pairs, lambda *parts: call.site.call(aten.einsum.default, call.args["equation"], list(parts)))


def with_bias(call: Call) -> Result:
    """``linear`` and convolutions: the bias is added once, after the products."""
    weight: Any = call.args["weight"]
    operands = [call.pair(call.args["input"]), call.pair(weight)]
    rest = [value for name, value in call.args.items() if name not in ("input", "weight", "bias")]
    result = multilinear(operands, lambda x, w: call.site.call(call.node.target, x, w, None, *rest))
    if (bias := call.args["bias"]) is None:
        return result
    behind = max(weight.meta["val"].dim() - 2, 0)  # axes after the channels
    shaped = [
        part.call(aten.reshape.default, [-1, *[1] * behind]) if isinstance(part, Real) and behind else part
        for part in (call.pair(bias).real, call.pair(bias).imag)
    ]
    return result + Pair(*shaped)


def added_matmul(call: Call) -> Result:
    """``beta * self + alpha * (a @ b)``."""
    _, first, second = list(call.args)[:3]
    pairs = [call.pair(call.args[name]) for name in (first, second)]
    product = multilinear(pairs, lambda a, b: call.site.call(aten.matmul.default, a, b))
    alpha, beta = call.args["alpha"], call.args["beta"]
    product = product if alpha == 1 else product * call.pair(alpha)
    added = call.pair(call.args["self"])
    return (added if beta == 1 else added * call.pair(beta)) + product


def inner(call: Call) -> Result:
    """``vdot``: the first operand is conjugated."""
    first, second = (call.pair(call.args[name]) for name in ("self", "other"))
    return multilinear([first.conj(), second], lambda a, b: call.site.call(aten.dot.default, a, b))


def product_of_all(call: Call) -> Result:
    """The product along an axis of fixed size: halves times halves."""
    dim = call.args.get("dim")
    parts: list[Any] = [p for p in call.pair(call.args["self"]).whole()]
    if dim is None:
        dim, parts = 0, [part.call(aten.flatten.using_ints) for part in parts]
    size = parts[0].value.shape[dim]
    if not isinstance(size, int) or size == 0:
        return "the product along an axis of unknown size"
    z = Pair(*parts)
    while size > 1:
        half, odd = divmod(size, 2)
        pieces = [
            [part.call(aten.slice.Tensor, dim, start, start + count) for part in z.whole()]
            for start, count in ((0, half), (half, half), (2 * half, odd))
        ]
        z = Pair(*pieces[0]) * Pair(*pieces[1])
        if odd:
            z = Pair(
                *(
                    call.site.call(aten.cat.default, [part, rest], dim)
                    for part, rest in zip(z.whole(), pieces[2], strict=True)
                )
            )
        size = half + odd
    shape = (aten.squeeze.dim, dim) if not call.args.get("keepdim") else (aten.contiguous.default,)
    return Pair(*(part.call(*shape) for part in z.whole()))
