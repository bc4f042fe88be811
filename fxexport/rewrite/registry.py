"""Where passes come from: the entry-point group ``fxexport.passes``, one door for our own and all others.

A package that fails on import harms only those who ask for its passes. ``resolve("default")`` loads the built-in
library alone. A name is looked up in all packages, since two of them may claim it: what cannot be loaded is passed
over where the name is found elsewhere, and named where it is not, or where two passes clash. ``available()`` is a
whole answer or none: it raises with every package that cannot be loaded and every clash.
"""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Union

from fxexport.errors import InputError, PassError
from fxexport.rewrite.base import Pass
from fxexport.rewrite.ordering import ordered
from fxexport.rewrite.pass_import import error_and_place, import_pass, is_pass_class, suggestion
from fxexport.rewrite.pipeline_text import parse, read

GROUP = "fxexport.passes"
BUILTIN = "fxexport.passes"
"""The module of the built-in library; only its passes can be part of the default pipeline."""

PassSpec = Union[None, str, Pass, type[Pass], "Iterable[PassSpec]"]
"""None or ``"default"``, ``"none"``, a pipeline ``"a{option=value},b,module:Class"``, a Pass, its class, or a list."""


@dataclass(frozen=True)
class Registered:
    """A pass class, and the entry point that registers it."""

    cls: type[Pass]
    entry: EntryPoint

    @property
    def origin(self) -> str:
        """The distribution with its version: ``fxexport 0.1.0``."""
        return f"{self.entry.dist.name} {self.entry.dist.version}" if self.entry.dist else "unknown"

    def __str__(self) -> str:
        return f"{self.cls.__module__}.{self.cls.__qualname__} of {_owner(self.entry)}"


def registered() -> list[Registered]:
    """Every installed pass, the built-in ones first.

    Raises PassError with all that is wrong: entry points that cannot be loaded or are no passes, passes that share a
    name.
    """
    found, broken = _scan()
    problems = broken + [_clash(owners) for owners in found.values() if len(owners) > 1]
    if problems:
        raise PassError("\n".join(problems))
    return [owner for owners in found.values() for owner in owners]


def available() -> dict[str, type[Pass]]:
    """Name -> class of every installed pass, the built-in ones first. Raises PassError as ``registered`` does."""
    return {each.cls.name: each.cls for each in registered()}


def resolve(spec: PassSpec = None) -> list[Pass]:
    """The passes that ``spec`` asks for, in the order given, but for what their ``after`` and ``before`` demand.

    Raises InputError for an unknown name (with the close ones), an unknown option, a value of the wrong type, and
    constraints that contradict each other; PassError where a pass cannot be loaded or two share the name asked for.
    """
    return ordered(requested(spec))


def requested(spec: PassSpec = None) -> list[Pass]:
    """The passes that ``spec`` asks for, exactly in the order given; raises as ``resolve`` does."""
    if spec is None:
        return _default()
    if isinstance(spec, Pass):
        return [spec]
    if isinstance(spec, type) and issubclass(spec, Pass):
        return [_make(spec, {})]
    if isinstance(spec, str):
        return [pass_ for name, options in list(parse(spec)) for pass_ in _step(name, options)]
    if isinstance(spec, Iterable) and not isinstance(spec, (bytes, dict)):
        return [pass_ for item in spec for pass_ in requested(item)]
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


def _scan() -> tuple[dict[str, list[Registered]], list[str]]:
    """Name -> who registers it, the built-in library first; and what could not be loaded, in words."""
    found: dict[str, list[Registered]] = {}
    broken = []
    for entry in sorted(entry_points(group=GROUP), key=lambda e: (e.module != BUILTIN, e.name, e.value)):
        try:
            classes = _load(entry)
        except PassError as error:
            broken.append(str(error))
            continue
        for cls in classes:
            owners = found.setdefault(cls.name, [])
            if all(owner.cls is not cls for owner in owners):
                owners.append(Registered(cls, entry))
    return found, broken


def _load(entry: EntryPoint) -> list[type[Pass]]:
    """The pass classes behind an entry point: one class, or an iterable of classes."""
    try:
        value = entry.load()
    except (Exception, SystemExit) as error:
        raise PassError(
            f"cannot load {_owner(entry)}: {error_and_place(error)}; repair or uninstall that package"
        ) from error
    classes = [value] if isinstance(value, type) or not isinstance(value, Iterable) else list(value)
    for cls in classes:
        if not is_pass_class(cls):
            raise PassError(f"{_owner(entry)} gives {cls!r}, which is not a Pass class with a name")
    return classes


def _owner(entry: EntryPoint) -> str:
    package = entry.dist.name if entry.dist else "an unknown distribution"
    return f"entry point {entry.name!r} ({entry.value}) of distribution {package!r}"


def _clash(owners: list[Registered]) -> str:
    name, last = owners[0].cls.name, owners[-1].cls
    return (
        f"{len(owners)} passes are named {name!r}: {' and '.join(map(str, owners))}; uninstall one of the packages, "
        f"or name the class that you mean, such as {last.__module__}:{last.__qualname__}"
    )


# ---------------------------------------------------------------- one step of a pipeline


def _step(name: str, options: dict[str, str]) -> list[Pass]:
    if name in ("default", "none"):
        if options:
            raise InputError(f"{name!r} takes no options; name the pass whose options you want to set")
        return _default() if name == "default" else []
    if ":" not in name:
        return [_make(_lookup(name), options)]
    found = import_pass(name)
    if isinstance(found, type):
        return [_make(found, options)]
    if options:
        raise InputError(f"{name!r} is a pass already made ({found}); its options are set where it is made")
    return [found]


def _lookup(name: str) -> type[Pass]:
    """The class registered under ``name``."""
    found, broken = _scan()
    unread = "".join(f"\nnot looked into: {problem}" for problem in broken)
    owners = found.get(name, [])
    if len(owners) > 1:
        raise PassError(_clash(owners) + unread)
    if not owners:
        raise InputError(f"there is no pass named {name!r}; {suggestion(name, found, 'known passes')}{unread}")
    return owners[0].cls


def _make(cls: type[Pass], options: dict[str, str]) -> Pass:
    """An instance of ``cls``, its options read from text by the types of its fields."""
    unknown = [key for key in options if key not in cls.option_names()]
    if unknown:
        known = ", ".join(cls.option_names()) or "none"
        close = difflib.get_close_matches(unknown[0], cls.option_names(), n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise InputError(f"pass {cls.name!r} has no option {unknown[0]!r}; {hint}its options: {known}")
    try:
        hints = typing.get_type_hints(cls) if options else {}
    except NameError as error:
        raise PassError(
            f"the types of the options of {cls.__module__}.{cls.__qualname__} cannot be read ({error}); "
            "import what they name, also at run time"
        ) from error
    values = {}
    for key, text in options.items():
        try:
            values[key] = read(hints[key], text)
        except ValueError as error:
            raise InputError(f"option {key!r} of pass {cls.name!r} {error}") from error
    try:
        return cls(**values)
    except (TypeError, ValueError) as error:
        raise InputError(f"pass {cls.name!r} cannot be made with the options {values}: {error}") from error
