"""What the user guarantees of inputs, brought to a captured program: bound, met by the examples, inputs left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from fxexport.assumptions import bind
from fxexport.capture import Captured
from fxexport.errors import InputError
from fxexport.input_assumption import met
from fxexport.program import Program
from fxexport.validation.sweep import Point

RECORDED = "recorded call"
"""How the labels of examples begin that are from a recorded run."""


def assume(captured: Captured, asked: Mapping[str, str], *, given: bool) -> None:
    """Binds what is ``asked`` of inputs. An example that is not the caller's own (``given``) is made to meet it.

    Raises InputError where the caller's example does not meet it, and as :func:`~fxexport.assumptions.bind`.
    """
    program, names = captured.program, [spec.name for spec in captured.program.signature.inputs]
    program.assumptions = bind(program, asked, captured.examples)
    if not program.assumptions:
        return
    program.notes += map(str, program.assumptions)
    wanted = met(program.assumptions, names, captured.examples)
    changed = [n for n, a, b in zip(names, captured.examples, wanted, strict=True) if not torch.equal(a, b)]
    if not changed:
        return
    if given:
        told = "; ".join(str(each) for each in program.assumptions if each.input in changed)
        raise InputError(f"{told}, and the example inputs do not meet that: give an example that does")
    program.notes.append(f"the example did not hold {', '.join(changed)} as assumed and was changed so that it does")
    captured.examples = list(wanted)
    captured.expected = captured.reference.run(wanted)


def meets(captured: Captured) -> bool:
    """Whether the example as it was given or recorded holds what is assumed."""
    return all(map(torch.equal, captured.examples, captured.reference.call.tensors))


def meeting(point: Point, captured: Captured) -> Point:
    """``point`` as the assumptions have it. Raises InputError for an example of the caller's that does not meet them."""
    names = [spec.name for spec in captured.program.signature.inputs]
    wanted = met(captured.program.assumptions, names, point.inputs)
    if all(map(torch.equal, point.inputs, wanted)):
        return point
    if not point.label.startswith(RECORDED):
        told = "; ".join(map(str, captured.program.assumptions))
        raise InputError(f"{told}, and {point.label} does not meet that: leave it out")
    return replace(point, label=f"{point.label}, as assumed", inputs=wanted)


def without_unread(program: Program, *, every: bool, keep: bool) -> Program:
    """``program`` without the inputs that nothing reads: ``every`` one, or those that went unread by an assumption.

    With ``keep`` the latter stay.
    """
    assumed = {each.input for each in program.assumptions}
    names = {spec.name for spec in program.signature.inputs} if every else assumed
    return program.without_unread_inputs(names - assumed if keep else names)
