"""The private copy in eval mode, and the example: given, or from the model's own hook."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from fxexport.capture.binding import ExampleCall, bind_example
from fxexport.capture.private_copy import devices_of, private_copy, unwrap
from fxexport.errors import InputError


def prepare(
    model: nn.Module, example: Any, kwargs: Mapping[str, Any] | None, as_input: tuple[str, ...], notes: list[str]
) -> tuple[nn.Module, ExampleCall]:
    """The private copy in eval mode, and the bound example."""
    model, wrapper_notes = unwrap(model)
    pristine, copy_notes = private_copy(model)
    notes += wrapper_notes + copy_notes + _hook_notes(pristine)
    training = [name or "the model" for name, module in pristine.named_modules() if module.training]
    if training:
        pristine.eval()
        first = training[0]
        notes.append(f"{first} was in training mode: captured in eval mode (dropout off, batchnorm by its statistics)")
    from_hook = example is None and kwargs is None
    if from_hook:
        example = _example_from_hook(pristine)
    call = bind_example(pristine, () if example is None else example, kwargs, from_hook=from_hook, as_input=as_input)
    devices = {t.device for t in call.tensors} | devices_of(pristine)
    if any(device.type == "meta" for device in devices):
        raise InputError("the model has tensors on the 'meta' device, which hold no values; load its weights first")
    return pristine, call


def _example_from_hook(model: nn.Module) -> Any:
    hook = getattr(model, "input_example", None)
    if hook is None:
        if _takes_nothing(model):
            return ()
        raise InputError(
            f"no example_inputs given, and {type(model).__name__} has no input_example() hook; "
            "give a tensor, a tuple of arguments or a dict of keyword arguments"
        )
    example = hook() if callable(hook) else hook
    if example is None:
        raise InputError(f"{type(model).__name__}.input_example() returned None; return a tensor or a tuple of tensors")
    return example


def _takes_nothing(model: nn.Module) -> bool:
    try:
        bind_example(model, (), None)
    except InputError:
        return False
    return True


def _hook_notes(model: nn.Module) -> list[str]:
    """Forward hooks are part of what eager computes, and are captured; the report says so."""
    hooked = [n or "the model" for n, m in model.named_modules() if m._forward_hooks or m._forward_pre_hooks]
    if not hooked:
        return []
    more = f" and {len(hooked) - 3} more" if len(hooked) > 3 else ""
    return [f"forward hooks of {', '.join(hooked[:3])}{more} are captured with the model"]
