"""A program as a reader wants it: a line for each call, in the user's own names.

relu_1: f32[batch, 64, 56, 56] = aten.relu(conv2d_1)  # layer1.0 model.py:12
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sympy
import torch
from torch import fx

from fxexport.capture.guards import plain
from fxexport.program import Program, module_path, source_line
from fxexport.rewrite.ledger import operator_name

_OURS = str(Path(__file__).parents[1]) + os.sep
DTYPES = {
    torch.float64: "f64", torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16",
    torch.int64: "i64", torch.int32: "i32", torch.int16: "i16", torch.int8: "i8", torch.uint8: "u8",
    torch.bool: "bool", torch.complex64: "c64", torch.complex128: "c128",
}  # fmt: skip


class ProgramText:
    """Words for the nodes of one program: constants by their names in the model, sizes by those of the signature."""

    def __init__(self, program: Program) -> None:
        self._labels = _size_labels(program)
        self._names = {
            node: program.constant_name(node) if program.is_constant(node) else node.name
            for node in program.graph.nodes
        }

    def line(self, node: fx.Node) -> str:
        """One call, input or output: name, value, operator with its arguments, and where it comes from."""
        if node.op == "output":
            return f"return {self._argument(node.args[0], self.name)}"
        known = self.value(node)
        head = f"{node.name}: {known}" if known else node.name
        if node.op == "placeholder":
            return head
        words = " ".join(filter(None, origin(node)))
        return f"{head} = {self.expression(node, self.name)}" + (f"  # {words}" if words else "")

    def expression(self, node: fx.Node, name: Callable[[fx.Node], str]) -> str:
        """The operator with its arguments, nodes among them as ``name`` says."""
        args = [self._argument(arg, name) for arg in node.args]
        if node.target is operator.getitem:
            return f"{args[0]}[{args[1]}]"
        args += [f"{key}={self._argument(arg, name)}" for key, arg in node.kwargs.items()]
        return f"{short_name(operator_name(node.target))}({', '.join(args)})"

    def name(self, node: fx.Node) -> str:
        """``conv2d_1``; of a constant its name in the state dict of the model: ``layer1.0.conv1.weight``."""
        return self._names[node]

    def value(self, node: fx.Node) -> str:
        """``f32[batch, 64]``, ``int(2*time)``, or several of them in parentheses; '' where nothing is known."""
        return self._value(node.meta.get("val"))

    def _value(self, value: Any) -> str:
        if isinstance(value, torch.Tensor):
            sizes = ", ".join(self._size(size) for size in value.shape)
            return f"{DTYPES.get(value.dtype, str(value.dtype).removeprefix('torch.'))}[{sizes}]"
        if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
            return f"{type(value).__name__.removeprefix('Sym').lower()}({self._size(value)})"
        if isinstance(value, tuple | list):
            return f"({', '.join(self._value(each) for each in value)})"
        return "" if value is None else type(value).__name__

    def _size(self, size: Any) -> str:
        if not isinstance(size, torch.SymInt | torch.SymFloat | torch.SymBool):
            return str(size)
        return plain(sympy.sympify(size.node.expr), self._labels)

    def _argument(self, arg: Any, name: Callable[[fx.Node], str]) -> str:
        if isinstance(arg, fx.Node):
            return name(arg)
        if isinstance(arg, tuple | list):
            inside = ", ".join(self._argument(each, name) for each in arg)
            return f"[{inside}]" if isinstance(arg, list) else f"({inside}{',' * (len(arg) == 1)})"
        if isinstance(arg, torch.dtype):
            return DTYPES.get(arg, str(arg))
        return repr(arg) if isinstance(arg, str) else str(arg)


def origin(node: fx.Node) -> tuple[str, str]:
    """Module path and ``file:line`` of the user's code that made ``node``, '' where it was not the user's."""
    return shown_module(module_path(node)), shown_place(source_line(node))


def shown_module(path: str) -> str:
    """A module path, but '' for the name that torch.export gives to what no module made."""
    return "" if path.startswith("_empty_nn_module_stack") else path


def short_name(operator_text: str) -> str:
    """An operator's name without ``.default``."""
    return operator_text.removesuffix(".default")


def shown_place(place: str) -> str:
    """``file:line`` from the current directory or the installed package; '' for lines of PyTorch and of ours."""
    if place.startswith(_OURS):
        return ""
    here = os.getcwd() + os.sep
    if place.startswith(here):
        return place[len(here) :]
    short = place.rpartition(f"{os.sep}site-packages{os.sep}")[2]
    return "" if short.startswith(f"torch{os.sep}") else short


def shown_text(text: str) -> str:
    """``text`` with the places in it as :func:`shown_place` has them."""
    return " ".join(_shown_word(word) for word in text.split(" "))


def _shown_word(word: str) -> str:
    bare = word.lstrip("(")
    return word[: len(word) - len(bare)] + (shown_place(bare) or bare)


def _size_labels(program: Program) -> dict[sympy.Symbol, str]:
    """Symbolic size -> the name that the signature gives it."""
    labels: dict[sympy.Symbol, str] = {}
    for node, spec in zip(program.input_nodes, program.signature.inputs, strict=True):
        for size, axis in zip(node.meta["val"].shape, spec.axes, strict=True):
            if isinstance(size, torch.SymInt) and isinstance(axis, str):
                expression = sympy.sympify(size.node.expr)
                if expression.is_Symbol:
                    labels.setdefault(expression, axis)
    return labels
