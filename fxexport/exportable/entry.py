"""Where the compiler leaves its entry point, so that ``Exportable.export`` finds it without importing upwards."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

_entry: list[Callable[..., Any]] = []


def register(compile: Callable[..., Any]) -> None:
    """Makes ``compile`` what ``Exportable.export`` calls; the last one registered counts."""
    _entry[:] = [compile]


def registered() -> Callable[..., Any]:
    """The registered ``compile``; imports the package's public entry point where nobody has yet."""
    if not _entry:
        # The package resolves `compile` lazily by importing the compiler, which registers itself.
        register(import_module("fxexport").compile)
    return _entry[0]
