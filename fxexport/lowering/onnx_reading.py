"""Reading ONNX files that may come from anywhere: with suspicion, and without loading external data."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TypeVar

import onnx
from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]

from fxexport.errors import InputError

_M = TypeVar("_M", bound=Message)


def read_onnx_skeleton(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """Parse an ONNX file without loading external data, after checking where that data is said to be.

    Raises:
        InputError: not readable, empty, cut short or not ONNX (one line with path and size), or external data
            that is not a plain, complete file at or below the directory of ``path``.
    """
    return _read(Path(path))[0]


def safe_external_locations(path: str | os.PathLike[str]) -> list[Path]:
    """The external data files of an ONNX file, each safe to open; raises like `read_onnx_skeleton`."""
    return _read(Path(path))[1]


def _read(path: Path) -> tuple[onnx.ModelProto, list[Path]]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; give the path of an .onnx file") from error
    model = onnx.ModelProto()
    size = len(content)
    broken = f"{path} ({size:,} bytes) is not a complete ONNX model, it is cut short or corrupt: export again"
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        raise InputError(broken) from error
    if not model.HasField("graph") or not model.ir_version:  # also how an empty file parses
        raise InputError(broken)
    external = (each for each in onnx_messages(model, onnx.TensorProto) if external_entries(each) or each.data_location)
    return model, sorted({_safe_location(record, path) for record in external})


def _safe_location(record: onnx.TensorProto, path: Path) -> Path:
    entries = external_entries(record)
    location = entries.get("location", "")
    posix, windows = PurePosixPath(location), PureWindowsPath(location)
    file = path.parent / posix
    below = [path.parent.joinpath(*posix.parts[: depth + 1]) for depth in range(len(posix.parts))]
    if "\0" in location or not posix.parts:
        fault = "which is no file name"
    elif posix.is_absolute() or windows.anchor:
        fault = "which is absolute"
    elif ".." in posix.parts or ".." in windows.parts:
        fault = "which leads out of the model's directory"
    elif any(each.is_symlink() for each in below):
        fault = "which is, or goes through, a symbolic link"
    elif not file.is_file():
        fault = "which is not an existing file"
    else:
        fault = _range_fault(entries, file.stat().st_size)
    if fault:
        raise InputError(f"{path}: tensor {record.name!r} has its data in {location!r}, {fault}; refused")
    return file


def _range_fault(entries: dict[str, str], size: int) -> str:
    numbers = [entries.get("offset", "0"), entries.get("length", "0")]
    if not all(number.isascii() and number.isdigit() for number in numbers):
        return f"at {numbers}, which are not an offset and a length"
    end = sum(map(int, numbers))
    return "" if end <= size else f"which ends at byte {size:,} of the {end:,} needed"


def external_entries(record: onnx.TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in record.external_data}


def onnx_messages(message: Message, kind: type[_M]) -> Iterator[_M]:
    """All messages of ``kind`` in ``message``, outermost first; a TensorProto, maybe large, is not opened."""
    if isinstance(message, kind):
        yield message
    if isinstance(message, onnx.TensorProto):
        return
    for field, content in message.ListFields():
        if field.message_type is not None:
            for each in (content,) if isinstance(content, Message) else content:
                yield from onnx_messages(each, kind)
