"""ONNX files: streamed to disk, and checked without copying the weights.

**Writing.** ``ModelProto.SerializeToString`` holds the weights in memory several times. Here the proto is
built *without* its large tensors, whose bytes go from their own storage straight into the file. A message
in protobuf form is a concatenation of records ``key, length, payload`` where ``key = field number << 3 | 2``
is a varint (2 is wire type LEN: sub-messages and bytes), and a parser takes the fields in any order
(https://protobuf.dev/programming-guides/encoding/, "Message Structure", "Length-Delimited Records",
"Field Order"). The field numbers are those of onnx.proto: ModelProto.graph 7, GraphProto.initializer 5,
TensorProto.raw_data 9. So the file is::

    ModelProto without graph
    key(graph) length { GraphProto without initializers
                        key(initializer) length { TensorProto without data  key(raw_data) length bytes } ... }

The graph comes last, so a file that was cut short has no graph, or one shorter than its length says: it never
parses. Initializers of subgraphs and tensors in attributes (Constant) are written by protobuf itself.

**Beyond protobuf's 2 GiB** the large initializers of all graphs go to one data file, named after the hash of
its content, and the records hold location, offset and length. A tensor *object* is stored there once, however
many initializers share it; different objects with equal content are not compared (work for a pass).
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import EncodeError  # type: ignore[import-untyped]

from fxexport.destination import data_file_name, sibling_name
from fxexport.errors import LoweringError
from fxexport.lowering.onnx_reading import external_entries, onnx_messages

__all__ = ["ALIGNMENT", "INLINE_LIMIT", "check_onnx", "point_to", "write_onnx", "write_proto"]

PROTOBUF_LIMIT = 2**31 - 1  # bytes; parsers refuse a longer message
INLINE_LIMIT = PROTOBUF_LIMIT - 2**26  # leaves room for what readers add before they write again
_LARGE = 2**10  # bytes from which a tensor is streamed, or moved to the data file
_DECLARED = 2**16  # bytes above which the checker sees a tensor's type only
_RECORD = 2**5  # bytes; more than the keys and lengths that come with a tensor's bytes
ALIGNMENT = 2**12  # bytes; a runtime can map a tensor that starts on a page
_CHUNK = 2**22  # bytes written (and hashed) at a time
_MARK = "\0fxexport:"  # begins the location of a stand-in; NUL, since no file name holds it

_Tensor: TypeAlias = ir.TensorProtocol


def write_onnx(
    model: ir.Model, path: Path, *, external_data: bool | None = None, inline_limit: int = INLINE_LIMIT
) -> list[Path]:
    """Write ``model`` to ``path``; returns the files written, ``path`` first. Same model, same bytes.

    ``external_data`` forces (True) or forbids (False) a data file; by default there is one only if the file
    would exceed ``inline_limit`` bytes, and never an empty one; it is ``<name>.<12 hex>.data`` beside
    ``path``. Not atomic: write inside a `fxexport.publishing.publication`. ``model`` is left as it was.

    Raises:
        LoweringError: an initializer has no value or its bytes do not match its type; or the file cannot stay
            below 2 GiB.
        OSError: the disk is full or not writable.
    """
    skeleton = _skeleton(model, _LARGE)
    size, limit = _size(skeleton), min(inline_limit, INLINE_LIMIT)
    if external_data is None:
        external_data = size > limit
    elif not external_data and size > limit:
        raise LoweringError(f"{path.name} would have {size:,} bytes (limit {limit:,}): allow external data")
    written = [path]
    if external_data and skeleton.tensors:
        written.append(_move_out(skeleton, path))
    else:
        _embed(skeleton)
    with path.open("wb") as file:
        _write_message(file, skeleton)
    return written


def write_proto(proto: onnx.ModelProto, path: Path) -> None:
    """Write a ``proto`` whose tensors are complete or external, in the order described above; ``proto`` is used up.

    Raises OSError when the disk is full or not writable.
    """
    with path.open("wb") as file:
        _write_message(file, _Skeleton(proto, [None] * len(proto.graph.initializer), []))


def point_to(record: onnx.TensorProto, location: str, offset: int, length: int) -> None:
    """Let ``record`` have its data in file ``location``, and nowhere else."""
    record.ClearField("raw_data")
    record.ClearField("external_data")
    record.data_location = onnx.TensorProto.EXTERNAL
    for key, text in (("location", location), ("offset", str(offset)), ("length", str(length))):
        record.external_data.add(key=key, value=text)


# --- the proto without its large tensors ---


@dataclass
class _Skeleton:
    """A ModelProto without large tensors, and these tensors.

    ``top[i]`` belongs to ``proto.graph.initializer[i]``, or is None where that record is complete; ``nested``
    are those of subgraphs. The record of a tensor that is not yet placed is marked, see `_stand_in`.
    """

    proto: onnx.ModelProto
    top: list[_Tensor | None]
    nested: list[tuple[onnx.TensorProto, _Tensor]]

    @property
    def tensors(self) -> list[_Tensor]:
        return [each for each in self.top if each is not None] + [each for _, each in self.nested]


def _skeleton(model: ir.Model, threshold: int) -> _Skeleton:
    """Serialize ``model`` with a stand-in for each initializer of ``threshold`` bytes and more."""
    values = [value for graph in model.graphs() for value in graph.initializers.values()]
    left_out: list[_Tensor] = []
    stand_ins: list[_Tensor] = []
    for value in values:
        tensor = value.const_value
        if tensor is None:
            raise LoweringError(f"initializer {value.name!r} has no value: give it one or make it an input")
        if _is_left_out(tensor, threshold):
            stand_ins.append(_stand_in(value, tensor, len(left_out)))
            left_out.append(tensor)
        else:
            stand_ins.append(tensor)
    with _swapped(values, stand_ins):
        try:
            proto = ir.serde.serialize_model(model)
        except ir.serde.SerdeError as error:
            raise LoweringError(f"the model cannot be expressed as an ONNX proto: {error}") from error
    top = [None if (index := _mark(record)) is None else left_out[index] for record in proto.graph.initializer]
    marked = ((record, _mark(record)) for record in onnx_messages(proto, onnx.TensorProto))
    first_nested = sum(tensor is not None for tensor in top)  # the main graph's values were numbered first
    nested = [(each, left_out[index]) for each, index in marked if index is not None and index >= first_nested]
    return _Skeleton(proto, top, nested)


def _is_left_out(tensor: _Tensor, threshold: int) -> bool:
    """Strings have no raw bytes; an external tensor must not keep pointing at the file it was loaded from."""
    is_external = isinstance(tensor, ir.ExternalTensor)
    return not tensor.dtype.is_string() and (is_external or tensor.nbytes >= threshold)


def _stand_in(value: ir.Value, tensor: _Tensor, index: int) -> ir.ExternalTensor:
    """A tensor without data whose location is our mark and a number."""
    return ir.ExternalTensor(
        f"{_MARK}{index}",
        None,
        None,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=value.name or "",
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )


@contextmanager
def _swapped(values: Sequence[ir.Value], tensors: Sequence[_Tensor]) -> Iterator[None]:
    originals = [value.const_value for value in values]
    try:
        for value, tensor in zip(values, tensors, strict=True):
            value.const_value = tensor
        yield
    finally:
        for value, original in zip(values, originals, strict=True):
            value.const_value = original


def _mark(record: onnx.TensorProto) -> int | None:
    """The number that `_stand_in` gave to ``record``; None if it carries its own data."""
    if record.data_location != onnx.TensorProto.EXTERNAL:
        return None
    location = external_entries(record).get("location", "")
    if not location.startswith(_MARK):
        raise LoweringError(f"attribute tensor {record.name!r} keeps its data in {location!r}: load it first")
    return int(location[len(_MARK) :])


def _clear_mark(record: onnx.TensorProto) -> None:
    record.ClearField("external_data")
    record.ClearField("data_location")


def _size(skeleton: _Skeleton) -> int:
    try:
        bare = int(skeleton.proto.ByteSize())
    except (EncodeError, ValueError) as error:
        raise LoweringError(
            f"the graph exceeds 2 GiB without its initializers ({error}): make large constants initializers"
        ) from error
    return bare + sum(tensor.nbytes + _RECORD for tensor in skeleton.tensors)


# --- bytes ---


def _write_message(file: BinaryIO, skeleton: _Skeleton) -> None:
    """Write the records of the module docstring; every length is known before the first byte is written."""
    proto, graph = skeleton.proto, skeleton.proto.graph
    records: list[tuple[bytes, _Tensor | None]] = []
    for record, tensor in zip(graph.initializer, skeleton.top, strict=True):
        head, size = record.SerializeToString(deterministic=True), 0
        if tensor is not None:
            size = tensor.nbytes
            head += _key(onnx.TensorProto.RAW_DATA_FIELD_NUMBER, size)
        records.append((_key(onnx.GraphProto.INITIALIZER_FIELD_NUMBER, len(head) + size) + head, tensor))
    graph.ClearField("initializer")
    body = graph.SerializeToString(deterministic=True)
    proto.ClearField("graph")
    length = len(body) + sum(len(head) + (0 if tensor is None else tensor.nbytes) for head, tensor in records)
    file.write(proto.SerializeToString(deterministic=True))
    file.write(_key(onnx.ModelProto.GRAPH_FIELD_NUMBER, length))
    file.write(body)
    for head, tensor in records:
        file.write(head)
        for chunk in _chunks(tensor) if tensor is not None else ():
            file.write(chunk)


def _key(field: int, length: int) -> bytes:
    return _varint(field << 3 | 2) + _varint(length)


def _varint(number: int) -> bytes:
    """Seven bits a byte, low ones first; the high bit says that more follow."""
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def _chunks(tensor: _Tensor) -> Iterator[memoryview]:
    """The little-endian, row-major bytes of ``tensor``, without a copy where it is stored like that."""
    size = 0
    for block in _blocks(tensor):
        for start in range(0, len(block), _CHUNK):
            yield block[start : start + _CHUNK]
        size += len(block)
    if size != tensor.nbytes:
        raise LoweringError(
            f"tensor {tensor.name!r} of {tensor.dtype} {tensor.shape} has {size} bytes, not {tensor.nbytes}"
        )


def _blocks(tensor: _Tensor) -> Iterator[memoryview]:
    array = None if tensor.dtype.bitwidth < 8 or sys.byteorder == "big" else tensor.numpy()
    if array is None:
        yield memoryview(tensor.tobytes())  # onnx_ir packs small types and swaps bytes
    elif array.flags.c_contiguous:
        yield array.reshape(-1).view(np.uint8).data
    else:  # copy a few rows at a time
        step = max(1, _CHUNK // max(1, array[:1].nbytes))
        for start in range(0, len(array), step):
            yield np.ascontiguousarray(array[start : start + step]).reshape(-1).view(np.uint8).data


def _embed(skeleton: _Skeleton) -> None:
    """Make each record carry its own data: a subgraph's from here on, the main graph's when it is written."""
    for record, tensor in zip(skeleton.proto.graph.initializer, skeleton.top, strict=True):
        if tensor is not None:
            _clear_mark(record)
    for record, tensor in skeleton.nested:
        _clear_mark(record)
        record.raw_data = tensor.tobytes()


def _move_out(skeleton: _Skeleton, path: Path) -> Path:
    """Write the data file of ``path`` and let the records point to it."""
    partial = path.with_name(sibling_name(path.name, ".data.partial"))
    try:
        slots, digest = _write_data(skeleton.tensors, partial)
        data = path.with_name(data_file_name(path.name, digest))
        os.replace(partial, data)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    top = zip(skeleton.proto.graph.initializer, skeleton.top, strict=True)
    for record, tensor in [*top, *skeleton.nested]:
        if tensor is not None:
            point_to(record, data.name, slots[id(tensor)], tensor.nbytes)
    skeleton.top, skeleton.nested = [None] * len(skeleton.top), []
    return data


def _write_data(tensors: Sequence[_Tensor], path: Path) -> tuple[dict[int, int], str]:
    """Write each tensor object once; returns its offset by ``id`` and the SHA-256 of the file."""
    slots: dict[int, int] = {}
    digest, end = hashlib.sha256(), 0
    with path.open("wb") as file:
        for tensor in tensors:
            if id(tensor) in slots:
                continue
            padding = memoryview(bytes(-end % ALIGNMENT))
            for chunk in chain((padding,), _chunks(tensor)):
                digest.update(chunk)
                file.write(chunk)
            slots[id(tensor)] = end + len(padding)
            end = slots[id(tensor)] + tensor.nbytes
    return slots, digest.hexdigest()


# --- checks ---


def check_onnx(model: ir.Model) -> None:
    """Run the ONNX checker with full shape inference, and require unique names and produced outputs.

    Initializers above 64 KiB take part with their type only: no copy is made, whatever the model's size.

    Raises:
        LoweringError: with the name in question, or with the checker's own message.
    """
    scopes: list[ir.Graph | ir.Function] = [*model.graphs(), *model.functions.values()]
    scopes += [graph for function in model.functions.values() for graph in function.subgraphs()]
    for scope in scopes:
        _check_names(scope)
    names = [value.name for value in model.graph.outputs]
    for name in names:
        if names.count(name) > 1 or name in {value.name for value in model.graph.inputs}:
            raise LoweringError(f"output {name!r} is also an input or another output: insert an Identity")
    skeleton = _skeleton(model, _DECLARED + 1)
    _declare(skeleton)
    try:
        onnx.checker.check_model(skeleton.proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise LoweringError(f"the lowered model is not valid ONNX; the checker says: {error}") from error


def _check_names(scope: ir.Graph | ir.Function) -> None:
    """Static single assignment: a name belongs to one value. Outputs must be values of this very scope."""
    where = f"{type(scope).__name__.lower()} {scope.name!r}"
    initializers = scope.initializers.values() if isinstance(scope, ir.Graph) else ()
    owners: dict[str, ir.Value] = {}
    for value in (*scope.inputs, *initializers, *(output for node in scope for output in node.outputs)):
        if value.name and owners.setdefault(value.name, value) is not value:
            raise LoweringError(
                f"{where}: two values are named {value.name!r} ({_origin(owners[value.name])}, and "
                f"{_origin(value)}): rename one"
            )
    for value in scope.outputs:
        if owners.get(value.name or "") is not value:
            raise LoweringError(f"{where}: nothing in it produces the output {value.name!r}")


def _origin(value: ir.Value) -> str:
    if (node := value.producer()) is not None:
        return f"an output of {node.op_type} node {node.name!r}"
    return "an initializer" if value.is_initializer() else "an input"


def _declare(skeleton: _Skeleton) -> None:
    """Turn what was left out into typed inputs; a subgraph cannot have more inputs: it gets an Identity."""
    graph = skeleton.proto.graph
    known = {each.name for each in graph.input}
    for record in _take_marked(graph):
        if record.name not in known:
            graph.input.append(_typed(record, record.name))
    for subgraph in list(onnx_messages(skeleton.proto, onnx.GraphProto))[1:]:
        for record in _take_marked(subgraph):
            outer = f"{record.name}::{len(graph.input)}"
            graph.input.append(_typed(record, outer))
            subgraph.node.insert(0, onnx.helper.make_node("Identity", [outer], [record.name]))


def _take_marked(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    """Remove the initializers without data from ``graph``; returns copies."""
    taken: list[onnx.TensorProto] = []
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].data_location == onnx.TensorProto.EXTERNAL:
            taken.append(onnx.TensorProto.FromString(graph.initializer[index].SerializeToString()))
            del graph.initializer[index]
    return taken[::-1]


def _typed(record: onnx.TensorProto, name: str) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, record.data_type, list(record.dims))
