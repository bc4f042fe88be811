"""How the parts are wired, from tensor identity in the recorded runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from fxexport.errors import InputError
from fxexport.pipeline.ports import Port, State, Wire
from fxexport.pipeline.sizes import axis_size
from fxexport.pipeline.spec import Outside
from fxexport.signature import TensorSpec
from fxexport.subnets.chains import looks_at, merge
from fxexport.subnets.flow import Flow, Source, feedback, flows, starts
from fxexport.subnets.initial import initial_value
from fxexport.subnets.interface import Alignment, PartInterface, align
from fxexport.subnets.origins import Origin, refs_in, trace
from fxexport.subnets.outside import gather_outside
from fxexport.subnets.recording import Recording
from fxexport.subnets.tape import Operator, Tape, short


@dataclass(frozen=True)
class Wiring:
    """Everything ``PipelineSpec`` says of the parts but their files.

    ``order``: the parts in the order they run in (parts never called come last); ``loop``: those called again and again.
    """

    order: tuple[str, ...]
    loop: tuple[str, ...]
    inputs: tuple[Outside, ...]
    wires: tuple[Wire, ...]
    states: tuple[State, ...]
    outputs: tuple[Port, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"parts: {', '.join(self.order)}" + (f"; each step: {', '.join(self.loop)}" if self.loop else "")
        for one in self.inputs:
            told = f" ({one.note})" if one.note else ""
            yield f"  input  {one.name} {one.dtype}{list(one.axes)} -> {', '.join(map(str, one.feeds))}{told}"
        yield from (f"  wire   {wire}" for wire in self.wires)
        yield from (f"  state  {state}" for state in self.states)
        yield f"  output {', '.join(map(str, self.outputs))}"
        yield from (f"  note: {note}" for note in self.notes)


def wire(recording: Recording, interfaces: Sequence[PartInterface]) -> Wiring:
    """The wiring that every recorded call agrees with.

    Raises InputError where ``interfaces`` are not those of the recorded parts.
    """
    return _Wirer(recording, interfaces).wiring()


@dataclass
class _Wirer:
    recording: Recording
    interfaces: Sequence[PartInterface]
    aligned: dict[str, Alignment] = field(init=False)
    notes: list[str] = field(default_factory=list)
    wires: list[Wire] = field(default_factory=list)
    states: list[State] = field(default_factory=list)

    def __post_init__(self) -> None:
        names = [interface.name for interface in self.interfaces]
        if sorted(names) != sorted(self.recording.parts):
            raise InputError(f"the exported parts are {names}, the recorded ones {list(self.recording.parts)}")
        self.aligned = {i.name: align(i, self.recording.calls(i.name)) for i in self.interfaces}
        self.signatures = {interface.name: interface.signature for interface in self.interfaces}

    def wiring(self) -> Wiring:
        called = starts(self.recording.runs)
        order = (*called, *(part for part in self.recording.parts if part not in called))
        loop = tuple(part for part in called if self.recording.repeated(part))
        self.notes += self.recording.notes
        left: list[Flow] = []
        for part in called:
            left += self._connect(part, list(flows(self.recording.runs, part, self.aligned[part].inputs)), loop)
        specs = {Port(part, spec.name): spec for part in order for spec in self.signatures[part].inputs}
        fed = {one.target for one in self.wires} | {one.input for one in self.states}
        inputs = gather_outside(left, {port: spec for port, spec in specs.items() if port not in fed}, self._port)
        return Wiring(
            tuple(order), loop, inputs, tuple(self.wires), tuple(self.states), self._outputs(order),
            tuple(dict.fromkeys(self.notes)),
        )  # fmt: skip

    def _connect(self, part: str, found: Sequence[Flow], loop: Sequence[str]) -> list[Flow]:
        """Wires and states of one part; returns the flows that are neither."""
        carried = {flow.port: source for flow in found if (source := feedback(flow)) is not None}
        others = [flow for flow in found if flow.port not in carried]
        left: list[Flow] = []
        for flow in found:
            source = carried.get(flow.port)
            made = self._wire(flow, loop) if source is None else self._state(flow, source, others)
            left += [] if made else [flow]
        return left

    def _wire(self, flow: Flow, loop: Sequence[str]) -> bool:
        source = flow.direct
        port = None if source is None else self._port(source)
        merged = merge([use.origin.through for use in flow.uses])
        if port is None or merged is None or port.part == flow.port.part:
            return False
        through, chosen = merged
        if chosen and flow.port.part not in loop:
            return False
        self._note_kept(flow)
        self.wires.append(Wire(port, flow.port, through, chosen))
        return True

    def _note_kept(self, flow: Flow) -> None:
        """A value that is not the latest of its source: the driver's own decision, which no wire says."""
        use = next((use for use in flow.uses if use.is_stale), None)
        if use is not None and use.origin.call is not None:
            self.notes.append(
                f"{flow.port} does not always take the latest {'.'.join(use.origin.source or ())}: {use.call.label} at "
                f"{short(use.call.place)} takes that of {use.origin.call.label}; the driver decides"
            )

    def _state(self, flow: Flow, source: Source, others: Sequence[Flow]) -> bool:
        port, spec = self._port(source), self._spec(flow.port)
        direct = [use for use in flow.later if use.origin.source == source]
        merged = merge([use.origin.through for use in direct])
        if port is None or merged is None or merged[1]:
            self.notes.append(
                f"{flow.port} is fed back from {'.'.join(source)} in a way that changes from call to call"
            )
            return False
        sizes = [self._sizes(others, use.tape.label) for use in flow.firsts]
        initial = initial_value(flow, spec, sizes, self._port)
        if isinstance(initial, str):
            self.notes.append(f"{flow.port} is fed back from {port}, but is an input: {initial}")
            return False
        self.states.append(State(flow.port, port, merged[0], initial))
        filters = list(dict.fromkeys(str(u.origin.operator) for u in flow.later if u.origin.operator is not None))
        kept = [u for u in flow.later if u.is_stale or (u.origin.operator is None and u.origin.source != source)]
        if filters:
            self.notes.append(
                f"between steps the driver changes the state {flow.port} at {', '.join(filters)}: a loop over steps has to "
                "do the same (PipelineState.keep, PipelineState.replace)"
            )
        if kept:
            call = kept[0].call
            self.notes.append(
                f"the driver keeps an older {flow.port} in some calls ({call.label} at {short(call.place)}): a loop over "
                "steps has to do the same"
            )
        return True

    def _sizes(self, flows_: Sequence[Flow], run: str) -> dict[str, int]:
        """The sizes of named axes in the first calls of a run, from inputs that are no states."""
        sizes: dict[str, int] = {}
        for flow in flows_:
            spec = self._spec(flow.port)
            for use in flow.firsts:
                if use.tape.label == run and use.leaf.tensor.ndim == len(spec.axes):
                    sizes |= {axis: use.leaf.tensor.shape[place] for place, axis in spec.dynamic_axes.items()}
        return {axis: size for axis, size in sizes.items() if axis_size(axis, sizes) == size}

    def _spec(self, port: Port) -> TensorSpec:
        return next(spec for spec in self.signatures[port.part].inputs if spec.name == port.name)

    def _port(self, source: Source) -> Port | None:
        """The output of an artifact that was at that path; None where it was left out of it."""
        part, path = source
        name = self.aligned[part].output_at(path)
        return None if name is None else Port(part, name)

    def _outputs(self, order: Sequence[str]) -> tuple[Port, ...]:
        """Outputs that no wire or state takes over, those that the driver itself looks at or returns, and states where a
        part gives nothing else."""
        taken = {wire.source for wire in self.wires if not wire.chosen} | {state.output for state in self.states}
        own = {state.output for state in self.states}
        shown = (set(self._used_by_driver()) - own) | set(self._returned())
        ports = [Port(part, spec.name) for part in order for spec in self.signatures[part].outputs]
        for part in order:
            theirs = {port for port in ports if port.part == part}
            shown |= theirs if theirs <= own else set()
        return tuple(port for port in ports if port not in taken or port in shown)

    def _returned(self) -> Iterator[Port]:
        for tape in self.recording.runs:
            for leaf in tape.result:
                end = trace(tape, leaf.value, len(tape.steps))
                if end.source is not None and (port := self._port(end.source)) is not None:
                    yield port

    def _used_by_driver(self) -> Iterator[Port]:
        for tape in self.recording.runs:
            ends = [trace(tape, leaf.value, len(tape.steps)) for leaf in tape.result]
            for operator in tape.operators():
                ends += _computed_from(tape, operator)
            for end in ends:
                if end.source is not None and (port := self._port(end.source)) is not None:
                    yield port


def _computed_from(tape: Tape, operator: Operator) -> list[Origin]:
    """What a computation of the driver takes; nothing for one that only looks at a tensor another way."""
    if operator.outputs and looks_at(tape, operator, operator.outputs[0]) is not None:
        return []
    return [trace(tape, value, operator.step) for value in refs_in((operator.args, operator.kwargs))]
