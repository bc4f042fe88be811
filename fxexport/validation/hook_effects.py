"""What a model's own preparing hooks changed in its numbers: eager before them against eager after them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fxexport.capture import Captured, Reference
from fxexport.capture.reference import Tensors
from fxexport.errors import ExportError
from fxexport.validation.numbers import Scales
from fxexport.validation.sweep import Point, points


@dataclass
class HookEffects:
    """``on_example``: what changed on the example, or ''. ``notes``: that, and what changed at other points."""

    on_example: str = ""
    notes: list[str] = field(default_factory=list)


def hook_effects(original: Reference, captured: Captured, scales: Scales, further: Sequence[Point] = ()) -> HookEffects:
    """Runs the model as it was (``original``) and as its hooks left it (``captured.reference``) at every point of the
    validation, and says where the outputs differ by more than the tolerance.

    The artifact computes the prepared model: that is what the hook's author asked for. Points that either refuses
    prove nothing and are left out; where the original cannot be called like the prepared model, a note says so.
    """
    signature = captured.program.signature
    names = [spec.name for spec in signature.outputs]
    effects = HookEffects()
    elsewhere: list[str] = []
    for point in [*points(signature, captured.examples), *further]:
        example = point.label == "example"
        try:
            expected = captured.expected if example else captured.reference.run(point.inputs)
        except Exception:  # noqa: BLE001 - a size that eager refuses says nothing of the hooks
            continue
        try:
            before = original.run(point.inputs)
        except Exception as error:  # noqa: BLE001 - reported below: the hook may be what makes the call possible
            if example:
                effects.notes.append(
                    "without its _prepare_for_export the model does not accept this call "
                    f"({type(error).__name__}: {(str(error).splitlines() or [''])[0]}): only the prepared model is the judge"
                )
                return effects
            continue
        changed = _changed(scales, names, before, expected)
        if changed and example:
            effects.on_example = (
                f"_prepare_for_export changes {changed} on the example: the artifact computes the prepared model"
            )
            effects.notes.append(effects.on_example)
        elif changed:
            elsewhere.append(f"{point.label} ({changed})")
    if elsewhere:
        shown = "; ".join(elsewhere[:3]) + (f" and {len(elsewhere) - 3} more points" if len(elsewhere) > 3 else "")
        effects.notes.append(
            f"_prepare_for_export changes the numbers at {shown}: the artifact computes the prepared model"
        )
    return effects


def _changed(scales: Scales, names: Sequence[str], before: Tensors, after: Tensors) -> str:
    """The outputs that differ and by how much, or ''."""
    try:
        results = scales.compare(names, before, after)
    except ExportError as error:
        return f"the number of outputs ({error})"
    return ", ".join(f"{r.name!r} ({r.reason})" for r in results if not r.passed)
