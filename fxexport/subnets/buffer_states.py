"""Buffers that a part updates, exported as inputs and outputs of their own (``state="explicit"``): states of the pipeline.

cell.input_seen, cell.output_seen  ->  one state, at first what the buffer held
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from fxexport.pipeline.ports import Initial, Port, State
from fxexport.signature import dtype_name
from fxexport.subnets.interface import PartInterface
from fxexport.subnets.wiring import Wiring

_MOST_VALUES = 2**16  # of a first value that is written into the description


def with_buffer_states(wiring: Wiring, interfaces: Sequence[PartInterface]) -> Wiring:
    """``wiring`` with a state for every buffer in ``interface.held``.

    Where the run called the part once, the buffer goes from run to run: then a step is a run of all parts. A buffer of
    more than 65536 different values, or of complex ones, stays an input, with a note.
    """
    states, notes = [], []
    for each in interfaces:
        outputs = {spec.path: spec for spec in each.signature.outputs}
        for spec in each.signature.inputs:
            if spec.name not in each.held:
                continue
            port, initial = Port(each.name, spec.name), _initial(each.held[spec.name])
            if initial is None:
                notes.append(
                    f"{port} is the buffer {spec.path}, too large or complex to write down here: give its value yourself"
                )
                continue
            states.append(State(port, Port(each.name, outputs[spec.path].name), (), initial))
    if not states:
        return replace(wiring, notes=(*wiring.notes, *notes))
    carried, given = {state.input for state in states}, {state.output for state in states}
    inputs = (replace(one, feeds=tuple(port for port in one.feeds if port not in carried)) for one in wiring.inputs)
    looping = set(wiring.loop)
    if any(state.input.part not in looping for state in states):
        looping = set(wiring.order)
    return replace(
        wiring,
        loop=tuple(part for part in wiring.order if part in looping),
        inputs=tuple(one for one in inputs if one.feeds),
        states=(*wiring.states, *states),
        outputs=tuple(port for port in wiring.outputs if port not in given),
        notes=(*wiring.notes, *notes),
    )


def _initial(value: Tensor) -> Initial | None:
    axes, dtype = tuple(value.shape), dtype_name(value.dtype)
    if value.is_complex():  # JSON has real numbers only
        return None if bool(value.any()) else Initial(axes, dtype, fill=0)
    if value.numel() and bool((value == value.flatten()[0]).all()):
        return Initial(axes, dtype, fill=value.flatten()[0].item())
    if value.numel() > _MOST_VALUES:
        return None
    return Initial(axes, dtype, values=value.tolist())
