"""What both sides of a decision do alike after they have met again: ``f(a)`` and ``f(b)`` are ``f`` of one of both.

if p: x = a(x)                     x = cond(p, a, b)(x)
else: x = b(x)            ->       return network(x)
return network(x)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import fx
from torch.utils import _pytree as pytree

Pair = tuple[fx.Node, fx.Node]


@dataclass
class Suffix:
    """``steps``: pairs of nodes, one of each side, that do the same, in order; ``wanted``: what they need from before,
    and what is wanted of the sides otherwise, where the sides differ."""

    steps: list[Pair] = field(default_factory=list)
    wanted: list[Pair] = field(default_factory=list)


def common_suffix(
    mine: Sequence[fx.Node],
    theirs: Sequence[fx.Node],
    results: Sequence[Pair],
    same: Callable[[fx.Node, fx.Node], bool],
    settled: Callable[[fx.Node], bool],
) -> Suffix:
    """The longest common ending of two sides.

    ``mine`` and ``theirs`` are the nodes of the two sides in order, ``results`` what is wanted of them. ``same`` says
    whether two nodes have one value already, on whichever side; ``settled``, whether a node of the first one was made
    before the sides parted.
    """
    order = {node: i for i, node in enumerate(mine)}
    others = set(theirs)
    asked: dict[fx.Node, set[fx.Node]] = {}
    for a, b in results:
        asked.setdefault(a, set()).add(b)
    steps: list[Pair] = []
    partner: dict[fx.Node, fx.Node] = {}
    for node in reversed(mine):
        other = next(iter(asked[node])) if len(asked.get(node, ())) == 1 else None
        if other is None or other not in others or other in partner.values():
            continue
        if (
            not _alike(node, other, same, settled)
            or not _read_only_by(node, partner, order)
            or not _read_only_by(other, partner.values(), others)
        ):
            continue
        partner[node] = other
        steps.append((node, other))
        for a, b in zip(arguments_of(node), arguments_of(other), strict=True):
            asked.setdefault(a, set()).add(b)
    steps.reverse()
    taken = set(steps)
    wanted = [*results, *((a, b) for pair in steps for a, b in zip(*map(arguments_of, pair), strict=True))]
    open_ones = (pair for pair in dict.fromkeys(wanted) if pair not in taken)
    return Suffix(steps, [(a, b) for a, b in open_ones if isinstance(a.meta.get("val"), torch.Tensor)])


def arguments_of(node: fx.Node) -> list[fx.Node]:
    """The nodes among the arguments of a call, in order, each as often as it stands there."""
    return [leaf for leaf in pytree.tree_leaves((node.args, node.kwargs)) if isinstance(leaf, fx.Node)]


def _read_only_by(node: fx.Node, readers: Collection[fx.Node], own: Collection[fx.Node]) -> bool:
    """Whether everything on this side that reads ``node`` belongs to the suffix already."""
    return all(user in readers for user in node.users if user in own)


def _alike(
    a: fx.Node, b: fx.Node, same: Callable[[fx.Node, fx.Node], bool], settled: Callable[[fx.Node], bool]
) -> bool:
    """Whether two calls differ in nothing but tensors that can be chosen between."""
    if a.op != "call_function" or a.target is not b.target or not _is_plain(a):
        return False
    first, second = (pytree.tree_flatten((node.args, node.kwargs)) for node in (a, b))
    if first[1] != second[1]:
        return False
    for x, y in zip(first[0], second[0], strict=True):
        if isinstance(x, fx.Node) != isinstance(y, fx.Node):
            return False
        if isinstance(x, fx.Node) and not _fits(x, y, same, settled):
            return False
        if not isinstance(x, fx.Node) and (type(x) is not type(y) or x != y):
            return False
    return True


def _fits(x: fx.Node, y: fx.Node, same: Callable[[fx.Node, fx.Node], bool], settled: Callable[[fx.Node], bool]) -> bool:
    """Whether one call can read two arguments, or one of both."""
    if isinstance(x.meta.get("val"), torch.Tensor):
        return same(x, y) or _choosable(x, y)
    return same(x, y) and settled(x)


def _is_plain(node: fx.Node) -> bool:
    random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    return not random and isinstance(node.meta.get("val"), torch.Tensor)


def _choosable(x: fx.Node, y: fx.Node) -> bool:
    """Whether two nodes are tensors of one form, and not both weights: choosing between weights is no saving."""
    a, b = x.meta.get("val"), y.meta.get("val")
    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
        return False
    return a.dtype == b.dtype and str(list(a.shape)) == str(list(b.shape)) and not x.op == y.op == "placeholder"


__all__ = ["Suffix", "common_suffix"]
