"""Calls whose mask turned out trivial, and what stands for each of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch import fx

from fxexport.assumptions.elementwise import rule_key
from fxexport.assumptions.form import Form, canonical
from fxexport.assumptions.interpreter import Forms
from fxexport.assumptions.sizes import INDICES
from fxexport.assumptions.writing import Unwritten, Writer
from fxexport.rewrite import arguments

aten = torch.ops.aten
ATTENTION = aten.scaled_dot_product_attention.default


@dataclass
class Simplifier:
    """Rewrites one call at a time.

    ``masked``: attention calls whose mask depends on an assumed input. ``seen_memory``: calls whose results a later call
    sees as they lie in memory.
    """

    forms: Forms
    writer: Writer
    masked: set[fx.Node] = field(default_factory=set)
    seen_memory: set[fx.Node] = field(default_factory=set)

    def rewrite(self, node: fx.Node) -> str | None:
        """What became of ``node``, or None where nothing did."""
        if node.target is ATTENTION:
            return self._attention(node)
        if node.target is aten.sym_size.int and node.args[0] in self.forms.assumed:
            return self._size(node)
        key = node.target if node.target in _TRIVIAL else rule_key(node.target)
        rule = _TRIVIAL.get(key)
        if rule is None or not isinstance(node.meta.get("val"), torch.Tensor):
            return None
        kept = rule(self, list(arguments(node).values()))
        if kept is None:
            return None
        try:
            new = self._as(node, kept)
        except Unwritten:
            return None
        self.forms.program.replace(node, new)
        return f"{_named(node)} -> {new.name}"

    def constant(self, value: Any) -> Any:
        """The number that all elements of an operand have, where it comes from an assumption; else None."""
        if not isinstance(value, fx.Node) or not self.forms.depends(value):
            return None
        form = self.forms.of(value)
        return None if form is None else form.constant

    def _as(self, node: fx.Node, kept: Any) -> fx.Node:
        """``kept``, an operand of ``node``, in the shape and dtype of its result."""
        insert, value = self.forms.program.insert, node.meta["val"]
        found: fx.Node = kept
        if not isinstance(kept, fx.Node) or not isinstance(kept.meta["val"], torch.Tensor):
            kind = {"dtype": value.dtype, "device": value.device}
            return insert(aten.full.default, (self.writer.shape_of(value), kept), kind, before=node)
        if found.meta["val"].dtype != value.dtype:
            found = insert(aten.to.dtype, (found, value.dtype), before=node)
        if not _same_shape(self.forms, found, node):
            found = insert(aten.expand.default, (found, self.writer.shape_of(value)), before=node)
        if node in self.seen_memory and found.meta["val"].stride() != value.stride():
            raise Unwritten("a later as_strided would see the elements in another order")
        return found

    def _size(self, node: fx.Node) -> str | None:
        size = node.meta["val"]
        if not isinstance(size, torch.SymInt):
            return None
        try:
            new = self.writer.size(size.node.expr)
        except Unwritten:  # an axis that no other input has
            return None
        node.replace_all_uses_with(new)
        return f"{_named(node)} -> {new.name}"

    def _attention(self, node: fx.Node) -> str | None:
        call = arguments(node)
        mask = call["attn_mask"]
        if node not in self.masked or not isinstance(mask, fx.Node):
            return None
        form = self.forms.of(mask)
        if form is None:
            return None
        if form.constant is not None and form.constant == (1 if mask.meta["val"].dtype == torch.bool else 0):
            return self._set_mask(node, causal=False, told="no mask")
        shapes = [self.forms.shape(call[name]) for name in ("query", "key")]
        if None in shapes or not self.forms.algebra.same(shapes[0][-2], shapes[1][-2]):  # type: ignore[index]
            return None
        return self._set_mask(node, causal=True, told="causal") if is_causal(form, mask.meta["val"].dtype) else None

    def _set_mask(self, node: fx.Node, *, causal: bool, told: str) -> str:
        if len(node.args) > 3:
            node.update_arg(3, None)
        node.kwargs = {key: value for key, value in node.kwargs.items() if key != "attn_mask"}
        if causal and len(node.args) > 5:
            node.update_arg(5, True)
        elif causal:
            node.update_kwarg("is_causal", True)
        self.masked.discard(node)
        return f"{_named(node)} -> {told}"


def is_causal(form: Form, dtype: torch.dtype) -> bool:
    """Whether a mask of attention lets every row see its own column and those before it, in all of a batch."""
    if len(form.cases) != 2 or len(form.shape) < 2:
        return False
    row, column = INDICES[len(form.shape) - 2], INDICES[len(form.shape) - 1]
    seen = canonical(("ge", row - column))
    for where, value in form.cases:
        inside = where == frozenset([seen])
        if not inside and where != frozenset([(seen[0], not seen[1])]):
            return False
        if dtype == torch.bool and value != int(inside):
            return False
        if dtype != torch.bool and not (value == 0 if inside else _hides(value, dtype)):
            return False
    return True


def _hides(value: Any, dtype: torch.dtype) -> bool:
    """Whether a number added to a score leaves nothing of it: minus infinity, or the lowest of the dtype."""
    return bool(value == -sympy.oo or value == sympy.Rational(torch.finfo(dtype).min))


def _same_shape(forms: Forms, a: fx.Node, b: fx.Node) -> bool:
    left, right = forms.shape(a), forms.shape(b)
    return left is not None and right is not None and len(left) == len(right) and left == right


def _named(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target)).split(".")[0]


def _identity(neutral: int, *, left: bool = True) -> Callable[[Simplifier, list[Any]], Any]:
    """``op(x, neutral) -> x`` and, with ``left``, ``op(neutral, x) -> x``."""

    def rule(simplifier: Simplifier, operands: list[Any]) -> Any:
        if simplifier.constant(operands[1]) == neutral and isinstance(operands[0], fx.Node):
            return operands[0]
        return operands[1] if left and simplifier.constant(operands[0]) == neutral else None

    return rule


def _choice(condition: int, yes: int, no: int) -> Callable[[Simplifier, list[Any]], Any]:
    def rule(simplifier: Simplifier, operands: list[Any]) -> Any:
        taken = simplifier.constant(operands[condition])
        return operands[yes] if taken == 1 else operands[no] if taken == 0 else None

    return rule


def _write(simplifier: Simplifier, operands: list[Any]) -> Any:
    """``x[mask] = value`` with a mask that holds nowhere, or everywhere."""
    x, indices, value = operands[:3]
    if len(indices) != 1 or not isinstance(indices[0], fx.Node) or indices[0].meta["val"].dtype != torch.bool:
        return None
    taken = simplifier.constant(indices[0])
    whole = indices[0].meta["val"].dim() == x.meta["val"].dim() and value.meta["val"].numel() == 1
    return x if taken == 0 else value if taken == 1 and whole and not operands[3] else None


_TRIVIAL: dict[Any, Callable[[Simplifier, list[Any]], Any]] = {
    aten.where.self: _choice(0, 1, 2),
    aten.masked_fill.Tensor: _choice(1, 2, 0),
    aten.mul.Tensor: _identity(1),
    aten.div.Tensor: _identity(1, left=False),
    aten.add.Tensor: _identity(0),
    aten.sub.Tensor: _identity(0, left=False),
    aten.logical_and.default: _identity(1),
    aten.logical_or.default: _identity(0),
    aten.logical_xor.default: _identity(0),
    aten.index_put.default: _write,
}
