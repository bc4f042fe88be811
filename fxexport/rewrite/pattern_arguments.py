"""What the arguments of a pattern stand for: any tensor, a constant, a literal, a list of tensors, or nothing."""

from __future__ import annotations

import inspect
import itertools
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Union

import torch

from fxexport.errors import PassError

_CONSTANT = "constant"
Constant = Annotated[torch.Tensor, _CONSTANT]
"""Annotation of a pattern's argument that only a parameter, buffer or constant tensor of the model may be bound to."""

Kind = Literal["tensor", "constant", "literal", "absent"]


@dataclass(frozen=True)
class Argument:
    """One argument of a pattern: its example is a tensor, a list of tensors, or the value of a literal."""

    name: str
    kind: Kind
    example: Any
    optional: bool = False
    variadic: bool = False


def read_arguments(function: Callable[..., Any], examples: Any) -> list[Argument]:
    """The arguments of a pattern function, from its annotations and its example inputs.

    ``examples`` is a sequence in the order of the arguments or a mapping by name. A tensor argument is one whose
    example is a tensor; ``*args`` and lists of tensors match any number of them. Raises PassError where they do not fit.
    """
    kinds, hints = signature_of_function(function), _hints(function)
    names = list(kinds) or [f"x{number}" for number in range(len(examples))]
    given = dict(examples) if isinstance(examples, Mapping) else dict(zip(names, examples, strict=False))
    kept = [name for name in names if name in given or not kinds or kinds[name].default is inspect.Parameter.empty]
    if set(kept) != set(given) or len(examples) != len(given):
        raise PassError(
            f"{name_of(function)}({', '.join(names)}) needs one example input for each argument, got {len(examples)}; "
            "for *args give one list"
        )
    found = []
    for name in kept:
        starred = bool(kinds) and kinds[name].kind == inspect.Parameter.VAR_POSITIONAL
        found.append(_argument(name, given[name], hints.get(name), starred))
    return found


def alternatives(arguments: Sequence[Argument]) -> Iterator[list[Argument]]:
    """The arguments with each optional one given, and left out as None; all given first."""
    optional = [argument.name for argument in arguments if argument.optional]
    if len(optional) > 4:
        raise PassError(f"{len(optional)} optional arguments make {2 ** len(optional)} patterns; write those you mean")
    for absent in itertools.chain.from_iterable(
        itertools.combinations(optional, count) for count in range(len(optional) + 1)
    ):
        yield [_absent(argument) if argument.name in absent else argument for argument in arguments]


def with_length(arguments: Sequence[Argument], length: int) -> list[Argument]:
    """The arguments with lists of ``length`` tensors where they are lists."""
    return [
        replace(argument, example=[argument.example[0]] * length) if argument.variadic else argument
        for argument in arguments
    ]


def adapted(function: Callable[..., Any], arguments: Sequence[Argument]) -> Callable[..., Any]:
    """``function`` as one of positional values, one for each of ``arguments``.

    It is given them by name and may leave some out; a function with other names (``F.silu``) gets them in order.
    """
    kinds = signature_of_function(function)
    names = [argument.name for argument in arguments]
    lists = {argument.name for argument in arguments if argument.variadic}
    star = next((name for name, kind in kinds.items() if kind.kind == kind.VAR_POSITIONAL), None)
    needed = {name for name, kind in kinds.items() if kind.default is kind.empty and name != star}
    known = needed <= set(names) and (star is None or star in lists)
    by_name = bool(kinds) and known and not any(kind.kind == kind.POSITIONAL_ONLY for kind in kinds.values())

    def call(*values: Any) -> Any:
        given = dict(zip(names, values, strict=True))
        if not by_name:
            spread = star is not None
            return function(*(v for n in names for v in (given[n] if spread and n in lists else [given[n]])))
        given = {name: value for name, value in given.items() if name in kinds}
        if star is None:
            return function(**given)
        before = [given.pop(name) for name in list(kinds)[: list(kinds).index(star)]]
        return function(*before, *given.pop(star), **given)

    call.__qualname__ = name_of(function)
    return call


def signature_of_function(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters of a function or module; none for a builtin, which does not tell."""
    try:
        found = inspect.signature(function.forward if isinstance(function, torch.nn.Module) else function).parameters
    except (ValueError, TypeError):
        return {}
    return {name: kind for name, kind in found.items() if kind.kind != kind.VAR_KEYWORD}


def name_of(function: Callable[..., Any]) -> str:
    """What messages call a function."""
    return str(getattr(function, "__qualname__", None) or type(function).__name__)


def _absent(argument: Argument) -> Argument:
    return Argument(argument.name, "absent", None, optional=True)


def _argument(name: str, example: Any, hint: Any, starred: bool) -> Argument:
    optional = typing.get_origin(hint) in (Union, types.UnionType) and type(None) in typing.get_args(hint)
    parts = typing.get_args(hint) if optional else (hint,)
    constant = any(_CONSTANT in getattr(part, "__metadata__", ()) for part in parts)
    if isinstance(example, list | tuple) and example and all(isinstance(item, torch.Tensor) for item in example):
        return Argument(name, "constant" if constant else "tensor", list(example), optional, variadic=True)
    if starred:
        raise PassError(f"the example of *{name} must be a list of tensors")
    if isinstance(example, torch.Tensor):
        return Argument(name, "constant" if constant else "tensor", example, optional)
    if constant:
        raise PassError(f"{name} is a Constant, so its example must be a tensor, not {type(example).__name__}")
    return Argument(name, "literal", example, optional)


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except NameError as error:
        raise PassError(f"the annotations of {name_of(function)} cannot be read: {error}") from error
    except TypeError:  # a builtin or a partial has none
        return {}
