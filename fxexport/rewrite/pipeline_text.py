"""How a pipeline is written: ``fuse-a{limit=2,dims=1|2|3},my_module:FuseB{text="x, y"}``.

A step is the name of a registered pass or ``module:Class``, with options in braces. An option is read by the type of
its field: bool, int, float, str, None, Literal, Enum (the member's name), unions of these, and tuples of them with
``|`` between the values. Text with commas, bars, braces or quotes in it is written in quotes.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterator
from enum import Enum
from itertools import pairwise
from typing import Any, Literal, Union

from fxexport.errors import InputError

_QUOTED = re.compile(r""""(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'""")
_NAME = r"[\w.\-]+(?::[\w.]+)?"
_STEP = re.compile(
    rf"""\s*(?P<name>{_NAME})\s*(?:\{{(?P<options>(?:[^{{}}"']|{_QUOTED.pattern})*)\}})?\s*(?:,|$)""",
)
_PLAIN = re.compile(r"[\w.+/:\-]+")


def parse(text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """``"a{x=1,y='2, 3'},b"`` -> ``("a", {"x": "1", "y": "'2, 3'"}), ("b", {})``; values are for ``read``.

    Raises InputError where the text is no pipeline, an option has no value or comes twice.
    """
    position = 0
    while position < len(text) or position == 0:
        step = _STEP.match(text, position)
        if step is None:
            raise InputError(
                f"cannot read the pipeline {text!r} at {text[position:]!r}; write it as 'name{{option=value}},other', "
                "a name as 'fold-batchnorm' or 'module:Class', a value with commas, braces or quotes in it in quotes"
            )
        yield step["name"], _options(step["name"], step["options"] or "")
        position = step.end()


def _options(name: str, text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for item in filter(None, _split(text, ",")):
        key, equals, value = item.partition("=")
        key = key.strip().replace("-", "_")
        if not equals:
            raise InputError(f"option {item!r} of pass {name!r} has no value; write option=value")
        if key in found:
            raise InputError(f"option {key!r} of pass {name!r} is given twice")
        found[key] = value.strip()
    return found


def _split(text: str, separator: str) -> list[str]:
    """The parts of ``text`` between separators that are outside quotes."""
    masked = _QUOTED.sub(lambda quoted: " " * len(quoted[0]), text)
    cuts = [-1, *(i for i, letter in enumerate(masked) if letter == separator), len(text)]
    return [text[start + 1 : end].strip() for start, end in pairwise(cuts)]


# ---------------------------------------------------------------- values


def read(hint: Any, text: str) -> Any:
    """``text`` as a value of the type ``hint``; of a union, the first of ``_ORDER`` that takes it.

    Raises ValueError, saying what it must be, where ``text`` is no such value.
    """
    union = typing.get_origin(hint) in (Union, types.UnionType)
    for kind in sorted(typing.get_args(hint), key=_rank) if union else [hint]:
        try:
            return _read_one(kind, text)
        except (ValueError, KeyError):
            continue  # the next kind of the union; where none is left, that is the error
    raise ValueError(f"must be {_form(hint)}, got {text!r}")


def spell(value: Any) -> str:
    """``value`` as ``read`` takes it back: ``(1, 2)`` -> ``1|2``, ``"a, b"`` -> ``"a, b"`` with its quotes."""
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, tuple):
        return "|".join(map(spell, value))
    if isinstance(value, str) and (not _PLAIN.fullmatch(value) or _reads_as_another(value)):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return str(value)


def _reads_as_another(text: str) -> bool:
    try:
        read(bool | float | None, text)
    except ValueError:
        return False
    return True


def _read_one(kind: Any, text: str) -> Any:
    if typing.get_origin(kind) is Literal:
        return _read_literal(typing.get_args(kind), text)
    if typing.get_origin(kind) is tuple:
        return _read_tuple(typing.get_args(kind), text)
    if isinstance(kind, type) and issubclass(kind, Enum):
        alike = {member.name.lower(): member for member in kind}
        return kind[text] if text in kind.__members__ else alike[text.lower().replace("-", "_")]
    return _READERS[kind](text)


def _read_literal(values: tuple[Any, ...], text: str) -> Any:
    for value in values:
        try:
            if read(type(value), text) == value:
                return value
        except ValueError:
            continue  # not of this value's type; perhaps of the next one's
    raise ValueError(text)


def _read_tuple(kinds: tuple[Any, ...], text: str) -> tuple[Any, ...]:
    parts = _split(text, "|") if text else []
    if len(kinds) == 2 and kinds[1] is ...:
        kinds = kinds[:1] * len(parts)
    if any(typing.get_origin(kind) is tuple for kind in kinds):
        raise ValueError("a bar cannot separate values and the values in them")
    return tuple(read(kind, part) for kind, part in zip(kinds, parts, strict=True))


def _read_string(text: str) -> str:
    if _QUOTED.fullmatch(text):
        return re.sub(r"\\(.)", r"\1", text[1:-1])
    if '"' in text or "'" in text:
        raise ValueError("quotes must be around all of the value")
    return text


_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_READERS: dict[Any, Any] = {
    types.NoneType: lambda text: {"none": None}[text.lower()],
    bool: lambda text: _WORDS[text.lower()],
    int: int,
    float: float,
    str: _read_string,
}
_ORDER = (types.NoneType, Literal, Enum, bool, int, float, tuple, str)
"""In a union the kinds that take fewest texts are tried first; a value in quotes is left for str."""


def _rank(kind: Any) -> int:
    family = Enum if isinstance(kind, type) and issubclass(kind, Enum) else typing.get_origin(kind) or kind
    return _ORDER.index(family) if family in _ORDER else len(_ORDER)


def _form(hint: Any) -> str:
    """What a value of type ``hint`` looks like, in words."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(map(_form, args))
    if origin is Literal:
        return f"one of {', '.join(map(spell, args))}"
    if origin is tuple and len(args) == 2 and args[1] is ...:
        return f"values with | between them (such as 1|2|3), each {_form(args[0])}"
    if origin is tuple:
        return f"{len(args)} values with | between them ({'|'.join(map(_form, args))})"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return f"one of {', '.join(member.name for member in hint)}"
    if hint is types.NoneType:
        return "None"
    return hint.__name__ if hint in _READERS else f"{hint} (which text cannot express: make the pass in Python)"
