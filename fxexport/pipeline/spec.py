"""What ``pipeline.json`` says: parts, wires between them, states carried from step to step, inputs and outputs.

Plain data. ``PipelineSpec.to_json`` and ``PipelineSpec.from_json`` are inverse to each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fxexport.errors import InputError
from fxexport.pipeline.ports import Axis, Initial, Number, Port, State, View, Wire, short_names
from fxexport.pipeline.reading import FORMAT_VERSION, Record, read_version

__all__ = [
    "Axis",
    "Initial",
    "Number",
    "Outside",
    "PartFile",
    "PipelineSpec",
    "Port",
    "State",
    "TensorPort",
    "View",
    "Wire",
    "short_names",
]


@dataclass(frozen=True)
class Outside:
    """An input of the pipeline and the inputs of parts that it feeds; ``note`` says where the value came from."""

    name: str
    feeds: tuple[Port, ...]
    dtype: str
    axes: tuple[Axis, ...]
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        feeds = [port.to_json() for port in self.feeds]
        return {"name": self.name, "feeds": feeds, "dtype": self.dtype, "axes": list(self.axes), "note": self.note}

    @staticmethod
    def from_json(data: object) -> Outside:
        record = Record(data, "an input of the pipeline")
        feeds = tuple(map(Port.from_json, record.items("feeds")))
        return Outside(record.word("name"), feeds, record.word("dtype"), record.axes("axes"), record.word("note"))


@dataclass(frozen=True)
class TensorPort:
    """A flat input or output of a part: its name in the file, numpy name of its dtype, axes.

    ``pairs``: it is complex, but the file has it as real numbers with a last axis of real and imaginary part.
    """

    name: str
    dtype: str
    axes: tuple[Axis, ...]
    pairs: bool = False

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}[{', '.join(map(str, self.axes))}]"

    def to_json(self) -> dict[str, Any]:
        pairs = {"pairs": True} if self.pairs else {}
        return {"name": self.name, "dtype": self.dtype, "axes": list(self.axes), **pairs}

    @staticmethod
    def from_json(data: object) -> TensorPort:
        record = Record(data, "a tensor of a part")
        pairs = record.flag("pairs") if record.get("pairs") is not None else False
        return TensorPort(record.word("name"), record.word("dtype"), record.axes("axes"), pairs)


@dataclass(frozen=True)
class PartFile:
    """A part: its file (a name beside ``pipeline.json``), the sha256 of that file, its inputs and outputs."""

    name: str
    file: str
    sha256: str
    inputs: tuple[TensorPort, ...]
    outputs: tuple[TensorPort, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "file": self.file,
            "sha256": self.sha256,
            "inputs": [port.to_json() for port in self.inputs],
            "outputs": [port.to_json() for port in self.outputs],
        }

    @staticmethod
    def from_json(data: object) -> PartFile:
        record = Record(data, "a part")
        inputs, outputs = (tuple(map(TensorPort.from_json, record.items(key))) for key in ("inputs", "outputs"))
        return PartFile(record.word("name"), record.word("file"), record.word("sha256"), inputs, outputs)


@dataclass(frozen=True)
class PipelineSpec:
    """Everything that ``pipeline.json`` says.

    ``parts`` are in the order they run in; those named in ``loop`` run once a step, the others once a run.
    ``format`` is ``"onnx"``, ``"torchscript"`` or ``"pt2"``.
    """

    name: str
    format: str
    parts: tuple[PartFile, ...]
    loop: tuple[str, ...] = ()
    inputs: tuple[Outside, ...] = ()
    wires: tuple[Wire, ...] = ()
    states: tuple[State, ...] = ()
    outputs: tuple[Port, ...] = ()
    notes: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)

    def part(self, name: str) -> PartFile:
        """The part of that name; InputError where there is none."""
        for part in self.parts:
            if part.name == name:
                return part
        raise InputError(f"the pipeline has no part {name!r}; it has {[part.name for part in self.parts]}")

    def to_json(self) -> dict[str, Any]:
        """What ``json.dumps`` takes; numbers that JSON lacks (inf, nan) are text."""
        return {
            "fxexport_pipeline": FORMAT_VERSION,
            "name": self.name,
            "format": self.format,
            "parts": [part.to_json() for part in self.parts],
            "loop": list(self.loop),
            "inputs": [one.to_json() for one in self.inputs],
            "wires": [wire.to_json() for wire in self.wires],
            "states": [state.to_json() for state in self.states],
            "outputs": [port.to_json() for port in self.outputs],
            "notes": list(self.notes),
            "versions": dict(self.versions),
        }

    @staticmethod
    def from_json(data: object) -> PipelineSpec:
        """Raises InputError where ``data`` is no pipeline, or one of a newer fxexport."""
        read_version(data)
        record = Record(data, "the pipeline")
        return PipelineSpec(
            record.word("name"),
            record.word("format"),
            tuple(map(PartFile.from_json, record.items("parts"))),
            record.words("loop"),
            tuple(map(Outside.from_json, record.items("inputs"))),
            tuple(map(Wire.from_json, record.items("wires"))),
            tuple(map(State.from_json, record.items("states"))),
            tuple(map(Port.from_json, record.items("outputs"))),
            record.words("notes"),
            {key: Record.text(value, f"the version of {key}") for key, value in Record(record["versions"], "versions")},
        )
