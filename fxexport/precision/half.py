"""float16 or bfloat16 in place of float32: weights, activations, and casts where the two meet."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxexport.errors import VerifyError
from fxexport.precision.keeping import lies_in, module_of
from fxexport.precision.moving import casts_behind_permutations
from fxexport.precision.operators import (
    is_bounded,
    is_filled,
    is_product,
    is_wide,
    mixes_integers,
    name_of,
    numbers_beyond,
)
from fxexport.precision.ranges import peak_of
from fxexport.program import Program
from fxexport.rewrite import Pass, PassResult, arguments

aten = torch.ops.aten
State = Literal["half", "float32", "either", "other"]
"""What a value is by now: of half precision; float32 that must not be rounded; float32 that may be rounded where it meets
half precision (weights, constants, results of moderate size); or no float32 in the model."""


@dataclass(frozen=True)
class LowerPrecision(Pass):
    """``linear(x, weight) -> linear(_to_copy(x, half), weight_half)``: float32 numbers become ``dtype`` where that is safe.

    Products run in ``dtype``; normalizations, softmax, sums, powers and logarithms in float32; all others in what their
    operands have, and in float32 where one of them must not be rounded: what was computed from integers, with numbers that
    ``dtype`` cannot hold, by the calls named in ``kept``. Calls of the modules ``modules`` run in float32. Inputs and
    outputs keep their dtype, and so does what branches and loops compute inside.

    Not exact: each result is rounded to ``dtype``. The caller proves it by a tolerance.
    """

    name: ClassVar[str] = "lower-precision"
    dtype: torch.dtype = torch.float16
    kept: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()

    def run(self, program: Program) -> PassResult:
        """Retypes ``program`` in place; counts the calls that run in ``dtype``."""
        work = _Retyping(program, self)
        for node in list(program.graph.nodes):
            work.visit(node)
        for node in reversed(work.replaced):
            program.graph.erase_node(node)
        casts_behind_permutations(program, self.dtype)
        return PassResult(work.count)

    def __str__(self) -> str:
        return f"{self.name}{{dtype={str(self.dtype).removeprefix('torch.')}}}"


@dataclass
class _Value:
    node: fx.Node
    state: State


@dataclass
class _Retyping:
    program: Program
    asked: LowerPrecision
    values: dict[fx.Node, _Value] = field(default_factory=dict)
    casts: dict[tuple[fx.Node, torch.dtype], fx.Node] = field(default_factory=dict)
    replaced: list[fx.Node] = field(default_factory=list)
    count: int = 0

    def visit(self, node: fx.Node) -> None:
        if node.op == "output":
            node.args = self._mapped(node.args, torch.float32, node)
        elif node.op != "call_function":
            self.values[node] = _Value(node, self._of_placeholder(node))
        elif node.target is operator.getitem:
            self._item(node)
        else:
            self._call(node)

    # ------------------------------------------------------------ what a call becomes

    def _call(self, node: fx.Node) -> None:
        if name_of(node).startswith("sym_"):  # a size is the same in any dtype
            node.args = fx.map_arg(node.args, lambda n: self.values[n].node)
            self.values[node] = _Value(node, "other")
            return
        if name_of(node) == "_to_copy" and node.meta["val"].dtype == self.asked.dtype and _is_float32(_vals(node)[0]):
            self.values[node] = _Value(self._given(node.all_input_nodes[0], self.asked.dtype, node), "other")
            self.replaced.append(node)
            return
        state = self._state(node, [self.values[each].state for each in node.all_input_nodes])
        wide = is_wide(node)
        if state == "half" and not wide and self._in_half(node):
            return
        node.args, node.kwargs = self._mapped((node.args, node.kwargs), torch.float32, node)
        if state == "half" and wide:
            several = not isinstance(node.meta["val"], Tensor)
            self.values[node] = _Value(node, "either") if several else _Value(self._rounded(node), "half")
        else:
            self.values[node] = _Value(node, "float32" if state == "half" else state)

    def _in_half(self, node: fx.Node) -> bool:
        """The call on operands of half precision; False where the operator does not take them."""
        args, kwargs = self._mapped((node.args, node.kwargs), self.asked.dtype, node)
        if not any(_is_float32(leaf) for leaf in pytree.tree_leaves(node.meta["val"])):
            node.args, node.kwargs = args, kwargs  # a comparison: its result is what it was
            self.values[node] = _Value(node, "other")
            return True
        try:
            new = self.program.insert(node.target, args, kwargs, before=node)  # type: ignore[arg-type]
        except VerifyError:
            return False
        self.values[node] = _Value(new, "half")
        self.replaced.append(node)
        self.count += 1
        return True

    def _item(self, node: fx.Node) -> None:
        """One of several results is what they are."""
        source, index = node.args
        value = self.values[source]  # type: ignore[index]
        new = node
        if value.node is not source:
            new = self.program.insert(operator.getitem, (value.node, index), before=node)
            self.replaced.append(node)
        self.values[node] = _Value(new, value.state if _is_float32(node.meta["val"]) else "other")

    def _state(self, node: fx.Node, operands: list[State]) -> State:
        """What the result of a call is to be."""
        if not any(_is_float32(leaf) for leaf in pytree.tree_leaves((_vals(node), node.meta["val"]))):
            return "other"
        strict, half = "float32" in operands, "half" in operands
        if node.name in self.asked.kept:
            return "float32"
        if lies_in(module_of(node), self.asked.modules):
            return "float32" if strict else "either"
        if is_filled(node):
            return "float32" if numbers_beyond(node, self.asked.dtype) else "either"
        if is_bounded(node):
            return "half" if half and not strict else "either"
        if numbers_beyond(node, self.asked.dtype):
            return "float32"
        if is_product(node):
            return "either" if self._may_not_round(node) else "half"
        if is_wide(node) or strict or mixes_integers(node):
            return "float32"
        return "half" if half else "either" if "either" in operands else "float32"

    def _may_not_round(self, node: fx.Node) -> bool:
        """A float mask of attention may hold numbers that become infinite, and so may weights."""
        mask = arguments(node).get("attn_mask")
        strict = [each for each in node.all_input_nodes if self.values[each].state == "float32"]
        return any(each is mask or self.program.is_constant(each) for each in strict)

    def _of_placeholder(self, node: fx.Node) -> State:
        value = node.meta.get("val")
        if not _is_float32(value):
            return "other"
        constant = self.program.constant_value(node)
        if constant is None:
            return "float32" if node.name in self.asked.kept else "half"
        peak, info = peak_of(constant), torch.finfo(self.asked.dtype)
        return "either" if peak <= info.max and (peak == 0 or peak >= info.tiny) else "float32"

    # ------------------------------------------------------------ casts

    def _mapped(self, arguments: Any, dtype: torch.dtype, before: fx.Node) -> Any:
        return fx.map_arg(arguments, lambda n: self._given(n, dtype, before))

    def _given(self, node: fx.Node, dtype: torch.dtype, before: fx.Node) -> fx.Node:
        """The value of ``node`` in the model, as it is to be read by now: a float32 one as ``dtype``."""
        value = self.values[node]
        if not _is_float32(node.meta.get("val")) or value.node.meta["val"].dtype == dtype:
            return value.node
        key = (value.node, dtype)
        if key not in self.casts:
            self.casts[key] = self._cast(value.node, dtype, before)
        return self.casts[key]

    def _cast(self, node: fx.Node, dtype: torch.dtype, before: fx.Node) -> fx.Node:
        constant = self.program.constant_value(node)
        if constant is not None:
            return self.program.add_constant(f"{self.program.constant_name(node)}_half", constant.to(dtype))
        return self.program.insert(aten._to_copy.default, (node,), {"dtype": dtype}, before=before)

    def _rounded(self, node: fx.Node) -> fx.Node:
        """The result of a call that runs in float32, in half precision from here on."""
        return self.program.insert(
            aten._to_copy.default, (node,), {"dtype": self.asked.dtype}, before=node.next, like=node
        )


def _is_float32(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.float32


def _vals(node: fx.Node) -> list[Any]:
    return [operand.meta.get("val") for operand in node.all_input_nodes]
