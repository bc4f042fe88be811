"""``compile``: capture -> passes -> lowering -> validation -> publishing, and nothing at the path before all of it held."""

from __future__ import annotations

import json
import platform
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.export import ExportedProgram

from fxexport.artifact import Artifact
from fxexport.capture import Captured, capture_model
from fxexport.capture.private_copy import preserved_process_state
from fxexport.destination import preflight
from fxexport.errors import InputError, ValidationError
from fxexport.lowering import FORMATS, TranslationTable, check_opset, format_of, lower
from fxexport.publishing import Staging, publication
from fxexport.report import Report
from fxexport.rewrite import Pass, PassManager, PassSpec, resolve
from fxexport.validation import ArtifactProcess, ValidationReport, evaluate, validate

_PACKAGES = ("fxexport", "torch", "onnx", "onnxscript", "onnxruntime")
Progress = Callable[[str, str], None]


def compile(
    model: nn.Module | ExportedProgram,
    path: str | Path,
    example_inputs: Any = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    dynamic: Any = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    opset_version: int | None = None,
    passes: PassSpec = "default",
    target: Literal["onnx"] | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    as_input: Sequence[str] = (),
    allow_random: bool = False,
    allow_nan: bool = False,
    training: bool = False,
    state: Literal["frozen", "explicit"] = "frozen",
    external_data: bool | None = None,
    custom_translation_table: TranslationTable | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    mkdir: bool = False,
    timeout: float = 600.0,
    lock_timeout: float = 3600.0,
    progress: Progress | None = None,
) -> Artifact:
    """Exports ``model`` to ``path``, which appears only after the file ran and agreed with the eager model.

    Args:
        model: an nn.Module, a torch.export.ExportedProgram or an fx.GraphModule. It is left exactly as it is.
        path: the extension decides the format: ``.onnx``, ``.pt``/``.ts`` (TorchScript), ``.pt2`` (torch.export).
        example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments; None takes the
            model's ``input_example()`` hook.
        kwargs: keyword arguments of ``forward``.
        dynamic_shapes, dynamic: which dimensions may change: ``True``; ``{"x": ["batch", None, "time"]}``;
            ``{"x": {0: "batch"}}``; ``{"x": [0, 2]}``; or torch.export's own form with ``Dim``. Keys are parameters of
            ``forward``, flat inputs, or the given ``input_names``.
        input_names, output_names: one name for each flat tensor; default: from the parameters and the result's keys.
        opset_version: the ONNX opset, exactly.
        passes: ``"default"``, ``"none"``, a pipeline such as ``"remove-dropout,fold-batchnorm"``, a Pass, or a list.
        target: ``"onnx"``: standard operators only, for any runtime.
        rtol, atol: tolerance for every real output; default by dtype, ``atol`` relative to the output's scale.
        as_input: Python numbers among the arguments that become 0-d tensor inputs instead of being fixed.
        allow_random: accept outputs that differ from run to run in eager; only shape and dtype are then checked.
        allow_nan: accept NaN in the eager outputs; positions must match.
        training: only False; an artifact computes inference.
        state: buffers that forward updates (caches, counters). ``"frozen"``: every call starts from the values the model
            has now, and updates are not kept; ``"explicit"``: they are inputs ``input_<buffer>`` and outputs
            ``output_<buffer>``, and calling the artifact returns ``(result, {buffer: new value})``.
        external_data: ONNX weights in a file beside the model; default: only where they do not fit inside (2 GB).
        custom_translation_table: operator -> onnxscript function, for operators ONNX has no translation of.
        on_error: ``"skip"`` goes on without a pass that fails, and reports it.
        mkdir: make the parent directory.
        timeout: seconds that one run of the artifact may take.
        lock_timeout: seconds to wait for another process that writes the same path.
        progress: called with (stage, detail) as work goes on.

    Raises:
        InputError: what was asked is inconsistent; raised before the model is touched.
        CaptureError: the model cannot be a graph; names the line of code. PassError, LoweringError: likewise for
            passes and operators.
        ValidationError: the artifact is wrong; it is kept in ``<path>.rejected`` with its inputs, ``path`` is as before.
        PublishError: the file could not be put in place; ``path`` is as before.
    """
    if training:
        raise InputError(
            "training=True: an artifact computes inference; dropout and batch statistics have no meaning in it"
        )
    if target not in (None, "onnx"):
        raise InputError(f"target {target!r} is not known; the only target is 'onnx' (standard operators)")
    if state not in ("frozen", "explicit"):
        raise InputError(f"state must be 'frozen' or 'explicit', got {state!r}")
    destination = preflight(path, tuple(FORMATS), mkdir=mkdir)
    report = Report(destination, format_of(destination))
    if report.format == "onnx":
        report.opset = check_opset(opset_version)
    elif opset_version is not None:
        raise InputError(f"opset_version is for .onnx files; {destination.name} is {report.format}")
    pipeline = resolve(passes)
    say = progress or (lambda stage, detail: None)
    process = ArtifactProcess(report.format, timeout=timeout)
    with preserved_process_state(), process:
        say("capture", type(model).__name__)
        with report.stage("capture"):
            captured = capture_model(
                model,
                example_inputs,
                kwargs,
                dynamic_shapes=dynamic_shapes,
                dynamic=dynamic,
                input_names=input_names,
                output_names=output_names,
                as_input=as_input,
                allow_random=allow_random,
                allow_nan=allow_nan,
                state=state,
            )
        _warn_training(captured)
        say("passes", ", ".join(map(str, pipeline)) or "none")
        _rewrite(captured, pipeline, report, on_error)
        with publication(destination, lock_timeout=lock_timeout) as staging:
            say("lowering", report.format)
            metadata = _metadata(report)
            with report.stage("lowering"):
                lower(
                    captured.program,
                    staging.main,
                    metadata,
                    opset_version=report.opset,
                    external_data=external_data,
                    custom_translation_table=custom_translation_table,
                )
            with report.stage("validation"):
                report.validation = validate(
                    process,
                    staging.main,
                    captured.reference,
                    captured.program.signature,
                    captured.examples,
                    expected=captured.expected,
                    unstable=captured.unstable,
                    rtol=rtol,
                    atol=atol,
                    progress=lambda point: say("validation", point),
                )
            report.notes += report.validation.limits
            if not report.validation.passed:
                raise ValidationError(_reject(staging, report, report.validation))
            say("publishing", str(destination))
            with report.stage("publishing"):
                files = staging.publish()
    report.files = {file.name: file.stat().st_size for file in files}
    return Artifact(destination, metadata, report)


def _rewrite(captured: Captured, pipeline: Sequence[Pass], report: Report, on_error: Literal["raise", "skip"]) -> None:
    before = captured.program.node_count()
    with report.stage("passes"):
        captured.program, report.passes = PassManager(pipeline, on_error=on_error).run(captured.program)
    report.nodes = (before, captured.program.node_count())
    report.signature = captured.program.signature
    report.notes = list(captured.program.notes)
    report.notes += [f"{b.path} = {b.value} is fixed in the artifact" for b in report.signature.baked]
    report.notes += [f"pass {r.name} failed and was left out: {r.error}" for r in report.passes if r.error]
    report.versions = {name: version(name) for name in _PACKAGES} | {"python": platform.python_version()}


def _warn_training(captured: Captured) -> None:
    for note in captured.program.notes:
        if "was in training mode" in note:
            warnings.warn(note, UserWarning, stacklevel=3)


def _metadata(report: Report) -> dict[str, Any]:
    """What goes into the file: the same on every run and machine directory, so no times and no absolute paths."""
    assert report.signature is not None
    return {
        "format": report.format,
        "opset": report.opset,
        "signature": report.signature.to_json(),
        "passes": [{"name": r.name, "count": r.count} for r in report.passes if not r.error],
        "notes": [re.sub(r"(?<![\w.])/(?:[^\s/:'\"]+/)+", "", note) for note in report.notes],
        "versions": report.versions,
    }


def _reject(staging: Staging, report: Report, validation: ValidationReport) -> str:
    """Keeps the candidate, its report and the failing inputs in ``<path>.rejected``; returns the error's message."""
    failures = validation.failures
    lines = [f"{point.label} {point.sizes or ''}: {point.reason}" for point in failures[:5]]
    if not failures:
        lines = ["no point could be compared: " + "; ".join(p.skipped for p in validation.points)]
    staging.directory.joinpath("report.json").write_text(json.dumps(report.to_json(), indent=1))
    staging.directory.joinpath("report.txt").write_text(str(report))
    if validation.failing_inputs is not None:
        assert report.signature is not None
        names = [spec.name for spec in report.signature.inputs]
        torch.save(dict(zip(names, validation.failing_inputs, strict=True)), staging.directory / "inputs.pt")
    kept = staging.reject()
    return "\n".join(
        [
            f"{report.path.name} does not agree with the eager model and was not published:",
            *(f"  {line}" for line in lines),
            *_hints(report, validation),
            f"The candidate, its report and the inputs are in {kept}; {report.path} is as it was before.",
        ]
    )


def _hints(report: Report, validation: ValidationReport) -> list[str]:
    """Ways out that the failing points suggest."""
    hints = []
    if any(point.label.endswith("=1") and 1 in point.sizes.values() for point in validation.failures):
        hints.append("Where size 1 is not needed, declare the dimension with torch.export.Dim(name, min=2).")
    for guard in report.signature.guards if report.signature else ():
        broken = (point for point in validation.failures if point.sizes and not evaluate(guard.condition, point.sizes))
        if any(broken):
            hints.append(
                f"At {guard.place} the model decides whether {guard.condition}, and the graph holds one side of it: keep "
                "to sizes on that side (torch.export.Dim with min and max), or write both sides with torch.cond."
            )
    return hints
