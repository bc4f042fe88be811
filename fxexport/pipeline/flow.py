"""One run of some parts of a pipeline: values flow from inputs, wires and states into each part in turn."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from fxexport.errors import InputError
from fxexport.pipeline.checking import Source, initial_content, input_ports
from fxexport.pipeline.runtimes import Runner
from fxexport.pipeline.sizes import Sizes, axis_size
from fxexport.pipeline.spec import Outside, PartFile, PipelineSpec, Port, State, Wire
from fxexport.pipeline.state import PipelineState
from fxexport.pipeline.views import Array, apply_views, dtype_of

_OUTSIDE = ""  # the scope of the axis names of the pipeline's own inputs


class Flow:
    """The values of one call.

    Attributes:
        computed: outputs of the parts that ran in this call.
        sizes: sizes of named axes, one scope for each part.
    """

    def __init__(
        self,
        spec: PipelineSpec,
        sources: Mapping[Port, Source],
        runner: Callable[[str], Runner],
        given: Mapping[Port, Array],
    ) -> None:
        self.computed: dict[Port, Array] = {}
        self.sizes: dict[str, Sizes] = defaultdict(Sizes)
        self._spec = spec
        self._runner = runner
        self._given = given
        self._sources = sources
        self._states: dict[Port, Array] = {}
        self._before: dict[Port, Array] = {}
        self._sizes_before: Mapping[str, Mapping[str, int]] = {}

    @property
    def produced(self) -> dict[Port, Array]:
        """Every output that is known: of this call, and of the start."""
        return self._before | self.computed

    def resume(self, state: PipelineState, names: Mapping[Port, str]) -> None:
        """Takes up the values of a state; ``names`` are those of states and outputs in it."""
        inputs = {one.input for one in self._spec.states}
        for port, name in names.items():
            if name in state.values:
                (self._states if port in inputs else self._before)[port] = state.values[name]
        self._sizes_before = state.sizes

    def bind_outside(self) -> None:
        """Checks the given inputs against each other; InputError where ranks or sizes do not fit."""
        axes = {port: (one.name, one.axes) for one in self._spec.inputs for port in one.feeds}
        given = [(*axes[port], array.shape) for port, array in self._given.items() if port in axes]
        self.sizes[_OUTSIDE].bind((f"the input {name!r}", named, shape) for name, named, shape in given)

    def started(self, parts: Sequence[str]) -> list[str]:
        """Those of ``parts`` that are given an input, or need nothing but outputs of those before them."""
        run: list[str] = []
        for part in parts:
            ports = [Port(part, port.name) for port in self._spec.part(part).inputs]
            if any(port in self._given for port in ports) or all(self._is_known(port, set(run)) for port in ports):
                run.append(part)
        return run

    def require(self, parts: Sequence[str]) -> None:
        """Raises InputError that names every input which ``parts``, run in this order, would miss."""
        ran = {port.part for port in self.produced}
        missing: list[str] = []
        for part in parts:
            ports = [Port(part, port.name) for port in self._spec.part(part).inputs]
            missing += [self._lacking(port) for port in ports if not self._is_known(port, ran)]
            ran.add(part)
        if missing:
            raise InputError("missing inputs:\n  " + "\n  ".join(dict.fromkeys(missing)))

    def run(self, parts: Sequence[str]) -> None:
        """Runs ``parts`` in order; InputError where a value does not fit the input that it reaches."""
        for name in parts:
            part = self._spec.part(name)
            inputs = self._inputs(part)
            for port in part.inputs:
                self._check_dtype(part, port.name, inputs[port.name].dtype.name, port.dtype)
            ordered = [(f"{name}.{port.name}", port.axes, inputs[port.name].shape) for port in part.inputs]
            self.sizes[name].bind(ordered)
            results = self._runner(name)(inputs)
            self.computed |= {Port(name, output): array for output, array in results.items()}
            shapes = [(f"{name}.{port.name}", port.axes, results[port.name].shape) for port in part.outputs]
            self.sizes[name].learn(shapes)

    def initial(self, state: State) -> Array | None:
        """The value before the first step; None where it is not known yet: a size, or the output of another part."""
        start, what = state.initial, f"the initial value of {state.input}"
        if start.source is not None:
            source = self.produced.get(start.source)
            return None if source is None else apply_views(source, start.through, what)
        known = self._known_sizes(state.input.part)
        shape = [axis_size(axis, known) for axis in start.axes]
        if None in shape:
            return None
        content = initial_content(state)
        try:
            return np.broadcast_to(content, [size for size in shape if size is not None])
        except ValueError as error:
            raise InputError(f"{what}: {list(content.shape)} values do not fit {shape}: {error}") from error

    def carried(self, state: State) -> Array:
        """The value of a state after the step that was run."""
        return apply_views(self.computed[state.output], state.through, f"the state {state.input}")

    # ---------------------------------------------------------------- inside

    def _inputs(self, part: PartFile) -> dict[str, Array]:
        """The inputs of a part; initial states last, since their sizes may be those of the other inputs."""
        found: dict[str, Array] = {}
        waiting: list[State] = []
        for port in part.inputs:
            place = Port(part.name, port.name)
            source = self._sources[place]
            if place in self._given:
                found[port.name] = self._given[place]
            elif isinstance(source, Wire):
                found[port.name] = apply_views(self.produced[source.source], source.through, f"the wire {source}")
            elif place in self._states:
                found[port.name] = self._states[place]
            elif isinstance(source, State):
                waiting.append(source)
        known = [port for port in part.inputs if port.name in found]
        self.sizes[part.name].bind((f"{part.name}.{p.name}", p.axes, found[p.name].shape) for p in known)
        for state in waiting:
            value = self.initial(state)
            if value is None:
                raise InputError(f"the state {state.input} starts as {state.initial}, and nothing tells all its sizes")
            found[state.input.name] = value
        return found

    def _known_sizes(self, part: str) -> dict[str, int]:
        """Sizes by name: of the part itself before the pipeline's inputs, before other parts, the first part first."""
        order = [part, _OUTSIDE, *(one.name for one in self._spec.parts)]
        known: dict[str, int] = {}
        for scope in order:
            now: Mapping[str, int] = self.sizes[scope].known if scope in self.sizes else {}
            known = {**self._sizes_before.get(scope, {}), **now, **known}
        return known

    def _is_known(self, port: Port, ran: set[str]) -> bool:
        source = self._sources[port]
        if port in self._given or isinstance(source, State):
            return True
        return isinstance(source, Wire) and not source.chosen and source.source.part in ran

    def _lacking(self, port: Port) -> str:
        source, declared = self._sources[port], input_ports(self._spec)[port]
        shape = f"{declared.dtype}[{', '.join(map(str, declared.axes))}]"
        if isinstance(source, Outside):
            return f"{source.name!r} ({shape}) for {port}" + (f": {source.note}" if source.note else "")
        assert isinstance(source, Wire)  # a state is never missing
        views = f" [{', '.join(map(str, source.through))}]" if source.through else ""
        if source.chosen:
            return f"{port} ({shape}): cut from {source.source}{views} by the caller, with start() and step()"
        return (
            f"{port} ({shape}): from {source.source}, but {source.source.part!r} was not run: give start() its inputs"
        )

    def _check_dtype(self, part: PartFile, name: str, found: str, wanted: str) -> None:
        if dtype_of(found) != dtype_of(wanted):
            raise InputError(
                f"{part.name}.{name} is {wanted}, but {self._sources[Port(part.name, name)]} gives {found}"
            )
