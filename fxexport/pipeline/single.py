"""One exported file as a pipeline of one part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fxexport.errors import InputError
from fxexport.pipeline.files import SUFFIXES
from fxexport.pipeline.spec import Axis, Outside, PartFile, PipelineSpec, Port, TensorPort


def single_spec(file: Path, form: str, inputs: tuple[TensorPort, ...], outputs: tuple[TensorPort, ...]) -> PipelineSpec:
    """A pipeline whose only part, ``self``, is ``file``: its inputs and outputs are those of the pipeline."""
    part = PartFile("self", file.name, "", inputs, outputs)
    outside = tuple(Outside(port.name, (Port("self", port.name),), port.dtype, port.axes) for port in inputs)
    given = tuple(Port("self", port.name) for port in outputs)
    return PipelineSpec(file.stem, form, (part,), inputs=outside, outputs=given)


def onnx_spec(file: Path) -> PipelineSpec:
    """An ONNX file of any maker, by what it declares. Raises InputError where it is damaged, or takes no tensors."""
    import onnx

    if file.suffix.lower() not in SUFFIXES["onnx"]:
        raise InputError(f"{file} is no .onnx file")
    try:
        graph = onnx.load(str(file), load_external_data=False).graph
    except FileNotFoundError:
        raise InputError(f"{file} does not exist") from None
    except Exception as error:  # protobuf's DecodeError, by which of its implementations is installed
        raise InputError(f"{file} is no complete ONNX file: {error}") from error
    weights = {tensor.name for tensor in graph.initializer}  # may be listed as inputs, too
    inputs = tuple(_port(value, file) for value in graph.input if value.name not in weights)
    return single_spec(file, "onnx", inputs, tuple(_port(value, file) for value in graph.output))


def _port(value: Any, file: Path) -> TensorPort:
    import onnx

    if not value.type.HasField("tensor_type") or not value.type.tensor_type.elem_type:
        raise InputError(f"{file}: {value.name!r} is no tensor")
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        raise InputError(f"{file} does not say how many axes {value.name!r} has")
    axes: list[Axis] = [
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or f"{value.name}_{place}"
        for place, dim in enumerate(kind.shape.dim)
    ]
    return TensorPort(value.name, onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name, tuple(axes))
