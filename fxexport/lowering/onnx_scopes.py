"""The modules around each ONNX node, as torch.onnx writes them, with every call of a module told apart."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from typing import NamedTuple

import onnx_ir as ir

from fxexport.lowering.onnx_structure import values_read, with_bodies
from fxexport.program import Program

_SCOPES, _CLASSES = "pkg.torch.onnx.name_scopes", "pkg.torch.onnx.class_hierarchy"
_CALL = re.compile(r"@\d+$")


class Scope(NamedTuple):
    """A module that a node was called in: its path with the number of the call (``"cell@2"``), and its class."""

    path: str
    class_name: str

    @property
    def module(self) -> str:
        """The path as ``named_modules`` writes it."""
        return _CALL.sub("", self.path)


Chain = tuple[Scope, ...]
"""The modules around a node, outermost first."""


def number_calls(program: Program) -> Program:
    """A copy of ``program`` whose module paths tell the second call of a module (``cell@1``) from the first."""
    numbered = program.clone()
    for node in numbered.graph.nodes:
        stack = node.meta.get("nn_module_stack") or {}
        ends = {key: _CALL.search(key) for key in stack}
        if any(ends.values()):
            node.meta["nn_module_stack"] = {
                key: (path + (match[0] if (match := ends[key]) else ""), cls) for key, (path, cls) in stack.items()
            }
    return numbered


def chains_of(graph: ir.Graph) -> dict[ir.Node, Chain]:
    """Node -> the modules around it; a node that lost them has those common to what it reads or to what reads it."""
    chains: dict[ir.Node, Chain] = {}
    for node in graph:
        if (written := node.metadata_props.get(_SCOPES)) is not None:
            paths, classes = ast.literal_eval(written), ast.literal_eval(node.metadata_props.get(_CLASSES, "[]"))
            chains[node] = tuple(Scope(path, cls) for path, cls in zip(paths[:-1], classes, strict=False))
    for node in reversed(list(graph)):  # backwards: what a lost node feeds is known then, or was found just before
        if node not in chains:
            readers = [chains[user] for value in node.outputs for user, _ in value.uses() if user in chains]
            makers = [chains[maker] for value in values_read(node) if (maker := value.producer()) in chains]
            chains[node] = max(common(readers), common(makers), key=len)
    return {node: chains[node] for node in graph}


def common(chains: Sequence[Chain]) -> Chain:
    """The modules that are around all of ``chains``."""
    shared: list[Scope] = []
    for scopes in zip(*chains, strict=False):
        if len(set(scopes)) > 1:
            break
        shared.append(scopes[0])
    return tuple(shared)


def within(chain: Chain, prefixes: set[Chain]) -> list[Chain]:
    """Those of ``prefixes`` that ``chain`` begins with, outermost first."""
    return [chain[:end] for end in range(1, len(chain) + 1) if chain[:end] in prefixes]


def write_scopes(node: ir.Node, paths: Sequence[str]) -> None:
    """Puts the modules around ``node`` where the rest of lowering reads them."""
    for each in with_bodies(node):
        each.metadata_props[_SCOPES] = str([*paths, each.name or ""])
