"""One part of a pipeline, ready to run: in onnxruntime, or in torch for TorchScript and pt2."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from fxexport.errors import InputError, ValidationError
from fxexport.pipeline.spec import PartFile
from fxexport.pipeline.values import of_pairs, pairs_of, to_array, to_torch
from fxexport.pipeline.views import Array, dtype_of

Runner: TypeAlias = Callable[[Mapping[str, Array]], dict[str, Array]]
"""Inputs by name -> outputs by name."""
CPU = "CPUExecutionProvider"
_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16


def check_providers(providers: object, form: str) -> tuple[str, ...]:
    """The execution providers as a tuple; InputError where this machine lacks one, or the format has none."""
    if isinstance(providers, str) or not isinstance(providers, Sequence) or not providers:
        raise InputError(f"providers must be a list of names such as [{CPU!r}], got {providers!r}")
    asked = tuple(map(str, providers))
    if form != "onnx":
        if asked != (CPU,):
            raise InputError(f"{', '.join(asked)}: providers are of onnxruntime, a pipeline in {form} runs on the CPU")
        return asked
    import onnxruntime

    _require(asked, onnxruntime.get_available_providers(), "this build of onnxruntime has only")
    return asked


def open_part(path: Path, part: PartFile, form: str, providers: Sequence[str]) -> Runner:
    """Loads the file. Raises InputError where the runtime refuses it, or where its inputs are not those of ``part``."""
    return _open_onnx(path, part, providers) if form == "onnx" else _open_torch(path, part, form)


def _require(asked: Sequence[str], there: Sequence[str], what: str) -> None:
    missing = [name for name in asked if name not in there]
    if missing:
        raise InputError(f"provider {', '.join(missing)} is missing; {what} {', '.join(there)}")


def _open_onnx(path: Path, part: PartFile, providers: Sequence[str]) -> Runner:
    import onnxruntime

    if "CUDAExecutionProvider" in providers:
        onnxruntime.preload_dlls()  # CUDA and cuDNN from the nvidia-* wheels, where the system has none
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=list(providers))
    except Exception as error:  # onnxruntime's errors have no common base
        raise InputError(f"onnxruntime cannot load {path}, the file of part {part.name!r}: {error}") from error
    session.disable_fallback()
    _require(providers, session.get_providers(), "the session could start only")
    for kind, ports, found in (
        ("inputs", part.inputs, session.get_inputs()),
        ("outputs", part.outputs, session.get_outputs()),
    ):
        if {port.name for port in ports} != {value.name for value in found}:
            raise InputError(
                f"{path} has the {kind} {[value.name for value in found]}, the pipeline says "
                f"{[port.name for port in ports]}; export again"
            )
    names = [port.name for port in part.outputs]
    paired = {port.name for port in (*part.inputs, *part.outputs) if port.pairs}

    def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
        given = {name: pairs_of(array) if name in paired else array for name, array in inputs.items()}
        feeds = {name: _wrap(onnxruntime, array) for name, array in given.items()}
        try:
            values = session.run_with_ort_values(names, feeds)
        except Exception as error:  # as above
            raise _failed(part, inputs, error) from error
        outputs = {name: _unwrap(value) for name, value in zip(names, values, strict=True)}
        return {name: of_pairs(array) if name in paired else array for name, array in outputs.items()}

    return run


def _wrap(onnxruntime: Any, array: Array) -> Any:
    """An OrtValue over ``array``, which must live as long as it."""
    plain = np.asarray(array, order="C")
    if plain.dtype.name == "bfloat16":
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(plain.view(np.uint16), _BFLOAT16)
    return onnxruntime.OrtValue.ortvalue_from_numpy(plain)


def _unwrap(value: Any) -> Array:
    if value.data_type() == "tensor(bfloat16)":  # .numpy() refuses, so take the bytes
        shape = tuple(value.shape())
        size = 2 * math.prod(shape)
        content = ctypes.string_at(value.data_ptr(), size) if size else b""
        return np.frombuffer(bytearray(content), dtype_of("bfloat16")).reshape(shape)
    array: Array = value.numpy()
    return array


def _open_torch(path: Path, part: PartFile, form: str) -> Runner:
    try:
        import torch
    except ImportError as error:
        raise InputError(f"a pipeline in {form} needs PyTorch; export it to .onnx to run without") from error
    try:
        module = _load_script(path) if form == "torchscript" else torch.export.load(path).module()
    except (RuntimeError, ValueError, OSError) as error:
        raise InputError(f"torch cannot load {path}, the file of part {part.name!r}: {error}") from error

    def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
        tensors = [to_torch(inputs[port.name]) for port in part.inputs]
        try:
            with torch.no_grad():
                result = module(*tensors)
        except Exception as error:  # whatever the compiled code raises
            raise _failed(part, inputs, error) from error
        leaves = list(result) if isinstance(result, tuple | list) else [result]
        if len(leaves) != len(part.outputs):
            raise ValidationError(f"part {part.name!r} gave {len(leaves)} outputs, the pipeline says "
                                  f"{[port.name for port in part.outputs]}; export again")  # fmt: skip
        named = zip(part.outputs, leaves, strict=True)
        # A copy: what the module returns may be one of its weights or inputs.
        return {port.name: to_array(leaf, port.dtype, f"{part.name}.{port.name}").copy() for port, leaf in named}

    return run


def _load_script(path: Path) -> Any:
    import torch

    return torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]


def _failed(part: PartFile, inputs: Mapping[str, Array], error: Exception) -> ValidationError:
    shapes = ", ".join(f"{name} {array.dtype.name}{list(array.shape)}" for name, array in inputs.items())
    return ValidationError(f"part {part.name!r} failed on {shapes}: {error}")
