"""Masks off: what an assumption makes trivial goes, what it makes known is written out, the rest is told."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from fxexport.assumptions.interpreter import Forms
from fxexport.assumptions.simplifying import ATTENTION, Simplifier
from fxexport.assumptions.writing import Unwritten, Writer
from fxexport.program import Program, module_path, source_line
from fxexport.rewrite import Rewrite, arguments

aten = torch.ops.aten
_TOLD = 6  # places that a note names


@dataclass
class Disabled:
    """What :func:`disable` did: the rewrites, and a sentence for each thing worth telling."""

    rewrites: list[Rewrite] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def disable(program: Program, rule: str) -> Disabled:
    """Applies ``program.assumptions`` to its graph. Without any, nothing changes."""
    result = Disabled()
    if not program.assumptions:
        return result
    before = program.node_count()
    forms = Forms(program, program.assumptions)
    writer = Writer(forms)
    masked = {
        node for node in program.find(ATTENTION) if (mask := arguments(node)["attn_mask"]) and forms.depends(mask)
    }
    simplifier = Simplifier(forms, writer, masked, _ahead_of(program.find(aten.as_strided.default)))
    for node in list(program.graph.nodes):
        if node.op == "call_function" and not node._erased:
            place = (module_path(node), source_line(node))
            told = simplifier.rewrite(node)
            if told is not None:
                result.rewrites.append(Rewrite(rule, node.name, (told.split(" ")[0],), *place, ()))
    program.erase_dead()
    _write_known(forms, writer, rule, result)
    program.erase_dead()
    _tell(forms, result, before)
    return result


def _ahead_of(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """All that ``nodes`` are computed from."""
    pending, found = list(nodes), set[fx.Node]()
    while pending:
        new = [node for node in pending.pop().all_input_nodes if node not in found]
        found.update(new)
        pending += new
    return found


def _write_known(forms: Forms, writer: Writer, rule: str, result: Disabled) -> None:
    """Known tensors that unknown ones are computed from no longer read an assumed input."""
    for node in list(forms.program.graph.nodes):
        if node.op == "output" or not node.users or not forms.depends(node):
            continue
        form = forms.of(node) if isinstance(node.meta.get("val"), torch.Tensor) else None
        readers = [user for user in node.users if user.op == "output" or forms.of(user) is None]
        if form is None or not readers:
            continue
        before = node.next if node.op != "placeholder" else next(iter(sorted(readers)))
        try:
            new = writer.tensor(form, node, before)
        except Unwritten:
            continue
        for user in readers:
            user.replace_input_with(node, new)
        place = (module_path(node), source_line(node))
        result.rewrites.append(Rewrite(rule, node.name, (str(node.target),), *place, (new.name,)))


def _tell(forms: Forms, result: Disabled, before: int) -> None:
    program = forms.program
    masks = len(result.rewrites)
    for node, assumption in forms.assumed.items():
        nodes = f"{before} -> {program.node_count()} nodes"
        did = f"{masks} calls rewritten, {nodes}" if result.rewrites else "nothing in the graph becomes simpler by that"
        result.notes.append(f"{assumption}: {did}")
        if node.users:
            result.notes += _why_read(forms, node)


def _why_read(forms: Forms, node: fx.Node) -> Sequence[str]:
    """The calls at which knowledge of the assumed input ends."""
    ends: dict[str, None] = {}
    pending, seen = [node], {node}
    while pending:
        current = pending.pop(0)
        for user in current.users:
            if user in seen or user.op == "output":
                continue
            seen.add(user)
            if user.target is aten.sym_size.int:
                continue
            form = forms.of(user)
            if form is None:
                ends[f"{_operator(user)} at {source_line(user) or user.name}: its result is not known"] = None
            elif len(form.cases) > 1:
                ends[f"{_operator(user)} at {source_line(user) or user.name}: not proved, {form}"] = None
            else:
                pending.append(user)
    shown = "; ".join(list(ends)[:_TOLD])
    more = f" and {len(ends) - _TOLD} more" if len(ends) > _TOLD else ""
    return [f"{node.name!r} is still read: {shown}{more}"] if ends else [f"{node.name!r} is still read"]


def _operator(node: fx.Node) -> str:
    target: Any = node.target
    return str(getattr(target, "overloadpacket", target))
