"""Leaving the disabled inputs out of the example call, and the rest at their own parameters."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxexport.capture.binding import forward_signature
from fxexport.capture.nesting import describe
from fxexport.capture.private_copy import preserved_process_state, private_copy
from fxexport.errors import InputError
from fxexport.exportable.example import Call, fits
from fxexport.exportable.io_types import Declared
from fxexport.exportable.reading import name_of, run_hook

_HOOK = "disabled_deployment_input_names"
_BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def leave_out(part: nn.Module, call: Call, inputs: Declared, source: str, notes: list[str]) -> Call:
    """``call`` of ``part.forward`` without the values of disabled inputs.

    Keyword arguments are told by their name. Positional ones: as many values as there are names that are not disabled
    mean that the example lacks the others already; as many as there are names, that it holds them all; else each value
    is known by its parameter. A disabled input that ``forward`` requires becomes None where the model runs with that.

    Raises InputError where it does not, or where the call does not fit ``forward``.
    """
    args, kwargs = call
    signature = forward_signature(part)
    if inputs.disabled:
        parameters = [name for name, p in signature.parameters.items() if p.kind in _BY_PLACE]
        homes = _homes(inputs, parameters)
        gone = inputs.disabled | {homes[name] for name in inputs.disabled if name in homes}
        dropped = [name for name in kwargs if name in gone]
        kwargs = {name: value for name, value in kwargs.items() if name not in gone}
        labels = _labels(args, call[1], inputs, parameters, gone)
        dropped += [label for label in labels if label in gone]
        args, kwargs = _rebuilt(part, signature, args, kwargs, [homes.get(each, each) for each in labels], gone)
        if dropped:
            notes.append(f"{name_of(part, _HOOK)}: {', '.join(dropped)} of {source} left out")
        kwargs = _with_none(part, (args, kwargs), gone, notes)
    if not fits(signature, args, kwargs):
        raise InputError(_mismatch(part, signature, (args, kwargs), source))
    return args, kwargs


def _homes(inputs: Declared, parameters: Sequence[str]) -> dict[str, str]:
    """Declared name -> parameter of forward: by name, and those left over in order where their number tells how."""
    homes = {name: name for name in inputs.names if name in parameters}
    free = [name for name in parameters if name not in homes]
    open_names = [name for name in inputs.names if name not in homes]
    kept = [name for name in open_names if name not in inputs.disabled]
    return homes | dict(zip(kept if len(kept) == len(free) else open_names, free, strict=False))


def _labels(
    args: Sequence[Any], kwargs: Collection[str], inputs: Declared, parameters: Sequence[str], gone: Collection[str]
) -> list[str]:
    """The name of each positional value: as declared, or of the parameter at its place."""
    declared = list(inputs.names)
    if all(name in parameters for name in declared):
        declared.sort(key=parameters.index)  # values come in the order of forward, whatever order types are written in
    declared = [name for name in declared if name not in kwargs]
    kept = [name for name in declared if name not in gone]
    labels = next((names for names in (kept, declared) if len(names) == len(args)), list(parameters))
    surplus = range(len(labels), len(args))  # *args
    return [*labels[: len(args)], *(f"argument {i}" for i in surplus)]


def _rebuilt(
    part: nn.Module,
    signature: inspect.Signature,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    homes: Sequence[str],
    gone: Collection[str],
) -> Call:
    """The values that stay: at their place as long as nothing before them went, then by keyword."""
    order = list(signature.parameters)
    positional: list[Any] = []
    result = dict(kwargs)
    for i, (name, value) in enumerate(zip(homes, args, strict=True)):
        if name in gone:
            continue
        if i == len(positional) and (name not in order or order.index(name) == i):
            positional.append(value)
        elif name not in order or signature.parameters[name].kind is inspect.Parameter.POSITIONAL_ONLY:
            raise InputError(
                f"{name_of(part, _HOOK)} leaves out an input before {name!r}, which forward{signature} can only take by "
                "its place; make it a named parameter, or give forward_for_export without the disabled inputs"
            )
        else:
            result[name] = value
    return tuple(positional), result


def _with_none(part: nn.Module, call: Call, gone: Collection[str], notes: list[str]) -> dict[str, Any]:
    """The keyword arguments, with None for disabled inputs that ``forward`` requires."""
    args, kwargs = call
    signature = forward_signature(part)
    given = signature.bind_partial(*args, **kwargs).arguments if _binds(signature, call) else {}
    fixed = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = signature.parameters.values()
    required = [p.name for p in parameters if p.default is p.empty and p.kind not in fixed]
    missing = [name for name in required if name not in given and name in gone]
    if not missing:
        return kwargs
    filled = kwargs | dict.fromkeys(missing)
    listed = ", ".join(missing)
    try:
        _run(part, args, filled)
    except InputError as error:
        raise InputError(
            f"{name_of(part, _HOOK)} disables {listed}, but forward{signature} requires it, and does not run with None "
            f"in its place ({error}); give the parameter a default, or give forward_for_export without it"
        ) from error
    notes.append(f"{listed}: disabled, and required by forward, which runs with None in its place")
    return filled


def _binds(signature: inspect.Signature, call: Call) -> bool:
    try:
        signature.bind_partial(*call[0], **call[1])
    except TypeError:
        return False
    return True


def _run(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """One eager call on copies; raises InputError where it fails or gives nothing."""
    with preserved_process_state(), torch.no_grad():
        copies = pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.detach().clone(), (args, kwargs))
        copy, _ = private_copy(part)
        result = run_hook(part, "forward", copy, *copies[0], **copies[1])
    if not any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(result)):
        raise InputError(f"it returned {describe(result)}")


def _mismatch(part: nn.Module, signature: inspect.Signature, call: Call, source: str) -> str:
    try:
        signature.bind(*call[0], **call[1])
        reason = ""
    except TypeError as error:
        reason = str(error)
    given = ", ".join([*(describe(a) for a in call[0]), *(f"{k}={describe(v)}" for k, v in call[1].items())])
    kind = type(part).__name__
    return f"{source} does not fit forward of {kind}: {reason}\n  signature: forward{signature}\n  given:     ({given})"
