"""The example call of a part: from its hook, read against the signature of the forward that is exported."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fxexport.capture.binding import forward_signature
from fxexport.capture.nesting import describe
from fxexport.capture.private_copy import preserved_process_state, seed_everything
from fxexport.errors import InputError
from fxexport.exportable.reading import get_hook, has_hook, name_of, read_module, run_hook

_HOOK = "input_example"
# What hooks that insist on a size get: two rows, so that the batch can be told from a fixed 1.
_SIZES = {"max_batch": 2, "max_dim": 256}
Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Example:
    """An example as it was given: ``value`` unread where it is from a hook, else ``(args, kwargs)``."""

    value: Any
    source: str
    from_hook: bool

    @property
    def plain(self) -> Any:
        """As ``_prepare_for_export(input_example=...)`` gets it: a tuple, whose last element may be a dict."""
        if self.from_hook:
            return self.value
        args, kwargs = self.value
        return (*args, dict(kwargs)) if kwargs else tuple(args)


def example_of(part: nn.Module, given: Call | None, source: str) -> Example:
    """The given example, or what ``input_example`` of ``input_module`` (else of the part) returns.

    The hook runs with fixed random seeds, so that every export has the same example.

    Raises InputError where there is neither.
    """
    if given is not None:
        return Example(given, source, from_hook=False)
    modules = {id(module): module for module in (read_module(part, "input_module"), part)}.values()
    asked = [module for module in modules if has_hook(module, _HOOK)]
    for module in asked:
        value = hook_example(module)
        if value is not None:
            return Example(value, f"{name_of(module, _HOOK)}()", from_hook=True)
    if not forward_signature(part).parameters:
        return Example(((), {}), "forward takes no arguments", from_hook=False)
    found = " and ".join(f"{name_of(module, _HOOK)}() returned None" for module in asked)
    raise InputError(
        f"there is no example input for {type(part).__name__}: {found or 'it has no input_example() hook'}; give "
        "example_inputs, or let the hook return a tensor or a tuple of tensors"
    )


def hook_example(module: nn.Module) -> Any:
    """What ``input_example`` of ``module`` gives, always with the same random seeds; the hook may change ``module``.

    Raises InputError naming the hook where it fails.
    """
    with preserved_process_state(), torch.no_grad():
        seed_everything(0)
        found = module._buffers[_HOOK] if _HOOK in module._buffers else get_hook(module, _HOOK)
        if not callable(found):
            return found
        sizes = _required_sizes(module, found)
        try:
            return run_hook(module, f"{_HOOK}()", found, **sizes)
        except InputError as error:
            raise InputError(
                f"{error}; correct the hook, or give example_inputs or a recorded run"
            ) from error.__cause__


def _required_sizes(module: nn.Module, hook: Any) -> dict[str, int]:
    parameters = inspect.signature(hook).parameters.values()
    fixed = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in fixed]
    if unknown := [name for name in needed if name not in _SIZES]:
        raise InputError(
            f"{name_of(module, _HOOK)}{inspect.signature(hook)} needs {', '.join(unknown)}, which nobody can give; it is "
            "called without arguments: give them defaults, or give example_inputs"
        )
    return {name: _SIZES[name] for name in needed}


def read_call(part: nn.Module, example: Example, disabled: frozenset[str]) -> Call:
    """The example as positional and keyword arguments of ``part.forward``; ``disabled`` names may be missing there.

    A bare tensor is one argument; a list is a tuple; a dict, bare or as the last element, holds keyword arguments
    unless only the other reading fits ``forward``.

    Raises InputError for anything else.
    """
    if not example.from_hook:
        args, kwargs = example.value
        return tuple(args), dict(kwargs)
    value = example.value
    if isinstance(value, torch.Tensor):
        return (value,), {}
    positional = (value,) if isinstance(value, Mapping) else value
    if not isinstance(positional, tuple | list):
        raise InputError(
            f"{example.source} must return a tensor, a tuple or list of arguments, or a dict of keyword arguments, found "
            f"{describe(value)}"
        )
    args = tuple(positional)
    if args and _is_keywords(part, args, disabled):
        return args[:-1], dict(args[-1])
    return args, {}


def _is_keywords(part: nn.Module, args: tuple[Any, ...], disabled: frozenset[str]) -> bool:
    """Whether the last of ``args`` holds keyword arguments rather than being an argument itself."""
    last = args[-1]
    if not isinstance(last, Mapping) or not all(isinstance(key, str) for key in last):
        return False
    signature = forward_signature(part)
    kept = {key: each for key, each in last.items() if key not in disabled}
    return kept.keys() <= signature.parameters.keys() or fits(signature, args[:-1], kept) or not fits(signature, args)


def fits(signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> bool:
    """Whether a call with these arguments is one of ``signature``."""
    try:
        signature.bind(*args, **(kwargs or {}))
    except TypeError:
        return False
    return True
