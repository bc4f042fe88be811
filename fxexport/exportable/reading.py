"""Access to one hook of a model, as method, property or plain attribute; an error names Class.hook and what was found."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from fxexport.capture.exporting import user_line
from fxexport.capture.nesting import describe
from fxexport.errors import ExportError, InputError

# Names that other models carry for reasons of their own, and that alone do not make a model exportable.
_COMMON = frozenset({"input_module", "output_module", "input_names", "output_names"})
HOOKS = _COMMON | {
    "_export_teardown",
    "_prepare_for_export",
    "disabled_deployment_input_names",
    "disabled_deployment_output_names",
    "forward_for_export",
    "get_export_config",
    "get_export_subnet",
    "input_example",
    "input_types",
    "input_types_for_export",
    "list_export_subnets",
    "output_types",
    "output_types_for_export",
    "set_export_config",
    "supported_export_formats",
}
"""Every hook that is read, by name."""


def has_hooks(model: nn.Module) -> bool:
    """Whether ``model`` says anything about its export: by our mix-in, a toolbox's, or a hook of its own."""
    return any(has_hook(model, hook) for hook in HOOKS - _COMMON)


def has_hook(module: nn.Module, hook: str) -> bool:
    """Whether ``module`` or its class has the attribute ``hook``; nothing is run."""
    return hasattr(type(module), hook) or any(hook in t for t in (vars(module), module._modules, module._buffers))


def is_default(module: nn.Module, hook: str) -> bool:
    """Whether ``hook`` is what a mix-in gives to every model: ours, or any plain class that brings ``export`` along."""
    if any(hook in table for table in (vars(module), module._modules, module._buffers)):
        return False
    home = next((cls for cls in type(module).__mro__ if hook in vars(cls)), nn.Module)
    return not issubclass(home, nn.Module) and {"export", "list_export_subnets"} <= vars(home).keys()


def name_of(module: nn.Module, hook: str) -> str:
    """``Class.hook``, as messages write it."""
    return f"{type(module).__name__}.{hook}"


def get_hook(module: nn.Module, hook: str) -> Any:
    """The attribute itself: a bound method, or the value of a property or attribute.

    Raises InputError where a property raises; the cause is its own error.
    """
    static = inspect.getattr_static(type(module), hook, None)
    if isinstance(static, property) and static.fget is not None:
        # Through getattr, an AttributeError inside the property would read as "no such attribute" (nn.Module).
        return run_hook(module, hook, static.fget, module)
    return run_hook(module, hook, getattr, module, hook)


def read_hook(module: nn.Module, hook: str, *args: Any, **kwargs: Any) -> Any:
    """The value of a hook: what the method returns for these arguments, or the property or attribute."""
    found = get_hook(module, hook)
    if callable(found) and not isinstance(found, nn.Module):
        return run_hook(module, hook, found, *args, **kwargs)
    return found


def run_hook(module: nn.Module, hook: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls ``function`` for the hook. Raises InputError naming the hook, the line and the cause where it fails."""
    try:
        return function(*args, **kwargs)
    except ExportError:
        raise
    except Exception as error:
        place = user_line(error)
        where = f" at {place}" if place else ""
        text = (str(error).strip() or "no message").splitlines()[0]
        raise InputError(f"{name_of(module, hook)} raised {type(error).__name__}{where}: {text}") from error


def read_module(module: nn.Module, hook: str) -> nn.Module:
    """``input_module`` or ``output_module``: the module itself where the hook is missing or None."""
    found = module._modules.get(hook)  # an own child of that name, where a mix-in's default would hide it
    if found is None and has_hook(module, hook):
        found = read_hook(module, hook)
    if found is None:
        return module
    if not isinstance(found, nn.Module):
        raise InputError(f"{name_of(module, hook)} must be a module of the model, found {describe(found)}")
    return found


def read_names(module: nn.Module, hook: str) -> list[str]:
    """A hook that lists names (any iterable of str, or one str); empty where it is missing or None."""
    found = read_hook(module, hook) if has_hook(module, hook) else None
    if found is None:
        return []
    names = [found] if isinstance(found, str) else list(found) if isinstance(found, Iterable) else [found]
    wrong = [each for each in names if not isinstance(each, str)]
    if wrong:
        raise InputError(f"{name_of(module, hook)} must list names (str), found {describe(found)}")
    return names
