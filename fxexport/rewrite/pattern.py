"""A pattern function as the calls to look for: traced on examples, its literals exact or left open."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from fxexport.errors import PassError
from fxexport.rewrite.calls import (
    COMMUTATIVE,
    RANK_ARGUMENT,
    SHAPE_ARGUMENT,
    call_arguments,
    seen_through,
    spellings,
)
from fxexport.rewrite.outline import (
    ANY,
    HOLE,
    Call,
    Fixed,
    Outline,
    Wild,
    is_literal,
    leaves_of,
    outline_of,
    same_form,
)
from fxexport.rewrite.pattern_arguments import Argument, adapted
from fxexport.rewrite.tracing import fake_like, trace, works_on_tensors_alone
from fxexport.rewrite.values import same_literal


@dataclass(frozen=True)
class Position:
    """Where a literal stands: argument ``argument`` of call ``call``, ``element`` of it where that is a list."""

    call: int
    argument: int
    element: int | None


@dataclass(frozen=True)
class Pattern:
    """What to look for.

    Attributes:
        calls: in the order of the function; ``outputs`` are those it returns.
        literals: for each wildcard literal, where its value stands as it is.
        whole: whether calls that change nothing count as well, in the program too.
        rank: 0 for the largest of a pass, 1 for the next size...
        open: whether its literals may depend on what it is given, so that it is traced again at each kind of match.
    """

    label: str
    function: Callable[..., Any]
    arguments: tuple[Argument, ...]
    calls: tuple[Call, ...]
    outputs: tuple[Call, ...]
    literals: dict[str, tuple[Position, ...]]
    open: bool
    outline: Outline
    rank: int = 0
    whole: bool = False

    @property
    def root_targets(self) -> tuple[Any, ...]:
        """The operators of a program at which the root may be found."""
        return spellings(self.root.target)

    @cached_property
    def root(self) -> Call:
        """The last call returned: a match is looked for where its operator is called."""
        return max(self.outputs, key=lambda call: call.index)

    @cached_property
    def symmetric(self) -> frozenset[int]:
        """Calls of which one order of the arguments is enough: both look alike, and nothing in them is used elsewhere."""
        uses = Counter(operand for call in self.calls for operand in call.operands())

        def form(value: Any) -> Any:
            if isinstance(value, Wild):
                return ("wild", value.constant) if uses[value] == 1 else None
            if not isinstance(value, Call):
                return ("literal", repr(value))
            parts = tuple(map(form, value.arguments)) if uses[value] <= 1 and value not in self.outputs else (None,)
            return None if None in parts else (value.target, parts)

        pairs = ((call.index, *map(form, call.arguments[:2])) for call in self.calls if call.target in COMMUTATIVE)
        return frozenset(index for index, first, second in pairs if first is not None and first == second)

    def may_end_at(self, node: fx.Node) -> bool:
        """Whether the calls that the root reads have the right operators: a quick look before a real one."""
        wanted, found = self._root_operands, node.args
        return self._fit(wanted, found) or (self.root.target in COMMUTATIVE and self._fit(wanted, found[1::-1]))

    def seen(self, node: Any) -> Any:
        """What a node stands for where the pattern looks through calls that change nothing."""
        return node if self.whole else seen_through(node)

    def _fit(self, wanted: Sequence[frozenset[Any] | None], found: Sequence[Any]) -> bool:
        for targets, value in zip(wanted, found, strict=False):
            if targets is not None and getattr(self.seen(value), "target", None) not in targets:
                return False
        return True

    @cached_property
    def _root_operands(self) -> tuple[frozenset[Any] | None, ...]:
        """The operators of each argument of the root that must be a call."""
        return tuple(
            frozenset(spellings(argument.target)) if isinstance(argument, Call) else None
            for argument in self.root.arguments
        )


def compile_pattern(label: str, function: Callable[..., Any], arguments: Sequence[Argument]) -> Pattern:
    """Traces ``function`` on its examples.

    Where it only passes tensors from call to call, its literals are those of every match. Where it asks for sizes or
    dtypes, or has literals among its arguments, they may be others elsewhere: they are left open, and compared with those
    of a tracing at the match.

    Raises PassError where it cannot be traced, does not use an argument, or returns what is no result of a call.
    """
    mode = FakeTensorMode()
    body = adapted(function, arguments)
    examples = [fake_like(argument.example, mode) for argument in arguments]
    traced = trace(body, examples, mode)
    outline, whole = outline_of(traced, arguments, examples), False
    if not all(isinstance(output, Call) for output in outline.outputs):
        # Nothing but calls that change nothing: these are what it looks for.
        outline, whole = outline_of(traced, arguments, examples, whole=True), True
    _check_outputs(label, outline)
    _check_used(label, outline, arguments)
    found: dict[str, tuple[Position, ...]] = {}
    for number, argument in enumerate(arguments):
        if argument.kind == "literal":
            found[argument.name] = _places_of(body, examples, number, arguments, mode, outline)
            if not found[argument.name]:
                raise PassError(
                    f"pattern {label}: no operator is given {argument.name!r} as it is, so it cannot be read from a match; "
                    "make it an option of the pass, or use it itself in the pattern"
                )
    asks = bool(found) or not works_on_tensors_alone(body, examples, mode)
    for call in outline.calls:
        changing = RANK_ARGUMENT.get(call.target), SHAPE_ARGUMENT.get(call.target)
        for position, value in enumerate(call.arguments):
            if is_literal(value) and value is not ANY and (asks or position in changing):
                call.arguments[position] = HOLE
    is_open = asks or any(value is HOLE for call in outline.calls for value in call.arguments)
    return Pattern(
        label,
        body,
        tuple(arguments),
        tuple(outline.calls),
        tuple(outline.outputs),
        found,
        is_open,
        outline,
        whole=whole,
    )


def _literals(outline: Outline) -> Iterator[tuple[Position, Any]]:
    """Every literal in the graph as traced: lists of them as they are, and what is in them one by one."""
    for call, node in zip(outline.calls, outline.nodes, strict=True):
        for number, value in enumerate(call_arguments(node)):
            if isinstance(value, list | tuple):
                yield from ((Position(call.index, number, i), item) for i, item in enumerate(value))
            if not isinstance(value, fx.Node):
                yield Position(call.index, number, None), value


def _places_of(
    function: Callable[..., Any],
    examples: list[Any],
    number: int,
    arguments: Sequence[Argument],
    mode: FakeTensorMode,
    outline: Outline,
) -> tuple[Position, ...]:
    """Where a wildcard literal stands: its example is there, and another value where that is given instead."""
    example = examples[number]
    places = [place for place, value in _literals(outline) if same_literal(value, example)]
    for alternative in _alternatives(example):
        changed = [*examples[:number], alternative, *examples[number + 1 :]]
        try:
            other = outline_of(trace(function, changed, mode), arguments, changed)
        except PassError:
            continue  # it does not take this value
        if same_form(outline, other):
            now = dict(_literals(other))
            return tuple(place for place in places if same_literal(now.get(place), alternative))
    return tuple(places)


def _alternatives(value: Any) -> list[Any]:
    """Other values of the same kind, to see what depends on one."""
    if isinstance(value, list | tuple):
        return [list(other) for other in zip(*map(_alternatives, value), strict=False)]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [2 * value, value + 1, value - 1, 3 * value]
    if isinstance(value, float):
        return [1.5 * value + 0.25, 0.5 * value]
    if isinstance(value, torch.dtype):
        return [dtype for dtype in (torch.float64, torch.float32, torch.float16, torch.int64) if dtype != value]
    return []


# ---------------------------------------------------------------- what makes no sense


def _check_outputs(label: str, outline: Outline) -> None:
    if not outline.calls or not all(isinstance(output, Call) for output in outline.outputs):
        raise PassError(f"pattern {label} returns an argument or a constant; it must return what it computes")
    together: set[Any] = {max(outline.outputs, key=lambda call: call.index)}
    size = 0
    while size < len(together):
        size = len(together)
        for call in outline.calls:
            operands = [operand for operand in call.operands() if not isinstance(operand, Fixed)]
            if call in together or not together.isdisjoint(operands):
                together |= {call, *operands}
    if not together.issuperset(outline.calls):
        raise PassError(f"the results of pattern {label} share nothing, so one cannot be found from the other")


def _check_used(label: str, outline: Outline, arguments: Sequence[Argument]) -> None:
    used = {operand for call in outline.calls for operand in call.operands() if isinstance(operand, Wild)}
    for argument in arguments:
        for leaf in leaves_of(argument, argument.example) if argument.kind in ("tensor", "constant") else ():
            if leaf not in used:
                name = f"{argument.name}[{leaf.element}]" if argument.variadic else argument.name
                raise PassError(f"pattern {label} does not use its argument {name!r}, so nothing can be bound to it")
