"""``verify``: an artifact that exists already, against the eager model it should compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from fxexport.capture import ExampleCall
from fxexport.capture.pipeline import reference_for
from fxexport.errors import InputError, ValidationError
from fxexport.report.description import describe
from fxexport.signature import Signature, TensorSpec, dtype_name, show_path
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
    timeout: float = 600.0,
    progress: Callable[[str], None] = lambda _: None,
) -> ValidationReport:
    """Runs the file at ``path`` against eager ``model``: on the example, on fresh values and at other sizes.

    The file is only read; names, dtypes and axes are those it was exported with. Python numbers that became
    inputs (``as_input``) are recognised. The other arguments are those of ``fxexport.compile``; ``progress``
    is called with the label of each point.

    Returns the report, also of a file that is wrong: ask its ``passed``.

    Raises:
        InputError: the file is damaged or not made by fxexport, or the example is not one for its inputs.
        CaptureError: the eager model cannot judge: random or NaN outputs that were not allowed.
        ValidationError: the model returns other outputs than the file holds.
    """
    description = describe(path)
    signature = description.signature
    judge = partial(reference_for, model, example_inputs, kwargs, allow_random=allow_random, allow_nan=allow_nan)
    reference, expected, layout, unstable = judge()
    if numbers := _numbers_as_inputs(signature, reference.call):
        reference, expected, layout, unstable = judge(as_input=numbers)
    _check_example(signature, reference.call, description.path)
    held = [spec.path for spec in signature.outputs]
    if layout.paths != held:
        raise ValidationError(f"the model returns {layout.paths}, {description.path} holds {held}")
    with ArtifactProcess(description.format, timeout=timeout) as process:
        return validate(
            process,
            description.path,
            reference,
            signature,
            reference.call.tensors,
            expected=expected,
            unstable=[signature.outputs[i].name for i in unstable],
            rtol=rtol,
            atol=atol,
            progress=progress,
        )


def _numbers_as_inputs(signature: Signature, call: ExampleCall) -> tuple[str, ...]:
    """Python numbers of the example that are inputs of the file."""
    inputs = {spec.path for spec in signature.inputs}
    values = (show_path(leaf.path) for leaf in call.leaves if not leaf.is_tensor)
    return tuple(path for path in values if path in inputs)


def _check_example(signature: Signature, call: ExampleCall, path: Path) -> None:
    """Raises InputError where the example cannot be the input of the file."""
    taken = [spec.path for spec in signature.inputs]
    if call.paths != taken:
        raise InputError(f"the example gives the tensors {call.paths}, {path} takes {taken}")
    faults = [_fault(spec, t) for spec, t in zip(signature.inputs, call.tensors, strict=True)]
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
