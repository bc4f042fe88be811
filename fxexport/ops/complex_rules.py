"""What becomes of each operator on complex numbers: element by element, comparisons, products, casts, constants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from fxexport.ops import complex_pair as cp
from fxexport.ops.complex_call import PARTS, Call, Result, Rule
from fxexport.ops.complex_pair import Pair
from fxexport.ops.real_calls import Real
from fxexport.rewrite.calls import seen_through

aten = torch.ops.aten


def of_one(compute: Callable[[Pair], Result]) -> Rule:
    """A rule for an operator of one argument."""
    return lambda call: compute(call.pair(call.args["self"]))


def of_two(compute: Callable[[Pair, Pair], Result]) -> Rule:
    """A rule for an operator of two arguments, each of which may be real or a number."""
    return lambda call: compute(*(call.pair(value) for value in list(call.args.values())[:2]))


# ---------------------------------------------------------------- element by element


def total(call: Call, *, sign: int) -> Result:
    left, right = (call.pair(value) for value in list(call.args.values())[:2])
    right = right if (alpha := call.args["alpha"]) == 1 else right * call.pair(alpha)
    return left + right if sign > 0 else left - right


def reversed_difference(call: Call) -> Result:
    subtracted = call.pair(call.args["self"])
    subtracted = subtracted if call.args["alpha"] == 1 else subtracted * call.pair(call.args["alpha"])
    return call.pair(call.args["other"]) - subtracted


def quotient(call: Call) -> Result:
    if call.args.get("rounding_mode") is not None:
        return "a rounded quotient"
    return call.pair(call.args["self"]) / call.pair(call.args["other"])


def power(call: Call) -> Result:
    base, exponent = (call.pair(value) for value in list(call.args.values())[:2])
    if isinstance(base.real, Real) or isinstance(base.imag, Real):
        return cp.power(base, exponent)
    logarithm = torch.tensor(complex(base.real, base.imag), dtype=torch.complex128).log().item()
    return cp.exponential(exponent * Pair(logarithm.real, logarithm.imag))


def added_product(call: Call) -> Result:
    first, second = call.pair(call.args["tensor1"]), call.pair(call.args["tensor2"])
    change = first * second if call.node.target.overloadpacket is aten.addcmul else first / second  # type: ignore[union-attr]
    return call.pair(call.args["self"]) + change * call.pair(call.args["value"])


def sigmoid(z: Pair) -> Pair:
    half = cp.hyperbolic_tangent(z.scaled(0.5))
    return Pair((half.real + 1.0) * 0.5, half.imag * 0.5)


def tangent(z: Pair) -> Pair:
    return -cp.by_i(cp.hyperbolic_tangent(cp.by_i(z)))


def compared(call: Call, combine: Any, packet: Any) -> Result:
    left, right = (call.pair(value) for value in list(call.args.values())[:2])
    if not any(isinstance(part, Real) for part in (left.real, left.imag)):
        left, right = right, left
    a, b = left.whole()
    return a.call(packet, right.real).call(combine, b.call(packet, right.imag))


def tested(z: Pair, operator: Any, combine: Any) -> Real:
    a, b = (part.call(operator) for part in z.whole())
    return a.call(combine, b)


def is_true(z: Pair) -> Real:
    """Where ``z`` is not zero."""
    a, b = (part.call(aten.ne.Scalar, 0) for part in z.whole())
    return a.call(aten.logical_or.default, b)


def as_truth(call: Call) -> Result:
    """``any``, ``all``, ``logical_not``...: the operator on where its arguments are not zero."""

    def plain(value: Any) -> Any:
        is_tensor = isinstance(value, fx.Node) and isinstance(value.meta["val"], Tensor)
        return is_true(call.pair(value)) if is_tensor and value.meta["val"].is_complex() else value

    return call.site.call(call.node.target, *map(plain, call.node.args), **call.node.kwargs)


# ---------------------------------------------------------------- real and complex


def cast(call: Call) -> Result:
    """Casts of either side to the other one, and between precisions."""
    source: fx.Node = call.args["self"]
    old, new = source.meta["val"], call.value
    pair = call.pair(source)
    if new.dtype == torch.bool:
        return is_true(pair)
    dtype = PARTS.get(new.dtype, new.dtype)

    def cast_part(part: Any) -> Any:
        if not isinstance(part, Real) or (part.value.dtype == dtype and old.device == new.device):
            return part
        return (
            part.to(dtype)
            if old.device == new.device
            else part.call(aten._to_copy.default, dtype=dtype, device=new.device)
        )

    if new.is_complex():
        return Pair(cast_part(pair.real), cast_part(pair.imag))
    real: Real = cast_part(pair.whole()[0])
    return real


def as_bits(call: Call) -> Result:
    """``z.view(torch.float32)``, whose last axis has both parts in turn, and back."""
    old, new = call.args["self"].meta["val"].dtype, call.value.dtype
    if PARTS.get(old) == new:
        return stacked(call).call(aten.flatten.using_ints, -2, -1)
    if PARTS.get(new) == old:
        x = call.real("self")
        return Pair(*(x.call(aten.slice.Tensor, -1, start, None, 2) for start in (0, 1)))
    return "a view of its bits"


def stacked(call: Call) -> Real:
    return call.site.call(aten.stack.default, list(call.pair(call.args["self"]).whole()), -1)


def from_stacked(call: Call) -> Result:
    """The two slices of the last axis; where they were stacked, what was stacked."""
    stack: Any = seen_through(call.args["self"])
    if (
        stack.target is aten.stack.default
        and len(stack.args[0]) == 2
        and stack.args[1:] in ((-1,), (call.value.dim(),))
    ):
        return Pair(*(Real(part, call.site) for part in stack.args[0]))
    return Pair(*(call.real("self").call(aten.select.int, -1, index) for index in (0, 1)))


def norm(call: Call) -> Result:
    """Norms of vectors are those of the absolute values."""
    size = cp.magnitude(call.pair(call.args["self"]))
    kwargs: dict[str, Any] = dict(call.node.kwargs)
    if kwargs.get("dtype") is not None:
        kwargs["dtype"] = PARTS.get(kwargs["dtype"], kwargs["dtype"])
    return call.site.call(call.node.target, size, *call.node.args[1:], **kwargs)


def spread(call: Call) -> Result:
    """The variance is that of both parts together."""
    packet = call.node.target.overloadpacket  # type: ignore[union-attr]
    target = getattr(aten.var, call.node.target._overloadname)  # type: ignore[union-attr]
    a, b = (
        call.site.call(target, part, *call.node.args[1:], **call.node.kwargs)
        for part in call.pair(call.args["self"]).whole()
    )
    return (a + b).call(aten.sqrt.default) if packet is aten.std else a + b


def filled(call: Call) -> Result:
    """A new tensor of one number: the real part is made so, the imaginary part where it is not zero."""
    data = frozenset({"fill_value", "s"})
    return Pair(call.part(0, data=data, always=True), call.part(1, data=data))


def made(call: Call) -> Result:
    """A new tensor of zeros, of ones, or of anything: the operator for the real part, 0 for the imaginary part."""
    return Pair(call.part(0, data=frozenset(), always=True), 0.0)
