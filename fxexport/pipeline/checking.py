"""Whether a pipeline makes sense: every input fed once, in an order that can run."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fxexport.errors import InputError
from fxexport.pipeline.spec import Outside, PipelineSpec, Port, State, TensorPort, Wire
from fxexport.pipeline.views import Array, dtype_of

Source = Outside | Wire | State
OUTSIDE = "inputs"  # the node of the graph for what comes from outside


def sources(spec: PipelineSpec) -> dict[Port, Source]:
    """What feeds each input of each part. Raises InputError for an input that is fed by nothing, or twice."""
    found: dict[Port, Source] = {}
    for port, source in _feeds(spec):
        if port in found:
            raise InputError(f"{port} is fed twice: {_described(found[port])}, and {_described(source)}")
        found[port] = source
    unfed = [str(port) for port in input_ports(spec) if port not in found]
    if unfed:
        raise InputError(f"nothing feeds {', '.join(unfed)}: no wire, state or input of the pipeline")
    return found


def input_ports(spec: PipelineSpec) -> dict[Port, TensorPort]:
    """Every input of every part, in order."""
    return {Port(part.name, port.name): port for part in spec.parts for port in part.inputs}


def output_ports(spec: PipelineSpec) -> dict[Port, TensorPort]:
    """Every output of every part, in order."""
    return {Port(part.name, port.name): port for part in spec.parts for port in part.outputs}


def parts_before_loop(spec: PipelineSpec) -> list[str]:
    """The parts that run once and need nothing of the loop, in order."""
    found: list[str] = []
    for part in spec.parts:
        needed = {wire.source.part for wire in spec.wires if wire.target.part == part.name}
        if part.name not in spec.loop and needed <= set(found):
            found.append(part.name)
    return found


def check_spec(spec: PipelineSpec) -> None:
    """Raises InputError where the pipeline cannot work: names, dtypes, order, states outside the loop."""
    names = [part.name for part in spec.parts]
    if not names or len(set(names)) != len(names) or OUTSIDE in names or "" in names:
        raise InputError(f"the parts of a pipeline need names of their own, none of them {OUTSIDE!r}: {names}")
    for part in spec.parts:
        for ports, kind in ((part.inputs, "inputs"), (part.outputs, "outputs")):
            if len({port.name for port in ports}) != len(ports):
                raise InputError(f"part {part.name!r} has two {kind} of one name: {[port.name for port in ports]}")
    if unknown := [name for name in spec.loop if name not in names]:
        raise InputError(f"the loop calls {unknown}, the pipeline has {names}")
    if len({one.name for one in spec.inputs}) != len(spec.inputs):
        raise InputError(f"two inputs of the pipeline have one name: {[one.name for one in spec.inputs]}")
    if unused := [one.name for one in spec.inputs if not one.feeds]:
        raise InputError(f"the inputs {unused} of the pipeline feed no part")
    _check_ports(spec)
    _check_order(spec)
    for state in spec.states:
        if state.initial.source is None:
            initial_content(state)
    sources(spec)


def initial_content(state: State) -> Array:
    """The constant or small array that a state starts with, in its dtype; InputError where the dtype cannot hold it."""
    start = state.initial
    try:
        return np.asarray(start.fill if start.values is None else start.values, dtype_of(start.dtype))
    except (ValueError, OverflowError, TypeError) as error:
        raise InputError(f"the state {state.input} cannot start as {start}: {error}") from error


def _feeds(spec: PipelineSpec) -> Iterator[tuple[Port, Source]]:
    for outside in spec.inputs:
        yield from ((port, outside) for port in outside.feeds)
    yield from ((wire.target, wire) for wire in spec.wires)
    yield from ((state.input, state) for state in spec.states)


def _check_ports(spec: PipelineSpec) -> None:
    inputs, outputs = input_ports(spec), output_ports(spec)
    for port, source in _feeds(spec):
        if port not in inputs:
            raise InputError(f"{port} is no input of a part, but {_described(source)}")
    given = [wire.source for wire in spec.wires] + [state.output for state in spec.states]
    initial = [state.initial.source for state in spec.states if state.initial.source is not None]
    for port in (*given, *initial, *spec.outputs):
        if port not in outputs:
            raise InputError(f"{port} is no output of a part; there are {', '.join(map(str, outputs))}")
    for tensor in (*inputs.values(), *outputs.values()):
        dtype_of(tensor.dtype)
    declared = [(port, one.dtype) for one in spec.inputs for port in one.feeds]
    declared += [(state.input, state.initial.dtype) for state in spec.states if state.initial.source is None]
    for port, dtype in declared:
        if dtype_of(dtype) != dtype_of(inputs[port].dtype):
            raise InputError(f"{port} is {inputs[port].dtype}, what feeds it is declared {dtype}")


def _check_order(spec: PipelineSpec) -> None:
    place = {part.name: number for number, part in enumerate(spec.parts)}
    for wire in spec.wires:
        if place[wire.source.part] >= place[wire.target.part]:
            raise InputError(f"{wire}: {wire.source.part!r} must run before {wire.target.part!r}; a value of the step "
                             "before is a state, not a wire")  # fmt: skip
        if wire.chosen and wire.target.part not in spec.loop:
            raise InputError(f"{wire}: only parts that are called each step have inputs that the caller chooses")
    for state in spec.states:
        if state.input.part not in spec.loop or state.output.part not in spec.loop:
            raise InputError(f"the state {state.output} -> {state.input} is of parts that are not called each step")
        source = state.initial.source
        if source is not None and place[source.part] >= place[state.input.part]:
            raise InputError(f"the state {state.input} starts as {source}, which is not known before its first step")


def _described(source: Source) -> str:
    if isinstance(source, Outside):
        return f"the input {source.name!r} feeds it"
    return f"the wire {source}" if isinstance(source, Wire) else f"the state {source.output} -> {source.input}"
