"""``Pass``: one rewrite of a ``Program``. Subclass it as a frozen dataclass; fields are its options."""

from __future__ import annotations

import functools
import inspect
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self, get_origin

import torch
from torch import fx

from fxexport.errors import InputError
from fxexport.program import Program
from fxexport.rewrite.ledger import NearMiss, Rewrite
from fxexport.rewrite.pipeline_text import spell


@dataclass(frozen=True)
class PassResult:
    """What a pass did: how many places it rewrote, and notes for the report (what it left alone, and why).

    ``rewrites`` and ``near_misses`` are filled in by NodePass and PatternPass; a pass of another form may leave them out.
    """

    count: int
    notes: tuple[str, ...] = ()
    rewrites: tuple[Rewrite, ...] = ()
    near_misses: tuple[NearMiss, ...] = ()
    near_miss_count: int = 0

    @property
    def modified(self) -> bool:
        """Whether the program changed."""
        return self.count > 0


@dataclass(frozen=True)
class Pass(ABC):
    """A rewrite that may assume a valid program and must leave one; the manager verifies, the pass does not
    have to.

    ``name`` is the command-line spelling (``fold-batchnorm``), dataclass fields are the options
    (``fold-batchnorm{into_next=false}``), and the docstring draws the rewrite and says when it is exact.
    ``default`` says whether a pass of the built-in library is part of the default pipeline; a pass from
    elsewhere runs only where it is named. ``after`` and ``before`` name passes that it must not precede or
    follow where both are in a pipeline. ``repeats`` says that the pass is cheap and cleans up after others: it runs again
    at the end where later passes changed something (see ``PassManager``). ``formats`` are the formats of artifacts for
    which it is worth it, such as ``("onnx",)``; none means all.

    To make an instance raises InputError where the class has no name that a pipeline can spell, or annotated fields
    that are no options because it is no dataclass.
    """

    name: ClassVar[str]
    default: ClassVar[bool] = False
    after: ClassVar[tuple[str, ...]] = ()
    before: ClassVar[tuple[str, ...]] = ()
    formats: ClassVar[tuple[str, ...]] = ()
    repeats: ClassVar[bool] = False

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        # Not in __post_init__: a forgotten @dataclass would first be a TypeError about an unexpected argument.
        _check_class(cls)
        return super().__new__(cls)

    @abstractmethod
    def run(self, program: Program) -> PassResult:
        """Rewrites ``program`` in place and returns how many places changed."""

    @classmethod
    def option_names(cls) -> list[str]:
        """The names of the options, in order."""
        return [f.name for f in fields(cls)]

    def __str__(self) -> str:
        options = [
            f"{f.name}={spell(getattr(self, f.name))}" for f in fields(self) if getattr(self, f.name) != f.default
        ]
        return self.name + (f"{{{','.join(options)}}}" if options else "")


def _check_class(cls: type[Pass]) -> None:
    name, where = getattr(cls, "name", None), f"{cls.__module__}.{cls.__qualname__}"
    if not isinstance(name, str):
        raise InputError(
            f"the pass {where} has no name; give the class one, such as `name = {_dashed(cls.__name__)!r}`"
        )
    if not _NAME.fullmatch(name):
        raise InputError(
            f"the pass {where} is named {name!r}, which a pipeline cannot spell; use letters, digits, `-`, `_` and `.` only"
        )
    for owner in cls.__mro__:
        if "__dataclass_fields__" not in vars(owner) and (lost := _fields_of(owner)):
            raise InputError(
                f"{', '.join(lost)} of {owner.__module__}.{owner.__qualname__} cannot be set: write "
                "@dataclass(frozen=True) above the class to make them options of the pass, or annotate them as ClassVar"
            )


_NAME = re.compile(r"[\w.\-]+")  # as in pipeline_text


def _dashed(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()


def _fields_of(cls: type) -> list[str]:
    """What ``cls`` annotates as dataclass fields are; a constant of the base classes (``name: str``) stays one."""
    constants = {name for base in cls.__mro__[1:] for name, hint in _hints(base).items() if _is_constant(hint)}
    return [name for name, hint in _hints(cls).items() if name not in constants and not _is_constant(hint)]


def _hints(cls: type) -> dict[str, Any]:
    return inspect.get_annotations(cls) if issubclass(cls, Pass) else {}


def _is_constant(hint: Any) -> bool:
    if isinstance(hint, str):
        return re.match(r"(\w+\.)?ClassVar\b", hint) is not None
    return hint is ClassVar or get_origin(hint) is ClassVar


def arguments(node: fx.Node) -> dict[str, Any]:
    """Every argument of an ATen call by its name in the operator's schema, in order, defaults filled in.

    Raises TypeError when the node does not call an ``OpOverload`` (an operator with a schema).
    """
    if not isinstance(node.target, torch._ops.OpOverload):
        raise TypeError(f"{node.name} calls {node.target}, which has no operator schema")
    positional, found, _ = parameters(node.target)
    found = dict(found)
    found.update(zip(positional, node.args, strict=False))
    found.update(node.kwargs)
    return found


@functools.cache
def parameters(target: torch._ops.OpOverload) -> tuple[tuple[str, ...], dict[str, Any], tuple[str, ...]]:
    """The names of an operator's positional arguments, all with their defaults (or None), the names of all."""
    schema = target._schema.arguments
    positional = tuple(argument.name for argument in schema if not argument.kwarg_only)
    defaults = {argument.name: _default(argument) for argument in schema}
    return positional, defaults, tuple(defaults)


_MEMORY_FORMATS = (
    torch.contiguous_format,
    torch.preserve_format,
    torch.channels_last,
    torch.channels_last_3d,
)


def _default(argument: torch.Argument) -> Any:
    """Schemas give a default memory format as its number in C++."""
    value = argument.default_value
    is_format = str(argument.type) == "MemoryFormat" or str(argument.real_type) == "MemoryFormat"
    return _MEMORY_FORMATS[value] if is_format and value is not None else value
