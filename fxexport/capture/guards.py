"""Decisions that the model's own code took on sizes, and for which sizes they come out the same."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterable, Mapping
from typing import Any

import sympy
import torch
from sympy.printing.precedence import precedence
from torch.export import ExportedProgram
from torch.utils._sympy.functions import ToFloat
from torch.utils._sympy.printers import PythonPrinter

from fxexport.signature import Guard

_TRIED = 64
_TORCH_ROOT = os.path.dirname(torch.__file__) + os.sep


class _Plain(PythonPrinter):
    """Sums as a reader writes them: ``time - 1``, not ``(-1) + time``."""

    def _print_Add(self, expr: Any, order: Any = None) -> str:
        text = ""
        for term in sorted(expr.args, key=lambda term: (bool(term.is_number), bool(term.could_extract_minus_sign()))):
            negative = bool(term.could_extract_minus_sign())
            shown = self.parenthesize(-term if negative else term, precedence(expr))
            text += (f" - {shown}" if text else f"-{shown}") if negative else (f" + {shown}" if text else shown)
        return text


def plain(expression: Any, labels: Mapping[sympy.Symbol, str]) -> str:
    """A symbolic size or condition as Python over the names of the dimensions: ``2*time``, ``batch % 2 == 0``."""
    names = {s: sympy.Symbol(labels.get(s, str(s)), integer=True) for s in expression.free_symbols}
    # A size compared with a Python float is the same number as a float; and 12288.0 is 12288.
    numbers: dict[Any, Any] = {f: f.args[0] for f in expression.atoms(ToFloat)}
    numbers |= {f: sympy.Integer(int(f)) for f in expression.atoms(sympy.Float) if float(f).is_integer()}
    text = str(_Plain().doprint(expression.xreplace(numbers).xreplace(names)))
    while text.startswith("(") and text.endswith(")") and _closes_last(text):
        text = text[1:-1]
    return text


def _closes_last(text: str) -> bool:
    depth = 0
    for position, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return position == len(text) - 1
    return False


def size_guards(exported: ExportedProgram, labels: Mapping[sympy.Symbol, str]) -> tuple[Guard, ...]:
    """Conditions on named sizes that lines of the user's code decided during capture, with those lines.

    Conditions that PyTorch's own operators needed are left out: eager refuses sizes that break them. Conditions on
    sizes that ranges express already (``time > 10``) are included: the place is what a reader wants to know.
    """
    found: dict[str, Guard] = {}
    for guard in recorded(exported):
        if not guard.expr.free_symbols or not guard.expr.free_symbols <= set(labels):
            continue
        place = user_place(guard.sloc)
        text = plain(guard.expr, labels)
        if place and text != "True":  # torch also records what it could decide without looking at sizes
            found.setdefault(text, Guard(text, place))
    return tuple(found.values())


def only_sizes(exported: ExportedProgram, sizes: Iterable[Any]) -> dict[sympy.Symbol, tuple[int, str]]:
    """Those of the symbolic ``sizes`` for which all conditions together leave one number, with it and a line that asked.

    ``int(t / 2) == 2`` and ``t % 2 == 0`` are conditions that torch does not solve; so the numbers are tried one by one.
    """
    found: dict[sympy.Symbol, tuple[int, str]] = {}
    for size in sizes:
        symbol = size.node.expr if isinstance(size, torch.SymInt) else None
        if not isinstance(symbol, sympy.Symbol) or symbol in found:
            continue
        asked = [guard for guard in recorded(exported) if guard.expr.free_symbols == {symbol}]
        hint = size.node.hint
        if not isinstance(hint, int) or not any(_may_fix(guard.expr) for guard in asked):
            continue
        tried = range(1, 2 * hint + _TRIED)  # the next multiple is among them
        fit = [n for n in tried if all(holds(guard.expr, {symbol: sympy.Integer(n)}) for guard in asked)]
        if fit == [hint]:
            places = [user_place(guard.sloc) for guard in asked if _may_fix(guard.expr)]
            found[symbol] = hint, next(filter(None, places), "")
    return found


def holds(condition: Any, sizes: Mapping[sympy.Symbol, sympy.Integer]) -> bool:
    """Whether a condition holds for some sizes, or cannot be told to fail."""
    return bool(condition.xreplace(dict(sizes)) is not sympy.false)


def _may_fix(condition: Any) -> bool:
    return bool(condition.atoms(sympy.Eq, sympy.Le, sympy.Lt, sympy.Ge, sympy.Gt))


def recorded(exported: ExportedProgram) -> list[Any]:
    """Every condition that capture decided by the example's sizes, PyTorch's own included; each has an ``expr``."""
    for node in exported.graph.nodes:
        mode = getattr(node.meta.get("val"), "fake_mode", None)
        if mode is not None and mode.shape_env is not None:
            return list(mode.shape_env.guards)
    return []


def user_place(location: Any) -> str:
    """``models/net.py:12`` for the line that asked, or '' where that line is PyTorch's own."""
    frame = location.framework_loc
    if not isinstance(frame, traceback.FrameSummary) or frame.filename.startswith(_TORCH_ROOT):
        return ""
    folder, name = os.path.split(frame.filename)
    return f"{os.path.basename(folder)}/{name}:{frame.lineno}"
