"""Which declared name belongs to which leaf of a call: by name, by position, and through nested states."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch

from fxexport.signature import flat_name, show_path, unique_names
from fxexport.tensor_types import Declared, TypedAxis, TypedMap, TypedTensor

Items = Sequence[tuple[str, Declared]]
Pairs = list[tuple[str, list[int]]]
"""A declared name and the leaves that it stands for."""


@dataclass
class Naming:
    """The names and types of the leaves of one call, as they are found.

    ``paths``: keys of each leaf, from the parameter (or ``"output"``) inwards. ``names``: None for a leaf that is left
    out; before anything is assigned, the name that follows from the path. ``literal``: the leaves whose name is the
    declared one as it stands.
    """

    kind: Literal["input", "output"]
    owner: str
    types: TypedMap
    paths: list[list[str | int]]
    values: list[object]
    names: list[str | None] = field(init=False)
    typed: list[TypedTensor | None] = field(init=False)
    literal: set[int] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.names = [_path_name(path, self.kind) for path in self.paths]
        self.typed = [None] * len(self.paths)

    @property
    def hook(self) -> str:
        """The hook as messages show it: ``Encoder.input_types``."""
        return f"{self.owner}.{self.kind}_types"

    def assign(self, name: str, leaves: Sequence[int]) -> None:
        """Gives ``leaves`` the declared ``name`` and its type; the tensors of a state are numbered from 1."""
        each = _tensors(self.types[name])
        for leaf, leaf_name in zip(leaves, self._leaf_names(name, leaves), strict=True):
            self.names[leaf] = leaf_name
            if leaf_name == name:
                self.literal.add(leaf)
        if len(each) not in (1, len(leaves)):
            self.notes.append(f"{self.hook} declares {len(each)} tensors for {name!r}; the call has {len(leaves)}")
        for leaf, typed in _each_leaf(leaves, each):
            self.typed[leaf] = typed

    def _leaf_names(self, name: str, leaves: Sequence[int]) -> list[str]:
        if len(leaves) == 1 and (
            isinstance(self.types[name], TypedTensor) or re.fullmatch(rf"{self.kind}_\w*_\d+", name)
        ):
            return [name]
        columns = zip(*(self.paths[leaf] for leaf in leaves), strict=False)
        depth = next((i for i, keys in enumerate(columns) if len(set(keys)) > 1), 0)
        inner = [self.paths[leaf][depth:] for leaf in leaves]
        if depth and any(isinstance(key, str) for keys in inner for key in keys):
            return [flat_name((name, *keys)) for keys in inner]
        base = name if name.startswith(f"{self.kind}_") else f"{self.kind}_{name}"
        return [f"{base}_{number}" for number in range(1, len(leaves) + 1)]

    def fits(self, pairs: Pairs, *, optional_only: bool = False) -> bool:
        """Whether the leaves are as declared (dtype, rank, fixed sizes), were they paired so."""
        return not any(
            typed.contradiction(self.values[leaf])
            for name, leaves in pairs
            for leaf, typed in _each_leaf(leaves, _tensors(self.types[name]))
            if typed.optional or not optional_only
        )

    def note_absent(self, found: Collection[str]) -> None:
        """A note for every declared name that nothing came for, unless it is optional."""
        absent = [name for name, declared in self.types.items() if name not in found and not is_optional(declared)]
        if absent:
            self.notes.append(f"{self.hook} declares {absent}, which the call does not have")

    def make_unique(self) -> None:
        """No name twice: declared names stay, names that follow from paths or numbering give way."""
        order = [leaf for leaf, name in enumerate(self.names) if name is not None]
        order.sort(key=lambda leaf: leaf not in self.literal)
        wanted = [str(self.names[leaf]) for leaf in order]
        for leaf, old, new in zip(order, wanted, unique_names(wanted), strict=True):
            self.names[leaf] = new
            if old != new:
                self.notes.append(f"{self.hook}: {old!r} would name two tensors; {self.show(leaf)} is {new!r}")

    def show(self, leaf: int) -> str:
        """The path of a leaf as a reader writes it."""
        return show_path(self.paths[leaf])


def read_path(path: str) -> list[str | int]:
    """The inverse of ``show_path``: ``"batch['image'][0]"`` -> ``["batch", "image", 0]``."""
    head, bracket, rest = path.partition("[")
    keys: list[str | int] = []
    node = ast.parse(f"_{bracket}{rest}", mode="eval").body
    while isinstance(node, ast.Subscript):
        keys.append(ast.literal_eval(node.slice))
        node = node.value
    return [head, *reversed(keys)]


def _path_name(path: Sequence[str | int], kind: str) -> str:
    """A name from the path, as capture gives it: the key of a result stands without the word ``output``."""
    if kind == "input":
        return flat_name(path)
    keyed = path[0] == "output" and len(path) > 1 and isinstance(path[1], str)
    return flat_name(path[1:] if keyed else ("output", *path[1:]))


def is_optional(declared: Declared) -> bool:
    """Whether every tensor of the name is optional."""
    return all(typed.optional for typed in _tensors(declared))


def _tensors(declared: Declared) -> tuple[TypedTensor, ...]:
    return declared if isinstance(declared, tuple) else (declared,)


def _each_leaf(leaves: Sequence[int], each: Sequence[TypedTensor]) -> Iterable[tuple[int, TypedTensor]]:
    """Leaves with their types; one type, or several that are all the same, stand for any number of leaves."""
    return zip(leaves, each if len(set(each)) > 1 else [each[0]] * len(leaves), strict=False)


def distribute(places: Sequence[list[int]], items: Items) -> Pairs | None:
    """``items`` to ``places`` in order, one each; else to their single leaves, of which a state takes as many as it has
    types. A state of unknown length (one type in a tuple) takes what is left. None where the counts differ."""
    if len(places) == len(items):
        return [(name, place) for (name, _), place in zip(items, places, strict=True)]
    leaves = [leaf for place in places for leaf in place]
    widths = [len(_tensors(declared)) for _, declared in items]
    open_ended = [i for i, (_, declared) in enumerate(items) if isinstance(declared, tuple) and len(declared) == 1]
    if len(open_ended) == 1:
        widths[open_ended[0]] = max(1, len(leaves) - sum(widths) + 1)
    if not items or sum(widths) != len(leaves):
        return None
    rest = iter(leaves)
    return [(name, [next(rest) for _ in range(width)]) for (name, _), width in zip(items, widths, strict=True)]


def describe(value: object) -> str:
    """``float32[2, 3]``, or the value itself where it is no tensor."""
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return repr(value)


class DynamicAxis(NamedTuple):
    """An axis of one leaf that is dynamic or may be. ``alone``: it is the one of its kind in its tensor."""

    leaf: int
    position: int
    axis: TypedAxis
    size: int
    alone: bool


def dynamic_axes(naming: Naming) -> Iterator[DynamicAxis]:
    """The axes that are declared dynamic or may be, of all tensors that are as declared."""
    for leaf, (typed, value) in enumerate(zip(naming.typed, naming.values, strict=True)):
        if typed is None or not typed.axes or not isinstance(value, torch.Tensor) or typed.contradiction(value):
            continue
        kinds = [axis.kind for axis in typed.axes]
        for position, axis in enumerate(typed.axes):
            if axis.dynamic != "fixed":
                yield DynamicAxis(leaf, position, axis, value.shape[position], kinds.count(axis.kind) == 1)


def unequal(naming: Naming, axes: Sequence[DynamicAxis]) -> list[str]:
    """Where a shared dimension has two sizes."""
    first: dict[str, DynamicAxis] = {}
    problems = []
    for axis in axes:
        other = first.setdefault(axis.axis.kind, axis) if axis.axis.shared else axis
        if other.size != axis.size:
            places = [f"{a.size} in {naming.names[a.leaf]!r} (axis {a.position})" for a in (other, axis)]
            problems.append(f"{naming.hook}: dimension {axis.axis.kind!r} is {places[0]} and {places[1]}")
    return problems


def own_label(naming: Naming, axis: DynamicAxis) -> str:
    """A label for an axis that is not known to equal any other: ``audio_time``, ``mask_time_2``, ``x_dim_1``."""
    named = axis.axis.dynamic == "declared"
    numbered = () if named and axis.alone else (axis.position,)
    return flat_name((str(naming.names[axis.leaf]), axis.axis.kind if named else "dim", *numbered))
