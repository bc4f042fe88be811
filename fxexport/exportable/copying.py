"""Private copies that hooks may change as they like: what a plain deep copy still shares is separated too."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from fxexport.capture.private_copy import private_copy
from fxexport.errors import InputError
from fxexport.exportable.reading import has_hook, read_hook


def copy_for_hooks(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """A private copy of ``model`` that hooks cannot reach the original from, and notes on the copying.

    Raises CaptureError where the model refuses to be copied.
    """
    copied, notes = private_copy(model)
    for module in copied.modules():
        cls = type(module)
        if parametrize.is_parametrized(module) and cls.__module__ == parametrize.__name__:
            # torch makes a class for a parametrized module, which its copies share; removing the parametrization
            # (weight norm) from one would take the parameter's property from all.
            module.__class__ = type(cls.__name__, cls.__bases__, dict(vars(cls)))
        shared = getattr(cls, "export_config", None)
        if isinstance(shared, dict) and "export_config" not in vars(module):
            vars(module)["export_config"] = dict(shared)  # hooks update it in place
    return copied, notes


def configured_copy(model: nn.Module, config: Mapping[str, Any] | None) -> tuple[nn.Module, list[str]]:
    """:func:`copy_for_hooks` on which ``set_export_config(config)`` ran, with a dict of its own.

    Raises InputError where there is a config and the model has no such hook, or the hook fails.
    """
    root, notes = copy_for_hooks(model)
    if config:
        if not isinstance(config, Mapping):
            raise InputError(f"export_config must be a dict for set_export_config, got {config!r:.80}")
        if not has_hook(root, "set_export_config"):
            raise InputError(
                f"export_config={dict(config)!r} given, but {type(root).__name__} has no set_export_config(dict) hook; "
                "leave it out, or give the model the hook"
            )
        read_hook(root, "set_export_config", copy.deepcopy(dict(config)))  # hooks pop from it
    return root, notes
