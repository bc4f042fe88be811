"""Assertions and promises about sizes: remove them, and tell what they said."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import fx

from fxexport.program import Program
from fxexport.rewrite import NodePass, PassResult, arguments

aten = torch.ops.aten


@dataclass(frozen=True)
class RemoveAssertions(NodePass):
    """``assert(condition), f(x) -> f(x)``: calls that only check, or promise the range of a size, are deleted.

    Exact for every input that eager accepts: there all of them are true. The notes quote them, since the artifact no
    longer refuses the other inputs.
    """

    name: ClassVar[str] = "remove-assertions"
    default: ClassVar[bool] = True
    targets: ClassVar = (
        *(aten._assert_async.default, aten._assert_async.msg, aten._assert_scalar.default),
        *(aten._assert_tensor_metadata.default, aten.sym_constrain_range.default),
        aten.sym_constrain_range_for_size.default,
    )

    def rewrite(self, program: Program, node: fx.Node) -> bool:
        """Erases an assertion."""
        program.graph.erase_node(node)
        return True

    def run(self, program: Program, limit: int | None = None) -> PassResult:
        """Erases the assertions; the notes quote those that have words."""
        words = {node.name: _words(node) for node in program.find(*self.targets)}
        result = super().run(program, limit)
        quotes = "; ".join(dict.fromkeys(words[r.node] for r in result.rewrites if words[r.node]))
        note = f"removed {result.count} assertions" + (f": {quotes}" if quotes else "")
        return replace(result, notes=(note,) if result.count else ())


def _words(node: fx.Node) -> str:
    call = arguments(node)
    if "assert_msg" in call:
        return str(call["assert_msg"])
    low, high = call.get("min"), call.get("max")
    left, right = "" if low is None else f"{low} <= ", "" if high is None else f" <= {high}"
    return f"{left}{call['size']}{right}" if left or right else ""
