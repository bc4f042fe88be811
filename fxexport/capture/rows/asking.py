"""The syntax of decisions on numbers: what a line of code compares, cuts off or rounds.

A graph at a few numbers of rows shows what is computed there. It does not show ``if len(x) > 8``. Such code has one of the
forms below; a check that ends in an error (``assert``, ``if ...: raise``) is none of them.
"""

from __future__ import annotations

import ast
import linecache
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

Kind = Literal["same", "truth", "divided", "zip", "slice", "other"]
_ROUNDING = (ast.FloorDiv, ast.Mod)
_BITS = (ast.RShift, ast.BitAnd, ast.BitOr, ast.BitXor)
_OWN_QUESTIONS = (ast.Compare, ast.BoolOp, ast.IfExp)
_CUTTING = {"min", "max", "round", "ceil", "floor", "trunc", "divmod", "bool", "islice", "get", "bisect", "bisect_left"}
_CUTTING |= {"bisect_right", "sym_min", "sym_max", "isqrt", "log2", "clip"}


@dataclass(frozen=True)
class Question:
    """A decision in a line of code, and the expressions that it is taken on.

    ``kind``: "same" for ``a == b``, "truth" for ``if a``, "divided" for ``a // b`` and ``a % b``, "zip" for
    ``zip(a, b)``, "slice" for ``a[b:c]``, "other" for all others.
    """

    file: str
    line: int
    parts: tuple[ast.expr, ...]
    kind: Kind = "other"

    @cached_property
    def names(self) -> frozenset[str]:
        """The variables in it."""
        return frozenset(n.id for part in self.parts for n in ast.walk(part) if isinstance(n, ast.Name))

    @property
    def place(self) -> str:
        """``file:line: source``."""
        return f"{self.file}:{self.line}: {linecache.getline(self.file, self.line).strip()}"


@lru_cache(maxsize=128)
def questions_of(file: str) -> dict[int, list[Question]]:
    """The questions of each line of a file."""
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except SyntaxError:  # no Python source: made by a template
        return {}
    found: dict[int, list[Question]] = {}
    for node in _decisive(tree):
        for parts, kind in _asked(node):
            line = getattr(node, "lineno", parts[0].lineno)
            found.setdefault(line, []).append(Question(file, line, parts, kind))
    return found


def _decisive(node: ast.AST) -> Iterator[ast.AST]:
    """All syntax but what only decides whether an error is raised."""
    if isinstance(node, ast.Assert):
        return
    only_raises = isinstance(node, ast.If) and not node.orelse and all(isinstance(s, ast.Raise) for s in node.body)
    if not only_raises:
        yield node
        for child in ast.iter_child_nodes(node):
            yield from _decisive(child)


def _asked(node: ast.AST) -> Iterator[tuple[tuple[ast.expr, ...], Kind]]:
    if isinstance(node, ast.Compare):
        if not all(isinstance(op, ast.Is | ast.IsNot) for op in node.ops):
            same = len(node.ops) == 1 and isinstance(node.ops[0], ast.Eq | ast.NotEq)
            yield (node.left, *node.comparators), "same" if same else "other"
    elif isinstance(node, ast.If | ast.While | ast.IfExp):
        yield from _truth(node.test)
    elif isinstance(node, ast.comprehension):
        for test in node.ifs:
            yield from _truth(test)
    elif isinstance(node, ast.BoolOp):
        for value in node.values:
            yield from _truth(value)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield from _truth(node.operand)
    elif isinstance(node, ast.Match):
        yield (node.subject,), "other"
    elif isinstance(node, ast.BinOp) and isinstance(node.op, _ROUNDING):
        if not isinstance(node.left, ast.Constant | ast.JoinedStr):  # as the text in "%d rows" % n is
            yield (node.left, node.right), "divided"
    elif isinstance(node, ast.BinOp) and isinstance(node.op, _BITS):
        yield (node.left, node.right), "other"
    elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Slice):
        yield (node.value, *(b for b in (node.slice.lower, node.slice.upper) if b is not None)), "slice"
    elif isinstance(node, ast.Call):
        yield from _called(node)


def _truth(test: ast.expr) -> Iterator[tuple[tuple[ast.expr, ...], Kind]]:
    if not isinstance(test, _OWN_QUESTIONS) and not (isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)):
        yield (test,), "truth"


def _called(node: ast.Call) -> Iterator[tuple[tuple[ast.expr, ...], Kind]]:
    function, args = node.func, tuple(node.args)
    name = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
    if name == "zip" and len(args) > 1:
        yield args, "zip"
    elif name in _CUTTING and args:
        yield args, "other"
    elif name == "range" and len(args) == 3 and ast.unparse(args[2]) not in ("1", "-1"):
        yield args, "other"  # how often it goes round is a quotient
    elif name == "int" and args and any(isinstance(part, ast.Div) for part in ast.walk(args[0])):
        yield args, "other"
