"""Findings about the model as it is and the call as it was given; nothing runs for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from fxexport.capture import ExampleCall, Reference
from fxexport.capture.flat_model import ResultLayout
from fxexport.capture.nesting import Leaf, flatten
from fxexport.capture.private_copy import devices_of, unwrap
from fxexport.doctor.finding import Finding
from fxexport.doctor.observed import Observed
from fxexport.errors import CaptureError
from fxexport.signature import show_path


def findings_on_model(model: nn.Module, notes: Sequence[str]) -> Iterator[Finding]:
    """Training mode, wrappers, and what cannot be copied; ``notes`` are those of preparing the private copy."""
    wrappers = unwrap(model)[1]
    for note in notes:
        if note in wrappers:
            yield Finding("wrapper", "information", note, handled=True)
        elif "cannot be copied" in note:
            yield Finding("uncopyable", "information", note, "give it a __deepcopy__ method where a call changes it")
    training = {name: module for name, module in model.named_modules() if module.training}
    kinds = {"dropout": _DropoutNd, "normalization by batch statistics": _NormBase}
    active = {text: [name for name, m in training.items() if isinstance(m, kind)] for text, kind in kinds.items()}
    told = [f"{text} in {len(names)} module{'s' * (len(names) > 1)}" for text, names in active.items() if names]
    if training:
        yield Finding(
            "training",
            "changes" if told else "information",
            f"the model is in training mode{f' ({chr(44).join(told)})' if told else ''}: the file computes eval mode",
            "call model.eval() first, and compare with that",
            modules=tuple(name for names in active.values() for name in names),
        )


def findings_on_call(reference: Reference, kwargs: Mapping[str, Any] | None, example: Observed) -> Iterator[Finding]:
    """Baked values, the order of keyword arguments, complex numbers, devices, and results that no file can hold."""
    call = reference.call
    yield from _baked(call)
    yield from _order(call, kwargs)
    inputs = [path for path, t in zip(call.paths, call.tensors, strict=True) if t.is_complex()]
    leaves = [] if example.result is None else flatten(example.result)[0]
    outputs = [show_path(("output", *leaf.path)) for leaf in leaves if leaf.is_tensor and leaf.value.is_complex()]
    for paths, side in ((inputs, "input"), (outputs, "output")):
        if paths:
            what = (
                f"complex {side}{'s' * (len(paths) > 1)} {', '.join(paths)}: in .onnx files real, with a last axis of 2"
            )
            yield Finding("complex", "information", what, handled=True)
    devices = devices_of(reference.model) | {t.device for t in call.tensors}
    if len(devices) > 1:
        named = ", ".join(sorted(map(str, devices)))
        yield Finding("device", "blocks", f"tensors are on several devices ({named})", "move model and inputs to one")
    yield from filter(None, (_result(example.result, leaf) for leaf in leaves))


def _baked(call: ExampleCall) -> Iterator[Finding]:
    defaults = {each.path for each in call.defaults}
    for baked in call.baked:
        if baked.path in defaults or baked.value == "None":
            yield Finding(
                "baked", "information", f"{baked.path} is not given: its default {baked.value} is in the file"
            )
            continue
        way_out = f"as_input=[{baked.path!r}] makes a number an input" if _is_number(baked.value) else "give a tensor"
        yield Finding("baked", "changes", f"{baked.path} = {baked.value} is fixed in the file", f"{way_out} instead")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text in ("True", "False")
    return True


def _order(call: ExampleCall, kwargs: Mapping[str, Any] | None) -> Iterator[Finding]:
    given = [name for name in kwargs or () if name in call.arguments]
    taken = [name for name in call.arguments if name in given]
    if given != taken:
        what = f"keyword arguments were given as {', '.join(given)}; the file takes them as {', '.join(taken)}"
        yield Finding("kwargs-order", "changes", what, "call it by names, or give them in the order of forward")


def _result(result: Any, leaf: Leaf) -> Finding | None:
    if leaf.value is None or isinstance(leaf.value, torch.Tensor):
        return None
    try:
        ResultLayout.of(result, [leaf])
    except CaptureError as error:
        return Finding("output-type", "blocks", str(error).partition("; ")[0], str(error).partition("; ")[2])
    return None
