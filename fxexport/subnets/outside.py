"""Inputs of the pipeline: what no part made, or what the driver computed itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fxexport.pipeline.ports import Port
from fxexport.pipeline.spec import Outside
from fxexport.signature import TensorSpec, dtype_name, flat_name, unique_names
from fxexport.subnets.flow import Flow, Source, Use
from fxexport.subnets.origins import ancestors
from fxexport.subnets.tape import short

PortOf = Callable[[Source], Port | None]


@dataclass(frozen=True)
class _Entry:
    wanted: str
    feeds: list[Port]
    spec: TensorSpec
    note: str
    argument: bool


def gather_outside(flows: Sequence[Flow], unfed: Mapping[Port, TensorSpec], port_of: PortOf) -> tuple[Outside, ...]:
    """One input of the pipeline for each tensor that comes from outside; it may feed several parts.

    ``unfed``: the inputs of parts that no wire or state feeds, in order; those without a flow were never given.
    """
    by_port = {flow.port: flow for flow in flows}
    entries: dict[object, _Entry] = {}
    for port, spec in unfed.items():
        flow = by_port.get(port)
        key = (port,) if flow is None else (_identity(flow), spec.dtype)
        if key in entries:
            entries[key].feeds.append(port)
        else:
            argument = None if flow is None else _argument(flow)
            note = "in no recorded call" if flow is None else _note(flow, port_of)
            entries[key] = _Entry(argument or spec.name, [port], spec, note, argument is not None)
    wanted = [entry.wanted for entry in entries.values()]
    told = [  # an argument keeps its name: the driver is called with it
        f"{e.feeds[0].part}_{name}" if wanted.count(name) > 1 and not e.argument else name
        for name, e in zip(wanted, entries.values(), strict=True)
    ]
    return tuple(
        Outside(name, tuple(e.feeds), dtype_name(e.spec.dtype), e.spec.axes, e.note)
        for name, e in zip(unique_names(told), entries.values(), strict=True)
    )


def _identity(flow: Flow) -> object:
    """The same for two inputs that took the same tensors: by argument of the driver, else one by one.

    Inputs of several parts are the same where each takes one tensor through a whole run.
    """
    if (name := _argument(flow)) is not None:
        return name
    values = [(use.tape.label, use.leaf.value) for use in flow.uses]
    return tuple(dict.fromkeys(values))


def _argument(flow: Flow) -> str | None:
    """The driver's argument that every use is, untouched; None where there is none."""
    outside = [use.origin.outside for use in flow.uses if not use.origin.through]
    names = {one.name for one in outside if one is not None}
    if len(outside) < len(flow.uses) or None in outside or len(names) != 1 or "" in names:
        return None
    return flat_name(re.findall(r"[^\[\]']+", names.pop()))


def _note(flow: Flow, port_of: PortOf) -> str:
    if _argument(flow) is not None:
        return ""
    use = flow.uses[-1]
    origin = use.origin
    sources = list(
        dict.fromkeys(source for one in (flow.later or flow.uses) for source in ancestors(one.tape, one.origin))
    )
    ports = [str(port_of(source) or ".".join(source)) for source in sources]
    seen = f" through {', '.join(str(hop.view) for hop in origin.through)}" if origin.through else ""
    if origin.source is not None:
        return f"{port_of(origin.source) or '.'.join(origin.source)}{seen}, in other ways in other calls"
    if origin.outside is not None:
        return f"{_outsider(use)}{seen}"
    return f"computed by {origin.operator}{seen}" + (f" from {', '.join(ports)}" if ports else "")


def _outsider(use: Use) -> str:
    outside = use.origin.outside
    assert outside is not None
    if outside.name:
        return f"from the argument {outside.name!r}"
    if outside.what:
        return f"{outside.what}, used at {short(outside.place)}"
    return f"made outside of PyTorch, first seen at {short(outside.place)}"
