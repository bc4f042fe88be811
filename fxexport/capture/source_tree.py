"""The syntax around a line: which loops it is in, and what kind of decision it takes."""

from __future__ import annotations

import ast
import linecache
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

_LOOPS = (ast.For, ast.AsyncFor, ast.While, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_DECISIONS: dict[type, str] = {ast.If: "if", ast.While: "while", ast.Assert: "assert", ast.IfExp: "if-expression"}


@dataclass(frozen=True)
class Loop:
    """A loop of the user's code: ``line`` is that of its header, ``targets`` the variables it sets on each turn."""

    file: str
    line: int
    targets: tuple[str, ...]


@lru_cache(maxsize=4096)
def loops_at(file: str, line: int) -> tuple[Loop, ...]:
    """The loops whose body holds ``line``, the outermost first."""
    found = []
    for node in ast.walk(_tree(file)):
        if not isinstance(node, _LOOPS):
            continue
        first, last = _body(node)
        if first <= line <= last:
            found.append((node.lineno, -last, Loop(file, node.lineno, tuple(_targets(node)))))
    return tuple(loop for *_, loop in sorted(found, key=lambda each: each[:2]))


@lru_cache(maxsize=4096)
def iterates_at(file: str, line: int) -> bool:
    """Whether ``line`` says what a ``for`` loop or a comprehension goes over."""
    loops = (node for node in ast.walk(_tree(file)) if isinstance(node, _LOOPS) and not isinstance(node, ast.While))
    over = [
        part for node in loops for part in ([node.iter] if hasattr(node, "iter") else [g.iter for g in node.generators])
    ]
    return any(part.lineno <= line <= (part.end_lineno or line) for part in over)


@lru_cache(maxsize=4096)
def decision_at(file: str, line: int) -> str:
    """``"if"``, ``"while"``, ``"assert"`` or ``"if-expression"`` for a line that holds such a test, else ''."""
    tests = (node for node in ast.walk(_tree(file)) if isinstance(node, ast.If | ast.While | ast.Assert | ast.IfExp))
    found = [(n.test.lineno, n) for n in tests if n.test.lineno <= line <= (n.test.end_lineno or line)]
    return _DECISIONS[type(max(found, key=lambda each: each[0])[1])] if found else ""


@lru_cache(maxsize=128)
def _tree(file: str) -> ast.Module:
    try:
        return ast.parse("".join(linecache.getlines(file)))
    except SyntaxError:  # no Python source: code of a notebook's magic, or made by a template
        return ast.Module(body=[], type_ignores=[])


def _body(node: ast.AST) -> tuple[int, int]:
    if isinstance(node, ast.For | ast.AsyncFor | ast.While):
        return node.body[0].lineno, node.body[-1].end_lineno or node.body[-1].lineno
    assert isinstance(node, ast.expr)
    return node.lineno, node.end_lineno or node.lineno


def _targets(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.For | ast.AsyncFor):
        targets: list[ast.expr] = [node.target]
    else:
        targets = [each.target for each in getattr(node, "generators", ())]
    for target in targets:
        yield from (name.id for name in ast.walk(target) if isinstance(name, ast.Name))
