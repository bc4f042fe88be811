"""Calls that return their argument unchanged: remove them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx
from torch._ops import OpOverload
from torch.fx.experimental.symbolic_shapes import statically_known_true

from fxexport.program import Program
from fxexport.rewrite import NodePass, arguments

aten = torch.ops.aten
Rule = Callable[[fx.Node, fx.Node, dict[str, Any]], bool]
"""Whether a call (the node, the tensor it works on, its arguments by name) returns that tensor unchanged."""


def _same(a: Any, b: Any) -> bool:
    return len(a) == len(b) and all(statically_known_true(m == n) for m, n in zip(a, b, strict=True))


def _same_tensor(node: fx.Node, source: fx.Node, call: dict[str, Any]) -> bool:
    new, old = node.meta["val"], source.meta["val"]
    kind = (new.dtype, new.device, new.layout) == (old.dtype, old.device, old.layout)
    plain = call.get("memory_format") in (None, torch.preserve_format, torch.contiguous_format)
    return bool(kind) and plain and _same(new.shape, old.shape)


def _in_order(node: fx.Node, source: fx.Node, call: dict[str, Any]) -> bool:
    rank = source.meta["val"].dim()
    if "dims" in call:
        return [d % rank for d in call["dims"]] == list(range(rank))
    return rank == 0 or bool((call["dim0"] - call["dim1"]) % rank == 0)


def _by_nothing(node: fx.Node, source: fx.Node, call: dict[str, Any]) -> bool:
    return all(isinstance(amount, int) and amount == 0 for amount in call["pad"])


def _once(node: fx.Node, source: fx.Node, call: dict[str, Any]) -> bool:
    times = call.get("repeats", call.get("dims"))
    same_rank = node.meta["val"].dim() == source.meta["val"].dim()
    return same_rank and all(isinstance(n, int) and n == 1 for n in times or ())


def _alone(node: fx.Node, source: fx.Node, call: dict[str, Any]) -> bool:
    return len(call["tensors"]) == 1


_COPIES = (
    *(aten.to.device, aten.to.dtype, aten.to.other, aten.to.dtype_layout),
    *(aten.to.prim_Device, aten.to.prim_dtype, aten.to.prim_other, aten._to_copy.default),
    *(aten.clone.default, aten.contiguous.default, aten.alias.default),
    *(aten.detach.default, aten.lift_fresh.default, aten.lift_fresh_copy.default),
)
_RESHAPES = (
    *(aten.expand.default, aten.reshape.default, aten.view.default, aten._unsafe_view.default),
    *(aten.flatten.using_ints, aten.unflatten.int, aten.expand_as.default, aten.view_as.default),
    *(aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.reshape_as.default),
    *(aten.slice.Tensor, aten.narrow.default),  # as long as their source, so all of it
)
IDENTITIES: dict[Any, Rule] = {
    **dict.fromkeys((*_COPIES, *_RESHAPES), _same_tensor),
    **dict.fromkeys((aten.permute.default, aten.transpose.int), _in_order),
    **dict.fromkeys((aten.pad.default, aten.constant_pad_nd.default), _by_nothing),
    **dict.fromkeys((aten.repeat.default, aten.tile.default), _once),
    aten.cat.default: _alone,
}
MEMORY = (aten.as_strided.default, aten.view.dtype, aten.view_as_complex.default, aten.sym_stride.int)


@dataclass(frozen=True)
class RemoveNoops(NodePass):
    """``f(x) -> x`` where ``f`` changes neither values, shape nor dtype.

    - ``to``, ``clone``, ``contiguous``, ``detach``, ``alias``... with the dtype, device and layout that ``x``
      has;
    - ``slice``, ``expand``, ``reshape``, ``flatten``, ``squeeze``... to the (symbolic) shape that ``x`` has;
    - ``permute`` and ``transpose`` in the same order, ``pad`` by nothing, ``repeat`` once, ``cat`` of one
      tensor.

    Exact: the graph is functional, so a copy cannot be told from its source. Where a removed copy had other
    strides than its source, ``view`` becomes ``reshape``; such copies stay in a program that looks at strides
    or memory (``as_strided``, custom operators). ``x + 0`` and ``x * 1`` stay: they change -0.0 and dtypes.
    """

    name: ClassVar[str] = "remove-noops"
    default: ClassVar[bool] = True
    repeats: ClassVar[bool] = True
    targets: ClassVar = tuple(IDENTITIES)

    def rewrite(self, program: Program, node: fx.Node) -> fx.Node | str | None:
        """The argument of a call that returns it."""
        first: Any = node.args[0] if node.args else None
        source = first[0] if isinstance(first, (list, tuple)) and first else first
        if not isinstance(source, fx.Node) or not isinstance(source.meta.get("val"), torch.Tensor):
            return None
        if not IDENTITIES[node.target](node, source, arguments(node)):
            return None
        if _same(source.meta["val"].stride(), node.meta["val"].stride()) or self._strides_may_change(program):
            return source
        return "it is a copy to other strides, and the program looks at strides or memory"

    def _strides_may_change(self, program: Program) -> bool:
        """Whether no call looks at them; then, once in a run, views are made to accept any."""
        if "strides" not in self.memo:
            self.memo["strides"] = not any(map(_sees_memory, program.graph.nodes))
            if self.memo["strides"]:
                for view in program.find(aten.view.default, aten._unsafe_view.default):
                    view.target = aten.reshape.default  # the same, without the condition that the strides fit
        return bool(self.memo["strides"])


def _sees_memory(node: fx.Node) -> bool:
    """Whether a call may compute something else for other strides of the same tensor."""
    own = isinstance(node.target, OpOverload) and node.target.namespace not in ("aten", "prims", "fxexport")
    return node.target in MEMORY or own
