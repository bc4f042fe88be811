"""What a hook does to a class is done to the private copy alone.

type(self).forward = fast  ->  the copy's modules get a class of their own with that forward; the class is as it was
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

_MISSING = object()
_PYTHONS_OWN = frozenset({"__abstractmethods__", "__annotations__", "__dict__", "__weakref__", "_abc_impl"})


@contextmanager
def kept_to_copies(model: nn.Module, copies: list[nn.Module], notes: list[str]) -> Iterator[None]:
    """Moves what the block changes in classes of ``model`` or ``copies`` to the modules in ``copies``, however it ends.

    ``copies`` is read at the end, so that the block may add to it. Attributes that were set, replaced or deleted and
    class-level dicts, lists and sets that were changed in place count; ``notes`` says which.
    """
    classes = _classes(model, *copies)
    before = {cls: dict(vars(cls)) for cls in classes}
    contents = {
        (cls, name): (value, value.copy())
        for cls, table in before.items()
        for name, value in table.items()
        if isinstance(value, dict | list | set) and type(value) in (dict, list, set) and name not in _PYTHONS_OWN
    }
    try:
        yield
    finally:
        changed = {cls: _changed(cls, table) for cls, table in before.items()}
        for (cls, name), (value, was) in contents.items():
            if _different(value, was):
                changed[cls][name] = value.copy() if vars(cls).get(name) is value else vars(cls).get(name, _MISSING)
        if any(changed.values()):
            _pin(copies, changed)
            _restore(before, contents, changed)
            notes += [
                f"a hook changes the class {cls.__name__} ({', '.join(names)}): that holds for the private copy only"
                for cls, names in changed.items()
                if names
            ]


def _classes(*models: nn.Module) -> dict[type, None]:
    modules = (module for model in models for module in model.modules())
    return {cls: None for module in modules for cls in type(module).__mro__ if cls is not object}


def _changed(cls: type, table: dict[str, Any]) -> dict[str, Any]:
    """Name -> value now, or ``_MISSING``, of every attribute of ``cls`` that is another object than in ``table``."""
    now = vars(cls)
    names = (name for name in {**table, **now} if name not in _PYTHONS_OWN)
    return {name: now.get(name, _MISSING) for name in names if now.get(name, _MISSING) is not table.get(name, _MISSING)}


def _different(value: Any, was: Any) -> bool:
    """Whether a container holds other objects than before; equality of what it holds is not asked for."""
    if isinstance(value, dict):
        return list(map(id, value.values())) != list(map(id, was.values())) or list(value) != list(was)
    return list(map(id, value)) != list(map(id, was))


def _pin(copies: Iterable[nn.Module], changed: dict[type, dict[str, Any]]) -> None:
    """Gives every module in ``copies`` whose class changed a subclass that has the changed attributes."""
    made: dict[type, type] = {}
    for module in {id(module): module for copy in copies for module in copy.modules()}.values():
        cls = type(module)
        if cls not in made:
            found = {
                name: value
                for base in reversed(cls.__mro__)
                for name, value in changed.get(base, {}).items()
                if value is not _MISSING and not _hidden(cls, base, name)
            }
            own = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
            made[cls] = type(cls.__name__, (cls,), {**own, **found}) if found else cls
        module.__class__ = made[cls]


def _hidden(cls: type, base: type, name: str) -> bool:
    """Whether a class before ``base`` in the order of ``cls`` has an attribute of that name."""
    order = cls.__mro__
    return any(name in vars(each) for each in order[: order.index(base)])


def _restore(
    before: dict[type, dict[str, Any]],
    contents: dict[tuple[type, str], tuple[Any, Any]],
    changed: dict[type, dict[str, Any]],
) -> None:
    for cls, names in changed.items():
        for name in names:
            if name in before[cls]:
                setattr(cls, name, before[cls][name])
            elif name in vars(cls):
                delattr(cls, name)
    for value, was in contents.values():
        if _different(value, was):
            value.clear()
            value.extend(was) if isinstance(value, list) else value.update(was)
