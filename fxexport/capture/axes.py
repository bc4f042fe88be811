"""After capture: which symbolic size is which named dimension, and what got fixed, where."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import sympy
import torch
from torch import fx
from torch.export import ExportedProgram

from fxexport.capture.dynamic import AxisRequest, AxisRequests
from fxexport.capture.guards import only_sizes, plain, size_guards
from fxexport.capture.source_tree import iterates_at
from fxexport.capture.squeezed_axes import squeezed_sizes
from fxexport.errors import CaptureError
from fxexport.signature import Axis, Dimension, Guard, flat_name, unique_names


@dataclass(frozen=True)
class NamedAxes:
    """Names of the symbolic sizes of one captured program."""

    labels: dict[sympy.Symbol, str]
    dimensions: tuple[Dimension, ...]
    notes: tuple[str, ...]
    guards: tuple[Guard, ...] = ()
    formulas: Mapping[str, str] = field(default_factory=dict)

    def axes_of(self, value: Any) -> tuple[Axis, ...]:
        """The axes of a fake tensor: ints, names, or formulas such as ``2*time`` (by their name where they have one)."""
        axes = (size if isinstance(size, int) else self.axis_of(size) for size in value.shape)
        return tuple(self.formulas.get(axis, axis) if isinstance(axis, str) else axis for axis in axes)

    def axis_of(self, size: torch.SymInt) -> Axis:
        """The axis for one symbolic size."""
        expression = sympy.sympify(size.node.expr)
        if expression.is_Integer:
            return int(expression)
        return plain(expression, self.labels)


@dataclass
class _Size:
    """What is known of one symbolic size: the axes that have it, the user's names for it and the bounds asked for."""

    example: int
    automatic: list[str] = field(default_factory=list)
    given: list[str] = field(default_factory=list)
    declared: bool = False
    minimum: int = 0
    maximum: int | None = None

    def add(self, automatic: str, request: AxisRequest) -> None:
        self.automatic.append(automatic)
        if request.label is not None and request.label not in self.given:
            place = len(self.given) if not request.declared or self.declared else 0  # declared names come first
            self.given.insert(place, request.label)
        self.declared = self.declared or request.declared
        self.minimum = max(self.minimum, request.minimum or 0)
        self.maximum = _smaller(self.maximum, request.maximum)


def name_axes(
    exported: ExportedProgram,
    inputs: Sequence[fx.Node],
    requests: AxisRequests,
    names: Sequence[str],
    examples: Sequence[torch.Tensor],
    fixing: Mapping[int, str],
    mixing: str = "",
) -> NamedAxes:
    """Names for every symbolic size of the inputs: the user's, else ``batch`` for a shared first axis, else
    ``<input>_dim_<n>``.

    Raises CaptureError when a dimension that the user declared dynamic was fixed, naming the line that fixed it
    (``fixing``: size -> line) and why the rows along it cannot be batched (``mixing``).
    """
    sizes: dict[sympy.Symbol, _Size] = {}
    formulas: list[tuple[str, torch.SymInt]] = []
    notes: list[str] = []
    placed = [node.meta["val"].shape[i] for node, axes in zip(inputs, requests, strict=True) for i in axes]
    only = only_sizes(exported, placed)
    for node, axes, name, example in zip(inputs, requests, names, examples, strict=True):
        for position, request in axes.items():
            size = node.meta["val"].shape[position]
            what = f"dimension {position} of {name!r}" + (f" ({request.label!r})" if request.label else "")
            expression = sympy.sympify(size.node.expr if isinstance(size, torch.SymInt) else size)
            if expression.is_Integer:
                notes += _fixed(what, int(expression), request, fixing, mixing)
            elif expression in only and request.declared:
                number, place = only[expression]
                notes += _fixed(what, number, request, {number: place, **fixing}, mixing)
            elif expression.is_Symbol:
                automatic = "batch" if position == 0 else flat_name((name, "dim", position))
                sizes.setdefault(expression, _Size(example.shape[position])).add(automatic, request)
            elif request.label:
                formulas.append((what, size))
    named = _assemble(exported, sizes, notes)
    ties = tuple(f"{what} is always {named.axis_of(size)}: the model's code ties them" for what, size in formulas)
    guards = size_guards(exported, named.labels)
    decided = tuple(f"captured where {g.condition}: the model's code asks at {g.place}" for g in guards)
    return replace(named, notes=(*named.notes, *ties, *decided), guards=guards)


def _assemble(exported: ExportedProgram, sizes: dict[sympy.Symbol, _Size], notes: list[str]) -> NamedAxes:
    labels: dict[sympy.Symbol, str] = {}
    dimensions: dict[str, Dimension] = {}
    squeezed = squeezed_sizes(exported)
    for symbol, size in sizes.items():
        names = size.given or list(dict.fromkeys(size.automatic))
        if len(names) > 1 and (size.given or "batch" not in names[1:]):
            notes.append(f"dimensions {names} are one and the same size to the model: named {names[0]!r}")
        label, (minimum, maximum) = names[0], _range(exported, symbol)
        if maximum != size.maximum or minimum > max(size.minimum, 2):
            bounds = Dimension(label, size.example, 0 if minimum <= 2 else minimum, maximum).range
            notes.append(f"dimension {label!r} works in the range {bounds}: the model's code bounds it")
        minimum = max(size.minimum, 0 if minimum <= 2 else minimum)
        if symbol in squeezed and minimum < 2:
            minimum = 2
            notes.append(f"dimension {label!r} works from 2: of size 1 it is squeezed away at {squeezed[symbol]}")
        same = dimensions.get(label)
        if same is not None and same.example != size.example:
            (label,) = unique_names([label], dimensions)
        elif same is not None:
            minimum, maximum = max(minimum, same.minimum), _smaller(maximum, same.maximum)
        labels[symbol] = label
        dimensions[label] = Dimension(label, size.example, minimum, maximum, size.declared)
    return NamedAxes(labels, tuple(dimensions.values()), tuple(notes))


def _smaller(a: int | None, b: int | None) -> int | None:
    bounds = [bound for bound in (a, b) if bound is not None]
    return min(bounds) if bounds else None


def _range(exported: ExportedProgram, symbol: sympy.Symbol) -> tuple[int, int | None]:
    """The sizes for which the captured graph holds. torch.export says 2 also where it merely did not look at 0 and 1."""
    bounds = exported.range_constraints.get(symbol)
    if bounds is None:
        return 0, None
    lower = int(bounds.lower) if bounds.lower.is_Integer else 0
    upper = int(bounds.upper) if bounds.upper.is_Integer else None
    return lower, (None if upper is None or upper > 2**31 else upper)


def _fixed(what: str, size: int, request: AxisRequest, fixing: Mapping[int, str], mixing: str) -> list[str]:
    """A note on an axis that capture fixed, or an error where the user declared it dynamic."""
    if not request.declared:
        why = ", although its type says otherwise: eager takes no other size either" if request.claimed else ""
        return [f"{what} is fixed at {size}{why}"]
    place = fixing.get(size, "")
    fixed = f"{what} was declared dynamic, but the model fixes it at {size}" + (f" at {place}" if place else "")
    if is_loop(place) or mixing:
        raise CaptureError(
            f"{fixed}\n  {'That is a Python loop over it' if is_loop(place) else 'A Python loop goes over it'}, "
            "which runs once for each element, and a graph holds one number of turns. "
            + (f"It was not batched: {mixing}. " if mixing else "")
            + f"Either leave it out of the dynamic shapes (the artifact then takes {size} there), or let the body of the "
            "loop compute all elements at once."
        )
    raise CaptureError(
        f"{fixed}.\n  Either leave it out of the dynamic shapes, or change that line so that it does not use the size as "
        "a constant."
    )


def is_loop(place: str) -> bool:
    """Whether the line of ``file:line: source (operator)`` loops over what is fixed there, as ``for row in x`` does."""
    found = re.match(r"(?P<file>.+?):(?P<line>\d+): .*?(?:\(aten\.(?P<operator>\w+)\.?\w*\))?$", place)
    by_loop = found is not None and found["operator"] in (None, "unbind", "tensor_split", "split", "chunk")
    return by_loop and found is not None and iterates_at(found["file"], int(found["line"]))
