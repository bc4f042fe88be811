"""What a file on disk says of itself. Nothing in it is run or unpickled, so it may come from anywhere."""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
from rich.text import Text

from fxexport.errors import InputError
from fxexport.lowering import FORMATS, format_of
from fxexport.lowering.onnx import METADATA_KEY
from fxexport.lowering.onnx_reading import read_onnx_skeleton, safe_external_locations
from fxexport.lowering.torchscript import METADATA_FILE
from fxexport.report.layout import Part, heading, human_size, paragraph, table
from fxexport.report.text import metadata_parts
from fxexport.signature import Signature


@dataclass(frozen=True)
class Declared:
    """An input or output as an ONNX file declares it; ``axes`` is None where the file does not say."""

    direction: str
    name: str
    dtype: str
    axes: tuple[int | str, ...] | None


@dataclass(frozen=True)
class OnnxFacts:
    """What stands in any ONNX file. Operators are counted in subgraphs and functions too, by frequency."""

    ir_version: int
    opsets: dict[str, int]
    producer: str
    interface: tuple[Declared, ...]
    operators: dict[str, int]


@dataclass(frozen=True)
class Description:
    """One artifact: the main file and its data files with sizes in bytes, and what is written in them.

    ``metadata`` is what fxexport wrote, None in a file that it did not make; ``onnx`` is None for other
    formats.
    """

    path: Path
    format: str
    files: dict[str, int]
    metadata: dict[str, Any] | None
    onnx: OnnxFacts | None

    @property
    def signature(self) -> Signature:
        """The stored signature. Raises InputError for a file that fxexport did not make."""
        if self.metadata is None:
            raise InputError(f"{self.path} was not made by fxexport: it carries no description of itself")
        return Signature.from_json(self.metadata["signature"])

    def to_json(self) -> dict[str, Any]:
        """A JSON object with every field."""
        return {
            "path": str(self.path),
            "format": self.format,
            "made_by_fxexport": self.metadata is not None,
            "files": self.files,
            "metadata": self.metadata,
            "onnx": asdict(self.onnx) if self.onnx else None,
        }


def describe(path: str | Path) -> Description:
    """The description of the file at ``path``.

    Raises InputError when it is missing, damaged, of an unknown format, refers to data outside its directory,
    or is not ONNX and was not made by fxexport (then there is nothing to tell).
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{file} does not exist or is not a file")
    if file.suffix.lower() not in FORMATS:
        raise InputError(f"{file} is none of {', '.join(FORMATS)}")
    kind = format_of(file)
    if kind == "onnx":
        model = read_onnx_skeleton(file)
        data = safe_external_locations(file)
        text = {entry.key: entry.value for entry in model.metadata_props}.get(METADATA_KEY, "")
        facts: OnnxFacts | None = _onnx_facts(model)
    else:
        text, data, facts = _extra_text(file, kind), [], None
        if not text:
            raise InputError(f"{file} was not made by fxexport: it carries no description of itself")
    files = {each.name: each.stat().st_size for each in (file, *data)}
    return Description(file, kind, files, _parsed(text, file) if text else None, facts)


def _extra_text(path: Path, kind: str) -> str:
    """The extra file that fxexport writes; both archive formats are zip files with one top folder."""
    try:
        with zipfile.ZipFile(path) as archive:
            ours = [name for name in archive.namelist() if name.split("/")[1:] == ["extra", METADATA_FILE]]
            return archive.read(ours[0]).decode() if ours else ""
    except (zipfile.BadZipFile, OSError, UnicodeDecodeError) as error:
        size = path.stat().st_size
        raise InputError(f"{path} ({size:,} bytes) is not a readable {kind} file: {error}") from error


def _parsed(text: str, path: Path) -> dict[str, Any]:
    try:
        metadata = json.loads(text)
        Signature.from_json(metadata["signature"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: what fxexport wrote in it is damaged ({type(error).__name__}: {error}); export again"
        ) from error
    return dict(metadata)


# ---------------------------------------------------------------- ONNX


def _onnx_facts(model: onnx.ModelProto) -> OnnxFacts:
    weights = {tensor.name for tensor in model.graph.initializer}  # old files list them among the inputs
    inputs = [value for value in model.graph.input if value.name not in weights]
    nodes = [*_nodes(model.graph.node), *(node for f in model.functions for node in _nodes(f.node))]
    counts = Counter(f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in nodes)
    return OnnxFacts(
        ir_version=model.ir_version,
        opsets={each.domain or "ai.onnx": each.version for each in model.opset_import},
        producer=f"{model.producer_name} {model.producer_version}".strip(),
        interface=(
            *(_declared("input", value) for value in inputs),
            *(_declared("output", value) for value in model.graph.output),
        ),
        operators=dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))),
    )


def _nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _nodes(graph.node)


def _declared(direction: str, value: onnx.ValueInfoProto) -> Declared:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        return Declared(direction, value.name, (kind or "unknown").removesuffix("_type"), None)
    tensor = value.type.tensor_type
    dtype = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    axes: tuple[int | str, ...] | None = None
    if tensor.HasField("shape"):
        axes = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in tensor.shape.dim)
    return Declared(direction, value.name, {"float": "float32", "double": "float64"}.get(dtype, dtype), axes)


# ---------------------------------------------------------------- as text


def description_parts(description: Description) -> list[Part]:
    """What a reader wants to know of a file, made by fxexport or not."""
    facts = description.onnx
    if description.metadata is not None:
        parts = metadata_parts(description.path, description.metadata)
    else:
        parts = [Text(f"{description.path.name}: {description.format}, not made by fxexport", style="bold")]
    if facts is not None:
        parts += _interface(facts) if description.metadata is None else []
        parts += _contents(facts)
    sizes = [(name, human_size(size)) for name, size in description.files.items()]
    return [*parts, heading("Files"), table(("file", ">size"), sizes)]


def _interface(facts: OnnxFacts) -> list[Part]:
    rows = [
        (each.direction, each.name, each.dtype, "?" if each.axes is None else _bracketed(each.axes))
        for each in facts.interface
    ]
    return [heading("Inputs and outputs, as declared"), table(("", "name", "dtype", "axes"), rows)]


def _bracketed(axes: Iterable[int | str]) -> str:
    return f"[{', '.join(map(str, axes))}]"


def _contents(facts: OnnxFacts) -> list[Part]:
    opsets = ", ".join(f"{domain} {version}" for domain, version in facts.opsets.items())
    counts = ", ".join(f"{name} {count}" for name, count in facts.operators.items()) or "none"
    producer = f", produced by {facts.producer}" if facts.producer else ""
    return [
        heading("ONNX"),
        paragraph(f"opset {opsets}, IR version {facts.ir_version}{producer}"),
        paragraph(f"{sum(facts.operators.values())} nodes: {counts}"),
    ]
