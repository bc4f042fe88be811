"""What a run of ONNX nodes computes, apart from what it computes on: equal structure means equal code."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

SMALL = 2**10  # bytes up to which a constant may be part of the structure
Use = tuple[ir.Node, int]
"""A node and the position of one of its inputs."""


@dataclass(frozen=True)
class Structure:
    """Nodes seen from inside.

    Attributes:
        key: equal for runs of nodes that do the same to what they read: operators, attributes, wiring, dtypes and the
            constants that decide shapes.
        reads: every place that reads a value made outside of the nodes, in order; equal keys have equal places.
    """

    key: Hashable
    reads: tuple[tuple[Use, ir.Value], ...]


def structure(nodes: Sequence[ir.Node]) -> Structure | None:
    """The structure of ``nodes``, in their order. None where a branch or loop body returns a value from outside of it,
    which a function has no way to write."""
    numbers: dict[ir.Value, int] = {}
    reads: list[tuple[Use, ir.Value]] = []

    def of_value(use: Use, value: ir.Value | None) -> Hashable:
        if value is None or value in numbers:
            return value and numbers[value]
        reads.append((use, value))
        return "outside", value.dtype, shape_constant(value)

    def of_node(node: ir.Node) -> Hashable:
        inputs = tuple(of_value((node, i), value) for i, value in enumerate(node.inputs))
        attributes = tuple((name, _of_attribute(node.attributes[name], of_graph)) for name in sorted(node.attributes))
        numbers.update((value, len(numbers) + i) for i, value in enumerate(node.outputs))
        return node.op_identifier(), inputs, attributes, tuple(value.dtype for value in node.outputs)

    def of_graph(graph: ir.Graph) -> Hashable:
        inner = [*graph.inputs, *graph.initializers.values()]
        numbers.update((value, len(numbers) + i) for i, value in enumerate(inner))
        constants = tuple(constant_key(value) for value in graph.initializers.values())
        body = tuple(of_node(node) for node in graph)
        return len(graph.inputs), constants, body, tuple(numbers[value] for value in graph.outputs)

    try:
        key = tuple(of_node(node) for node in nodes)
    except KeyError:
        return None
    return Structure(key, tuple(reads))


def values_read(node: ir.Node) -> list[ir.Value]:
    """The values that ``node`` and the graphs in its attributes read and do not make themselves."""
    read: list[ir.Value] = []
    own: set[ir.Value] = set()
    for each in with_bodies(node):
        read += [value for value in each.inputs if value is not None]
        own.update(each.outputs)
        for graph in _graphs(each):
            own.update((*graph.inputs, *graph.initializers.values()))
            read.extend(list(graph.outputs))
    return [value for value in dict.fromkeys(read) if value not in own]


def with_bodies(node: ir.Node) -> Iterator[ir.Node]:
    """``node`` and every node in the graphs of its attributes."""
    yield node
    for graph in _graphs(node):
        for inner in graph:
            yield from with_bodies(inner)


def _graphs(node: ir.Node) -> list[ir.Graph]:
    found: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            found.append(attribute.value)
        elif attribute.type == ir.AttributeType.GRAPHS:
            found += attribute.value
    return found


def _of_attribute(attribute: ir.Attr, of_graph: Callable[[ir.Graph], Hashable]) -> Hashable:
    value: Any = attribute.value
    if attribute.type == ir.AttributeType.GRAPH:
        return "graph", of_graph(value)
    if attribute.type == ir.AttributeType.GRAPHS:
        return "graphs", tuple(of_graph(graph) for graph in value)
    if attribute.type == ir.AttributeType.TENSOR:
        return "tensor", _tensor_key(value)
    if attribute.type == ir.AttributeType.TENSORS:
        return "tensors", tuple(_tensor_key(tensor) for tensor in value)
    return attribute.type, attribute.ref_attr_name, repr(value)


# -------------------------------------------------------------------- constants


def constant_tensor(value: ir.Value) -> ir.TensorProtocol | None:
    """What ``value`` always is: an initializer that no input overrides, or the output of a Constant with a tensor."""
    if value.is_initializer():
        return None if value.is_graph_input() else value.const_value
    node = value.producer()
    if node is None or node.op_identifier() != ("", "Constant", "") or "value" not in node.attributes:
        return None
    tensor: ir.TensorProtocol = node.attributes["value"].value
    return tensor


def constant_key(value: ir.Value) -> Hashable:
    """Equal for small constants with equal content; None for any other value."""
    tensor = constant_tensor(value)
    return None if tensor is None or tensor.dtype.is_string() or tensor.nbytes > SMALL else _tensor_key(tensor)


def shape_constant(value: ir.Value) -> Hashable:
    """The content of a small list of integers: sizes, axes and starts are such lists, and an operator that gets another
    one is another operator to shape inference. None for any other value."""
    tensor = constant_tensor(value)
    if tensor is None or not tensor.dtype.is_integer() or len(tensor.shape) != 1:
        return None
    return constant_key(value)


def is_plain_constant(value: ir.Value) -> bool:
    """Whether ``value`` is a number, a flag or a small list of integers rather than a weight."""
    tensor = constant_tensor(value)
    if tensor is None or constant_key(value) is None:
        return False
    return tensor.size == 1 or not tensor.dtype.is_floating_point()


def _tensor_key(tensor: ir.TensorProtocol) -> Hashable:
    content = tuple(tensor.numpy().ravel().tolist()) if tensor.dtype.is_string() else tensor.tobytes()
    return tensor.dtype, tuple(tensor.shape.numpy()), content
