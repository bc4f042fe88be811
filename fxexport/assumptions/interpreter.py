"""``Forms``: what every tensor of a program holds, as far as the assumptions about its inputs tell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sympy
import torch
from sympy import Expr, Integer, Symbol
from torch import fx

from fxexport.assumptions.constants import form_of_constant
from fxexport.assumptions.elementwise import number
from fxexport.assumptions.evaluating import evaluate
from fxexport.assumptions.form import Algebra, Form
from fxexport.assumptions.sizes import normal, size_of
from fxexport.input_assumption import InputAssumption
from fxexport.program import Program


class Forms:
    """The forms of the nodes of ``program`` under ``assumptions``, each made when it is asked for.

    Nodes may be added and replaced meanwhile; a node that was asked for keeps its form.
    """

    def __init__(self, program: Program, assumptions: Sequence[InputAssumption]) -> None:
        self.program = program
        self.algebra = Algebra(_ranges(program))
        names = [spec.name for spec in program.signature.inputs]
        self.inputs = dict(zip(names, program.input_nodes, strict=True))
        self.assumed = {self.inputs[each.input]: each for each in assumptions}
        self.symbols: dict[Symbol, Expr] = {}
        """What is known of sizes that the program reads from the values of a tensor."""
        self._known: dict[fx.Node, Form | None] = {}
        self._depends: dict[fx.Node, bool] = {}

    def of(self, value: Any) -> Form | None:
        """The form of a node, or of a number; None where it is not known."""
        if not isinstance(value, fx.Node):
            found = self.size(value)
            return None if found is None else self.algebra.form(found, ())
        if value not in self._known:
            pending = [value]
            while pending:  # deep graphs: no recursion
                missing = [n for n in pending[-1].all_input_nodes if n not in self._known and self._wants(pending[-1])]
                if missing:
                    pending += missing
                else:
                    node = pending.pop()
                    self._known.setdefault(node, self._make(node))
        return self._known[value]

    def seen(self, value: Any, shape: tuple[Expr, ...]) -> Form | None:
        """The form of an operand as an operator sees it whose result has ``shape``."""
        form = self.of(value)
        return None if form is None else self.algebra.broadcast(form, shape)

    def depends(self, value: Any) -> bool:
        """Whether ``value`` is computed from an input about which something is assumed."""
        if not isinstance(value, fx.Node):
            return False
        if value not in self._depends:
            pending = [value]
            while pending:
                missing = [n for n in pending[-1].all_input_nodes if n not in self._depends]
                if missing and pending[-1] not in self.assumed:
                    pending += missing
                else:
                    node = pending.pop()
                    self._depends[node] = node in self.assumed or any(map(self._depends.get, node.all_input_nodes))
        return self._depends[value]

    def shape(self, node: fx.Node) -> tuple[Expr, ...] | None:
        """The sizes of a tensor in normal form."""
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor) or value.dim() > 12:
            return None
        sizes = [self._put_in(size_of(size)) for size in value.shape]
        known = [size for size in sizes if size is not None]
        return tuple(known) if len(known) == len(sizes) else None

    def size(self, value: Any) -> Expr | None:
        """The formula of a number, of a SymInt, or of a node that computes one."""
        value = value.meta.get("val") if isinstance(value, fx.Node) else value
        if isinstance(value, bool | int | float):
            return number(value)
        if isinstance(value, torch.SymInt | torch.SymFloat):
            return self._put_in(normal(value.node.expr))
        return None

    def _put_in(self, value: Expr | None) -> Expr | None:
        return value if value is None or not self.symbols else normal(value.xreplace(self.symbols))

    def _wants(self, node: fx.Node) -> bool:
        return node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload)

    def _make(self, node: fx.Node) -> Form | None:
        shape = self.shape(node)
        if node in self.assumed and shape is not None:
            return self._of_assumed(self.assumed[node], shape)
        if self.program.is_constant(node):
            value = self.program.constant_value(node)
            return None if value is None else form_of_constant(value, self.algebra)
        if not self._wants(node):
            return None
        if shape is None:
            self._read_item(node)
            return None
        return evaluate(self, node, shape)

    def _of_assumed(self, assumption: InputAssumption, shape: tuple[Expr, ...]) -> Form | None:
        value: Expr | None = Integer(assumption.says != "zeros")
        if assumption.says == "full":
            assert assumption.axis is not None
            source, axis = assumption.axis
            value = size_of(self.inputs[source].meta["val"].shape[axis])
        return None if value is None else self.algebra.form(value, shape)

    def _read_item(self, node: fx.Node) -> None:
        value = node.meta.get("val")
        source = node.args[0] if node.args else None
        if node.target not in _ITEMS or not isinstance(value, torch.SymInt) or not isinstance(value.node.expr, Symbol):
            return
        form = self.of(source) if source in self._known else None
        if form is not None and form.constant is not None:
            self.symbols[value.node.expr] = form.constant


_ITEMS = (torch.ops.aten.item.default, torch.ops.aten._local_scalar_dense.default)


def _ranges(program: Program) -> dict[Symbol, tuple[Expr, Expr]]:
    """Symbol of a size -> its range. torch.export keeps to sizes above 1 while it traces, but a program runs at 1 too."""
    env = program.fake_mode.shape_env
    found: dict[Symbol, tuple[Expr, Expr]] = {}
    for symbol, known in (env.var_to_range if env is not None else {}).items():
        low, high = known.lower, known.upper
        smallest = Integer(low) if low.is_Integer and low > 2 else Integer(1)
        found[symbol] = (smallest, Integer(high) if high.is_Integer and high < 2**31 else sympy.oo)
    return found
