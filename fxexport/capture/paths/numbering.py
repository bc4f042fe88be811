"""Which nodes of two runs are the same computation: operator by operator, from inputs and constants."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

_BY_CONTENT = (InputKind.CONSTANT_TENSOR,)


class Numbering:
    """Numbers for the nodes of many graphs; equal numbers are equal values as long as the graphs took the same way."""

    def __init__(self) -> None:
        self._numbers: dict[Any, int] = {}
        self._found: dict[int, tuple[ExportedProgram, dict[fx.Node, int]]] = {}

    def of(self, exported: ExportedProgram) -> dict[fx.Node, int]:
        """A number for every node of a graph."""
        if id(exported) not in self._found:
            self._found[id(exported)] = exported, self._of(exported)
        return self._found[id(exported)][1]

    def _of(self, exported: ExportedProgram) -> dict[fx.Node, int]:
        found: dict[fx.Node, int] = {}
        times: Counter[Any] = Counter()
        sources = placeholder_sources(exported)
        for node in exported.graph.nodes:
            if node.op == "output":
                continue
            if node.op == "placeholder":
                key: Any = ("source", sources[node])
            elif node.op == "get_attr":
                key = ("attribute", node.target)
            else:
                leaves, layout = pytree.tree_flatten((node.args, dict(node.kwargs)))
                told = [f"%{found[leaf]}" if isinstance(leaf, fx.Node) else repr(leaf) for leaf in leaves]
                key = (str(node.target), str(layout), *told)
                if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
                    times[key] += 1
                    key = (*key, times[key])
            found[node] = self._numbers.setdefault(key, len(self._numbers))
        return found


def placeholder_sources(exported: ExportedProgram) -> dict[fx.Node, tuple[str, Any]]:
    """What each placeholder stands for: an input by position, a parameter or buffer by name, a constant by content."""
    specs = {spec.arg.name: spec for spec in exported.graph_signature.input_specs}
    found: dict[fx.Node, tuple[str, Any]] = {}
    inputs = 0
    for node in exported.graph.find_nodes(op="placeholder"):
        spec = specs[node.name]
        if spec.kind == InputKind.USER_INPUT:
            found[node] = "input", inputs
            inputs += 1
        elif spec.kind in _BY_CONTENT:
            found[node] = "content", _content(exported.constants[str(spec.target)])
        else:
            found[node] = "name", str(spec.target)
    return found


def _content(tensor: torch.Tensor) -> tuple[Any, ...]:
    plain = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    data = plain.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return str(tensor.dtype), tuple(tensor.shape), str(tensor.device), hashlib.sha256(data).hexdigest()
