"""Complex numbers that were made from two real tensors and become real again, in real arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import fx

from fxexport.program import Program
from fxexport.rewrite import NodePass

aten = torch.ops.aten

# They act on real and imaginary part alike, and their first argument is the only tensor.
_ALIKE = (
    aten.transpose.int, aten.permute.default, aten.view.default, aten.reshape.default, aten.flatten.using_ints,
    aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default, aten.unsqueeze.default, aten.select.int,
    aten.slice.Tensor, aten.expand.default, aten.resolve_conj.default, aten.clone.default,
    aten.contiguous.default, aten.neg.default,
    aten.sum.dim_IntList, aten.mean.dim, aten.roll.default, aten.flip.default,
)  # fmt: skip
_TO_REAL = (aten.real.default, aten.imag.default, aten.abs.default, aten.angle.default, aten.view_as_real.default)
_CONJUGATES = (aten.conj.default, aten._conj.default)
_ARITHMETIC = (aten.mul.Tensor, aten.div.Tensor, aten.add.Tensor, aten.sub.Tensor)

Parts = tuple[Any, Any]


@dataclass(frozen=True)
class RemoveComplex(NodePass):
    """``abs(complex(a, b)) -> sqrt(a * a + b * b)``, and what lies between: exact up to rounding.

    ``real``, ``imag``, ``angle`` and ``view_as_real`` likewise; views, slices, sums, conjugates, products and sums of
    complex numbers on the way become the same on their parts. An absolute value above 1e19 is infinite in single
    precision. Where a part of the way is another operator, the complex numbers before it stay.
    """

    name: ClassVar[str] = "remove-complex"
    default: ClassVar[bool] = True
    formats: ClassVar[tuple[str, ...]] = ("onnx",)
    after: ClassVar[tuple[str, ...]] = ("decompose-stft",)
    targets: ClassVar = (*_ALIKE, *_TO_REAL, *_CONJUGATES, *_ARITHMETIC)

    def rewrite(self, program: Program, node: fx.Node) -> fx.Node | str | None:
        """The real arithmetic, or one step towards it; None where no operand was made from parts."""
        insert = partial(program.insert, before=node)
        operands = [_parts(value) for value in node.args[:2]]
        if not any(pair is not None and pair[1] is not None for pair in operands):
            return None
        if node.target in _ARITHMETIC:
            if node.kwargs or None in operands:
                return "its other operand is complex too, but was not made from real parts"
            result = _arithmetic(node.target, operands[0], operands[1], insert)
            return insert(aten.complex.default, result) if isinstance(result, tuple) else result
        assert operands[0] is not None
        a, b = operands[0]
        if node.target in _TO_REAL:
            return _to_real(node.target, a, b, insert)
        if node.target in _CONJUGATES:
            return insert(aten.complex.default, (a, insert(aten.neg.default, (b,))))
        # A view of the complex numbers may be none of their parts, which lie in memory in another order.
        target: Any = aten.reshape.default if node.target is aten.view.default else node.target
        parts = tuple(insert(target, (part, *node.args[1:]), dict(node.kwargs)) for part in (a, b))
        return insert(aten.complex.default, parts)


def _parts(value: Any) -> Parts | None:
    """Real and imaginary part; the latter is None of what is real. None: complex, and not made from two parts."""
    if isinstance(value, int | float):
        return value, None
    if not isinstance(value, fx.Node) or not isinstance(value.meta["val"], torch.Tensor):
        return None
    if value.target is aten.complex.default:
        return value.args[0], value.args[1]
    return None if value.meta["val"].is_complex() else (value, None)


def _to_real(target: Any, a: Any, b: Any, insert: Any) -> fx.Node:
    if target in (aten.real.default, aten.imag.default):
        result: fx.Node = a if target is aten.real.default else b
    elif target is aten.view_as_real.default:
        result = insert(aten.stack.default, ([a, b], -1))
    elif target is aten.angle.default:
        result = insert(aten.atan2.default, (b, a))
    else:
        squares = tuple(insert(aten.mul.Tensor, (part, part)) for part in (a, b))
        result = insert(aten.sqrt.default, (insert(aten.add.Tensor, squares),))
    return result


def _arithmetic(target: Any, left: Any, right: Any, insert: Any) -> Parts | str:
    """The parts of a product, quotient, sum or difference; a real operand has the imaginary part None."""
    (a, b), (c, d) = left, right
    if target is aten.mul.Tensor and b is not None and d is not None:
        ac, bd, ad, bc = (insert(target, pair) for pair in ((a, c), (b, d), (a, d), (b, c)))
        return insert(aten.sub.Tensor, (ac, bd)), insert(aten.add.Tensor, (ad, bc))
    if d is None and target in (aten.mul.Tensor, aten.div.Tensor):
        return insert(target, (a, c)), insert(target, (b, c))
    if b is None and target is aten.mul.Tensor:
        return insert(target, (c, a)), insert(target, (d, a))
    if b is not None and d is not None and target is not aten.div.Tensor:
        return insert(target, (a, c)), insert(target, (b, d))
    if isinstance(c, int | float) and target in (aten.add.Tensor, aten.sub.Tensor):
        return insert(target, (a, c)), b
    return "this combination of a real and a complex operand is not written out"
