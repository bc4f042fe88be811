"""One call that reads or makes complex numbers, with its complex arguments as pairs of real tensors."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fxexport.ops.complex_pair import Pair
from fxexport.ops.real_calls import Number, Real, Site, is_zero
from fxexport.rewrite.base import arguments, parameters
from fxexport.rewrite.values import same_shape

aten = torch.ops.aten
PARTS = {torch.complex32: torch.float16, torch.complex64: torch.float32, torch.complex128: torch.float64}
"""The dtype of each part of a complex number."""
DATA = frozenset({"self", "tensor", "tensors", "input"})
"""The arguments of which most structural operators move the elements, by their names in the schemas of ATen."""
Result = Pair | Real | list[Pair] | str | None
"""What stands for a call: a complex value, a real one, several complex ones; or why it stays; None: nothing does."""


class Call:
    """A call of ``node`` and where what replaces it goes.

    Attributes:
        args: all arguments by name; those that are complex are nodes still, see ``pair``.
        value: what the call returns (fake tensors).
    """

    def __init__(self, node: fx.Node, site: Site, pairs: Callable[[fx.Node], Pair]) -> None:
        self.node, self.site, self._pairs = node, site, pairs
        self.args: dict[str, Any] = arguments(node)
        self.value: Any = node.meta["val"]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the parts of the result, or of the first argument where the result is not complex."""
        values = [self.value, *(n.meta["val"] for n in self.node.all_input_nodes)]
        return next(PARTS[v.dtype] for v in values if isinstance(v, Tensor) and v.is_complex())

    def pair(self, value: Any) -> Pair:
        """An argument as a pair: complex, or real with an imaginary part of 0; whole numbers become floating."""
        if not isinstance(value, fx.Node):
            number = complex(value)
            return Pair(number.real, number.imag)
        kind = value.meta["val"]
        if isinstance(kind, Tensor) and kind.is_complex():
            return self._pairs(value)
        real = Real(value, self.site)
        return Pair(real.to(self.dtype) if isinstance(kind, Tensor) and not kind.is_floating_point() else real, 0.0)

    def real(self, name: str) -> Real:
        """The real tensor given as the argument ``name``."""
        return Real(self.args[name], self.site)

    def alike(self, target: Any = None, data: frozenset[str] = DATA) -> Result:
        """``target`` (default: the operator itself) on the real parts and on the imaginary parts of its ``data``."""
        parts = [self.part(index, target, data) for index in (0, 1)]
        if not isinstance(self.value, tuple | list):
            return Pair(parts[0], parts[1])
        several = [
            [self.site.call(operator.getitem, part, at) if isinstance(part, Real) else part for part in parts]
            for at in range(len(self.value))
        ]
        return [Pair(*both) for both in several]

    def part(self, index: int, target: Any = None, data: frozenset[str] = DATA, *, always: bool = False) -> Number:
        """``target`` on the real parts (index 0) or imaginary parts (1) of its data.

        Zeros stay zeros: where all of them are the number 0, so is the result, but for ``always``.
        """
        names = parameters(self.node.target)[0]
        given = {**dict(zip(names, self.node.args, strict=False)), **self.node.kwargs}
        found = {name: self._data(value) if name in data else value for name, value in given.items()}
        pairs = [v for value in found.values() for v in (value if isinstance(value, list) else [value])]
        ours = [(v.real, v.imag)[index] for v in pairs if isinstance(v, Pair)]
        if ours and all(map(is_zero, ours)) and not always:
            return ours[0]
        plain = {name: self._chosen(value, index) for name, value in found.items()}
        keyword = {name: plain.pop(name) for name in self.node.kwargs}
        return self.site.call(target or self.node.target, *plain.values(), **keyword)

    def _data(self, value: Any) -> Any:
        """Tensors, lists of them and numbers as pairs; what is left out (None) as it is."""
        if isinstance(value, list | tuple):
            return [self.pair(item) for item in value]
        return None if value is None else self.pair(value)

    def _chosen(self, value: Any, index: int) -> Any:
        """One part of what is data; of what is not, the plain argument."""
        if isinstance(value, list) and value and isinstance(value[0], Pair):
            return [self._chosen(item, index) for item in value]
        if isinstance(value, Pair):
            is_number = not isinstance(value.real, Real) and not isinstance(value.imag, Real)
            return ((value.real, value.imag) if is_number else value.whole())[index]
        if isinstance(value, fx.Node) and isinstance(value.meta["val"], Tensor) and value.meta["val"].is_complex():
            return self._pairs(value).whole()[0]  # read for its shape
        return PARTS.get(value, value) if isinstance(value, torch.dtype) else value

    def fitted(self, result: Pair, value: Tensor) -> Pair:
        """``result`` with the dtype and shape of ``value``: a part that was not broadcast is, and both are tensors or 0."""
        dtype = PARTS[value.dtype]
        parts = [part.to(dtype) if isinstance(part, Real) else part for part in (result.real, result.imag)]
        tensors = [part for part in parts if isinstance(part, Real)]
        fits = [same_shape(part.value.shape, value.shape) for part in tensors]
        if len(tensors) == 2 and any(fits) and not all(fits):
            whole = tensors[fits.index(True)]
            parts = [
                part if fit else part.call(aten.expand_as.default, whole)
                for part, fit in zip(tensors, fits, strict=True)
            ]
        elif len(tensors) == 2 and not any(fits):
            both = self.site.call(aten.broadcast_tensors.default, tensors)
            parts = [both.call(operator.getitem, index) for index in (0, 1)]
        if all(map(is_zero, parts)) or any(not isinstance(part, Real) and part != 0 for part in parts):
            return Pair(*Pair(parts[0], parts[1]).whole())
        return Pair(parts[0], parts[1])


def multilinear(pairs: Sequence[Pair], product: Callable[..., Real]) -> Pair:
    """A product of complex operands as the real products of their parts; a part that is the number 0 is left out.

    ``product(*reals, first=...)`` makes one of them; ``first`` says that it is the first one.
    """
    sums: dict[bool, Number] = {}
    for choice in itertools.product((0, 1), repeat=len(pairs)):
        parts = [(pair.real, pair.imag)[index] for pair, index in zip(pairs, choice, strict=True)]
        if any(map(is_zero, parts)):
            continue
        term = product(*(pair.whole()[index] for pair, index in zip(pairs, choice, strict=True)))
        turns = sum(choice) % 4  # i to that power
        is_imag, is_negative = turns % 2 == 1, turns >= 2
        if is_imag in sums:
            sums[is_imag] = sums[is_imag] - term if is_negative else sums[is_imag] + term
        else:
            sums[is_imag] = -term if is_negative else term
    return Pair(sums.get(False, 0.0), sums.get(True, 0.0))


Rule = Callable[[Call], Result]
Table = Mapping[Any, Rule]
"""Operator, or packet of overloads, -> rule."""
