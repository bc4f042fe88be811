"""Finding the calls of a pattern in a program, with backtracking; what stopped it is kept as the near-miss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from fxexport.program import Program
from fxexport.rewrite.calls import (
    COMMUTATIVE,
    argument_name,
    call_arguments,
    normal_target,
    promotes,
    same_dimensions,
    seen_through,
)
from fxexport.rewrite.ledger import describe_call, operator_name
from fxexport.rewrite.outline import Call, Fixed, Hole, Wild
from fxexport.rewrite.pattern import Pattern
from fxexport.rewrite.values import same_literal

Place = tuple[fx.Node, int] | None
"""The call of the program that has something as an argument, and which."""
Todo = tuple[Any, Any, Place, Any] | None
"""What is still to be compared: (wanted, found, its place, the rest)."""

MOST_READERS = 64
"""How many readers of a value are tried for a further output of a pattern: beyond that matching would not be linear."""


MOST_STEPS = 20_000
"""Calls compared in one attempt: a pattern of many commutative operators could go on for ever."""


class Matcher:
    """One attempt to match ``pattern``.

    Attributes:
        nodes: the call of the program for each call of the pattern, in its order.
        wilds: the node for each tensor argument (name, element); lists have an entry for each element.
        reached: how many calls the furthest branch matched.

    ``accept`` is asked when everything is bound; if it says no, the other orders of commutative operators are tried,
    with ``all_orders`` also those that look the same.
    """

    def __init__(
        self, program: Program, pattern: Pattern, accept: Callable[[Matcher], bool], *, all_orders: bool
    ) -> None:
        self.program, self.pattern, self.accept, self.all_orders = program, pattern, accept, all_orders
        self.nodes: list[fx.Node | None] = [None] * len(pattern.calls)
        self.wilds: dict[tuple[str, int | None], fx.Node] = {}
        self.reached = 0
        self._failure: tuple[Any, Any, Place] = (None, None, None)
        self._trail: list[int | tuple[str, int | None]] = []
        self._count = self._steps = 0

    def match(self, node: fx.Node) -> bool:
        """Whether the pattern matches with ``node`` as its root."""
        return self._solve((self.pattern.root, node, None, None))

    def reason(self) -> str:
        """What was found and what was expected where the furthest branch stopped."""
        if self._steps > MOST_STEPS:
            return f"gave up after {MOST_STEPS} steps: too many orders of commutative operators"
        want, have, place = self._failure
        where = f"{argument_name(place[0].target, place[1])} of {describe_call(place[0])}" if place else "the pattern"
        found = "nothing that reads the same" if place is None and have is None else _found(have)
        return f"{where}: expected {_wanted(want)}, found {found}"

    def _solve(self, todo: Todo) -> bool:
        """Whether everything in ``todo`` and then every further output matches; what was bound stays bound if so."""
        while todo is not None:
            want, have, place, todo = todo
            if not isinstance(want, Call):
                if not self._same(want, have, place):
                    return self._fail(want, have, place)
                continue
            node, known = self.pattern.seen(have), self.nodes[want.index]
            if known is not None:
                if known is not node:
                    return self._fail(want, have, place)
                continue
            values = self._bind(want, node)
            if values is None:
                return self._fail(want, have, place)
            orders = self._orders(want, values)
            if len(orders) > 1:
                return self._any(_arguments(want, node, order, todo) for order in orders)
            todo = _arguments(want, node, orders[0], todo)
        return self._solve_outputs()

    def _orders(self, call: Call, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        """The arguments in each order that could fit; as they are where none could, to see what is missing."""
        if call.target not in COMMUTATIVE or (len(values) > 2 and values[2] != 1):
            return [values]
        swapped = (values[1], values[0], *values[2:])
        likely = [order for order in (values, swapped) if all(map(self._may_be, call.arguments[:2], order))]
        if len(likely) > 1 and not self.all_orders and call.index in self.pattern.symmetric:
            likely = likely[:1]
        return likely or [values]

    def _may_be(self, want: Any, have: Any) -> bool:
        """A quick look: whether a call is of the operator wanted."""
        if not isinstance(want, Call):
            return True
        return isinstance(node := self.pattern.seen(have), fx.Node) and normal_target(node.target) == want.target

    def _solve_outputs(self) -> bool:
        """Matches the calls that the root does not lead to, among the readers of what is matched."""
        for call in self.pattern.calls:
            if self.nodes[call.index] is None:
                value = seen_through(next(filter(None, map(self._node_of, call.operands())), None))
                if value is not None:
                    readers = [n for n in _readers(value) if n not in self.nodes]
                    alike = [n for n in readers if normal_target(n.target) == call.target]
                    return self._any((call, n, None, None) for n in alike) or self._fail(call, None, None)
        return self.accept(self)

    def _any(self, branches: Any) -> bool:
        for todo in branches:
            if self._steps > MOST_STEPS:
                return False
            mark = len(self._trail)
            if self._solve(todo):
                return True
            self._undo(mark)
        return False

    def _bind(self, call: Call, node: Any) -> tuple[Any, ...] | None:
        """Binds ``call`` to ``node`` and returns its arguments; None where it is another call."""
        if not isinstance(node, fx.Node) or node.op != "call_function" or normal_target(node.target) != call.target:
            return None
        values = call_arguments(node)
        if len(values) != len(call.arguments):
            return None
        self.nodes[call.index] = node
        self._count += 1
        self._steps += 1
        self._trail.append(call.index)
        return values

    def _same(self, want: Any, have: Any, place: Place) -> bool:
        """Whether ``have`` is what a wildcard, fixed tensor or literal asks for; wildcards are bound."""
        if isinstance(want, Hole):
            return not (isinstance(have, fx.Node) and isinstance(have.meta.get("val"), torch.Tensor))
        if isinstance(want, Wild):
            return self._bind_wild(want, have)
        if isinstance(want, Fixed):
            value = self.program.constant_value(seen_through(have))
            return value is not None and value.dtype == want.value.dtype and torch.equal(value.cpu(), want.value.cpu())
        assert place is not None, "only calls have no place"
        node, position = place
        same = same_literal(want, have, promotes=promotes(node))
        return same or same_dimensions(node, position, want, have)

    def _bind_wild(self, wild: Wild, have: Any) -> bool:
        if not isinstance(have, fx.Node) or not isinstance(have.meta.get("val"), torch.Tensor):
            return False
        key = (wild.name, wild.element)
        known = self.wilds.get(key)
        if known is not None:
            return seen_through(known) is seen_through(have)
        if wild.constant and not self.program.is_constant(seen_through(have)):
            return False
        self.wilds[key] = have
        self._trail.append(key)
        return True

    def _node_of(self, operand: Any) -> fx.Node | None:
        if isinstance(operand, Call):
            return self.nodes[operand.index]
        return self.wilds.get((operand.name, operand.element)) if isinstance(operand, Wild) else None

    def _undo(self, mark: int) -> None:
        while len(self._trail) > mark:
            entry = self._trail.pop()
            if isinstance(entry, int):
                self.nodes[entry] = None
                self._count -= 1
            else:
                del self.wilds[entry]

    def _fail(self, want: Any, have: Any, place: Place) -> bool:
        if self._count > self.reached:
            known = self.wilds.get((want.name, want.element)) if isinstance(want, Wild) else None
            self.reached, self._failure = self._count, (want if known is None else known, have, place)
        return False


def _readers(value: fx.Node) -> list[fx.Node]:
    """What reads a value, also through calls that stand for it."""
    todo, found = list(value.users)[:MOST_READERS], list[fx.Node]()
    while todo and len(found) < MOST_READERS:
        reader = todo.pop(0)
        if reader.op == "call_function" and seen_through(reader) is not reader:
            todo += list(reader.users)[:MOST_READERS]
        else:
            found.append(reader)
    return found


def _arguments(call: Call, node: fx.Node, values: tuple[Any, ...], todo: Todo) -> Todo:
    """Every argument of a call, the first one first; lists that hold tensors element by element."""
    for position in range(len(values) - 1, -1, -1):
        want, have, place = call.arguments[position], values[position], (node, position)
        if isinstance(want, list) and isinstance(have, list | tuple) and len(want) == len(have):
            for item, found in zip(reversed(want), reversed(have), strict=True):
                todo = (item, found, place, todo)
        else:
            todo = (want, have, place, todo)
    return todo


def _wanted(want: Any) -> str:
    if isinstance(want, Call):
        return operator_name(want.target)
    if isinstance(want, Wild):
        return f"{'a constant' if want.constant else 'a tensor'} for {want.name!r}"
    if isinstance(want, Hole):
        return "a literal"
    if isinstance(want, Fixed):
        return f"a constant tensor {want.value.tolist()}"
    return f"{_found(want)} again" if isinstance(want, fx.Node) else repr(want)


def _found(have: Any) -> str:
    if isinstance(have, fx.Node):
        return describe_call(have) if have.op == "call_function" else have.name
    return repr(have)
