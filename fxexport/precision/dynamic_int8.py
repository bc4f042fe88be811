"""int8 products in an ONNX file, through ``onnxruntime.quantization``: weights ahead of time, inputs at every call."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
import onnx_ir as ir
from torch import Tensor, fx

from fxexport.lowering.onnx import METADATA_KEY
from fxexport.lowering.onnx_file import check_onnx, write_onnx
from fxexport.lowering.onnx_reading import safe_external_locations
from fxexport.precision.operators import name_of
from fxexport.program import Program

_LAYERS = {"linear": 1, "matmul": 1, "mm": 1, "addmm": 2}
"""Operator -> which argument the weight is."""
_TYPES = ("MatMul", "Gemm")
_MODULE = "fxexport.module"


def works_as_int8(program: Program, node: fx.Node) -> bool:
    """Whether a call multiplies by a weight, which is what becomes an integer product."""
    position = _LAYERS.get(name_of(node))
    if position is None or len(node.args) <= position:
        return False
    weight = node.args[position]
    while isinstance(weight, fx.Node) and name_of(weight) in ("t", "transpose", "permute"):
        weight = weight.args[0]
    return program.is_constant(weight)


def rounded_to_uint8(tensor: Tensor) -> Tensor:
    """``tensor`` with one scale and zero point for all of it, as DynamicQuantizeLinear does.

    https://onnx.ai/onnx/operators/onnx__DynamicQuantizeLinear.html: the range is widened to hold 0, and 0 stays exact.
    """
    if not tensor.numel():
        return tensor
    low, high = tensor.min().clamp(max=0.0), tensor.max().clamp(min=0.0)
    scale = (high - low) / 255
    if not bool(scale > 0):
        return tensor
    zero = (-low / scale).round().clamp(0, 255)
    return ((tensor / scale + zero).round().clamp(0, 255) - zero) * scale


def quantize_file(path: Path, kept: Collection[str], external_data: bool | None) -> tuple[list[Path], int]:
    """Rewrites the ONNX file at ``path`` in place; the files written, and how many products are integer ones now.

    Products by weights become DynamicQuantizeLinear and MatMulInteger, but for those of the modules ``kept`` (by the
    module path of the nodes). Weights are signed and of 7 bits: two products of 8 bits do not fit the 16 bits in which
    processors without VNNI add them (https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html).

    ``metadata`` of the file holds a ``precision`` entry, which gets the count. Without such a product the file is left.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(path)
    old = [path, *safe_external_locations(path)]
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    excluded = list(_name_nodes(model, kept))
    model.metadata_props.add(key="onnx.quant.pre_process", value="fxexport")  # else it asks for a step that is done
    with TemporaryDirectory(dir=path.parent) as folder, _quiet():
        target = Path(folder) / "int8.onnx"
        quantize_dynamic(
            model,
            target,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=excluded,
            use_external_data_format=model.ByteSize() > _LARGEST,
        )
        result = ir.from_proto(onnx.load(target))
    count = sum(node.op_type == "MatMulInteger" for node in result.graph)
    if not count:
        return old, 0
    told = json.loads(metadata[METADATA_KEY])
    told["precision"]["lowered"] = count
    result.metadata_props.clear()
    result.metadata_props.update({**metadata, METADATA_KEY: json.dumps(told)})
    result.producer_name, result.producer_version = "fxexport", None
    check_onnx(result)
    for file in old:
        file.unlink()
    return write_onnx(result, path, external_data=external_data), count


_LARGEST = 2**30


def _name_nodes(model: onnx.ModelProto, kept: Collection[str]) -> Iterator[str]:
    """Gives each product a name of its own, where it has none, and returns those of the modules ``kept``."""
    taken = {node.name for node in model.graph.node}
    for number, node in enumerate(model.graph.node):
        if node.op_type not in _TYPES:
            continue
        if not node.name:
            node.name = f"{node.op_type}_{number}"
            while node.name in taken:
                node.name += "_"
            taken.add(node.name)
        module = next((entry.value for entry in node.metadata_props if entry.key == _MODULE), "")
        if module in kept:
            yield node.name
            yield f"{node.name}_MatMul"  # so the library calls the product of a Gemm


@contextmanager
def _quiet() -> Iterator[None]:
    """The library logs progress and advice on the root logger."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
