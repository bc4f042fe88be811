"""Operators that do the same to every row: where their result has the rows, if it has them.

A rule is given a call with ``Rows`` among its arguments. It returns the axis of the result along which they are, or raises
Mixed where the operator lets one row see another. An operator without a rule is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fxexport.capture.rows.values import Filled, Mixed, Rows, formula, shape_of


@dataclass
class RowCall:
    """A call of the graph at ``count`` rows. ``args``: by name, defaults included, as they are seen from the rows.

    A rule may exchange arguments that count the rows: the result is called with what is in ``args`` then. ``before`` is that
    of the ``Rows`` among the arguments, and of the result.
    """

    node: fx.Node
    args: dict[str, Any]
    count: int
    given: dict[str, Any]
    before: Any = 1

    def rows(self) -> dict[str, Rows]:
        """The arguments that are rows."""
        return {name: value for name, value in self.args.items() if isinstance(value, Rows)}

    def shape(self, name: str) -> tuple[Any, ...]:
        """The shape of an argument in the graph at ``count`` rows."""
        return shape_of(self.given[name])

    def rank(self, name: str) -> int:
        """How many axes an argument has."""
        return len(self.shape(name))

    def result(self) -> tuple[Any, ...]:
        """The shape of the result, of several the first, in the graph at ``count`` rows."""
        value = self.node.meta["val"]
        return tuple((value[0] if isinstance(value, tuple | list) else value).shape)

    def only(self, *names: str) -> None:
        """Raises Mixed where other arguments than ``names`` are rows."""
        if others := set(self.rows()) - set(names):
            raise Mixed(f"{self.node.target} has another {', '.join(sorted(others))} for every row")

    def axis(self, name: str) -> int:
        """The axis of the rows in ``name``, which has to be rows, as no other argument is."""
        self.only(name)
        value = self.args[name]
        return value.axis if isinstance(value, Rows) else int(self.refuse())

    def refuse(self) -> Any:
        """Raises Mixed."""
        raise Mixed(f"{self.node.target} may read other rows")


Rule = Callable[[RowCall], int]
"""Returns the axis of the rows in the result, of several results in each."""


def pointwise(call: RowCall) -> int:
    """Element by element, with broadcasting: what has no rows has size 1 there, or one number everywhere."""
    rows = call.rows()
    offsets = {call.rank(name) - value.axis for name, value in rows.items()}
    offset = offsets.pop() if len(offsets) == 1 else call.refuse()
    for name, value in call.args.items():
        if name in rows or not isinstance(value, Filled | fx.Node) or not is_tensor(call.given[name]):
            continue
        place = call.rank(name) - offset
        if place < 0 or formula(call.shape(name)[place]) == 1:
            continue
        if not isinstance(value, Filled):
            raise Mixed(f"{call.node.target} has a number for each row that is in no input")
        shape = (*value.shape[:place], 1, *value.shape[place + 1 :])
        call.args[name] = Filled(shape, value.number, value.dtype, value.device)
    return len(call.result()) - offset


def same(call: RowCall) -> int:
    """One tensor as it is, or in another form."""
    return call.axis("self" if "self" in call.args else next(iter(call.args)))


def along(call: RowCall) -> int:
    """Something along axes ``dim``, of which the rows are none, which may go."""
    name = next(iter(call.args))
    axis, rank, given = call.axis(name), call.rank(name), call.args["dim"]
    dims = {dim % rank for dim in ([given] if isinstance(given, int) else given or call.refuse())}
    if axis in dims:
        raise Mixed(f"{call.node.target} goes over the rows")
    return axis if len(call.result()) == rank else axis - sum(dim < axis for dim in dims)


def leading(trailing: int, *matrices: str) -> Rule:
    """Something on the last ``trailing`` axes of each of ``matrices`` (default: the first argument)."""

    def rule(call: RowCall) -> int:
        names = matrices or (next(iter(call.args)),)
        call.only(*names)
        places = {call.rank(name) - value.axis for name, value in call.rows().items()}
        same_ranks = len({call.rank(name) for name in names if is_tensor(call.given.get(name))}) == 1
        if len(places) != 1 or min(places) <= trailing or not same_ranks:
            return int(call.refuse())
        if len(call.rows()) < len(names):
            pointwise(call)
        return int(next(iter(call.rows().values())).axis)

    return rule


def first(rank: int, name: str = "") -> Rule:
    """Something on every element of the first axis, of ``rank`` axes: a convolution, a pool, an upsampling."""

    def rule(call: RowCall) -> int:
        argument = name or next(iter(call.args))
        return 0 if call.axis(argument) == 0 and call.rank(argument) == rank else int(call.refuse())

    return rule


def is_tensor(value: Any) -> bool:
    """Whether ``value`` is a node of a tensor."""
    return isinstance(value, fx.Node) and isinstance(value.meta.get("val"), torch.Tensor)


def draws(call: RowCall) -> bool:
    """Whether the operator draws random numbers: one with a dropout does where that is switched on."""
    if torch.Tag.nondeterministic_seeded not in getattr(call.node.target, "tags", ()):
        return False
    rates = [call.args[name] for name in ("p", "dropout", "dropout_p") if name in call.args]
    return not (call.args.get("train") is False or (rates and rates[0] == 0))
