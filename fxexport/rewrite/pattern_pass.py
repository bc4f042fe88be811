"""``PatternPass``: a rewrite stated as two plain torch functions."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch
from torch import fx

from fxexport.errors import InputError, PassError
from fxexport.program import Program
from fxexport.rewrite.engine import Rule
from fxexport.rewrite.match import Match
from fxexport.rewrite.pattern import Pattern, compile_pattern
from fxexport.rewrite.pattern_arguments import alternatives, read_arguments, signature_of_function, with_length
from fxexport.rewrite.pattern_rule import PatternRule
from fxexport.rewrite.rule_pass import RulePass

Function = Callable[..., Any]


@dataclass(frozen=True)
class PatternPass(RulePass):
    """``pattern -> replacement``: both are plain torch functions over the same arguments.

    Example::

        class FuseSilu(PatternPass):
            \"\"\"``x * sigmoid(x) -> silu(x)``: exact but for rounding.\"\"\"

            name = "fuse-silu"
            pattern = lambda x: x * torch.sigmoid(x)
            replacement = lambda x: torch.nn.functional.silu(x)

    The pattern is recorded as models are, so each way to write it is found. An argument whose example is a tensor is
    bound to any tensor (annotated ``Constant``: to a weight, buffer or constant only); ``*args`` and lists to any number
    of tensors; ``Tensor | None`` to a tensor or to nothing; an argument whose example is a number, bool, dtype, string or
    list of numbers to whatever stands there. All other literals must be equal, except those the pattern computes of
    shapes and bound literals: they are compared with what it computes at the match, symbolic sizes included. Arguments
    of commutative operators match in both orders.

    The replacement is traced at the shapes, dtypes and literals of each match, so it may branch on them. What it computes
    of ``Constant`` arguments alone becomes a new constant.

    Attributes:
        pattern: what to look for; or ``patterns``, several of them by name: larger ones are tried first.
        replacement: what takes its place, with as many results.
        example_inputs: one small example for each argument, a list for ``*args``. May be left out where the pattern takes
            tensors of one square shape.
        allow_shared: match also where an interior value is read elsewhere: it stays, and is computed as before.
        recursive: match also what came out of one replacement whole. Without it a replacement may contain its own pattern.
    """

    pattern: ClassVar[Function | None] = None
    patterns: ClassVar[Mapping[str, Function]] = {}
    replacement: ClassVar[Function]
    example_inputs: ClassVar[Any] = None
    allow_shared: ClassVar[bool] = False
    recursive: ClassVar[bool] = False

    def check(self, match: Match) -> bool | str:
        """Whether to rewrite this match: True, or the reason why not. It sees shapes, dtypes, constants and users."""
        return True

    def rules(self, program: Program) -> Sequence[Rule]:
        """A rule for each pattern, with and without its optional arguments, for each length of list in the program."""
        patterns = _compiled(self)
        if any(argument.variadic for pattern in patterns for argument in pattern.arguments):
            patterns = [other for length in _list_lengths(program) for other in _compiled(self, length)]
        replacement = _function(self, "replacement")
        maker: dict[fx.Node, fx.Node] = {}
        check = None if type(self).check is PatternPass.check else self.check
        return [
            PatternRule(self.name, pattern, replacement, check, self.allow_shared, self.recursive, maker)
            for pattern in patterns
        ]

    @staticmethod
    def of(
        name: str,
        pattern: Function,
        replacement: Function,
        example_inputs: Any = None,
        *,
        check: Callable[[Match], bool | str] | None = None,
    ) -> PatternPass:
        """A pass without a class: ``PatternPass.of("fuse-silu", lambda x: x * x.sigmoid(), F.silu)``."""
        members: dict[str, Any] = {"name": name, "example_inputs": example_inputs, "__module__": pattern.__module__}
        members |= {"pattern": staticmethod(pattern), "replacement": staticmethod(replacement)}
        if check is not None:
            members["check"] = lambda self, match: check(match)
        title = "".join(word.capitalize() for word in re.split(r"\W+", name))
        made: PatternPass = type(title, (PatternPass,), members)()
        return made


@dataclass(frozen=True)
class PatternSet(RulePass):
    """Several passes as one: their rules are matched together in one walk, first come first served."""

    name: ClassVar[str] = "pattern-set"
    passes: tuple[RulePass, ...] = ()

    def rules(self, program: Program) -> Sequence[Rule]:
        """The rules of all passes, in their order."""
        return [rule for pass_ in self.passes for rule in pass_.rules(program)]

    def __str__(self) -> str:
        return f"{self.name}{{{','.join(map(str, self.passes))}}}"


def _compiled(pass_: PatternPass, length: int | None = None) -> list[Pattern]:
    """The patterns of a pass, made once for each choice of its options; they live as long as its class."""
    known: dict[Any, list[Pattern]] | None = vars(type(pass_)).get("_compiled_patterns")
    if known is None:
        known = {}
        type.__setattr__(type(pass_), "_compiled_patterns", known)
    functions = (pass_.pattern, *pass_.patterns.values())
    values = [getattr(pass_, field.name) for field in fields(pass_)]
    key = (length, *(getattr(f, "__func__", f) for f in functions), *((type(v).__name__, repr(v)) for v in values))
    if len(known) > MOST_COMPILED:
        known.clear()
    if key not in known:
        known[key] = _compile(pass_, length)
    return known[key]


MOST_COMPILED = 64
"""Choices of options of one pass whose patterns are kept."""


def _compile(pass_: PatternPass, length: int | None) -> list[Pattern]:
    named = {f"{pass_.name}/{key}": _plain(pass_, function) for key, function in pass_.patterns.items()}
    if inspect.getattr_static(pass_, "pattern", None) is not None:
        named = {pass_.name: _function(pass_, "pattern"), **named}
    if not named:
        raise InputError(f"{type(pass_).__name__} has neither a pattern nor patterns")
    found = [made for label, function in named.items() for made in _compile_one(pass_, label, function, length)]
    sizes = sorted({len(pattern.calls) for pattern in found}, reverse=True)
    return [replace(pattern, rank=sizes.index(len(pattern.calls))) for pattern in found]


def _compile_one(pass_: PatternPass, label: str, function: Function, length: int | None) -> list[Pattern]:
    if pass_.example_inputs is None:
        return _compile_guessed(label, function)
    arguments = read_arguments(function, pass_.example_inputs)
    if length is not None:
        arguments = with_length(arguments, length)
    return [compile_pattern(label, function, choice) for choice in alternatives(arguments)]


def _compile_guessed(label: str, function: Function) -> list[Pattern]:
    """The pattern on square tensors, of the first rank that it accepts."""
    kinds, failures = signature_of_function(function), []
    needed = [name for name, kind in kinds.items() if kind.default is kind.empty]
    for rank in (2, 3, 4, 1):
        try:
            arguments = read_arguments(function, {name: torch.empty((4,) * rank) for name in needed or ["x0"]})
            return [compile_pattern(label, function, choice) for choice in alternatives(arguments)]
        except PassError as error:
            failures.append(str(error))
    raise PassError(f"pattern {label} needs example_inputs: {failures[0]}")


def _function(pass_: PatternPass, name: str) -> Function:
    """A function of a pass: static, a method, or one written in the class without either."""
    found = inspect.getattr_static(pass_, name, None)
    if found is None:
        raise InputError(f"{type(pass_).__name__} has no {name}")
    return _plain(pass_, found)


def _plain(pass_: PatternPass, found: Any) -> Function:
    if isinstance(found, staticmethod | classmethod):
        return found.__get__(pass_, type(pass_))
    bound: Function = found
    if inspect.isfunction(found) and next(iter(inspect.signature(found).parameters), "") == "self":
        bound = found.__get__(pass_)
    return bound


def _list_lengths(program: Program) -> list[int]:
    """How long the lists of tensors among the arguments of the program are."""
    lists = (value for node in program.graph.nodes for value in node.args if isinstance(value, list | tuple))
    return sorted({len(v) for v in lists if v and all(isinstance(item, fx.Node) for item in v)})
