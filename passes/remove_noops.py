"""Calls that return their argument unchanged, and assertions: remove them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from fxexport.program import Program
from fxexport.rewrite import Pass, PassResult, arguments

aten = torch.ops.aten


@dataclass(frozen=True)
class RemoveNoops(Pass):
    """``f(x) -> x`` where ``f`` changes neither values, shape nor dtype; assertions are deleted.

    - ``to``, ``clone``, ``contiguous``, ``detach``, ``alias``... with the dtype, device and layout that ``x``
      has;
    - ``slice``, ``expand``, ``reshape``, ``flatten``, ``squeeze``... to the (symbolic) shape that ``x`` has;
    - ``permute`` and ``transpose`` in the same order, ``pad`` by nothing, ``repeat`` once, ``cat`` of one
      tensor.

    Exact: the graph is functional, so a copy cannot be told from its source. Where a removed copy had other
    strides than its source, ``view`` becomes ``reshape``; such copies stay in a program that looks at strides
    or memory (``as_strided``, custom operators). ``x + 0`` and ``x * 1`` stay: they change -0.0 and dtypes.
    Assertions are true for every input that eager accepts; the notes tell what they said.
    """

    name: ClassVar[str] = "remove-noops"
    default: ClassVar[bool] = True

    def run(self, program: Program) -> PassResult:
        """Removes no-ops first, then the assertions."""
        rigid = any(_sees_memory(node) for node in program.graph.nodes)
        count = kept = moved = 0
        for node in program.find(*IDENTITIES):
            source = _source(node)
            if source is None or not IDENTITIES[node.target](node, source, arguments(node)):
                continue
            same_memory = _same(source.meta["val"].stride(), node.meta["val"].stride())
            if rigid and not same_memory:
                kept += 1
                continue
            program.replace(node, source)
            count, moved = count + 1, moved + (not same_memory)
        notes = [f"{kept} copies stay: the program looks at strides or memory"] if kept else []
        if moved:
            _relax_views(program)
        said = _remove_assertions(program)
        if said:
            texts = list(dict.fromkeys(filter(None, said)))
            notes.append(f"removed {len(said)} assertions" + (f": {'; '.join(texts)}" if texts else ""))
        return PassResult(count + len(said), tuple(notes))


# ---------------------------------------------------------------- rules

Rule = Callable[[fx.Node, fx.Node, dict[str, Any]], bool]
"""Whether a call (the node, the tensor it works on, its arguments by name) returns that tensor unchanged."""


def _same_shape(node: fx.Node, source: fx.Node, call: dict[str, Any]) -> bool:
    return _same(node.meta["val"].shape, source.meta["val"].shape)


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
    **dict.fromkeys(_COPIES, _same_tensor),
    **dict.fromkeys(_RESHAPES, _same_shape),
    **dict.fromkeys((aten.permute.default, aten.transpose.int), _in_order),
    **dict.fromkeys((aten.pad.default, aten.constant_pad_nd.default), _by_nothing),
    **dict.fromkeys((aten.repeat.default, aten.tile.default), _once),
    aten.cat.default: _alone,
}
ASSERTIONS = (
    *(aten._assert_async.default, aten._assert_async.msg, aten._assert_scalar.default),
    *(aten._assert_tensor_metadata.default, aten.sym_constrain_range.default),
    *(aten.sym_constrain_range_for_size.default,),
)
MEMORY = (aten.as_strided.default, aten.view.dtype, aten.view_as_complex.default, aten.sym_stride.int)


def _source(node: fx.Node) -> fx.Node | None:
    """The tensor a call works on: its first argument, or the first of a list."""
    first: Any = node.args[0] if node.args else None
    if isinstance(first, (list, tuple)) and first:
        first = first[0]
    return first if isinstance(first, fx.Node) and isinstance(first.meta.get("val"), torch.Tensor) else None


def _same(a: Any, b: Any) -> bool:
    return len(a) == len(b) and all(statically_known_true(m == n) for m, n in zip(a, b, strict=True))


def _sees_memory(node: fx.Node) -> bool:
    """Whether a call may compute something else for other strides of the same tensor."""
    own = isinstance(node.target, torch._ops.OpOverload) and node.target.namespace not in (
        "aten",
        "prims",
        "fxexport",
    )
    return node.target in MEMORY or own


def _relax_views(program: Program) -> None:
    """``view`` refuses strides that do not fit; ``reshape`` is the same call without that condition."""
    for node in program.find(aten.view.default, aten._unsafe_view.default):
        node.target = aten.reshape.default


def _remove_assertions(program: Program) -> list[str]:
    """Erases every assertion and returns what each one said ('' where it has no words)."""
    said = []
    for node in program.find(*ASSERTIONS):
        said.append(_words(arguments(node)))
        program.graph.erase_node(node)
    return said


def _words(call: dict[str, Any]) -> str:
    if "assert_msg" in call:
        return str(call["assert_msg"])
    low, high = call.get("min"), call.get("max")
    left, right = "" if low is None else f"{low} <= ", "" if high is None else f" <= {high}"
    return f"{left}{call['size']}{right}" if left or right else ""
