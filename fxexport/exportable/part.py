"""``prepared_part``: one part of a model, copied, configured, prepared and ready to capture."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from fxexport.capture.nesting import describe
from fxexport.capture.private_copy import preserved_process_state, unwrap
from fxexport.errors import InputError
from fxexport.exportable.class_changes import kept_to_copies
from fxexport.exportable.copying import configured_copy, copy_for_hooks
from fxexport.exportable.disabled import leave_out
from fxexport.exportable.example import Call, Example, example_of, read_call
from fxexport.exportable.inserting import Wanted, integer_notes, normalize_inputs
from fxexport.exportable.io_types import read_declared
from fxexport.exportable.preparing import (
    check_options,
    exports_itself,
    prepare_inner,
    prepare_part,
    torn_down,
    use_export_forward,
)
from fxexport.exportable.reading import has_hook, is_default, name_of, read_hook
from fxexport.exportable.replacing import Factory, replace_modules
from fxexport.exportable.standard_replacements import configured_kind, normalize_as_configured
from fxexport.exportable.subnet_names import subnet_of
from fxexport.exportable.typecheck import typecheck_off
from fxexport.tensor_types import TypedMap

Format = Literal["onnx", "torchscript", "pt2"]
_SPELLINGS = {"pt": "torchscript", "ts": "torchscript", "jit": "torchscript", "exported_program": "pt2"}
_FORMATS = ("onnx", "torchscript", "pt2")


@dataclass(frozen=True)
class ExportRequest:
    """What is asked of every part.

    Attributes:
        path: the file asked for; ``_prepare_for_export`` gets it as ``output``.
        prepare: options that every ``_prepare_for_export`` is offered.
        config: given to ``set_export_config`` of the model, on the private copy.
        replacements: class name -> function that makes another module of one, or None to leave it.
        normalize: parameter of forward -> its normalization, put in front of the part and of what it is compared with.
    """

    path: Path
    format: Format = "onnx"
    prepare: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    replacements: Mapping[str, Factory] = field(default_factory=dict)
    normalize: Wanted = field(default_factory=dict)


@dataclass
class Part:
    """One part, prepared; valid while its ``prepared_part`` block runs.

    Attributes:
        name: of the subnet; ``"self"`` for the model.
        owner: its class, for messages.
        module: to be exported: a private copy in eval mode, prepared; calling it runs ``forward_for_export`` if any.
        original: the same before any replacement and ``_prepare_for_export``; None where there was nothing to run.
        args, kwargs: the example call of ``module``, without disabled inputs.
        example_source: ``"Encoder.input_example()"``, or as the caller named it.
        input_types, output_types: declared types in order, less disabled ones; None where nothing is declared.
        config: what ``get_export_config`` of the model says, on the private copy.
        notes: what was done and may surprise, one sentence each.
    """

    name: str
    owner: str
    module: nn.Module
    original: nn.Module | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    example_source: str
    input_types: TypedMap | None
    output_types: TypedMap | None
    disabled_inputs: frozenset[str]
    disabled_outputs: frozenset[str]
    notes: list[str]
    config: Mapping[str, Any] = field(default_factory=dict)


@contextmanager
def prepared_part(
    model: nn.Module,
    name: str,
    request: ExportRequest,
    example: Call | None = None,
    *,
    source: str = "given",
) -> Iterator[Part]:
    """The part ``name`` of ``model``, made ready on private copies; torn down at the end, however the block ends.

    The block has the process to itself, and the toolbox's runtime type checks are off in it. ``example`` is
    ``(args, kwargs)``; without it the ``input_example`` hook is asked.

    Raises InputError naming the hook that fails, is missing, or gives something else than it should; CaptureError where
    the model cannot be copied.
    """
    with preserved_process_state():
        model, notes = unwrap(model)
        copies: list[nn.Module] = []
        with kept_to_copies(model, copies, notes):
            root, more = configured_copy(model, request.config)
            part, wrappers = unwrap(_private(subnet_of(root, name), model))
            copies += [root, part]
        notes += more + wrappers
        check_format(part, request.format)
        notes += _training_note(part, root)
        with typecheck_off(root, part), torn_down() as entered:
            original = _original(part, request)
            with torch.no_grad(), kept_to_copies(model, copies, notes):
                if request.replacements:
                    part = replace_modules(
                        part, request.replacements, notes, within=root, scripts=request.format == "torchscript"
                    )
                    copies.append(part)
                check_options(part, request.prepare, within=root)
                built = _prepare(part, name, request, (example, source), entered, notes)
            built.original, built.config = original, _config(root)
            yield built


def _config(root: nn.Module) -> Mapping[str, Any]:
    """What hooks and passes can read of the user's options; {} where the model has none."""
    if not has_hook(root, "get_export_config"):
        return {}
    found = read_hook(root, "get_export_config")
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise InputError(f"{name_of(root, 'get_export_config')} gave {describe(found)}; return a dict")
    return dict(found)


def _private(part: nn.Module, model: nn.Module) -> nn.Module:
    """``part``, or a copy of it where a hook handed out tensors of the user's own model."""
    own = {id(t) for t in (*model.parameters(), *model.buffers())}
    if any(id(t) in own for t in (*part.parameters(), *part.buffers())):
        return copy_for_hooks(part)[0]
    return part


def _original(part: nn.Module, request: ExportRequest) -> nn.Module | None:
    if not request.replacements and not configured_kind(part) and not any(map(exports_itself, part.modules())):
        return None
    original, _ = copy_for_hooks(part)
    original.eval()
    use_export_forward(original)
    normalize_inputs(original, request.normalize)
    return original


def _training_note(part: nn.Module, root: nn.Module) -> list[str]:
    """Said of the model's own modules; those that a subnet's property has just built start in training mode."""
    own = set(map(id, root.modules()))
    training = [path or "the model" for path, module in part.named_modules() if module.training and id(module) in own]
    if not training:
        return []
    return [f"{training[0]} was in training mode: captured in eval mode (dropout off, batchnorm by its statistics)"]


def _prepare(
    part: nn.Module,
    name: str,
    request: ExportRequest,
    given: tuple[Call | None, str],
    entered: list[nn.Module],
    notes: list[str],
) -> Part:
    """The order of the toolboxes: example, inner hooks, own hook, and only then names and types."""
    part.eval()
    use_export_forward(part)
    example: Example = example_of(part, *given)
    prepare_inner(part, request.prepare, entered, notes)
    own = {**request.prepare, "output": str(request.path), "input_example": example.plain}
    prepare_part(part, own, entered, notes)
    if not request.normalize and (not exports_itself(part) or is_default(part, "_prepare_for_export")):
        notes += normalize_as_configured(part)
    notes += normalize_inputs(part, request.normalize)
    part.eval()  # modules that a hook has put in
    inputs, outputs = read_declared(part, "input", notes), read_declared(part, "output", notes)
    call = read_call(part, example, inputs.disabled)
    args, kwargs = leave_out(part, call, inputs, example.source, notes)
    notes += integer_notes(part, args, kwargs)
    _check_devices(part)
    return Part(
        name=name,
        owner=type(part).__name__,
        module=part,
        original=None,
        args=args,
        kwargs=kwargs,
        example_source=example.source,
        input_types=inputs.types,
        output_types=outputs.types,
        disabled_inputs=inputs.disabled,
        disabled_outputs=outputs.disabled,
        notes=notes,
    )


def check_format(part: nn.Module, format: Format) -> None:
    """Refuses a format that ``supported_export_formats`` of ``part`` leaves out.

    Its entries are strings in any case, with or without a dot, or members of an enum.
    """
    hook = "supported_export_formats"
    if not has_hook(part, hook) or is_default(part, hook) or (found := read_hook(part, hook)) is None:
        return
    entries = [found] if isinstance(found, str | Enum) else list(found) if isinstance(found, Iterable) else [found]
    members = [entry for entry in entries if isinstance(entry, Enum)]
    if members and set(members) == set(type(members[0])):
        return  # a toolbox's enum of all the formats it knows excludes none
    supported = [_format(entry, name_of(part, hook)) for entry in entries]
    if format not in supported:
        raise InputError(
            f"{type(part).__name__} is not exported to {format}: {name_of(part, hook)} lists "
            f"{', '.join(map(str, supported)) or 'nothing'}; choose the extension of one of these"
        )


def _format(entry: object, hook: str) -> str:
    text = entry.name if isinstance(entry, Enum) else entry
    key = text.lower().strip().removeprefix(".") if isinstance(text, str) else ""
    key = _SPELLINGS.get(key, key)
    if key not in _FORMATS:
        raise InputError(f"{hook} lists {describe(entry)}, which is no format; known are {', '.join(_FORMATS)}")
    return key


def _check_devices(part: nn.Module) -> None:
    found: dict[torch.device, str] = {}
    for name, parameter in part.named_parameters():
        found.setdefault(parameter.device, name)
    if len(found) > 1:
        places = ", ".join(f"{name!r} on {device}" for device, name in found.items())
        raise InputError(
            f"the parameters of {type(part).__name__} are on several devices ({places}); move the model to one of them "
            "first: model.to(device)"
        )
