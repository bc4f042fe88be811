"""Opening a file in this process, to run it and to read what it says of itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from fxexport.errors import InputError
from fxexport.lowering import format_of
from fxexport.lowering.onnx import METADATA_KEY
from fxexport.lowering.onnx_reading import read_onnx_skeleton
from fxexport.lowering.torchscript import METADATA_FILE

Session = Callable[[Sequence[str], Sequence[torch.Tensor]], list[torch.Tensor]]
"""Input names and tensors -> output tensors, in the order of the file."""


def open_session(path: Path) -> Session:
    """The file, ready to run on the CPU."""
    if format_of(path) == "onnx":
        return _onnx_session(path)
    return _torch_session(path)


def _onnx_session(path: Path) -> Session:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(names: Sequence[str], tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        feed = {n: t.detach().cpu().contiguous().numpy() for n, t in zip(names, tensors, strict=True)}
        return [torch.from_numpy(array) for array in session.run(None, feed)]

    return run


def _torch_session(path: Path) -> Session:
    if format_of(path) == "torchscript":
        module: Any = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
    else:
        module = torch.export.load(path).module()

    def run(names: Sequence[str], tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        with torch.no_grad():
            results = module(*tensors)
        return list(results) if isinstance(results, tuple | list) else [results]

    return run


def read_metadata(path: Path) -> dict[str, Any]:
    """What fxexport wrote into the file; nothing else of it is loaded, so the file may come from anywhere.

    Raises InputError when the file is damaged or was not made by fxexport.
    """
    kind = format_of(path)
    broken = f"{path} ({path.stat().st_size:,} bytes) is not a complete {kind} file, it is cut short or corrupt"
    try:
        text = _onnx_metadata(path) if kind == "onnx" else _archive_metadata(path)
        data = json.loads(text) if text else {}
    except (RuntimeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{broken}: export again") from error
    if not isinstance(data, dict) or "signature" not in data:
        raise InputError(f"{path} was not made by fxexport: it carries no description of itself")
    return data


def _onnx_metadata(path: Path) -> str:
    entries = {str(entry.key): str(entry.value) for entry in read_onnx_skeleton(path).metadata_props}
    return entries.get(METADATA_KEY, "")


def _archive_metadata(path: Path) -> str:
    """The record of a TorchScript file or a .pt2: both are zip archives with extra files."""
    reader, record = torch._C.PyTorchFileReader(str(path)), f"extra/{METADATA_FILE}"
    return reader.get_record(record).decode() if record in reader.get_all_records() else ""
