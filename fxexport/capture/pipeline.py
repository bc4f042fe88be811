"""The stages of capture: copy, bind, judge the example in eager, enlarge it, export, functionalise, name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.export import ExportedProgram

from fxexport.capture.axes import name_axes
from fxexport.capture.dynamic import AxisRequests
from fxexport.capture.enlarging import enlarged
from fxexport.capture.exported_model import from_exported
from fxexport.capture.exporting import export_flat, is_data_dependent
from fxexport.capture.flat_model import FlatModel, ResultLayout
from fxexport.capture.functionalize import functionalize
from fxexport.capture.interface import Interface, declared_axes, input_side, names_of, plan_results
from fxexport.capture.judging import check_finite, judge_example
from fxexport.capture.known_constants import fix_small_buffers, known_values
from fxexport.capture.naming import make_signature, merge_tied, rename_inputs
from fxexport.capture.open_axes import export_open
from fxexport.capture.output_axes import name_output_axes
from fxexport.capture.preparing import prepare
from fxexport.capture.private_copy import preserved_process_state
from fxexport.capture.reference import Reference, Tensors
from fxexport.capture.settled import export_widest
from fxexport.capture.size_comparisons import decided_by_value
from fxexport.errors import CaptureError, InputError
from fxexport.program import Program
from fxexport.signature import check_disjoint, choose_names, unique_names


@dataclass
class Captured:
    """A program, and what is needed to prove an artifact of it right.

    Attributes:
        examples: the flat example inputs as the user gave them.
        expected: the eager outputs for ``examples``.
        unstable: names of outputs that differ from run to run (only with ``allow_random``).
    """

    program: Program
    reference: Reference
    examples: list[torch.Tensor]
    expected: Tensors
    unstable: frozenset[str]


def capture(
    model: nn.Module | ExportedProgram,
    example_inputs: Any = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    dynamic: Any = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> Program:
    """Captures ``model`` as a ``Program``: its lifted, functional ATen graph before any decomposition.

    ``model`` is left exactly as it is. See ``fxexport.compile`` for the arguments.

    Raises InputError (arguments do not fit) or CaptureError (the model cannot be a graph; names the line).
    """
    return capture_model(
        model,
        example_inputs,
        kwargs,
        dynamic_shapes=dynamic_shapes,
        dynamic=dynamic,
        input_names=input_names,
        output_names=output_names,
    ).program


def capture_model(
    model: nn.Module | ExportedProgram,
    example_inputs: Any = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    dynamic: Any = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    as_input: Sequence[str] = (),
    allow_random: bool = False,
    allow_nan: bool = False,
    state: Literal["frozen", "explicit"] = "frozen",
    dynamic_axes: Mapping[str, Any] | None = None,
    interface: Interface | None = None,
) -> Captured:
    """:func:`capture`, together with the reference that judges the artifact.

    ``dynamic_axes`` is torch.onnx's form, which may also name outputs; ``interface`` is what typed hooks declare.
    """
    with preserved_process_state():
        notes: list[str] = []
        if isinstance(model, ExportedProgram):
            model, example_inputs, kwargs, dynamic = from_exported(model, example_inputs, kwargs, dynamic)
        if not isinstance(model, nn.Module):
            raise InputError(f"model must be an nn.Module, ExportedProgram or GraphModule, got {type(model).__name__}")
        pristine, call = prepare(model, example_inputs, kwargs, tuple(as_input), notes)
        reference = Reference(pristine, call)
        if state == "explicit":
            call = reference.call = call.with_state(reference.updated_buffers())
        side = input_side(call, interface, dynamic_shapes, dynamic, dynamic_axes, input_names)
        requests, names = side.requests, choose_names("input", input_names, side.names)
        plan = plan_results(reference, interface)
        call = reference.call
        expected, layout, unstable = judge_example(reference, notes, allow_random)
        outputs = choose_names("output", output_names, names_of(plan, layout, layout.names))
        if output_names is None:
            outputs = unique_names([f"{name}_out" if name in names else name for name in outputs], names)
        check_disjoint(names, outputs)
        if unknown := [key for key in side.others if key not in outputs]:
            raise InputError(f"dynamic_axes name {unknown}; the inputs are {names}, the outputs {outputs}")
        notes += [*side.notes, *(plan.notes if plan else ())]
        notes += check_finite(reference, expected, outputs, allow_nan)
        examples = enlarged(call.tensors, requests, lambda tensors: _eager_accepts(reference, tensors))
        exported, writes, examples, fixing = export_widest(
            lambda make: export_open(
                lambda tensors: _export(make, reference, tensors, requests, names),
                examples,
                requests,
                lambda tensors: _eager_accepts(reference, tensors),
            ),
            reference,
            expected,
            requests,
        )
        inputs = rename_inputs(exported, names)
        axes = name_axes(exported, inputs, requests, names, examples, fixing)
        axes = name_output_axes(exported, axes, outputs, declared_axes(plan, layout))
        signature = make_signature(exported, inputs, names, outputs, call, layout, axes)
        program = Program(exported, signature, [*notes, *writes, *axes.notes])
        merge_tied(program)
        renamed_unstable = frozenset(outputs[i] for i in unstable)
    return Captured(program, reference, call.tensors, expected, renamed_unstable)


def reference_for(
    model: nn.Module | ExportedProgram,
    example_inputs: Any = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    as_input: Sequence[str] = (),
    allow_random: bool = False,
    allow_nan: bool = False,
    state: Literal["frozen", "explicit"] = "frozen",
    interface: Interface | None = None,
) -> tuple[Reference, Tensors, ResultLayout, list[int]]:
    """The judge without a capture: the reference, its outputs for the example, their layout, and which are random.

    Raises InputError and CaptureError as :func:`capture_model` does on the same model and example.
    """
    with preserved_process_state():
        if isinstance(model, ExportedProgram):
            model, example_inputs, kwargs, _ = from_exported(model, example_inputs, kwargs, None)
        if not isinstance(model, nn.Module):
            raise InputError(f"model must be an nn.Module, ExportedProgram or GraphModule, got {type(model).__name__}")
        notes: list[str] = []
        reference = Reference(*prepare(model, example_inputs, kwargs, tuple(as_input), notes))
        if state == "explicit":
            reference.call = reference.call.with_state(reference.updated_buffers())
        plan_results(reference, interface)
        expected, layout, unstable = judge_example(reference, notes, allow_random)
        check_finite(reference, expected, layout.names, allow_nan)
        return reference, expected, layout, unstable


def _export(
    make: Callable[[], FlatModel],
    reference: Reference,
    inputs: list[torch.Tensor],
    requests: AxisRequests,
    names: Sequence[str],
) -> tuple[ExportedProgram, list[str]]:
    """The functional graph and notes; where a decision on data stops capture, with small buffers as constants."""
    try:
        return functionalize(export_flat(make(), inputs, requests), names)
    except CaptureError as error:
        if not is_data_dependent(error.__cause__):
            raise
        flat = make()
        try:
            with decided_by_value(flat, reference.used()) as compared, known_values():
                fixed, flat.before = fix_small_buffers(flat.model, reference.updated_buffers())
                exported, notes = functionalize(export_flat(flat, inputs, requests), names)
        except CaptureError:
            return _export_read(reference, inputs, requests, names, error)
    note = f"decisions of forward on {', '.join(fixed)} are fixed as they are now" if fixed else ""
    return exported, [*notes, *filter(None, [note]), *compared]


def _export_read(
    reference: Reference, inputs: list[torch.Tensor], requests: AxisRequests, names: Sequence[str], error: CaptureError
) -> tuple[ExportedProgram, list[str]]:
    """The graph as it is found by reading the code of forward; raises ``error`` where that does not help."""
    try:
        return functionalize(export_flat(reference.fresh(), inputs, requests, read_code=True), names)
    except CaptureError:
        raise error from error.__cause__


def _eager_accepts(reference: Reference, inputs: list[torch.Tensor]) -> bool:
    try:
        reference.run(inputs)
    except Exception:  # noqa: BLE001 - whatever eager raises means: not at this size
        return False
    return True
