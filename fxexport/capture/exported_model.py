"""An ``ExportedProgram`` given as the model: its own module is the eager judge, its symbols say what is dynamic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from fxexport.errors import InputError
from fxexport.signature import unique_names


def from_exported(
    exported: ExportedProgram, example_inputs: Any, kwargs: Mapping[str, Any] | None, dynamic: Any
) -> tuple[nn.Module, Any, Mapping[str, Any] | None, Any]:
    """The module of the program, and example and dynamic axes read from it where the user gave none.

    Raises InputError when the program carries no example and none was given.
    """
    if example_inputs is None and kwargs is None:
        if exported.example_inputs is None:
            raise InputError("the ExportedProgram carries no example inputs; give example_inputs")
        example_inputs, kwargs = exported.example_inputs
    if dynamic is None:
        dynamic = _symbolic_axes(exported)
    module = exported.module(check_guards=False)
    for part in module.modules():
        part.training = False  # only a flag here: how dropout and batchnorm run is written in the graph
    return module, example_inputs, kwargs, dynamic


def _symbolic_axes(exported: ExportedProgram) -> dict[str, dict[int, str]]:
    """Input name -> the axes that are symbolic in the program. Axes of one symbol share a label, and it is not torch's."""
    user = {s.arg.name for s in exported.graph_signature.input_specs if s.kind == InputKind.USER_INPUT}
    labels: dict[str, str] = {}
    found: dict[str, dict[int, str]] = {}
    for node in exported.graph.find_nodes(op="placeholder"):
        value = node.meta.get("val")
        if node.name not in user or not isinstance(value, torch.Tensor):
            continue
        for position, size in enumerate(value.shape):
            symbol = str(size)
            if isinstance(size, torch.SymInt) and symbol.isidentifier():
                wanted = "batch" if position == 0 else f"{node.name}_dim_{position}"
                if symbol not in labels:
                    (labels[symbol],) = unique_names([wanted], labels.values())
                found.setdefault(node.name, {})[position] = labels[symbol]
    return found
