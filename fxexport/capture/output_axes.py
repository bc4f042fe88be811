"""Names for the axes of outputs: sizes that depend on the data, and the names that typed outputs declare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import sympy
import torch
from torch.export import ExportedProgram

from fxexport.capture.axes import NamedAxes
from fxexport.signature import flat_name, unique_names


def name_output_axes(
    exported: ExportedProgram, axes: NamedAxes, outputs: Sequence[str], declared: Sequence[Mapping[int, str]]
) -> NamedAxes:
    """``axes`` with names for what only outputs have.

    A size that depends on the data (``nonzero``) is named as the types declare it, else ``<output>_dim_<n>``, and noted.
    A formula such as ``2*time`` gets the declared name, and the formula is noted.
    """
    results: Any = exported.graph.output_node().args[0]
    sizes = [
        (name, position, size, names.get(position))
        for name, node, names in zip(outputs, results, declared, strict=True)
        for position, size in enumerate(node.meta["val"].shape)
        if isinstance(size, torch.SymInt)
    ]
    labels, notes = _data_dependent(axes, sizes)
    axes = replace(axes, labels=labels)
    formulas: dict[str, str] = {}
    for name, position, size, wanted in sizes:
        axis = str(axes.axis_of(size))
        known = {*labels.values(), *formulas.values()}
        if wanted is None or wanted == axis or axis.isidentifier() or axis.isdigit() or axis in formulas:
            continue
        if wanted in known:
            notes.append(
                f"axis {position} of {name!r} is declared as {wanted!r}, but it is {axis}: named by that formula"
            )
            continue
        formulas[axis] = wanted
        notes.append(f"dimension {wanted!r} of {name!r} is {axis}")
    return replace(axes, formulas=formulas, notes=(*axes.notes, *notes))


def _data_dependent(
    axes: NamedAxes, sizes: Sequence[tuple[str, int, torch.SymInt, str | None]]
) -> tuple[dict[sympy.Symbol, str], list[str]]:
    """Labels for symbols that no input has, which torch calls ``u0``; and notes on them."""
    labels, notes = dict(axes.labels), []
    for name, position, size, wanted in sizes:
        expression = sympy.sympify(size.node.expr)
        for symbol in sorted(expression.free_symbols - set(labels), key=str):
            own = wanted if wanted and expression.is_Symbol else flat_name((name, "dim", position))
            (labels[symbol],) = unique_names([own], labels.values())
            notes.append(f"dimension {labels[symbol]!r} of {name!r} depends on the values of the inputs")
    return labels, notes
