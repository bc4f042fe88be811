"""The names by which a pipeline is given its inputs, and the values behind them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fxexport.errors import InputError
from fxexport.pipeline.checking import input_ports, sources
from fxexport.pipeline.spec import Outside, PartFile, PipelineSpec, Port, State, Wire, short_names
from fxexport.pipeline.values import to_array, unknown_name
from fxexport.pipeline.views import Array


class CallNames:
    """What each name in a call means: an input of the pipeline, or a value that the caller cuts for each step."""

    def __init__(self, spec: PipelineSpec) -> None:
        self._ports = input_ports(spec)
        self.sources = sources(spec)
        chosen = [wire.target for wire in spec.wires if wire.chosen]
        short = short_names(chosen, (one.name for one in spec.inputs))
        self._meaning: dict[str, tuple[Port, ...]] = {one.name: one.feeds for one in spec.inputs}
        self._meaning |= {name: (port,) for port, name in short.items()}
        self._shown = list(self._meaning)  # the names to tell of; each port also goes by its whole name
        for port, source in self.sources.items():
            if isinstance(source, Outside) or port in short:
                self._meaning.setdefault(str(port), (port,))

    def parts(self, name: str) -> set[str]:
        """The parts that an input feeds. Raises InputError for an unknown name."""
        if name not in self._meaning:
            raise InputError(self._refusal(name))
        return {port.part for port in self._meaning[name]}

    def read(self, inputs: Mapping[str, Any]) -> dict[Port, Array]:
        """The value for each input of a part that ``inputs`` name.

        Raises InputError for a name that is unknown or of a value that comes from elsewhere, for another dtype, and
        for a value given twice.
        """
        given: dict[Port, Array] = {}
        for name, value in inputs.items():
            if name not in self._meaning:
                raise InputError(self._refusal(name))
            ports = self._meaning[name]
            array = to_array(value, self._ports[ports[0]].dtype, f"the input {name!r}")
            for port in ports:
                if port in given:
                    raise InputError(f"{port} is given twice: by its name and by the input that feeds it")
                given[port] = array
        return given

    def read_part(self, part: PartFile, inputs: Mapping[str, Any]) -> dict[str, Array]:
        """The inputs of one part by name, all of them; InputError as for `read`, and for a missing one."""
        names = [port.name for port in part.inputs]
        plain = {name: name.removeprefix(f"{part.name}.") if name not in names else name for name in inputs}
        for name in plain:
            if plain[name] not in names:
                raise InputError(f"part {part.name!r} has no input {name!r}{unknown_name(name, names)}")
        if len(set(plain.values())) != len(plain):
            raise InputError(f"part {part.name!r} is given one input twice: {list(plain)}")
        values = {plain[name]: value for name, value in inputs.items()}
        if missing := [name for name in names if name not in values]:
            raise InputError(f"part {part.name!r} lacks {', '.join(missing)}; it takes {', '.join(names)}")
        return {port.name: to_array(values[port.name], port.dtype, f"{part.name}.{port.name}") for port in part.inputs}

    def refuse_chosen(self, given: Mapping[Port, Array]) -> None:
        """Raises InputError where a value that is cut for each step is given at the start."""
        for port in given:
            if isinstance(source := self.sources[port], Wire):
                raise InputError(f"{port} is cut from {source.source} anew for each step: give it to step()")

    def _refusal(self, name: str) -> str:
        for port, source in self.sources.items():
            if name in (port.name, str(port)) and isinstance(source, State):
                return f"{name!r} is a state, carried from {source.output}: set it with state.replace()"
            if name in (port.name, str(port)) and isinstance(source, Wire) and not source.chosen:
                return f"{name!r} is no input of the pipeline: it comes from {source.source}"
        return f"the pipeline has no input {name!r}{unknown_name(name, self._shown)}"
