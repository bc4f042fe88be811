"""One pattern with its replacement, as a rule for the engine."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from fxexport.errors import PassError
from fxexport.program import Program
from fxexport.rewrite.calls import (
    SHAPE_ARGUMENT,
    argument_name,
    call_arguments,
    normal_target,
    promotes,
    same_dimensions,
    seen_through,
)
from fxexport.rewrite.engine import Book
from fxexport.rewrite.ledger import describe_call, whereabouts
from fxexport.rewrite.match import Match
from fxexport.rewrite.matcher import Matcher
from fxexport.rewrite.node_pass import erase_unread
from fxexport.rewrite.outline import ANY, HOLE, Outline, is_literal, leaves_of, outline_of, same_form
from fxexport.rewrite.pattern import Pattern, Position
from fxexport.rewrite.pattern_arguments import adapted
from fxexport.rewrite.replacement import Replacement
from fxexport.rewrite.tracing import UndecidedSize, is_new_guard, no_new_guards, trace
from fxexport.rewrite.values import SYMBOLIC, plain, same_literal, same_shape, signature_of


@dataclass
class PatternRule:
    """``pattern -> replacement`` where ``check`` agrees; made anew for each run of a pass over a program.

    ``maker`` has, for each call that a rule of the pass made, the root of the match it was made for.
    """

    name: str
    pattern: Pattern
    replacement: Callable[..., Any]
    check: Callable[[Match], bool | str] | None
    allow_shared: bool
    recursive: bool
    maker: dict[fx.Node, fx.Node]
    _exact: dict[Hashable, Outline | str] = field(default_factory=dict)
    _made: dict[Hashable, Replacement] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """What the ledger calls it."""
        return self.pattern.label

    @property
    def tier(self) -> int:
        """Larger patterns of a pass come first: a smaller one would take their last calls away."""
        return self.pattern.rank

    @property
    def targets(self) -> Sequence[Any]:
        """The operators at whose calls it is tried."""
        return self.pattern.root_targets

    def attempt(self, program: Program, node: fx.Node, book: Book) -> bool:
        """Replaces the match that ends at ``node``, or enters what it lacks."""
        total = len(self.pattern.calls)
        if not self.pattern.may_end_at(node) and not book.keeps(1, total):
            book.passed_over(1, total)  # most calls
            return False
        answers: list[Match | str] = []

        def accept(found: Matcher) -> bool:
            answers.append(self._bind(program, found))
            return isinstance(answers[-1], Match)

        matcher = Matcher(program, self.pattern, accept, all_orders=self.pattern.open or self.check is not None)
        if matcher.match(node) and isinstance(match := answers[-1], Match):
            if self._is_own_work(match):
                return False
            answers = [self._replace(match, matcher, book)]
        if not answers and matcher.reached:
            book.missed(self.label, node, matcher.reached, total, matcher.reason)
        elif answers and answers[0]:
            book.missed(self.label, node, total, total, str(answers[0]))
        return answers == [""]

    # ---------------------------------------------------------------- is it really one

    def _bind(self, program: Program, matcher: Matcher) -> Match | str:
        """The match with all literals bound and compared, and accepted by ``check``; or what is against it."""
        nodes = tuple(node for node in matcher.nodes if node is not None)
        outputs = tuple(nodes[call.index] for call in self.pattern.outputs)
        if not self.allow_shared and (reader := _outside_reader(nodes, outputs)):
            value, user = reader
            use = "returned by the model" if user.op == "output" else f"read by {describe_call(user)}"
            return f"{value.name} is also {use}; allow_shared would keep it"
        reason = ""
        for literals in self._literals(nodes):
            unknown = [name for name, value in literals.items() if _is_computed(plain(value))]
            if unknown:
                return f"{unknown[0]} is computed from dynamic sizes, so it is no literal"
            match = Match(self.label, program, nodes, outputs, self._arguments(matcher, literals))
            reason = (self._difference(match) if self.pattern.open else "") or self._refusal(match)
            if not reason:
                return match
        return reason or "its literals cannot be read"

    def _is_own_work(self, match: Match) -> bool:
        """Whether all of it came out of one replacement: a replacement may hold what its pattern looks for."""
        makers = {self.maker.get(node) for node in match.nodes}
        return not self.recursive and len(makers) == 1 and None not in makers

    def _literals(self, nodes: Sequence[fx.Node]) -> Iterator[dict[str, Any]]:
        """What the wildcard literals may be bound to: the first place of each, then the others."""
        places = self.pattern.literals
        for number in range(max((len(found) for found in places.values()), default=1)):
            yield {name: _literal_at(nodes, found[min(number, len(found) - 1)]) for name, found in places.items()}

    def _arguments(self, matcher: Matcher, literals: dict[str, Any]) -> dict[str, Any]:
        bound: dict[str, Any] = {}
        for argument in self.pattern.arguments:
            if argument.variadic:
                bound[argument.name] = [matcher.wilds[argument.name, i] for i in range(len(argument.example))]
            else:
                bound[argument.name] = matcher.wilds.get((argument.name, None), literals.get(argument.name))
        return bound

    def _difference(self, match: Match) -> str:
        """What the pattern, traced at the shapes and literals of the match, has otherwise than the program."""
        values = [plain(match.arguments[argument.name]) for argument in self.pattern.arguments]
        key = signature_of(values)
        if key not in self._exact:
            self._exact[key] = self._trace_pattern(match.program, values)
        outline = self._exact[key]
        return outline if isinstance(outline, str) else _different_literal(self.pattern, outline, match.nodes)

    def _trace_pattern(self, program: Program, values: list[Any]) -> Outline | str:
        try:
            traced = trace(self.pattern.function, values, program.fake_mode)
            outline = outline_of(traced, self.pattern.arguments, values, whole=self.pattern.whole)
        except PassError as error:
            return f"at these shapes {error}"
        alike = same_form(outline, self.pattern.outline)
        return outline if alike else "at these shapes the pattern makes other calls than on its example"

    def _refusal(self, match: Match) -> str:
        """Why ``check`` does not want it; what it asks of dynamic sizes must be known, not true of the example."""
        if self.check is None:
            return ""
        try:
            with no_new_guards(match.program.fake_mode):
                answer = self.check(match)
                return answer if isinstance(answer, str) else "" if answer else "check() refused it"
        except Exception as error:
            if is_new_guard(error):
                return "check() decides on a dynamic size, of which that is not known"
            raise

    # ---------------------------------------------------------------- replacing it

    def _replace(self, match: Match, matcher: Matcher, book: Book) -> str:
        """Puts the replacement in; returns why that cannot be done, or ''."""
        program, node = match.program, match.root
        inputs = [n for value in match.arguments.values() for n in (value if isinstance(value, list) else [value])]
        before = _insertion_point(match, [n for n in inputs if isinstance(n, fx.Node)])
        if before is None:
            return "its outputs are read before all its inputs are there"
        try:
            replacement = self._replacement(match)
        except UndecidedSize as error:
            return str(error)
        bound = {(name, None): value for name, value in match.arguments.items() if isinstance(value, fx.Node)}
        new, made = replacement.insert(program, bound | matcher.wilds, before, node)
        if len(new) != len(match.outputs):
            raise PassError(f"the replacement returns {len(new)} values, the pattern {len(match.outputs)}")
        where, operands = whereabouts(node), [used for matched in match.nodes for used in matched.all_input_nodes]
        for old, made_node in zip(match.outputs, new, strict=True):
            if not old._erased:  # one value returned twice
                program.replace(old, made_node)
        _drop_assertions(program, match.nodes)
        erase_unread(program, operands)
        self.maker.update(dict.fromkeys(made, node))
        book.rewrote(self.label, node, match.nodes, [node.name for node in made], where)
        return ""

    def _replacement(self, match: Match) -> Replacement:
        arguments = self.pattern.arguments
        values = [plain(match.arguments[argument.name]) for argument in arguments]
        key = signature_of(values)
        if key not in self._made:
            traced = trace(adapted(self.replacement, arguments), values, match.program.fake_mode)
            leaves = [leaf for a, value in zip(arguments, values, strict=True) for leaf in leaves_of(a, value)]
            self._made[key] = Replacement(self.name, traced, leaves)
        return self._made[key]


_ASSERTION = torch.ops.aten._assert_tensor_metadata.default
"""What captures write beside each cast; of a value that is gone it has nothing to say."""


def _drop_assertions(program: Program, nodes: Sequence[fx.Node]) -> None:
    for node in nodes:
        if not node._erased and all(user.target is _ASSERTION for user in node.users):
            for user in list(node.users):
                program.graph.erase_node(user)


def _outside_reader(nodes: Sequence[fx.Node], outputs: Sequence[fx.Node]) -> tuple[fx.Node, fx.Node] | None:
    """An interior value and what reads it outside the match, if any; calls that stand for it are looked through."""
    inside = set(nodes)
    for node in nodes:
        todo = [] if node in outputs else list(node.users)
        while todo:
            user = todo.pop()
            if user in inside or user.target is _ASSERTION:
                continue
            if user.op != "call_function" or seen_through(user) is user:
                return node, user
            todo += user.users
    return None


def _is_computed(value: Any) -> bool:
    """Whether a literal is computed in the graph; a size alone may be, since it can be an argument."""
    if isinstance(value, list):
        return any(isinstance(item, SYMBOLIC) for item in value)
    return isinstance(value, torch.SymFloat | torch.SymBool)


def _literal_at(nodes: Sequence[fx.Node], place: Position) -> Any:
    """The literal, or the node of a symbolic size, at a place of the pattern."""
    node = nodes[place.call]
    value = call_arguments(node)[place.argument]
    if place.element is None:
        return value
    if not isinstance(value, list | tuple) or place.element >= len(value):
        return None
    found = value[place.element]
    if isinstance(found, int) and found == -1 and SHAPE_ARGUMENT.get(normal_target(node.target)) == place.argument:
        found = node.meta["val"].shape[place.element]
    return None if isinstance(found, SYMBOLIC) else found  # a size that no node has cannot be an argument


def _different_literal(pattern: Pattern, outline: Outline, nodes: Sequence[fx.Node]) -> str:
    for call, exact, traced, node in zip(pattern.calls, outline.calls, outline.nodes, nodes, strict=True):
        for position, value in enumerate(call.arguments):
            if value is ANY or not (value is HOLE or is_literal(value)):
                continue
            if SHAPE_ARGUMENT.get(call.target) == position:
                want, have = traced.meta["val"].shape, node.meta["val"].shape
                same = same_shape(want, have)
            else:
                want, have = exact.arguments[position], plain(call_arguments(node)[position])
                same = same_literal(want, have, promotes=promotes(node)) or same_dimensions(node, position, want, have)
            if not same:
                name = argument_name(node.target, position)
                return f"{name} of {describe_call(node)}: expected {_show(want)}, found {_show(have)}"
    return ""


def _show(value: Any) -> str:
    return str(list(value)) if isinstance(value, list | tuple) else repr(value)


def _insertion_point(match: Match, inputs: Sequence[fx.Node]) -> fx.Node | None:
    """The node before which all inputs are there and after which all outputs are read; None where there is none."""
    first = min(match.outputs)
    last = max(inputs, default=None)
    if last is None or last < first:
        return first
    readers = [user for output in match.outputs for user in output.users if user not in match.nodes]
    later = all(last < reader for reader in readers) and not set(inputs) & set(match.nodes)
    return last.next if later else None
