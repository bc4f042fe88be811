"""``doctor``: everything about a model that an export would meet, in one go and not the first thing only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from fxexport.capture import Reference, capture_model
from fxexport.capture.dynamic import AxisRequests
from fxexport.capture.exported_model import from_exported
from fxexport.capture.interface import Interface, input_side
from fxexport.capture.preparing import prepare
from fxexport.capture.private_copy import preserved_process_state
from fxexport.doctor.finding import SEVERITIES, Diagnosis, Finding, Kind
from fxexport.doctor.of_call import findings_on_call, findings_on_model
from fxexport.doctor.of_graph import (
    after_failure,
    after_success,
    findings_on_functions,
    findings_on_operators,
    is_told,
)
from fxexport.doctor.of_sizes import findings_on_sizes, site_of
from fxexport.doctor.of_state import findings_on_state
from fxexport.doctor.of_values import findings_on_values
from fxexport.doctor.runs import Runs, run_briefly, run_thoroughly
from fxexport.errors import CaptureError, InputError
from fxexport.program import Program

_TOLD = 12  # findings that are added to the message of a failure


def doctor(
    model: nn.Module | ExportedProgram,
    example_inputs: Any = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    dynamic: Any = None,
    input_names: Sequence[str] | None = None,
    as_input: Sequence[str] = (),
    interface: Interface | None = None,
) -> Diagnosis:
    """Everything that an export of ``model`` would meet: what blocks it, what the file would do otherwise, what is handled.

    A private copy runs in eager on the example, on other values and at other sizes of the dynamic dimensions, and is
    watched; then it is captured. Nothing is written, and ``model`` is left as it is. The arguments are those of
    ``fxexport.compile``.

    Raises InputError where the example does not fit ``forward``.
    """
    with preserved_process_state():
        if isinstance(model, ExportedProgram):
            model, example_inputs, kwargs, dynamic = from_exported(model, example_inputs, kwargs, dynamic)
        if not isinstance(model, nn.Module):
            raise InputError(f"model must be an nn.Module, ExportedProgram or GraphModule, got {type(model).__name__}")
        name, notes = type(model).__name__, list[str]()
        try:
            reference = Reference(*prepare(model, example_inputs, kwargs, tuple(as_input), notes))
        except CaptureError as error:
            kind: Kind = "wrapper" if "give fxexport the" in str(error) else "uncopyable"
            return Diagnosis(name, (Finding(kind, "blocks", str(error)),), str(error))
        side = input_side(reference.call, interface, dynamic_shapes, dynamic, None, input_names)
        runs = run_thoroughly(reference, side.requests)
        findings = [*findings_on_model(model, notes), *_findings(runs, kwargs)]
        options = {"dynamic_shapes": dynamic_shapes, "dynamic": dynamic, "input_names": input_names}
        options |= {"as_input": as_input, "interface": interface}
        captured = _captured(runs, model, example_inputs, kwargs, options)
        return _settled(name, runs, findings, captured)


def _settled(name: str, runs: Runs, findings: list[Finding], captured: Program | CaptureError) -> Diagnosis:
    """The diagnosis, with what became of the findings in the capture."""
    if isinstance(captured, Program):
        found = after_success([*findings, *findings_on_operators(runs, captured)], captured)
        return Diagnosis(name, _sorted(found), "", captured.node_count())
    return Diagnosis(
        name, _sorted(after_failure([*findings, *findings_on_operators(runs, None)], captured)), str(captured)
    )


def diagnose_failure(
    error: CaptureError,
    model: nn.Module | ExportedProgram,
    example_inputs: Any = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    dynamic: Any = None,
    dynamic_axes: Mapping[str, Any] | None = None,
    input_names: Sequence[str] | None = None,
    as_input: Sequence[str] = (),
    interface: Interface | None = None,
) -> str:
    """What else stands in the way of a model at which capture stopped with ``error``: lines for its message, or ''.

    Takes a few eager runs. It never raises: where the doctor itself fails, that is the line.
    """
    try:
        with preserved_process_state():
            if isinstance(model, ExportedProgram):
                model, example_inputs, kwargs, dynamic = from_exported(model, example_inputs, kwargs, dynamic)
            reference = Reference(*prepare(model, example_inputs, kwargs, tuple(as_input), []))
            side = input_side(reference.call, interface, dynamic_shapes, dynamic, dynamic_axes, input_names)
            return _others(error, reference, side.requests, kwargs)
    except Exception as failure:  # noqa: BLE001 - told in the message; what the user has to see is ``error``
        reason = (str(failure).strip() or type(failure).__name__).splitlines()[0]
        return f"What else may stand in the way is not known: {type(failure).__name__}: {reason}"


def _others(error: CaptureError, reference: Reference, requests: AxisRequests, kwargs: Mapping[str, Any] | None) -> str:
    runs = run_briefly(reference, requests)
    findings = [*_findings(runs, kwargs), *findings_on_operators(runs, None)]
    found = [each for each in _sorted(findings) if each.severity == "blocks" and not is_told(each, error)]
    found = [each for each in found if each.what not in str(error) and each.kind != "eager"]
    if not found:
        return ""
    lines = [f"  {each.kind}: {each.in_words()}" for each in found[:_TOLD]]
    more = [f"  and {len(found) - _TOLD} more: fxexport.doctor lists all"] if len(found) > _TOLD else []
    return "\n".join(["Also in the way (fxexport.doctor tells more, with ways out):", *lines, *more])


def _findings(runs: Runs, kwargs: Mapping[str, Any] | None) -> list[Finding]:
    """What the runs show, each line once."""
    found = [
        *_eager(runs),
        *findings_on_values(runs),
        *findings_on_sizes(runs),
        *findings_on_state(runs),
        *findings_on_functions(runs),
        *findings_on_call(runs.reference, kwargs, runs.example),
    ]
    return list(dict.fromkeys(found))


def _eager(runs: Runs) -> Iterable[Finding]:
    """The model's own error on its example: everything else is known up to there only."""
    error = runs.example.error
    if error is None or runs.example.ended:  # a result that no file can hold is a finding of its own
        return
    what = f"the model's own error on the example, in eager: {type(error).__name__}: {str(error).splitlines()[0]}"
    yield Finding("eager", "blocks", what, "give an example that the model runs on", site_of(error))


def _captured(
    runs: Runs,
    model: nn.Module,
    example_inputs: Any,
    kwargs: Mapping[str, Any] | None,
    options: Mapping[str, Any],
) -> Program | CaptureError:
    if runs.example.error is not None:
        return CaptureError(f"not tried: {runs.example.error}")
    accepted: dict[str, Any] = {"allow_random": True, "allow_nan": True, "complex_pairs": True}
    try:
        return capture_model(model, example_inputs, kwargs, **accepted, **options).program
    except InputError:
        raise
    except CaptureError as error:
        return error
    except Exception as error:  # noqa: BLE001 - a model may raise in its second call; that is a finding as well
        failure = CaptureError(f"{type(error).__name__}: {error}")
        failure.__cause__ = error
        return failure


def _sorted(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """By severity, else as they were found."""
    return tuple(sorted(findings, key=lambda each: SEVERITIES.index(each.severity)))
