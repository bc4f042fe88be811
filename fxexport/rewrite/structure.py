"""The form of a graph as one short value: equal for graphs that compute the same calls in the same order."""

from __future__ import annotations

import hashlib

from torch import fx

from fxexport.program import Program
from fxexport.rewrite.ledger import operator_name


def structure_of(program: Program) -> str:
    """A digest of operators, wiring and literal arguments; names of calls do not count, constants count by name."""
    numbers: dict[fx.Node, int] = {}
    digest = hashlib.sha256()
    for number, node in enumerate(program.graph.nodes):
        numbers[node] = number
        target = node.name if node.op == "placeholder" else operator_name(node.target)
        arguments = fx.map_arg((node.args, node.kwargs), lambda used: _Number(numbers.get(used, -1)))  # type: ignore[arg-type, return-value]
        digest.update(f"{node.op} {target} {arguments!r}\n".encode())
    return digest.hexdigest()


class _Number:
    def __init__(self, number: int) -> None:
        self.number = number

    def __repr__(self) -> str:
        return f"%{self.number}"
