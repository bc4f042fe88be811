"""Normalization put in front of a model that has none: ``forward`` then takes raw data."""

from __future__ import annotations

import copy
import difflib
import inspect
import types
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fxexport.errors import InputError
from fxexport.exportable.input_normalization import InputNormalization

_LAYERS, _BEFORE = "input_normalization_", "_forward_without_normalization"

Wanted = Mapping[str, "str | nn.Module"]
"""A parameter of forward -> the kind of InputNormalization, or a module that takes and gives a tensor."""


def as_layers(wanted: Wanted) -> dict[str, nn.Module]:
    """The module for each name. Raises InputError for an unknown kind, and for what is neither text nor a module."""
    if not isinstance(wanted, Mapping):
        raise InputError(f"normalize_inputs must be a dict such as {{'image': 'minmax'}}, got {wanted!r:.80}")
    layers = {}
    for name, kind in wanted.items():
        if not isinstance(kind, str | nn.Module):
            raise InputError(
                f"normalize_inputs[{name!r}] must be a kind such as 'minmax' or a module, got {kind!r:.80}"
            )
        layers[name] = InputNormalization(kind) if isinstance(kind, str) else kind
    return layers


def normalize_inputs(model: nn.Module, wanted: Wanted) -> list[str]:
    """Makes ``model(...)`` normalize the named arguments of its ``forward`` first, in place; one line for each.

    The class keeps its ``forward``, and while that runs it is ``model.forward`` again. A second call for the same name
    replaces the normalization.

    Raises InputError for a name that ``forward`` has no parameter of; the model does so when it is called without that
    argument, or with something else than a tensor.
    """
    layers = as_layers(wanted)
    signature = inspect.signature(model.forward)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    named = [n for n, p in signature.parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    for name in layers:
        if name not in named and not takes_any:
            close = difflib.get_close_matches(name, named, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise InputError(
                f"normalize_inputs: forward of {type(model).__name__} has no parameter {name!r}; {hint}"
                f"it has {', '.join(named) or 'none'}"
            )
    if layers and not isinstance(vars(model)["_modules"].get(_LAYERS), nn.ModuleDict):
        _wrap(model, signature)
    for name, layer in layers.items():
        getattr(model, _LAYERS)[name] = copy.deepcopy(layer).eval()  # the caller's module stays as it is
    return [
        f"the input {name!r} is normalized inside ({type(layer).__name__}({layer.extra_repr()})): it takes raw data"
        for name, layer in layers.items()
    ]


def integer_notes(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[str]:
    """A line for each normalized input that the call gives as integers, which are converted first."""
    layers = vars(model)["_modules"].get(_LAYERS)
    if layers is None:
        return []
    given = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    return [
        f"the input {name!r} is {value.dtype}: converted to {torch.get_default_dtype()} before it is normalized"
        for name, layer in layers.items()
        if isinstance(layer, InputNormalization)
        and isinstance(value := given.get(name), Tensor)
        and not (value.is_floating_point() or value.is_complex())
    ]


def _wrap(model: nn.Module, signature: inspect.Signature) -> None:
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        bound = _normalized(self, signature.bind(*args, **kwargs))
        replaced, children = vars(self).pop("forward"), vars(self)["_modules"]
        layers = children.pop(_LAYERS)  # nn.Sequential runs all its children
        if (before := vars(self).get(_BEFORE)) is not None:
            vars(self)["forward"] = before
        try:
            return self.forward(*bound.args, **bound.kwargs)
        finally:
            vars(self)["forward"], children[_LAYERS] = replaced, layers

    own = inspect.Parameter("_part_", inspect.Parameter.POSITIONAL_ONLY)
    forward.__signature__ = signature.replace(parameters=[own, *signature.parameters.values()])  # type: ignore[attr-defined]
    model.add_module(_LAYERS, nn.ModuleDict())
    if "forward" in vars(model):
        vars(model)[_BEFORE] = vars(model)["forward"]
    # A method, not a closure over the model: copies of the model then get a forward of their own.
    vars(model)["forward"] = types.MethodType(forward, model)


def _normalized(model: nn.Module, bound: inspect.BoundArguments) -> inspect.BoundArguments:
    rest = next((n for n, p in bound.signature.parameters.items() if p.kind is p.VAR_KEYWORD), None)
    for name, layer in getattr(model, _LAYERS).items():
        places: dict[str, Any] = bound.arguments
        if name not in places and rest is not None:
            places = bound.arguments.get(rest, {})
        if not isinstance(value := places.get(name), Tensor):
            what = type(value).__name__ if name in places else "not given"
            raise InputError(f"normalize_inputs: {name!r} must be a tensor to be normalized; in this call it is {what}")
        places[name] = layer(value)
    return bound
