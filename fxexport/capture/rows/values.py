"""What a tensor of a graph at a fixed number of rows is, seen from its rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import fx
from torch.utils import _pytree as pytree

from fxexport.errors import CaptureError


class Mixed(CaptureError):
    """The rows cannot be told apart, or a row reads another one."""


class NoLoop(Mixed):
    """Nothing is computed row by row: there is nothing to put together."""


@dataclass(frozen=True)
class Rows:
    """Rows along ``axis``, in order, one or more elements each. ``node``: the same tensor at any number of rows.

    With a ``turn``, the tensor is what row number ``turn`` has there; ``node`` is still that of all rows. ``before``: how
    often the rows begin anew along ``axis``, where an axis before them was merged with theirs.
    """

    node: fx.Node
    axis: int
    turn: int | None = None
    before: Any = 1


@dataclass(frozen=True)
class Lone:
    """What row number ``turn`` has, without an axis of rows; ``node`` has that of all rows, along a new first axis."""

    node: fx.Node
    turn: int


@dataclass(frozen=True)
class Number:
    """What ``.item()`` takes out of one row; ``lone`` is the tensor of one element that it is taken from."""

    lone: Lone

    @property
    def turn(self) -> int:
        """The number of the row."""
        return self.lone.turn


@dataclass(frozen=True)
class Filled:
    """A tensor with one number everywhere, of a shape that may count the rows."""

    shape: tuple[Any, ...]
    number: bool | int | float | complex
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True)
class Pieces:
    """``base``, with some of its rows along ``axis`` written anew. ``base`` may be any value of that shape."""

    base: Any
    axis: int
    written: tuple[tuple[int, Lone], ...]


@dataclass(frozen=True)
class Run:
    """The first rows, one after the other along ``axis``: a concatenation that is not finished."""

    axis: int
    turns: tuple[Rows, ...]


OF_ROWS = (Rows, Lone, Number, Pieces, Run)
"""Values that have something of the rows."""
VALUES = (*OF_ROWS, Filled)
"""Values that are no nodes."""


def leaves_of(value: Any) -> list[Any]:
    """What arguments consist of, down to values."""
    return pytree.tree_leaves(value, is_leaf=lambda leaf: isinstance(leaf, VALUES))


def formula(size: Any) -> Any:
    """A size as a formula over torch's symbols."""
    return sympy.sympify(size.node.expr if isinstance(size, torch.SymInt) else size)


def product(sizes: Any) -> Any:
    """The product of sizes, as a formula."""
    return sympy.prod([formula(size) for size in sizes])


def divided(size: Any, count: Any) -> Any:
    """``size / count`` as a formula, or None where it is no whole number for certain."""
    quotient = formula(size) / count
    return quotient if quotient.is_integer else None


def shape_of(node: fx.Node) -> tuple[Any, ...]:
    """The (symbolic) shape of the tensor that ``node`` is."""
    return tuple(node.meta["val"].shape)
