"""What stays in float32: by the user's word, by the ranges on the examples, and by the numbers in the graph."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from fxexport.errors import InputError
from fxexport.precision.kinds import Precision
from fxexport.precision.operators import is_product, is_wide, name_of
from fxexport.precision.ranges import Seen
from fxexport.precision.record import Kept
from fxexport.program import Program, module_path

MARGIN = 4.0
"""Other inputs may give values this much larger than the examples do."""
_CANCELS = 16.0
"""Rounding errors of one number by which rounding the operands may move a result."""
_INT8_MOVES = 0.05
"""The same for int8, relative to the result's root mean square: beyond it a few outliers set the scale of the others."""


_UNFIT = "its operands do not fit"


def reasons_to_keep(program: Program, seen: Mapping[str, Seen], precision: Precision) -> dict[str, str]:
    """Node name -> why its result has to be float32, by what it was on the examples."""
    found = {}
    for node in program.graph.find_nodes(op="placeholder") + calls(program):
        here = seen.get(node.name)
        reason = "" if here is None or is_constant(program, node) else _reason(node, here, precision)
        if not reason and precision.dtype is not None and is_product(node):  # it would have to round them
            peak = max((seen[each.name].peak for each in node.all_input_nodes if each.name in seen), default=0.0)
            reason = _too_large(peak, precision)
        if reason:
            found[node.name] = reason
    return found


def _reason(node: fx.Node, seen: Seen, precision: Precision) -> str:
    if precision.dtype is None:
        return f"int8 inputs move its result by {seen.moved:.0%}" if seen.moved > _INT8_MOVES else ""
    info = torch.finfo(precision.dtype)
    if large := _too_large(seen.peak, precision):
        return large
    if 0 < seen.peak < info.tiny:
        return f"values of {seen.peak:.1g} at most, below the normal numbers of {precision.name}"
    if node.op == "call_function" and not is_wide(node) and seen.moved > _CANCELS * precision.step:
        return f"rounded operands move its result by {seen.moved:.1%}" if math.isfinite(seen.moved) else _UNFIT
    return ""


def _too_large(peak: float, precision: Precision) -> str:
    assert precision.dtype is not None
    end = torch.finfo(precision.dtype).max
    return f"values up to {peak:.2g}, {precision.name} ends at {end:.3g}" if peak * MARGIN > end else ""


def most_moved(program: Program, seen: Mapping[str, Seen], count: int = 3) -> list[str]:
    """The modules whose results rounding moves most, by their worst call."""
    worst: dict[str, float] = {}
    for node in calls(program):
        if (here := seen.get(node.name)) is not None and here.moved:
            worst[module_of(node)] = max(here.moved, worst.get(module_of(node), 0.0))
    return sorted(filter(None, worst), key=lambda path: -worst[path])[:count]


def calls(program: Program) -> list[fx.Node]:
    """The operator calls of the graph, without those in branches and loops."""
    return [node for node in program.graph.nodes if node.op == "call_function"]


def is_constant(program: Program, node: fx.Node) -> bool:
    """Whether a node is a weight or another constant, which is judged by its own numbers."""
    return node.op == "placeholder" and program.is_constant(node)


def lies_in(path: str, modules: Collection[str]) -> bool:
    """Whether a module path is one of ``modules`` or inside of one."""
    return any(path == module or path.startswith(f"{module}.") for module in modules)


def by_module(nodes: Iterable[tuple[fx.Node, str]]) -> list[Kept]:
    """Calls with their reasons, as one entry for each module and reason."""
    groups: dict[tuple[str, str], list[str]] = {}
    for node, reason in nodes:
        what = f"input {node.name}" if node.op == "placeholder" else name_of(node) or str(node.target)
        groups.setdefault((module_of(node), reason), []).append(what)
    return [Kept(module, tuple(dict.fromkeys(found)), reason) for (module, reason), found in groups.items()]


def module_of(node: fx.Node) -> str:
    """The module that made a node, without the number of its call."""
    return re.sub(r"@\d+", "", module_path(node))


def refuse_unknown_modules(asked: Sequence[str], programs: Sequence[Program]) -> None:
    """Raises InputError for a name in ``keep_fp32`` that is no module of any of the programs."""
    stacks: list[Mapping[str, Any]] = [
        node.meta.get("nn_module_stack") or {} for program in programs for node in calls(program)
    ]
    known = {re.sub(r"@\d+", "", str(path)) for stack in stacks for path, _ in stack.values()} - {""}
    if unknown := [name for name in asked if name not in known]:
        some = ", ".join(sorted(known)[:12]) or "none that has operators"
        raise InputError(f"keep_fp32 names {', '.join(map(repr, unknown))}; the modules are {some}")
