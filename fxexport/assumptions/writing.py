"""Formulas as calls: sizes read from the inputs that stay, tensors made of them."""

from __future__ import annotations

import operator
from typing import Any

import sympy
import torch
from sympy import Expr, Symbol
from torch import fx

from fxexport.assumptions.form import Form, Where
from fxexport.assumptions.interpreter import Forms
from fxexport.assumptions.reducing import used_indices
from fxexport.assumptions.sizes import INDICES, denominator_of

aten = torch.ops.aten


class Unwritten(Exception):
    """A formula that has no calls: a size that no remaining input shows, a function without an operator."""


class Writer:
    """Writes formulas into the program of ``forms``, ahead of a node, without reading an assumed input."""

    def __init__(self, forms: Forms) -> None:
        self.forms = forms
        self.program = forms.program
        self._sizes: dict[Any, fx.Node] = {}  # at the top of the graph, so that all of it can read them
        self._fresh: list[fx.Node] = []

    def shape_of(self, value: torch.Tensor) -> list[Any]:
        """The shape of ``value`` as arguments of a call: numbers, and nodes that compute sizes."""
        return [size if isinstance(size, int) else self.size(size.node.expr) for size in value.shape]

    def size(self, formula: Expr) -> Any:
        """A number, or a node that computes a whole formula of sizes. Raises Unwritten."""
        if formula.is_Integer:
            return int(formula)
        known = self._sizes.get(formula)
        if known is None or known._erased:
            known = self._symbol(formula) if isinstance(formula, Symbol) else self._computed(formula)
            self._sizes[formula] = known
        return known

    def _computed(self, formula: Expr) -> fx.Node:
        args, name = formula.args, type(formula).__name__
        if name == "Floor":  # of the normal form: the argument times its denominator is whole
            step = denominator_of(args[0]) or 0
            args, name = (sympy.expand(args[0] * step), sympy.Integer(step)), "FloorDiv"
        made = _SIZE_CALLS.get(name)
        if made is None or (name == "Pow" and not (args[1].is_Integer and 0 < args[1] < 8)):
            raise Unwritten(f"no calls compute the size {formula}")
        values = [self.size(arg) for arg in args] if name != "Pow" else [self.size(args[0])] * int(args[1])
        result = values[0]
        for value in values[1:]:
            result = self._insert_above(made, (result, value))
        return result  # type: ignore[no-any-return]

    def _insert_above(self, target: Any, args: tuple[Any, ...]) -> fx.Node:
        above = {node for node in self._sizes.values() if not node._erased} | set(self._fresh)
        anchor = next(n for n in self.program.graph.nodes if n.op != "placeholder" and n not in above)
        node = self.program.insert(target, args, before=anchor)
        self._fresh.append(node)
        return node

    def _symbol(self, symbol: Symbol) -> fx.Node:
        for node in self.program.input_nodes:
            if node in self.forms.assumed:
                continue
            for axis, size in enumerate(node.meta["val"].shape):
                if isinstance(size, torch.SymInt) and size.node.expr == symbol:
                    return self._insert_above(aten.sym_size.int, (node, axis))
        raise Unwritten(f"no other input shows the size {symbol}")

    def tensor(self, form: Form, like: fx.Node, before: fx.Node) -> fx.Node:
        """A tensor that holds ``form``, with shape, dtype and device of ``like``.

        Raises Unwritten.
        """
        value = like.meta["val"]
        kind = {"dtype": value.dtype, "device": value.device}
        shape = self.shape_of(value)
        constant = form.constant
        if constant is not None and (constant.is_Number or constant.is_integer):
            filled = self._number(constant, value.dtype)
            return self.program.insert(aten.full.default, (shape, filled), kind, before=before)
        found = self._cases(form, _Work(value.device, len(form.shape), self._iota(form, value.device, before)), before)
        if found.meta["val"].dtype != value.dtype:
            found = self.program.insert(aten.to.dtype, (found, value.dtype), before=before)
        return self.program.insert(aten.expand.default, (found, shape), before=before)

    def _number(self, value: Expr, dtype: torch.dtype) -> Any:
        if dtype == torch.bool:
            return bool(value)
        if value.is_Number:
            return float(value) if dtype.is_floating_point else int(value)
        return self.size(value)

    def _iota(self, form: Form, device: torch.device, before: fx.Node) -> dict[Symbol, fx.Node]:
        found = {}
        for axis, size in enumerate(form.shape):
            if INDICES[axis] in used_indices(form):
                count = self.size(size)
                steps = self.program.insert(aten.arange.default, (count,), {"device": device}, before=before)
                view = [count if k == axis else 1 for k in range(len(form.shape))]
                found[INDICES[axis]] = self.program.insert(aten.reshape.default, (steps, view), before=before)
        return found

    def _cases(self, form: Form, work: _Work, before: fx.Node) -> fx.Node:
        """The value of the last case, replaced where another one holds."""
        boolean = all(value in (0, 1) for _, value in form.cases) and len(form.cases) > 1
        if boolean:
            either = [self._holds(where, work, before) for where, value in form.cases if value == 1]
            return self._folded(aten.logical_or.default, either, before)
        found = self._value(form.cases[-1][1], work, before)
        for where, value in form.cases[:-1]:
            condition = self._holds(where, work, before)
            side = self._value(value, work, before)
            found = self.program.insert(aten.where.self, (condition, side, found), before=before)
        return found

    def _holds(self, where: Where, work: _Work, before: fx.Node) -> fx.Node:
        conditions = []
        for (kind, formula), holds in sorted(where, key=str):
            value = self._value(formula, work, before)
            target = aten.ge.Scalar if kind == "ge" else aten.eq.Scalar
            condition = self.program.insert(target, (value, 0), before=before)
            conditions.append(
                condition if holds else self.program.insert(aten.logical_not.default, (condition,), before=before)
            )
        return self._folded(aten.logical_and.default, conditions, before)

    def _folded(self, target: Any, values: list[fx.Node], before: fx.Node) -> fx.Node:
        found = values[0]
        for value in values[1:]:
            found = self.program.insert(target, (found, value), before=before)
        return found

    def _value(self, formula: Expr, work: _Work, before: fx.Node) -> fx.Node:
        """A tensor, whole or in double precision, that holds ``formula`` at every index."""
        if formula in work.iota:
            return work.iota[formula]
        insert = self.program.insert
        if formula.free_symbols.isdisjoint(INDICES) and (formula.is_integer or formula.is_Number):
            whole = bool(formula.is_integer)
            filled = self._number(formula, torch.int64 if whole else torch.float64)
            kind = {"dtype": torch.int64 if whole else torch.float64, "device": work.device}
            return insert(aten.full.default, ([1] * work.rank, filled), kind, before=before)
        if type(formula).__name__ == "Floor":
            step = denominator_of(formula.args[0]) or 0
            inner = self._value(sympy.expand(formula.args[0] * step), work, before)
            return insert(aten.div.Tensor_mode, (inner, step), {"rounding_mode": "floor"}, before=before)
        if formula.is_Pow and formula.args[1] == -1:
            return insert(aten.reciprocal.default, (self._double(formula.args[0], work, before),), before=before)
        if not isinstance(formula, sympy.Add | sympy.Mul):
            raise Unwritten(f"no calls compute {formula}")
        target = aten.add.Tensor if isinstance(formula, sympy.Add) else aten.mul.Tensor
        return self._folded(target, [self._value(arg, work, before) for arg in formula.args], before)

    def _double(self, formula: Expr, work: _Work, before: fx.Node) -> fx.Node:
        return self.program.insert(aten.to.dtype, (self._value(formula, work, before), torch.float64), before=before)


class _Work:
    """What the calls of one tensor have in common: device, rank, and a tensor for every index."""

    def __init__(self, device: torch.device, rank: int, iota: dict[Symbol, fx.Node]) -> None:
        self.device, self.rank, self.iota = device, rank, iota


_SIZE_CALLS: dict[str, Any] = {
    "Add": operator.add,
    "Mul": operator.mul,
    "Pow": operator.mul,
    "FloorDiv": operator.floordiv,
    "CleanDiv": operator.floordiv,
    "Mod": operator.mod,
    "PythonMod": operator.mod,
}
