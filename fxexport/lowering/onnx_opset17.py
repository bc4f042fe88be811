"""Opset 18, which torch.onnx writes, to opset 17.

ReduceMean(x, axes)          ->  ReduceMean(x), axes as an attribute     the other reductions likewise
Split(x), num_outputs        ->  Split(x), or with the sizes of its parts
any other operator           ->  itself, where opset 17 has it with the inputs and attributes that it is given
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import onnx_ir as ir

from fxexport.errors import LoweringError

_REDUCTIONS = {
    f"Reduce{kind}" for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
}


def to_opset_17(model: ir.Model) -> None:
    """Rewrites ``model`` of opset 18, in place. Raises LoweringError for what opset 17 cannot express."""
    for node in list(ir.traversal.RecursiveGraphIterator(model.graph)):
        if node.domain != "":
            continue
        if node.op_type in _REDUCTIONS:
            _axes_as_attribute(node)
        elif node.op_type == "Split":
            _parts_as_input(node)
        _check(node)
    model.opset_imports[""] = 17


def _axes_as_attribute(node: ir.Node) -> None:
    over_nothing = _integer(node, "noop_with_empty_axes")
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    tensor = None if axes is None else ir.convenience.get_const_tensor(axes)
    if axes is not None and tensor is None:
        raise _refused(node, "with axes that are computed")
    numbers: list[int] = [] if tensor is None else [int(axis) for axis in tensor.numpy().reshape(-1)]
    if not numbers and over_nothing:
        node.op_type = "Identity"
        _keep_attributes(node, ())
    elif numbers:
        node.attributes.add(ir.AttrInt64s("axes", numbers))
    node.attributes.pop("noop_with_empty_axes", None)
    node.resize_inputs(1)


def _parts_as_input(node: ir.Node) -> None:
    if "num_outputs" not in node.attributes:
        return
    count = _integer(node, "num_outputs")
    axis, shape = _integer(node, "axis"), node.inputs[0].shape if node.inputs[0] is not None else None
    size = shape[axis] if shape is not None else None
    if not isinstance(size, int):
        raise _refused(node, "of an axis of open size")
    del node.attributes["num_outputs"]
    if size % count == 0:
        return
    part = -(-size // count)
    sizes = [part] * (count - 1) + [size - part * (count - 1)]
    constant = ir.node("Constant", [], {"value_ints": sizes})
    constant.outputs[0].dtype = ir.DataType.INT64
    assert node.graph is not None
    node.graph.insert_before(node, constant)
    node.resize_inputs(2)
    node.replace_input_with(1, constant.outputs[0])


def _integer(node: ir.Node, name: str) -> int:
    return int(node.attributes[name].value) if name in node.attributes else 0


def _keep_attributes(node: ir.Node, names: Sequence[str]) -> None:
    for name in [name for name in node.attributes if name not in names]:
        del node.attributes[name]


def _check(node: ir.Node) -> None:
    """Leaves out what opset 18 added and the node has at its default."""
    new = onnx.defs.get_schema(node.op_type, 18)
    try:
        old = onnx.defs.get_schema(node.op_type, 17)
    except onnx.defs.SchemaError as error:
        raise _refused(node, "") from error
    if old.since_version == new.since_version:
        return
    for name in [name for name in node.attributes if name not in old.attributes]:
        default = onnx.helper.get_attribute_value(new.attributes[name].default_value)
        value = node.attributes[name].value
        if value != (default.decode() if isinstance(default, bytes) else default):
            raise _refused(node, f"with {name}={value}")
        del node.attributes[name]
    while node.inputs and node.inputs[-1] is None:
        node.resize_inputs(len(node.inputs) - 1)
    if len(node.inputs) > old.max_input:
        raise _refused(node, f"with {len(node.inputs)} inputs")
    if node.op_type.startswith("Scatter") and "reduction" in node.attributes:
        kind = node.attributes["reduction"].value
        if kind not in ("none", "add", "mul"):
            raise _refused(node, f"with reduction={kind}")


def _refused(node: ir.Node, how: str) -> LoweringError:
    what = f"{node.op_type} {how}".strip()
    return LoweringError(
        f"opset 17 was asked, but the operators of this model need opset 18: it has no {what}; "
        "give opset_version=18 or a later one"
    )
