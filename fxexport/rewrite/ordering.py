"""The order of a pipeline: as it was given, but for what ``after`` and ``before`` of its passes demand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import networkx as nx

from fxexport.errors import InputError
from fxexport.rewrite.base import Pass


def ordered(passes: Sequence[Pass]) -> list[Pass]:
    """``passes`` in an order that keeps every ``after`` and ``before``, and the order given wherever they allow it.

    The pass that states a constraint is the one that moves: back for ``after``, to the front for ``before``. Where a
    pass comes several times, its first instance must precede every instance of the later pass. A constraint on a pass
    that is not in the pipeline says nothing.

    Raises InputError with the chain where constraints contradict each other, and where one is not a tuple of names.
    """
    graph: nx.DiGraph[int] = nx.DiGraph()
    graph.add_nodes_from(range(len(passes)))
    for rule in _rules(passes):
        graph.add_edge(rule.earlier, rule.later, rule=rule)
    try:
        anchors = _anchors(graph)
        return [passes[i] for i in nx.lexicographical_topological_sort(graph, key=lambda i: (anchors[i], i))]
    except nx.NetworkXUnfeasible as error:
        # Edges point to what runs later; walked the other way round, "a after b, b after c" reads as a chain.
        cycle = nx.find_cycle(graph.reverse())
        chain = ", ".join(graph.edges[earlier, later]["rule"].words(passes) for later, earlier in cycle)
        raise InputError(
            f"the order constraints of the passes contradict each other: {chain}; "
            "leave one of these passes out, or drop one of the constraints"
        ) from error


def _anchors(graph: nx.DiGraph[int]) -> list[int]:
    """The position that each pass asks for: its own, or that of the foremost pass it wants to precede.

    By its own position alone a late pass with ``before`` would hold the other one back, behind passes that the two
    have nothing to do with.
    """
    anchors = list(range(len(graph)))
    for i in reversed(list(nx.topological_sort(graph))):
        wanted = (anchors[later] for _, later, rule in graph.out_edges(i, data="rule") if rule.side == "before")
        anchors[i] = min([i, *wanted])
    return anchors


def moves(given: Sequence[Pass]) -> list[str]:
    """What ``ordered(given)`` changes and why: ``"fuse-b runs before fuse-a: fuse-a.after names it"``, for a report.

    One sentence for each constraint that the order given breaks; none where ``ordered`` keeps the order given.
    """
    sentences = []
    for rule in _rules(given):
        first, second = given[rule.earlier].name, given[rule.later].name
        why = f"{second}.after names it" if rule.side == "after" else f"{first}.before names {second}"
        if rule.earlier > rule.later:
            sentences.append(f"{first} runs before {second}: {why}")
    return list(dict.fromkeys(sentences))


@dataclass(frozen=True)
class _Rule:
    """The pass at position ``earlier`` must run before the one at ``later``; one of the two says so."""

    earlier: int
    later: int
    side: str  # "after": the later pass says so, "before": the earlier one

    def words(self, passes: Sequence[Pass]) -> str:
        """``fuse-a after fuse-b (package.module.FuseA)``."""
        pair = passes[self.earlier], passes[self.later]
        author, other = pair if self.side == "before" else pair[::-1]
        return f"{author.name} {self.side} {other.name} ({_class_name(author)})"


def _rules(passes: Sequence[Pass]) -> Iterator[_Rule]:
    """Every pair of positions under a constraint."""
    places: dict[str, list[int]] = {}
    for i, pass_ in enumerate(passes):
        places.setdefault(pass_.name, []).append(i)
    for i, pass_ in enumerate(passes):
        for name in _names(pass_, "after"):
            yield from (_Rule(first, i, "after") for first in places.get(name, [])[:1])
        for name in _names(pass_, "before"):
            first = places[pass_.name][0]
            yield from (_Rule(i, later, "before") for later in places.get(name, []) if i == first)


def _names(pass_: Pass, side: str) -> tuple[str, ...]:
    names = getattr(pass_, side)
    # A lone string would be read letter by letter, and no letter is the name of a pass.
    if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
        raise InputError(
            f'{_class_name(pass_)}.{side} must be a tuple of pass names, such as ("fold-batchnorm",); it is {names!r}'
        )
    return names


def _class_name(pass_: Pass) -> str:
    return f"{type(pass_).__module__}.{type(pass_).__qualname__}"
