"""``verify``: an artifact that exists already, against the eager model it should compute."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from fxexport.capture import ExampleCall
from fxexport.capture.pipeline import reference_for
from fxexport.capture.private_copy import preserved_process_state
from fxexport.compiling import Options, Source, usual_tolerance
from fxexport.decisions import Decision
from fxexport.errors import InputError, ValidationError
from fxexport.exportable import has_hooks
from fxexport.exportable.inserting import as_layers
from fxexport.exportable.replacement_registry import Replacements
from fxexport.input_assumption import InputAssumption, met
from fxexport.lowering import format_of
from fxexport.precision import precision_of
from fxexport.report.description import Description, describe
from fxexport.signature import Signature, TensorSpec, dtype_name, show_path
from fxexport.subnet_export import entered
from fxexport.subnet_request import ASKED_NOTHING, SubnetRequest
from fxexport.subnets import Driver
from fxexport.validation import ArtifactProcess, ValidationReport, validate


def verify(
    path: str | Path,
    model: nn.Module | ExportedProgram,
    example_inputs: Any = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    rtol: float | None = None,
    atol: float | None = None,
    allow_random: bool = False,
    allow_nan: bool = False,
    export_config: Mapping[str, Any] | None = None,
    prepare: Mapping[str, Any] | None = None,
    replacements: Replacements | None = None,
    normalize_inputs: Mapping[str, str | nn.Module] | None = None,
    driver: Driver | Sequence[Driver] | None = None,
    timeout: float = 600.0,
    progress: Callable[[str], None] = lambda _: None,
) -> ValidationReport:
    """Runs the file at ``path`` against eager ``model``: on the example, on fresh values and at other sizes.

    The file is only read; names, dtypes and axes are those it was exported with. Python numbers that became inputs
    (``as_input``) and explicit state are recognised. A model with export hooks is prepared as for its export, and where
    the file is one of its subnets, that part is what it is compared with. The other arguments are those of
    ``fxexport.compile``; ``progress`` is called with the label of each point.

    Returns the report, also of a file that is wrong: ask its ``passed``.

    Raises:
        InputError: the file is damaged, not made by fxexport or of another model, or the example is not one for its
            inputs.
        CaptureError: the eager model cannot judge: random or NaN outputs that were not allowed.
        ValidationError: the model returns other outputs than the file holds.
    """
    description = describe(path)
    signature = description.signature
    given = (export_config, prepare, replacements, normalize_inputs, driver)
    hooked = isinstance(model, nn.Module) and (has_hooks(model) or any(each is not None for each in given))
    request = SubnetRequest(
        example_inputs,
        kwargs,
        further=(),
        prepare={**ASKED_NOTHING, "onnx_opset_version": (description.metadata or {}).get("opset"), **(prepare or {})},
        config=export_config or {},
        replacements=replacements or {},
        driver=driver,
        recording=None,
        normalize=as_layers(normalize_inputs or {}),
    )
    with preserved_process_state(), _source(model, description, request, hooked=hooked) as source:
        judge = partial(
            reference_for,
            source.model,
            source.example,
            source.kwargs,
            allow_random=allow_random,
            allow_nan=allow_nan,
            state="explicit" if _has_state(signature) else "frozen",
            interface=source.interface,
            complex_pairs=any(spec.pairs for spec in (*signature.inputs, *signature.unread, *signature.outputs)),
        )
        reference, expected, layout, unstable = judge()
        if numbers := _numbers_as_inputs(signature, reference.call):
            reference, expected, layout, unstable = judge(as_input=numbers)
        _check_example(signature, reference.call, description.path)
        held = [spec.path for spec in signature.outputs]
        if layout.paths != held:
            raise ValidationError(f"the model returns {layout.paths}, {description.path} holds {held}")
        assumptions = [InputAssumption.from_json(each) for each in (description.metadata or {}).get("assumptions", ())]
        examples = reference.call.tensors
        if assumptions:
            names = [spec.name for spec in signature.whole_call(reference.call.paths).inputs]
            examples = list(met(assumptions, names, examples))
            if not all(map(torch.equal, examples, reference.call.tensors)):
                if source.given:
                    raise InputError(
                        f"the example does not meet what {path} assumes: {'; '.join(map(str, assumptions))}"
                    )
                expected = reference.run(examples)
        with ArtifactProcess(description.format, timeout=timeout) as process:
            return validate(
                process,
                description.path,
                reference,
                signature,
                examples,
                expected=expected,
                unstable=[signature.outputs[i].name for i in unstable],
                rtol=rtol,
                atol=atol,
                usual=usual_tolerance(precision_of(description.metadata)),
                decisions=[Decision(**each) for each in (description.metadata or {}).get("decisions", ())],
                assumptions=assumptions,
                progress=progress,
            )


@contextmanager
def _source(
    model: nn.Module | ExportedProgram, file: Description, request: SubnetRequest, *, hooked: bool
) -> Iterator[Source]:
    """What the file should compute: the model, or with hooks the prepared part of it that the file holds."""
    name = (file.metadata or {}).get("subnet", "self")
    if isinstance(model, nn.Module) and hooked:
        options = Options(format_of(file.path), None, (), {}, {})
        with entered(model, name, file.path, request, options) as source:
            yield source
    elif name != "self":
        raise InputError(f"{file.path} holds the subnet {name!r}, but {type(model).__name__} has no export hooks")
    else:
        yield Source(name, model, request.example, request.kwargs)


def _has_state(signature: Signature) -> bool:
    """Whether some inputs are explicit state and no argument of ``forward``."""
    is_parameter = "state" in (name for name, _ in signature.parameters)
    return not is_parameter and any(spec.path.startswith("state[") for spec in signature.inputs)


def _numbers_as_inputs(signature: Signature, call: ExampleCall) -> tuple[str, ...]:
    """Python numbers of the example that are inputs of the file."""
    inputs = {spec.path for spec in signature.inputs}
    values = (show_path(leaf.path) for leaf in call.leaves if not leaf.is_tensor)
    return tuple(path for path in values if path in inputs)


def _check_example(signature: Signature, call: ExampleCall, path: Path) -> None:
    """Raises InputError where the example cannot be the input of the file."""
    specs = {spec.path: spec for spec in (*signature.inputs, *signature.unread)}
    taken, unread = ([spec.path for spec in side] for side in (signature.inputs, signature.unread))
    if [place for place in call.paths if place not in unread] != taken:
        raise InputError(f"the example gives the tensors {call.paths}, {path} takes {taken}")
    faults = [_fault(specs[place], tensor) for place, tensor in zip(call.paths, call.tensors, strict=True)]
    given = {baked.path: baked.value for baked in call.baked}
    faults += [
        f"{b.path} is {given.get(b.path, 'not given')} in the example, fixed at {b.value} in the file"
        for b in signature.baked
        if given.get(b.path) != b.value
    ]
    if any(faults):
        raise InputError(f"the example does not fit {path}:\n  " + "\n  ".join(filter(None, faults)))


def _fault(spec: TensorSpec, tensor: Any) -> str:
    shape = tuple(tensor.shape)
    fits = len(shape) == len(spec.axes) and all(
        size == axis or isinstance(axis, str) for size, axis in zip(shape, spec.axes, strict=True)
    )
    if tensor.dtype == spec.dtype and fits:
        return ""
    wanted = f"{dtype_name(spec.dtype)} {list(spec.axes)}"
    return f"{spec.path} is {dtype_name(tensor.dtype)} {list(shape)} in the example and {wanted} in the file"
