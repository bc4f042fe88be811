"""Weights that several ONNX files hold: stored once, in one data file beside them."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import TracebackType

import onnx

from fxexport.destination import data_file_name, sibling_name
from fxexport.errors import InputError
from fxexport.lowering.onnx_file import ALIGNMENT, point_to, write_proto
from fxexport.lowering.onnx_reading import (
    external_entries,
    onnx_messages,
    read_onnx_skeleton,
    safe_external_locations,
)

MINIMUM = 2**16  # bytes; smaller tensors are not worth a second file
_CHUNK = 2**22  # bytes read, compared and written at a time

Placements = dict[int, int]  # position among the weights of a file -> offset in the shared data file


@dataclass(frozen=True)
class SharedWeights:
    """What `share_weights` did.

    Attributes:
        bytes_saved: how much smaller the files are altogether.
        tensors: how many different tensors are stored once instead of several times.
        file_name: the shared data file; None where nothing was shared.
    """

    bytes_saved: int = 0
    tensors: int = 0
    file_name: str | None = None


def share_weights(paths: Sequence[Path], data_for: Path) -> SharedWeights:
    """Move the initializers that two or more of the ONNX files ``paths`` hold to one data file beside them.

    Those are of 64 KiB and more, equal in type, shape and every byte. The data file is named after ``data_for`` and
    its content (`data_file_name`). What else a file holds stays inside it, or in its own data file, which is written
    anew without the moved tensors. A file that shares nothing is not touched. Same files in the same order, same
    bytes. Not atomic: work inside a `fxexport.publishing.joint_publication`.

    Raises:
        InputError: the files are not of one directory, or one of them is not a complete ONNX model with its data.
        OSError: the disk is full or not writable.
    """
    if apart := [path for path in paths if path.parent != data_for.parent]:
        raise InputError(f"{apart[0]} cannot share weights through a file beside {data_for}: use one directory")
    holders: dict[Hashable, set[Path]] = defaultdict(set)
    for path in paths:
        for record in _weights(path)[1]:
            holders[_identity(record, path)].add(path)
    shared = {identity for identity, where in holders.items() if len(where) > 1}
    if not shared:
        return SharedWeights()
    before = _files(paths)
    size = sum(file.stat().st_size for file in before)
    placements, store = _gather(paths, shared, data_for)
    for path, places in placements.items():
        _point_to_shared(path, places, store)
    after = _files(paths)
    for file in before - after:
        file.unlink()
    return SharedWeights(size - sum(file.stat().st_size for file in after), store.tensors, store.path.name)


def _files(paths: Sequence[Path]) -> set[Path]:
    return {file for path in paths for file in (path, *safe_external_locations(path))}


def _weights(path: Path) -> tuple[onnx.ModelProto, list[onnx.TensorProto]]:
    """The model in ``path``, and those initializers of all its graphs that are large enough."""
    model = read_onnx_skeleton(path)
    records = (record for graph in onnx_messages(model, onnx.GraphProto) for record in graph.initializer)
    return model, [record for record in records if _length(record, path) >= MINIMUM]


def _gather(paths: Sequence[Path], shared: set[Hashable], data_for: Path) -> tuple[dict[Path, Placements], _DataFile]:
    """Write the shared data file; tells for each file that takes part where its weights are."""
    placements: dict[Path, Placements] = {}
    with _DataFile(data_for) as store:
        for path in paths:
            places: Placements = {}
            for position, record in enumerate(_weights(path)[1]):
                identity = _identity(record, path)
                if identity in shared:
                    places[position] = store.place(identity, record, path)
            if places:
                placements[path] = places
    return placements, store


def _point_to_shared(path: Path, places: Placements, store: _DataFile) -> None:
    model, weights = _weights(path)
    lengths = {position: _length(weights[position], path) for position in places}
    for position, offset in places.items():
        point_to(weights[position], store.path.name, offset, lengths[position])
    external = [r for r in onnx_messages(model, onnx.TensorProto) if external_entries(r)]
    rest = [record for record in external if external_entries(record)["location"] != store.path.name]
    if rest:
        with _DataFile(path) as own:
            offsets = [own.place(tuple(external_entries(record).items()), record, path) for record in rest]
        for record, offset in zip(rest, offsets, strict=True):
            point_to(record, own.path.name, offset, _length(record, path))
    write_proto(model, path)


# --- the bytes of a tensor, in the model or beside it ---


def _identity(record: onnx.TensorProto, path: Path) -> Hashable:
    """What equal tensors have in common."""
    digest = hashlib.sha256()
    for chunk in _chunks(record, path):
        digest.update(chunk)
    return record.data_type, tuple(record.dims), digest.digest()


def _length(record: onnx.TensorProto, path: Path) -> int:
    """The size of ``record`` in bytes; 0 where its numbers are not stored as plain bytes."""
    if record.data_location != onnx.TensorProto.EXTERNAL:
        return len(record.raw_data)
    entries = external_entries(record)
    if "length" in entries:
        return int(entries["length"])
    return path.with_name(entries["location"]).stat().st_size - int(entries.get("offset", "0"))


def _chunks(record: onnx.TensorProto, path: Path) -> Iterator[memoryview]:
    length = _length(record, path)
    if record.data_location != onnx.TensorProto.EXTERNAL:
        content = memoryview(record.raw_data)
        yield from (content[start : start + _CHUNK] for start in range(0, length, _CHUNK))
        return
    entries = external_entries(record)
    with path.with_name(entries["location"]).open("rb") as file:
        file.seek(int(entries.get("offset", "0")))
        for start in range(0, length, _CHUNK):
            yield memoryview(file.read(min(_CHUNK, length - start)))


class _DataFile:
    """A data file while it is written; on exit it gets its name, which is in ``path`` then.

    ``tensors`` counts the different tensors in it.
    """

    def __init__(self, data_for: Path) -> None:
        self.path = data_for.with_name(sibling_name(data_for.name, ".data.partial"))
        self.tensors = 0
        self._data_for = data_for
        self._slots: dict[Hashable, list[tuple[int, int]]] = defaultdict(list)
        self._digest = hashlib.sha256()

    def __enter__(self) -> _DataFile:
        self._file = self.path.open("w+b")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if error is not None:
            self.path.unlink(missing_ok=True)
            return
        named = self._data_for.with_name(data_file_name(self._data_for.name, self._digest.hexdigest()))
        os.replace(self.path, named)
        self.path = named

    def place(self, identity: Hashable, record: onnx.TensorProto, path: Path) -> int:
        """The offset of the bytes of ``record``, which are written unless those of an equal tensor are there.

        Tensors that are not of one ``identity`` are not compared; those of one are, byte for byte.
        """
        length = _length(record, path)
        for offset, size in self._slots[identity]:
            if size == length and self._holds(offset, record, path):
                return offset
        end = self._file.seek(0, os.SEEK_END)
        padding = memoryview(bytes(-end % ALIGNMENT))
        for chunk in chain((padding,), _chunks(record, path)):
            self._file.write(chunk)
            self._digest.update(chunk)
        offset = end + len(padding)
        self._slots[identity].append((offset, length))
        self.tensors += 1
        return offset

    def _holds(self, offset: int, record: onnx.TensorProto, path: Path) -> bool:
        self._file.seek(offset)
        return all(self._file.read(len(chunk)) == chunk for chunk in _chunks(record, path))
