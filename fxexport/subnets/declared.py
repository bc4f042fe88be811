"""Wiring of parts that no run called: what their names alone say.

decoder.input_states_1, decoder.output_states_1  ->  one state, zero at first
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from fxexport.pipeline.ports import Initial, Port, State, short_names
from fxexport.pipeline.spec import Outside
from fxexport.signature import Signature, TensorSpec, dtype_name
from fxexport.subnets.interface import PartInterface
from fxexport.subnets.wiring import Wiring


def unwired(interfaces: Sequence[PartInterface]) -> Wiring:
    """Parts of which nothing was recorded: every input comes from outside, every output is an output."""
    specs = {Port(each.name, spec.name): spec for each in interfaces for spec in each.signature.inputs}
    names = short_names(specs)
    inputs = tuple(Outside(names[port], (port,), dtype_name(spec.dtype), spec.axes) for port, spec in specs.items())
    outputs = tuple(Port(each.name, spec.name) for each in interfaces for spec in each.signature.outputs)
    return Wiring(tuple(each.name for each in interfaces), (), inputs, (), (), outputs, ())


def with_declared_states(wiring: Wiring, interfaces: Sequence[PartInterface], uncalled: Collection[str]) -> Wiring:
    """``wiring`` with a state for every pair ``input_<name>``, ``output_<name>`` of equal dtype and axes in a part of
    ``uncalled``. That it is zero at first is an assumption, and noted."""
    states = [state for each in interfaces if each.name in uncalled for state in _pairs(each.name, each.signature)]
    if not states:
        return wiring
    carried = {state.input for state in states}
    inputs = (replace(one, feeds=tuple(p for p in one.feeds if p not in carried)) for one in wiring.inputs)
    looping = {state.input.part for state in states} | set(wiring.loop)
    notes = [
        f"{state.output} -> {state.input} is a state by its names; that it is zero at first is assumed, since no run of "
        f"{state.input.part} was recorded"
        for state in states
    ]
    return replace(
        wiring,
        loop=tuple(part for part in wiring.order if part in looping),
        inputs=tuple(one for one in inputs if one.feeds),
        states=(*wiring.states, *states),
        outputs=tuple(port for port in wiring.outputs if port not in {state.output for state in states}),
        notes=(*wiring.notes, *notes),
    )


def _pairs(part: str, signature: Signature) -> list[State]:
    outputs = {spec.name: spec for spec in signature.outputs}
    found = []
    for spec in signature.inputs:
        other = outputs.get("output_" + spec.name.removeprefix("input_"))
        if spec.name.startswith("input_") and other is not None and _alike(spec, other):
            zero = Initial(spec.axes, dtype_name(spec.dtype), fill=0)
            found.append(State(Port(part, spec.name), Port(part, other.name), (), zero))
    return found


def _alike(one: TensorSpec, other: TensorSpec) -> bool:
    return one.dtype == other.dtype and one.axes == other.axes
