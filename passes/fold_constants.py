"""What depends on weights and constants alone is computed when the file is made."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from fxexport.ops import KnownCalls, nbytes
from fxexport.program import Program
from fxexport.rewrite import NodePass

aten = torch.ops.aten
REFUSALS = (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError)
"""What operators raise that do not accept their arguments."""
TINY = 256
ENLARGING = (
    *(aten.expand.default, aten.expand_as.default, aten.repeat.default, aten.tile.default),
    *(aten.broadcast_to.default, aten.zeros.default, aten.ones.default, aten.full.default, aten.new_zeros.default),
    *(aten.new_ones.default, aten.new_full.default, aten.zeros_like.default, aten.ones_like.default),
    aten.full_like.default,
)
PARAMETRIZED = (re.compile(r"parametrizations\.(\w+)\.(original\d*|0\..*)$"), re.compile(r"\b(\w+)_(v|g|orig|u)$"))


@dataclass(frozen=True)
class FoldConstants(NodePass):
    """``f(weight, constant, number) -> constant``: weight norm, spectral norm, parametrizations become plain weights.

    Exact: every call is run once by the operator, the dtypes and the strides that eager has. Calls that draw random
    numbers, write, or belong to other libraries stay, as does everything that depends on an input, even by its size.

    The file does not grow: a result may be as large as the weights it is made of, where nothing else reads those, so
    that they go; or ``max_bytes``. ``expand``, ``repeat``, ``zeros``... of more than 256 bytes stay, since they cost less
    as a call. Left out with ``do_constant_folding=False``.
    """

    name: ClassVar[str] = "fold-constants"
    default: ClassVar[bool] = True
    repeats: ClassVar[bool] = True
    targets: ClassVar = ()
    max_bytes: int = 16384

    def operators(self, program: Program) -> Sequence[Any]:
        """Every operator: what counts is what it is applied to."""
        return list(dict.fromkeys(node.target for node in program.graph.nodes if node.op == "call_function"))

    def rewrite(self, program: Program, node: fx.Node) -> fx.Node | str | None:
        """The constant that a call gives, where the plan wants one."""
        if "plan" not in self.memo:
            self.memo["known"] = KnownCalls(program)
            self.memo["plan"] = self._plan(program, self.memo["known"])
        plan: dict[fx.Node, str] = self.memo["plan"]
        if node not in plan or plan[node]:
            return plan.get(node)
        known: KnownCalls = self.memo["known"]
        try:
            value = known.value(node)
        except REFUSALS as error:  # eager would raise the same, but may never come here
            plan[node] = f"it cannot be computed: {' '.join(str(error).splitlines()[:1]) or type(error).__name__}"
            return plan[node]
        claimed = node.meta["val"]
        if value.dtype != claimed.dtype or value.shape != claimed.shape:
            return f"it is {value.dtype}{list(value.shape)}, and was captured as {claimed.dtype}{list(claimed.shape)}"
        constant = self.constant(program, _name(program, known.roots[node]), _compact(value))
        known.put(constant, value, known.roots[node])
        return constant

    def _plan(self, program: Program, known: KnownCalls) -> dict[fx.Node, str]:
        """Known call that is read by one that is not -> why it stays, "" where it becomes a constant."""
        # Inside a branch nothing tells who else reads a weight.
        inputs = {root for roots in known.roots.values() for root in roots} if program.signature.outputs else set()
        freed = {root for root in inputs if all(user in known.roots for user in root.users)}
        while True:
            plan, gone = self._plan_with(program, known, freed)
            stay = {root for root in freed if any(user not in gone for user in root.users)}
            if not stay:  # every weight whose place was given away does leave the file
                return plan
            freed -= stay

    def _plan_with(
        self, program: Program, known: KnownCalls, freed: set[fx.Node]
    ) -> tuple[dict[fx.Node, str], set[fx.Node]]:
        plan: dict[fx.Node, str] = {}
        gone: set[fx.Node] = set()
        room = {root: nbytes(root.meta["val"]) for root in freed}
        for node in reversed(program.graph.nodes):
            if node.op != "call_function" or node not in known.roots:
                continue
            if not all(user in gone for user in node.users):
                if not isinstance(node.meta["val"], Tensor):
                    continue  # its parts become constants, if anything does
                plan[node] = self._refusal(node, known.roots[node], room)
                if plan[node]:
                    continue
            gone.add(node)
        return plan, gone

    def _refusal(self, node: fx.Node, roots: frozenset[fx.Node], room: dict[fx.Node, int]) -> str:
        """Why a call does not become a constant, or ""; its bytes are taken from ``room``, what each weight leaves."""
        size = nbytes(node.meta["val"])
        if node.target in ENLARGING and size > TINY:
            return f"its {size} bytes are cheaper as a call"
        left = [root for root in roots if room.get(root)]
        if size > self.max_bytes and size > sum(room[root] for root in left):
            return f"its {size} bytes are more than max_bytes and than the weights that would leave the file for it"
        for root in left:
            taken = min(size, room[root])
            room[root] -= taken
            size -= taken
        return ""


def _name(program: Program, roots: frozenset[fx.Node]) -> str:
    """As the layer calls its weight where it is parametrized, else after the largest of its sources."""
    largest = max(roots, key=lambda root: (nbytes(root.meta["val"]), root.name), default=None)
    if largest is None:
        return "constant"
    name = program.constant_name(largest)
    plain = next((found for p in PARAMETRIZED if (found := p.sub(r"\1", name)) != name), None)
    return plain or (name if name.endswith("_folded") else f"{name}_folded")


def _compact(value: Tensor) -> Tensor:
    """Memory of its own where ``value`` is a part of a larger one."""
    whole = value.untyped_storage().nbytes() == value.numel() * value.element_size()
    return value if whole else value.clone()
