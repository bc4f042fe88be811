"""One walk over the graph for any number of rules, again and again until nothing changes."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import fx

from fxexport.errors import PassError
from fxexport.program import Program
from fxexport.rewrite.ledger import NearMiss, Rewrite, operator_name, place, whereabouts
from fxexport.rewrite.structure import structure_of

MAX_ROUNDS = 32
KEPT_NEAR_MISSES = 20


class Rule(Protocol):
    """Something that can rewrite the graph at a call of one of its ``targets``."""

    @property
    def label(self) -> str:
        """What the ledger calls it."""

    @property
    def tier(self) -> int:
        """All calls are tried with the rules of tier 0 before those of tier 1 are."""

    @property
    def targets(self) -> Iterable[Any]:
        """The operators at whose calls the rule is tried."""

    def attempt(self, program: Program, node: fx.Node, book: Book) -> bool:
        """Rewrites ``program`` at ``node`` and enters it in ``book``, or enters why not; whether it did."""


@dataclass
class Book:
    """What the rules did in one run of a pass: all rewrites, the best near-misses of the last round."""

    rewrites: list[Rewrite] = field(default_factory=list)
    near_miss_count: int = 0
    _seen: int = 0
    _best: list[tuple[float, int, NearMiss]] = field(default_factory=list)

    def rewrote(
        self, rule: str, node: fx.Node, operators: Sequence[fx.Node], made: Sequence[str], where: tuple[str, str]
    ) -> None:
        """Enters a rewrite of ``node``; ``operators`` are the calls it replaced."""
        names = tuple(operator_name(call.target) for call in operators)
        self.rewrites.append(Rewrite(rule, node.name, names, *where, tuple(made)))

    def missed(self, rule: str, node: fx.Node, matched: int, total: int, reason: str | Callable[[], str]) -> None:
        """Enters a near-miss; ``reason`` is a text or makes one, so that those that are not kept cost nothing.

        A place where little more than the root agrees is kept only as long as there are no better ones.
        """
        kept = self.keeps(matched, total)
        self.passed_over(matched, total)
        if not kept:
            return
        rank = (matched / total, -self._seen)
        text = reason() if callable(reason) else reason
        miss = NearMiss(rule, node.name, *whereabouts(node), matched, total, text)
        push = heapq.heappush if len(self._best) < KEPT_NEAR_MISSES else heapq.heappushpop
        push(self._best, (*rank, miss))

    def keeps(self, matched: int, total: int) -> bool:
        """Whether such a near-miss would be among the best so far: the first come, of those that are equal."""
        return len(self._best) < KEPT_NEAR_MISSES or matched / total > self._best[0][0]

    def passed_over(self, matched: int, total: int) -> None:
        """Counts a near-miss without keeping it."""
        self._seen += 1
        self.near_miss_count += matched >= 2 or 2 * matched >= total

    @property
    def near_misses(self) -> tuple[NearMiss, ...]:
        """The best near-misses, best first."""
        return tuple(miss for *_, miss in sorted(self._best, key=lambda entry: entry[:2], reverse=True))

    def forget_misses(self) -> None:
        """A new round sees every near-miss again."""
        self.near_miss_count, self._best, self._seen = 0, [], 0


def run_rules(
    program: Program, rules: Sequence[Rule], *, limit: int | None = None, max_rounds: int = MAX_ROUNDS
) -> Book:
    """Applies ``rules`` until none fires any more, or ``limit`` rewrites were made.

    Each round walks the calls there were at its beginning once for each tier of rules, in graph order, trying the rules
    of a call's operator in the order given; a new call is part of later matches at once, and tried itself in the next round.

    Raises PassError when the graph comes back to a form it had before, or does not settle in ``max_rounds`` rounds.
    """
    tiers: dict[int, dict[Any, list[Rule]]] = {}
    for rule in sorted(rules, key=lambda rule: rule.tier):
        for target in dict.fromkeys(rule.targets):
            tiers.setdefault(rule.tier, {}).setdefault(target, []).append(rule)
    book, seen = Book(), dict[Any, int]()
    for number in range(max_rounds):
        done = len(book.rewrites)
        if number > 1:  # most passes settle in two rounds: they need no comparison of whole graphs
            _refuse_cycle(book, seen, structure_of(program))
        book.forget_misses()
        for index in tiers.values():
            _walk(program, index, book, limit)
        if len(book.rewrites) == done or len(book.rewrites) == limit:
            return book
    last = book.rewrites[-1]
    raise PassError(
        f"{last.rule} does not settle: after {max_rounds} rounds over the graph it still rewrites {last.node}"
        f"{place(last.module, last.line)}; a replacement that contains what its own pattern looks for never ends"
    )


def _walk(program: Program, index: dict[Any, list[Rule]], book: Book, limit: int | None) -> None:
    for node in list(program.graph.nodes):
        for rule in index.get(node.target, ()) if node.op == "call_function" else ():
            if node._erased or len(book.rewrites) == limit:
                break
            if rule.attempt(program, node, book):
                break


def _refuse_cycle(book: Book, seen: dict[Any, int], form: Any) -> None:
    """Raises PassError when the graph had ``form`` before; ``seen`` has the number of rewrites at each form."""
    if form not in seen:
        seen[form] = len(book.rewrites)
        return
    circle = book.rewrites[seen[form] :]
    chain = list(dict.fromkeys(rewrite.rule for rewrite in circle))
    places = list(dict.fromkeys(f"{rewrite.node}{place(rewrite.module, rewrite.line)}" for rewrite in circle))
    raise PassError(
        f"a cycle of rewrites: {' -> '.join([*chain, chain[0]])} leads back to the same graph, at {', '.join(places[:3])}; "
        "make one of them not fire on what the other one leaves"
    )
