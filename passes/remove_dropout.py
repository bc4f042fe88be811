"""Dropout does nothing in inference: remove it."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from fxexport.program import Program, module_path
from fxexport.rewrite import Pass, PassResult, arguments

aten = torch.ops.aten

DROPOUTS = (
    aten.dropout.default,
    aten.alpha_dropout.default,
    aten.feature_dropout.default,
    aten.feature_alpha_dropout.default,
    aten.native_dropout.default,
)


@dataclass(frozen=True)
class RemoveDropout(Pass):
    """``dropout(x, p, train=False) -> x`` and ``dropout(x, 0, train) -> x``, for plain, alpha and feature
    dropout.

    Exact: PyTorch returns ``x`` itself in both cases. Dropout that is active in inference (``train=True``,
    ``p > 0``) draws random numbers and stays, with a note.
    """

    name: ClassVar[str] = "remove-dropout"
    default: ClassVar[bool] = True

    def run(self, program: Program) -> PassResult:
        """Removes every inactive dropout."""
        count, notes = 0, []
        for node in program.find(*DROPOUTS):
            call = arguments(node)
            if call["train"] is not False and call["p"] != 0:
                notes.append(f"{node.name} in {module_path(node) or 'the model'} stays: it is active in inference")
            elif _remove(program, node, call["input"]):
                count += 1
            else:
                notes.append(f"{node.name} in {module_path(node) or 'the model'} stays: its mask is used")
        return PassResult(count, tuple(notes))


def _remove(program: Program, node: fx.Node, source: fx.Node) -> bool:
    """``native_dropout`` returns (result, mask): it goes only where nothing reads the mask."""
    if node.target != aten.native_dropout.default:
        program.replace(node, source)
        return True
    reads = [user for user in node.users if user.users]
    if not all(user.target is operator.getitem and user.args[1] == 0 for user in reads):
        return False
    for result in reads:
        program.replace(result, source)
    for part in [*node.users, node]:  # not left to erase_dead, which keeps calls that may draw random numbers
        program.graph.erase_node(part)
    return True
