"""The stages of capture: copy, bind, judge the example in eager, enlarge it, export, functionalise, name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.export import ExportedProgram

from fxexport.capture.axes import name_axes
from fxexport.capture.dynamic import AxisRequests
from fxexport.capture.enlarging import enlarged
from fxexport.capture.exported_model import from_exported
from fxexport.capture.exporting import export_flat, is_data_dependent
from fxexport.capture.filled_memory import write_zeros
from fxexport.capture.flat_model import FlatModel, ResultLayout
from fxexport.capture.functionalize import functionalize
from fxexport.capture.interface import Interface, declared_axes, input_side, names_of, plan_results
from fxexport.capture.judging import check_finite, judge_example
from fxexport.capture.known_values import known_values
from fxexport.capture.naming import make_signature, merge_tied, rename_inputs
from fxexport.capture.open_axes import Opened, export_open
from fxexport.capture.output_axes import name_output_axes
from fxexport.capture.paths import Assumed, Paths
from fxexport.capture.preparing import prepare
from fxexport.capture.private_copy import preserved_process_state
from fxexport.capture.recording_decisions import decisions_of
from fxexport.capture.reference import Reference, Tensors
from fxexport.capture.rows import ByRows, Loops, export_rows
from fxexport.capture.settled import export_widest
from fxexport.decisions import Decision
from fxexport.errors import CaptureError, InputError
from fxexport.program import Program
from fxexport.signature import check_disjoint, choose_names, unique_names

AS_EXAMPLES = "as in the examples"


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
    complex_pairs: bool = False,
    assume: str | Mapping[str, bool] | None = None,
) -> Captured:
    """:func:`capture`, together with the reference that judges the artifact.

    ``dynamic_axes`` is torch.onnx's form, which may also name outputs; ``interface`` is what typed hooks declare. With
    ``complex_pairs`` the program and the reference take and give complex tensors as real ones with a last axis of 2.
    """
    assumed = _read_assume(assume)
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
        if complex_pairs:
            reference.call = reference.call.with_pairs()
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
        examples = enlarged(call.tensors, requests, partial(_eager_accepts, reference))
        ladder = _Ladder(reference, requests, names, assumed)
        accepts = partial(_eager_accepts, reference)
        loops = Loops(ByRows(ladder.at, examples, requests, accepts))

        def widest() -> Opened:
            return export_widest(
                lambda make: export_open(
                    partial(ladder.export, make),
                    examples,
                    requests,
                    accepts,
                    loops.or_else(partial(ladder.by_code, make)),
                    loops.instead,
                ),
                reference,
                expected,
                requests,
            )

        exported, writes, examples, fixing = export_rows(widest, loops)
        decisions = ladder.decisions(exported)
        if assumed.sides and not decisions:
            raise InputError(f"assume names {sorted(assumed.sides)}, but the model decides nothing on data")
        writes += map(str, decisions)
        inputs = rename_inputs(exported, names)
        axes = name_axes(exported, inputs, requests, names, examples, fixing, loops.mixing)
        axes = name_output_axes(exported, axes, outputs, declared_axes(plan, layout))
        signature = make_signature(exported, inputs, names, outputs, call, layout, axes)
        write_zeros(exported.graph_module)
        program = Program(exported, signature, [*notes, *writes, *axes.notes])
        program.decisions = tuple(decisions)
        merge_tied(program)
        renamed_unstable = frozenset(outputs[i] for i in unstable)
    return Captured(program, reference, call.tensors, expected, renamed_unstable)


def _read_assume(assume: str | Mapping[str, bool] | None) -> Assumed:
    if assume is None or assume == AS_EXAMPLES:
        return Assumed(as_examples=assume is not None)
    if not isinstance(assume, Mapping) or not all(isinstance(v, bool) for v in assume.values()):
        raise InputError(f'assume is {assume!r}; give "{AS_EXAMPLES}", or a side for each line: {{"net.py:41": True}}')
    return Assumed(dict(assume))


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
    complex_pairs: bool = False,
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
        if complex_pairs:
            reference.call = reference.call.with_pairs()
        expected, layout, unstable = judge_example(reference, notes, allow_random)
        check_finite(reference, expected, layout.names, allow_nan)
        return reference, expected, layout, unstable


@dataclass
class _Ladder:
    """Ways to capture a model, each for what the one before does not understand.

    ``decided``: the programs that decide on data, with what became of each decision.
    """

    reference: Reference
    requests: AxisRequests
    names: Sequence[str]
    assumed: Assumed
    decided: list[tuple[ExportedProgram, list[Decision]]] = field(default_factory=list)

    def export(self, make: Callable[[], FlatModel], inputs: list[torch.Tensor]) -> tuple[ExportedProgram, list[str]]:
        """The functional graph on ``inputs``, and notes.

        Raises CaptureError: of the last way that says why, where none works.
        """
        flat = make()
        try:
            with known_values(flat, self.reference) as notes:
                exported, own = self._plain(flat, inputs)
            return exported, [*own, *notes]
        except CaptureError as found:
            if not is_data_dependent(found.__cause__):
                raise
            error = found
        try:
            return self._every_way(make, inputs)
        except CaptureError as found:
            error = found
        try:
            return self.by_code(make, inputs)
        except CaptureError:
            raise error from error.__cause__

    def by_code(self, make: Callable[[], FlatModel], inputs: list[torch.Tensor]) -> tuple[ExportedProgram, list[str]]:
        """The graph that comes of reading the code of forward, where ``int(size)`` is no number yet."""
        return functionalize(export_flat(make(), inputs, self.requests, read_code=True), self.names)

    def at(self, requests: AxisRequests, inputs: list[torch.Tensor]) -> tuple[ExportedProgram, list[str]]:
        """:meth:`export` of the model as it is with other axes open."""
        return replace(self, requests=requests).export(self.reference.fresh, inputs)

    def _plain(self, flat: FlatModel, inputs: list[torch.Tensor]) -> tuple[ExportedProgram, list[str]]:
        return functionalize(export_flat(flat, inputs, self.requests), self.names)

    def _every_way(
        self, make: Callable[[], FlatModel], inputs: list[torch.Tensor]
    ) -> tuple[ExportedProgram, list[str]]:
        exported, notes, decisions = Paths(
            make,
            lambda flat: known_values(flat, self.reference),
            lambda flat: self._plain(flat, inputs),
            decisions_of(self.reference, self.reference.call.tensors),
            self.assumed,
        ).export_all()
        self.decided.append((exported, decisions))
        return exported, notes

    def decisions(self, exported: ExportedProgram) -> list[Decision]:
        """What became of the decisions on data in a program that :meth:`export` gave."""
        return next((decisions for program, decisions in self.decided if program is exported), [])


def _eager_accepts(reference: Reference, inputs: list[torch.Tensor]) -> bool:
    try:
        reference.run(inputs)
    except Exception:  # noqa: BLE001 - whatever eager raises means: not at this size
        return False
    return True
