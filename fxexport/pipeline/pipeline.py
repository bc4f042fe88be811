"""``Pipeline``: several exported files that are run as one, without PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from fxexport.errors import InputError
from fxexport.pipeline.checking import output_ports, parts_before_loop
from fxexport.pipeline.drawing import graph_of, pipeline_page
from fxexport.pipeline.files import part_path, read_pipeline
from fxexport.pipeline.flow import Flow
from fxexport.pipeline.inputs import CallNames
from fxexport.pipeline.runtimes import CPU, Runner, check_providers, open_part
from fxexport.pipeline.sizes import Sizes
from fxexport.pipeline.spec import PipelineSpec, Port, short_names
from fxexport.pipeline.state import PipelineState, Slot
from fxexport.pipeline.views import Array


class Pipeline:
    """The parts of an exported model, with the wires between them and the states carried from step to step.

    Parts named in ``spec.loop`` are called once a step, the others once a run. Inputs are numpy arrays or torch tensors
    of exactly the declared dtype, or Python numbers and nested lists; they go by the names of the pipeline's inputs, or
    as ``"part.name"``: ``pipeline(**{"decoder.mask": mask})``. Outputs are numpy arrays by name.

    Attributes:
        path: the ``pipeline.json``.
        spec: what it says.
        providers: the execution providers of onnxruntime, none of which is replaced by another.
        report: what the compilation did; None for a pipeline that was loaded.
    """

    def __init__(
        self, path: Path, spec: PipelineSpec, providers: Sequence[str] = (CPU,), report: Any | None = None
    ) -> None:
        self.path = path
        self.spec = spec
        self.providers = check_providers(providers, spec.format)
        self.report = report
        self._names = CallNames(spec)
        self._output_names = short_names(spec.outputs)
        self._runners: dict[str, Runner] = {}
        self._first = parts_before_loop(spec)
        self._loop = [part.name for part in spec.parts if part.name in spec.loop]
        self._fixed = [port for port in output_ports(spec) if port.part in self._first]
        carried = [state.input for state in spec.states]
        self._kept = short_names([*carried, *self._fixed], (outside.name for outside in spec.inputs))

    @staticmethod
    def load(path: str | Path, *, providers: Sequence[str] = (CPU,)) -> Pipeline:
        """The pipeline in a ``pipeline.json``, or in a directory that holds one. Its files are opened when first used.

        Raises:
            InputError: a file is missing, damaged, outside the directory, or of another export; the pipeline was
                made by a newer fxexport; onnxruntime lacks one of ``providers``.
        """
        file, spec = read_pipeline(path)
        return Pipeline(file, spec, providers)

    # ---------------------------------------------------------------- running

    def __call__(self, /, **inputs: Any) -> dict[str, Array]:
        """Runs every part once, in order; those of the loop do one step from the initial state.

        Raises InputError for inputs that are unknown, missing or do not fit. Where the caller cuts a value for each
        step (``encoder_outputs[:, :, t:t+1]``), ``start`` and ``step`` are the way to run it.
        """
        flow = self._flow(self._names.read(inputs))
        parts = [part.name for part in self.spec.parts]
        flow.require(parts)
        flow.run(parts)
        return self._outputs(flow)

    def start(self, /, **inputs: Any) -> PipelineState:
        """The state before the first step: initial values, and the outputs of the parts that run once.

        Inputs that only feed parts of the loop are kept for every step. A part none of whose inputs are given is left
        out; so is what depends on it.

        Raises InputError for inputs that are unknown, do not fit, are chosen anew for each step, or leave a part that
        runs once with only some of its inputs.
        """
        given = self._names.read(inputs)
        self._names.refuse_chosen(given)
        if late := [str(port) for port in given if port.part not in (*self._first, *self._loop)]:
            raise InputError(f"{', '.join(late)}: of a part that needs what the loop gives; call it with run()")
        flow = self._flow(given)
        run = flow.started(self._first)
        flow.require(run)
        flow.run(run)
        kept = {self._kept[port]: array for port, array in flow.computed.items()} | self._for_steps(given)
        for state in self.spec.states:
            value = flow.initial(state)
            kept |= {} if value is None else {self._kept[state.input]: value}
        sizes = {scope: MappingProxyType(dict(bound.known)) for scope, bound in flow.sizes.items()}
        empty = PipelineState(MappingProxyType({}), self._slots, MappingProxyType(sizes))
        return empty.with_values({name: np.array(array) for name, array in kept.items()})

    def step(self, state: PipelineState | None, /, **inputs: Any) -> tuple[dict[str, Array], PipelineState]:
        """Runs the parts of the loop once, in order; returns their outputs and the state after it.

        Args:
            state: of ``start`` or of the step before, never changed; None begins with ``start``, on those inputs that
                feed parts which run once.
            inputs: what feeds the loop and was not given at the start, or differs from it in this step; and what the
                caller chooses for each step.
        """
        if not self._loop:
            raise InputError(f"{self.path}: no part is called step by step; call the pipeline itself")
        given = self._names.read(inputs)
        if state is None:
            first = {name: value for name, value in inputs.items() if not self._names.parts(name) <= set(self._loop)}
            state = self.start(**first)
        elif early := [name for name in inputs if not self.feeds_loop(name)]:
            raise InputError(f"{', '.join(early)}: for parts that run once; give it to start()")
        flow = self._flow(self._remembered(state) | given, state)
        flow.require(self._loop)
        flow.run(self._loop)
        new = {self._kept[one.input]: np.array(flow.carried(one)) for one in self.spec.states}
        return self._outputs(flow), state.with_values(new)

    def run(self, part: str, /, **inputs: Any) -> dict[str, Array]:
        """Runs one part on inputs by their names in its file; all its outputs by name."""
        file = self.spec.part(part)
        given = self._names.read_part(file, inputs)
        Sizes().bind((f"{part}.{port.name}", port.axes, given[port.name].shape) for port in file.inputs)
        return self._runner(part)(given)

    # ---------------------------------------------------------------- looking

    def feeds_loop(self, name: str) -> bool:
        """Whether the input of that name may be given to ``step``. Raises InputError for an unknown name."""
        return bool(self._names.parts(name) & set(self._loop))

    @cached_property
    def graph(self) -> Any:
        """A ``networkx.DiGraph`` of the parts and the node ``"inputs"``; edges have ``wires``, a list of texts."""
        return graph_of(self.spec)

    def __repr__(self) -> str:
        return f"Pipeline({str(self.path)!r})"

    def __str__(self) -> str:
        return pipeline_page(self.spec)

    # ---------------------------------------------------------------- inside

    @cached_property
    def _slots(self) -> Mapping[str, Slot]:
        outputs = output_ports(self.spec)
        slots = {self._kept[port]: Slot(outputs[port].dtype, outputs[port].axes, False) for port in self._fixed}
        for outside in self.spec.inputs:
            if any(port.part in self.spec.loop for port in outside.feeds):
                slots[outside.name] = Slot(outside.dtype, outside.axes, False)
        for state in self.spec.states:
            declared = next(p for p in self.spec.part(state.input.part).inputs if p.name == state.input.name)
            slots[self._kept[state.input]] = Slot(declared.dtype, declared.axes, True)
        return MappingProxyType(slots)

    def _flow(self, given: Mapping[Port, Array], state: PipelineState | None = None) -> Flow:
        flow = Flow(self.spec, self._names.sources, self._runner, given)
        if state is not None:
            flow.resume(state, self._kept)
        flow.bind_outside()
        return flow

    def _for_steps(self, given: Mapping[Port, Array]) -> dict[str, Array]:
        """Inputs given at the start for parts of the loop, by name. One that feeds several has one value for all."""
        found: dict[str, Array] = {}
        for outside in self.spec.inputs:
            values = [given.get(port) for port in outside.feeds if port.part in self.spec.loop]
            if all(value is None for value in values):
                continue
            if values[0] is None or any(value is not values[0] for value in values):
                raise InputError(f"{outside.name!r} feeds {', '.join(map(str, outside.feeds))}: give start() one value "
                                 "by that name, or different ones to step()")  # fmt: skip
            found[outside.name] = values[0]
        return found

    def _remembered(self, state: PipelineState) -> dict[Port, Array]:
        """What was given at the start for parts of the loop."""
        return {
            port: state.values[outside.name]
            for outside in self.spec.inputs
            for port in outside.feeds
            if port.part in self.spec.loop and outside.name in state.values
        }

    def _outputs(self, flow: Flow) -> dict[str, Array]:
        return {name: flow.computed[port] for port, name in self._output_names.items() if port in flow.computed}

    def _runner(self, part: str) -> Runner:
        if part not in self._runners:
            file = self.spec.part(part)
            self._runners[part] = open_part(part_path(self.path, file), file, self.spec.format, self.providers)
        return self._runners[part]
