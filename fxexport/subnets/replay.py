"""The proof of a pipeline: every recorded run once more, with the artifacts in place of the parts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxexport.capture.private_copy import preserved_process_state
from fxexport.control_flow import eager_control_flow
from fxexport.errors import ValidationError
from fxexport.pipeline.ports import Port, State, Wire
from fxexport.pipeline.sizes import axis_size
from fxexport.subnets.chains import look, merge
from fxexport.subnets.flow import feedback, flows
from fxexport.subnets.interface import Alignment, PartInterface, align
from fxexport.subnets.origins import Origin, trace
from fxexport.subnets.recording import Recording
from fxexport.subnets.tape import Leaf, Operator, RecordedCall, Ref, Tape
from fxexport.validation.judge import PointResult
from fxexport.validation.numbers import Scales

RunPart = Callable[[str, dict[str, Tensor]], Mapping[str, Tensor]]


class Connections(Protocol):
    """The wires and states to check: a ``Wiring`` or a ``PipelineSpec``."""

    @property
    def wires(self) -> tuple[Wire, ...]:
        """Outputs that are inputs of other parts."""

    @property
    def states(self) -> tuple[State, ...]:
        """Outputs that are inputs of the next step."""


def check_pipeline(
    run_part: RunPart,
    recording: Recording,
    wiring: Connections,
    interfaces: Sequence[PartInterface],
    scales: Scales | None = None,
    unstable: Mapping[str, Collection[str]] | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> list[PointResult]:
    """Replays every run with artifacts: what one gives flows through the recorded operators of the driver to the next.

    ``run_part(name, flat inputs) -> flat outputs`` runs one artifact, on CPU tensors by flat name. Values that
    ``wiring`` says come by wire or state are taken from where it says, so that a swapped wire shows. Returns one result
    for each call (``run 1, call 3 of decoder``), for each number that the driver decided by and that came out otherwise,
    and for the tensors that the driver returned. Nothing is raised for a wrong pipeline; a run stops at its first
    failure. Of outputs that ``unstable`` names for a part (random ones) only shape and dtype are compared; what eager
    gave flows on in their place.
    """
    results: list[PointResult] = []
    with preserved_process_state(), torch.no_grad(), eager_control_flow():
        for tape in recording.runs:
            replay = Replay(run_part, recording, tape, wiring, interfaces, scales or Scales(), unstable or {})
            for result in replay.results():
                progress(result.label)
                results.append(result)
                if not result.passed:
                    break
    return results


@dataclass
class Replay:
    """One run on the CPU. ``values``: tape value -> tensor; ``made``: (part, call number) -> outputs of the artifact."""

    run_part: RunPart
    recording: Recording
    tape: Tape
    wiring: Connections
    interfaces: Sequence[PartInterface]
    scales: Scales
    unstable: Mapping[str, Collection[str]]
    values: dict[int, Tensor] = field(default_factory=dict)
    made: dict[tuple[str, int], Mapping[str, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._interfaces = {interface.name: interface for interface in self.interfaces}
        self._aligned = {i.name: align(i, self.recording.calls(i.name)) for i in self.interfaces}
        self._wires = {wire.target: wire for wire in self.wiring.wires}
        self._states = {state.input: state for state in self.wiring.states}
        self._starts: dict[Port, tuple[int, int]] = {}
        self._carried = self._what_is_carried()
        self.values |= {value: one.tensor.cpu().clone() for value, one in self.tape.outside.items()}

    def results(self) -> Iterator[PointResult]:
        """One result a call, and those of decisions and of the driver's own result."""
        for step in self.tape.steps:
            if isinstance(step, RecordedCall):
                yield self._call(step)
            elif (wrong := self._operate(step)) is not None:
                yield wrong
        if self.tape.result:
            names = [leaf.path for leaf in self.tape.result]
            got = [self.values[leaf.value] for leaf in self.tape.result]
            expected = [leaf.tensor for leaf in self.tape.result]
            compared = self.scales.compare(names, expected, got)
            yield PointResult(f"{self.tape.label}, what the driver returned", {}, tuple(compared))

    # -- the driver -------------------------------------------------------------------------------------------------

    def _operate(self, operator: Operator) -> PointResult | None:
        args, kwargs = pytree.tree_map(self._given, (operator.args, operator.kwargs))
        try:
            result = operator.func(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - whatever the operator says of such values, it is reported
            label, kind = f"{self.tape.label}, {operator}", type(error).__name__
            return PointResult(label, {}, error=f"it fails on what the artifacts give: {kind}: {error}")
        tensors = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
        self.values |= dict(zip(operator.outputs, tensors, strict=True))
        if isinstance(operator.number, bool | int) and result != operator.number:
            told = f"the driver read {operator.number} from eager, the artifacts give {result}: it would go another way"
            return PointResult(f"{self.tape.label}, {operator}", {}, error=told)
        return None

    def _given(self, leaf: Any) -> Any:
        if isinstance(leaf, Ref):
            return self.values[leaf.value]
        return torch.device("cpu") if isinstance(leaf, torch.device) else leaf

    # -- the parts --------------------------------------------------------------------------------------------------

    def _call(self, call: RecordedCall) -> PointResult:
        label = f"{self.tape.label}, {call.label}"
        aligned, signature = self._aligned[call.part], self._interfaces[call.part].signature
        try:
            feed = {spec.name: self._supply(Port(call.part, spec.name), call) for spec in signature.inputs}
            outputs = self.run_part(call.part, feed)
            names = [spec.name for spec in signature.outputs if aligned.outputs.get(spec.name) in call.outputs]
            missing = [name for name in names if name not in outputs]
            if missing:
                raise ValidationError(f"the artifact of {call.part} gives {list(outputs)}, not {missing}")
            random = frozenset(self.unstable.get(call.part, ()))
            recorded = {name: call.outputs[aligned.outputs[name]].tensor for name in names}
            drawn = {name: tensor.cpu() for name, tensor in recorded.items() if name in random}
            self._keep(call, aligned, {**outputs, **drawn})
            scales = replace(self.scales, unstable=random)
            compared = scales.compare(names, list(recorded.values()), [outputs[name] for name in names])
        except Exception as error:  # noqa: BLE001 - a wrong wire may fail in any way; it is reported
            return PointResult(label, {}, error=f"{type(error).__name__}: {error}")
        return PointResult(label, self._sizes(call), tuple(compared))

    def _keep(self, call: RecordedCall, aligned: Alignment, outputs: Mapping[str, Tensor]) -> None:
        self.made[call.part, call.number] = outputs
        for path, leaf in call.outputs.items():
            name = aligned.output_at(path)
            self.values[leaf.value] = leaf.tensor.cpu().clone() if name is None else outputs[name].clone()
        for path, port in self._carried.get(call.part, {}).items():
            if path in call.outputs and port.name in outputs:
                self.values[call.outputs[path].value] = outputs[port.name].clone()

    def _what_is_carried(self) -> dict[str, dict[str, Port]]:
        """Part -> path of an output that the run carries to the next step -> the output that the wiring carries there.

        The same for a right wiring; for a wrong one, the driver's filters then see what the wiring says.
        """
        carried: dict[str, dict[str, Port]] = {}
        for part, aligned in self._aligned.items():
            for flow in flows([self.tape], part, aligned.inputs):
                state, source = self._states.get(flow.port), feedback(flow)
                if state is not None and source is not None and state.output.part == source[0]:
                    carried.setdefault(source[0], {})[source[1]] = state.output
        return carried

    def _supply(self, port: Port, call: RecordedCall) -> Tensor:
        path = self._aligned[port.part].inputs.get(port.name)
        leaf = None if path is None else call.inputs.get(path)
        if leaf is None and port.name in self._interfaces[port.part].held:
            return self._held(port, call)
        if leaf is None:
            raise ValidationError(f"the artifact needs {port}, which this call does not give")
        origin = trace(self.tape, leaf.value, call.step)
        self._starts.setdefault(port, _identity(origin))
        value = None
        if port in self._wires:
            value = self._by_wire(self._wires[port], origin, call)
        elif port in self._states:
            value = self._by_state(self._states[port], origin, call)
        if value is None:
            value = self.values[leaf.value]
        elif not self._is_written(leaf):
            self.values[leaf.value] = value
        return value.clone()

    def _held(self, port: Port, call: RecordedCall) -> Tensor:
        """A buffer of the part: what the state's output was in the call before, at first what it held."""
        earlier = [one.number for one in self.tape.calls(port.part) if one.step < call.step]
        state, interface = self._states.get(port), self._interfaces[port.part]
        if not earlier:
            return interface.held[port.name].clone()
        paths = {spec.name: spec.path for spec in interface.signature.inputs}
        own = next(spec.name for spec in interface.signature.outputs if spec.path == paths[port.name])
        return self.made[port.part, earlier[-1]][own if state is None else state.output.name].clone()

    def _is_written(self, leaf: Leaf) -> bool:
        """Whether the driver writes into that memory: then the tensor of the replay must stay the one with its views."""
        return bool(self.tape.writes.get(self.tape.values[leaf.value].storage))

    def _by_wire(self, wire: Wire, origin: Origin, call: RecordedCall) -> Tensor:
        own = merge([origin.through]) if wire.chosen else None
        through = wire.through if own is None else own[0]
        return look(self._output(wire.source, origin, call), through)

    def _output(self, port: Port, origin: Origin, call: RecordedCall) -> Tensor:
        """The output at ``port`` of the call that the tape says, else of the latest one."""
        number = origin.call.number if origin.call is not None and origin.call.part == port.part else None
        earlier = [one.number for one in self.tape.calls(port.part) if one.step < call.step]
        if not earlier:
            raise ValidationError(f"{port} is needed by {call.label}, before {port.part} was called")
        return self.made[port.part, number or earlier[-1]][port.name]

    def _by_state(self, state: State, origin: Origin, call: RecordedCall) -> Tensor | None:
        """The state's value; None where the driver filtered it, and the replay of its operators has it."""
        if _identity(origin) == self._starts[state.input]:
            return self._initial(state, origin, call)
        if origin.operator is not None:
            return None
        return look(self._output(state.output, origin, call), state.through)

    def _initial(self, state: State, origin: Origin, call: RecordedCall) -> Tensor:
        initial = state.initial
        if initial.source is not None:
            return look(self._output(initial.source, origin, call), initial.through)
        sizes = self._sizes(call)
        shape = [axis_size(axis, sizes) for axis in initial.axes]
        if None in shape:
            raise ValidationError(
                f"the sizes {list(initial.axes)} of the first {state.input} are not known from {sizes}"
            )
        values = initial.fill if initial.values is None else initial.values
        tensor = torch.tensor(values, dtype=getattr(torch, initial.dtype))
        return tensor.expand([size for size in shape if size is not None]).contiguous()

    def _sizes(self, call: RecordedCall) -> dict[str, int]:
        """The named sizes of a call, as its inputs that are no states give them."""
        sizes: dict[str, int] = {}
        for spec in self._interfaces[call.part].signature.inputs:
            leaf = call.inputs.get(self._aligned[call.part].inputs.get(spec.name, ""))
            if leaf is not None and Port(call.part, spec.name) not in self._states:
                sizes |= {axis: leaf.tensor.shape[place] for place, axis in spec.dynamic_axes.items()}
        return sizes


def _identity(origin: Origin) -> tuple[int, int]:
    """The same for two uses of one value that was not written to in between."""
    return origin.value, -1 if origin.operator is None else origin.operator.step
