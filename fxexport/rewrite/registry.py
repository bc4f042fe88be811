"""Where passes come from: the entry-point group ``fxexport.passes``, one door for our own and all others."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterable, Iterator
from dataclasses import fields
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Union

from fxexport.errors import InputError, PassError
from fxexport.rewrite.base import Pass

GROUP = "fxexport.passes"
BUILTIN = "fxexport.passes"
"""The module of the built-in library; only its passes can be part of the default pipeline."""

PassSpec = Union[None, str, Pass, type[Pass], "Iterable[PassSpec]"]
"""None or ``"default"``, ``"none"``, a pipeline ``"a{option=value},b"``, a Pass, its class, or a list."""


def available() -> dict[str, type[Pass]]:
    """Name -> class of every installed pass, the built-in ones first.

    Raises PassError when an entry point cannot be loaded, is not a pass, or two passes share a name.
    """
    entries = sorted(entry_points(group=GROUP), key=lambda entry: (entry.module != BUILTIN, entry.name))
    found: dict[str, type[Pass]] = {}
    for entry in entries:
        for cls in _load(entry):
            known = found.setdefault(cls.name, cls)
            if known is not cls:
                raise PassError(
                    f"two passes are named {cls.name!r}: {_full_name(known)} and {_full_name(cls)} "
                    f"of {_owner(entry)}; uninstall one of the two packages, "
                    "or pass the class itself instead of its name"
                )
    return found


def resolve(spec: PassSpec = None) -> list[Pass]:
    """The passes that ``spec`` asks for, in order.

    Raises InputError for an unknown name (with the close ones), an unknown option or a value of the wrong
    type.
    """
    if spec is None:
        return _default()
    if isinstance(spec, Pass):
        return [spec]
    if isinstance(spec, type) and issubclass(spec, Pass):
        return [_make(spec, {})]
    if isinstance(spec, str):
        return [pass_ for name, options in _parse(spec) for pass_ in _named(name, options)]
    if isinstance(spec, Iterable) and not isinstance(spec, (bytes, dict)):
        return [pass_ for item in spec for pass_ in resolve(item)]
    raise InputError(f"passes must be names, Pass instances, Pass classes or a list of these, got {spec!r}")


# ---------------------------------------------------------------- entry points


def _default() -> list[Pass]:
    """The default passes of the built-in library, in its order; other packages are not even loaded."""
    builtin = [entry for entry in entry_points(group=GROUP) if entry.module == BUILTIN]
    if not builtin:
        raise PassError(
            f"the built-in passes are not registered: fxexport is on the path but not installed, so its "
            f"entry points ({GROUP}) are missing; install it, for a checkout with `pip install -e .`"
        )
    classes = dict.fromkeys(cls for entry in builtin for cls in _load(entry))
    return [cls() for cls in classes if cls.default]


def _load(entry: EntryPoint) -> Iterator[type[Pass]]:
    """The pass classes behind an entry point: one class, or an iterable of classes."""
    try:
        value = entry.load()
    except Exception as error:
        raise PassError(
            f"cannot load {_owner(entry)}: {type(error).__name__}: {error}; repair or uninstall that package"
        ) from error
    for cls in [value] if isinstance(value, type) or not isinstance(value, Iterable) else value:
        if not (isinstance(cls, type) and issubclass(cls, Pass) and isinstance(getattr(cls, "name", None), str)):
            raise PassError(f"{_owner(entry)} gives {cls!r}, which is not a Pass class with a name")
        yield cls


def _owner(entry: EntryPoint) -> str:
    package = entry.dist.name if entry.dist else "an unknown distribution"
    return f"entry point {entry.name!r} ({entry.value}) of distribution {package!r}"


def _full_name(cls: type[Pass]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


# ---------------------------------------------------------------- pipeline strings

_STEP = re.compile(r"\s*(?P<name>[\w.\-]+)\s*(?:\{(?P<options>[^{}]*)\})?\s*(?:,|$)")


def _parse(text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """``"a{x=1,y=2},b"`` -> ``("a", {"x": "1", "y": "2"}), ("b", {})``."""
    position = 0
    while position < len(text) or position == 0:
        step = _STEP.match(text, position)
        if step is None:
            raise InputError(
                f"cannot read the pipeline {text!r} at {text[position:]!r}; write it as 'name{{option=value}},other'"
            )
        options = {}
        for item in filter(str.strip, (step["options"] or "").split(",")):
            key, equals, value = item.partition("=")
            if not equals:
                raise InputError(f"option {item.strip()!r} of pass {step['name']!r} has no value; write option=value")
            options[key.strip().replace("-", "_")] = value.strip()
        yield step["name"], options
        position = step.end()


def _named(name: str, options: dict[str, str]) -> list[Pass]:
    if name in ("default", "none"):
        if options:
            raise InputError(f"{name!r} takes no options; name the pass whose options you want to set")
        return _default() if name == "default" else []
    passes = available()
    if name not in passes:
        close = difflib.get_close_matches(name, passes, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(close)}?" if close else f"known passes: {', '.join(passes)}"
        raise InputError(f"there is no pass named {name!r}; {hint}")
    return [_make(passes[name], options)]


def _make(cls: type[Pass], options: dict[str, str]) -> Pass:
    """An instance of ``cls``, its options read from text by the types of its fields."""
    unknown = [key for key in options if key not in cls.option_names()]
    if unknown:
        known = ", ".join(cls.option_names()) or "none"
        raise InputError(f"pass {cls.name!r} has no option {unknown[0]!r}; its options: {known}")
    hints = typing.get_type_hints(cls)
    values = {f.name: _read(cls, f.name, hints[f.name], options[f.name]) for f in fields(cls) if f.name in options}
    try:
        return cls(**values)
    except (TypeError, ValueError) as error:
        raise InputError(f"pass {cls.name!r} cannot be made with the options {values}: {error}") from error


def _read(cls: type[Pass], option: str, hint: Any, text: str) -> Any:
    """``text`` as a value of type ``hint``: bool, int, float, str, None, or a union of these."""
    union = typing.get_origin(hint) in (Union, types.UnionType)
    kinds = typing.get_args(hint) if union else (hint,)
    for kind in (types.NoneType, bool, int, float, str):
        if kind in kinds:
            try:
                return _READERS[kind](text)
            except (ValueError, KeyError):
                continue
    wanted = " or ".join(getattr(kind, "__name__", str(kind)) for kind in kinds)
    raise InputError(f"option {option!r} of pass {cls.name!r} must be {wanted}, got {text!r}")


_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_READERS: dict[type, Any] = {
    types.NoneType: lambda text: {"none": None}[text.lower()],
    bool: lambda text: _WORDS[text.lower()],
    int: int,
    float: float,
    str: str,
}
