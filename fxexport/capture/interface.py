"""Typed inputs and outputs, and recorded calls, applied to one call of a model: names, dynamic axes, what is left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fxexport.capture.binding import ExampleCall
from fxexport.capture.dynamic import AxisRequest, AxisRequests, read_dynamic
from fxexport.capture.flat_model import ResultLayout
from fxexport.capture.judging import as_the_models_own
from fxexport.capture.reference import Reference
from fxexport.errors import InputError
from fxexport.tensor_types import TypedMap
from fxexport.type_alignment import OutputPlan, plan_inputs, plan_outputs


@dataclass(frozen=True)
class Interface:
    """What is known of a model's inputs and outputs besides the example.

    Attributes:
        owner: whose hooks these are, for messages: ``"AudioEncoder"``.
        inputs, outputs: the typed tensors, where the model declares them.
        disabled_outputs: names of outputs that are left out of the artifact.
        varying: path of an input (``"states[0]"``) -> its axes that had several sizes in recorded calls.
    """

    owner: str
    inputs: TypedMap | None = None
    outputs: TypedMap | None = None
    disabled_outputs: frozenset[str] = frozenset()
    varying: Mapping[str, frozenset[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class InputSide:
    """Names and requested axes of the flat inputs, and what was noticed on the way.

    ``others``: keys of ``dynamic_axes`` that are no inputs; they have to be outputs.
    """

    names: list[str]
    requests: AxisRequests
    notes: list[str]
    others: tuple[str, ...] = ()


def input_side(
    call: ExampleCall,
    interface: Interface | None,
    dynamic_shapes: Any,
    dynamic: Any,
    dynamic_axes: Mapping[str, Any] | None,
    input_names: Sequence[str] | None,
) -> InputSide:
    """The user's names and axes where given, else those of the types, and on top the axes that recorded calls varied.

    Raises InputError where the types contradict the example.
    """
    names, typed, notes = list(call.names), None, list[str]()
    if interface is not None and interface.inputs is not None:
        own = len(call.names) - len(call.state)  # explicit state has no declared types
        leaves = list(zip(call.paths[:own], call.tensors[:own], strict=True))
        plan = plan_inputs(interface.inputs, leaves, owner=interface.owner)
        names, notes = [*plan.names, *call.names[own:]], list(plan.notes)
        typed = [
            {axis: AxisRequest(a.label, declared=a.declared, claimed=a.claimed) for axis, a in axes.items()}
            for axes in [*plan.axes, *({} for _ in call.state)]
        ]
    others: tuple[str, ...] = ()
    given_names = list(input_names) if input_names is not None else names
    if dynamic_axes is not None:
        known = {*call.arguments, *call.names, *given_names}
        others = tuple(key for key in dynamic_axes if key not in known)
        inputs = {key: axes for key, axes in dynamic_axes.items() if key in known}
        dynamic = inputs if dynamic in (None, False) else _merged(dynamic, inputs)
    asked = dynamic is not None or dynamic_shapes is not None
    requests = read_dynamic(call, dynamic_shapes, dynamic, given_names)
    if typed is not None and not asked:
        requests = typed
    for axes, path in zip(requests, call.paths, strict=True):
        for axis in interface.varying.get(path, ()) if interface is not None else ():
            axes.setdefault(axis, AxisRequest(None))
    return InputSide(names, requests, notes, others)


def _merged(dynamic: Any, axes: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(dynamic, Mapping):
        raise InputError("dynamic_axes and dynamic were both given; give one of them")
    return {**dynamic, **axes}


def plan_results(reference: Reference, interface: Interface | None) -> OutputPlan | None:
    """Names for the results by the declared types, from one eager call; ``reference`` leaves out what is disabled."""
    if interface is None or interface.outputs is None:
        return None
    with as_the_models_own():
        layout, results = reference.results()
    values = dict(zip(layout.paths, results, strict=True))
    leaves = [(path, values.get(path)) for path in layout.leaves]
    plan = plan_outputs(interface.outputs, leaves, disabled=interface.disabled_outputs, owner=interface.owner)
    pairs = zip(leaves, plan.names, strict=True)
    left_out = frozenset(path for (path, value), name in pairs if name is None and value is not None)
    reference.call = replace(reference.call, left_out=left_out)
    return plan


def names_of(plan: OutputPlan | None, layout: ResultLayout, found: Sequence[str]) -> list[str]:
    """The planned name of every result that is kept, else the one found in the result's own structure."""
    if plan is None:
        return list(found)
    planned = dict(zip(layout.leaves, plan.names, strict=True))
    return [planned.get(path) or name for path, name in zip(layout.paths, found, strict=True)]


def declared_axes(plan: OutputPlan | None, layout: ResultLayout) -> list[dict[int, str]]:
    """For every result that is kept, the names that the types give to its axes."""
    axes = dict(zip(layout.leaves, plan.axes, strict=True)) if plan is not None else {}
    return [dict(axes.get(path) or {}) for path in layout.paths]
