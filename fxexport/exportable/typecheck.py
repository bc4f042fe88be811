"""Switching off the runtime type checks of a toolbox while its model is exported, and restoring them afterwards."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def typecheck_off(*models: nn.Module) -> Iterator[None]:
    """While the block runs, typed ``forward`` methods take positional arguments and attach nothing to results.

    A switch is an object ``typecheck`` with ``set_typecheck_enabled(enabled=...)`` in the module of a class that one of
    the ``models`` is made of, as in NeMo and ATOMMIC. It is one flag for the process; it gets back the value it had.
    """
    switches = {id(switch): switch for model in models for switch in _switches(model)}.values()
    before = [(switch, _is_enabled(switch)) for switch in switches]
    try:
        for switch, _ in before:
            switch.set_typecheck_enabled(enabled=False)
        yield
    finally:
        for switch, enabled in before:
            switch.set_typecheck_enabled(enabled=enabled)


def _switches(model: nn.Module) -> Iterator[Any]:
    homes = {cls.__module__ for module in model.modules() for cls in type(module).__mro__}
    for home in homes & sys.modules.keys():
        switch = vars(sys.modules[home]).get("typecheck")
        if callable(getattr(switch, "set_typecheck_enabled", None)):
            yield switch


def _is_enabled(switch: Any) -> bool:
    """Its present value, read from itself or from the module it is defined in; on where neither tells."""
    home = sys.modules.get(getattr(switch, "__module__", ""))
    reader = getattr(switch, "is_typecheck_enabled", None) or getattr(home, "is_typecheck_enabled", None)
    return bool(reader()) if callable(reader) else True
