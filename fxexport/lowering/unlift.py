"""A lifted program as a plain ``GraphModule``: constants become attributes, inputs keep their names."""

from __future__ import annotations

import torch
from torch import fx, nn

from fxexport.program import Program

Key = tuple[int, torch.Size, tuple[int, ...], torch.dtype]


def unlift(program: Program) -> fx.GraphModule:
    """A module with ``forward(*inputs)`` by name, whose parameters and buffers are the constants of ``program``.

    Tensors are shared with the program, not copied; one tensor behind several names stays one tensor.
    """
    root, graph, values = nn.Module(), fx.Graph(), dict[fx.Node, fx.Node]()
    attributes: dict[Key, str] = {}
    for name, branch in program.clone().branches().items():
        root.add_module(name, branch)
    for node in program.graph.nodes:
        constant = program.constant_value(node)
        if constant is None:
            values[node] = graph.node_copy(node, values.__getitem__)
            continue
        name = _attach(root, program.constant_name(node), program, node, attributes)
        values[node] = graph.get_attr(name)
        values[node].meta = dict(node.meta)
    graph.lint()
    return fx.GraphModule(root, graph)


def _attach(root: nn.Module, name: str, program: Program, node: fx.Node, attributes: dict[Key, str]) -> str:
    """Registers a constant under one flat attribute name; the same tensor twice gets the first name again."""
    value = program.constant_value(node)
    assert value is not None
    key = storage_key(value)
    if key not in attributes:
        attributes[key] = "const_" + "".join(c if c.isalnum() else "_" for c in name) + f"_{len(attributes)}"
        root.register_buffer(attributes[key], storable(value))
    return attributes[key]


def storage_key(value: torch.Tensor) -> Key:
    """Equal for tensors that are one and the same memory, read in the same way."""
    return value.data_ptr(), value.shape, value.stride(), value.dtype


def storable(value: torch.Tensor) -> torch.Tensor:
    """Views that keep a much larger storage alive are copied, so that the file does not hold the whole storage."""
    used = value.numel() * value.element_size()
    if value.untyped_storage().nbytes() <= 2 * used:
        return value
    copy = value.detach().contiguous().clone()
    return nn.Parameter(copy, value.requires_grad) if isinstance(value, nn.Parameter) else copy
