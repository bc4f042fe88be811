"""Comparing what graphs hold: shapes, symbolic sizes, literal arguments."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)


def signature_of(value: Any) -> Hashable:
    """A key that is equal for values which every operator treats alike in shape, dtype and memory."""
    if isinstance(value, torch.Tensor):
        sizes = tuple(map(_size, value.shape))
        return ("tensor", value.dtype, value.device, sizes, tuple(map(_size, value.stride())), value.requires_grad)
    if isinstance(value, list | tuple):
        return ("list", *map(signature_of, value))
    known = value.node.expr if isinstance(value, SYMBOLIC) else value.hex() if isinstance(value, float) else value
    return ("literal", type(value).__name__, known)


def _size(size: Any) -> Hashable:
    return size if isinstance(size, int) else size.node.expr


def plain(value: Any) -> Any:
    """An argument with nodes replaced by the values they have."""
    if isinstance(value, fx.Node):
        return value.meta["val"]
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def same_shape(a: Sequence[Any], b: Sequence[Any]) -> bool:
    """Whether two shapes are known to be equal, symbolic sizes included."""
    return len(a) == len(b) and all(map(_same_size, a, b))


def same_literal(a: Any, b: Any, *, promotes: bool = True) -> bool:
    """Whether two literal arguments (numbers, symbolic sizes, dtypes, lists...) are known to be equal.

    ``promotes``: the type of a number matters as well: ``x * 2.0`` makes a float of an integer tensor, ``x * 2`` does not.
    """
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(same_literal(x, y, promotes=promotes) for x, y in zip(a, b, strict=True))
    if isinstance(a, SYMBOLIC) or isinstance(b, SYMBOLIC):
        return _same_size(a, b)
    if isinstance(a, bool) or isinstance(b, bool) or not (_is_number(a) and _is_number(b)):
        return type(a) is type(b) and bool(a == b)
    if isinstance(a, float) and isinstance(b, float):
        return a.hex() == b.hex()  # nan is nan, and -0.0 is not 0.0
    return bool(a == b) and not (promotes and type(a) is not type(b))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _same_size(a: Any, b: Any) -> bool:
    if type(a) is int and type(b) is int:
        return a == b
    numbers = (int, float, *SYMBOLIC)
    if isinstance(a, bool) or isinstance(b, bool) or not (isinstance(a, numbers) and isinstance(b, numbers)):
        return False
    if isinstance(a, SYMBOLIC) and isinstance(b, SYMBOLIC) and a.node.expr == b.node.expr:
        return True
    return statically_known_true(a == b)
