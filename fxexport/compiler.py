"""``compile``: capture -> passes -> lowering -> validation -> publishing, and nothing at the path before all of it held."""

from __future__ import annotations

import platform
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from torch import nn
from torch.export import ExportedProgram

from fxexport.artifact import Artifact
from fxexport.blame import History
from fxexport.capture import Captured, capture_model
from fxexport.capture.private_copy import preserved_process_state
from fxexport.destination import preflight
from fxexport.errors import InputError
from fxexport.lowering import FORMATS, TranslationTable, check_opset, format_of, lower
from fxexport.publishing import publication
from fxexport.rejection import find_culprit, reject
from fxexport.report import Report
from fxexport.rewrite import Pass, PassManager, PassSpec
from fxexport.rewrite.ordering import moves, ordered
from fxexport.rewrite.registry import requested
from fxexport.validation import ArtifactProcess, validate
from fxexport.validation.numbers import Scales, judge_on

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
    check: Literal["final", "each"] = "final",
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
        check: ``"each"`` also compares the numbers before and after every pass, in eager on the example; ``"final"``
            only those of the artifact.
        mkdir: make the parent directory.
        timeout: seconds that one run of the artifact may take.
        lock_timeout: seconds to wait for another process that writes the same path.
        progress: called with (stage, detail) as work goes on.

    Raises:
        InputError: what was asked is inconsistent; raised before the model is touched.
        CaptureError: the model cannot be a graph; names the line of code. PassError, LoweringError: likewise for
            passes and operators.
        ValidationError: the artifact is wrong; it is kept in ``<path>.rejected`` with its inputs, ``path`` is as before.
            Where passes rewrote the program, the first wrong rewrite is named, and ``error.blame`` is its ``Blame``.
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
    if check not in ("final", "each"):
        raise InputError(f"check must be 'final' or 'each', got {check!r}")
    destination = preflight(path, tuple(FORMATS), mkdir=mkdir)
    report = Report(destination, format_of(destination))
    if report.format == "onnx":
        report.opset = check_opset(opset_version)
    elif opset_version is not None:
        raise InputError(f"opset_version is for .onnx files; {destination.name} is {report.format}")
    given = requested(passes)
    pipeline = ordered(given)
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
        scales = Scales(rtol, atol, captured.unstable)
        history = _rewrite(captured, pipeline, report, on_error, scales if check == "each" else None)
        report.notes += moves(given)
        with publication(destination, lock_timeout=lock_timeout) as staging:
            say("lowering", report.format)
            metadata = _metadata(report)
            options: dict[str, Any] = {
                "metadata": metadata,
                "opset_version": report.opset,
                "external_data": external_data,
                "custom_translation_table": custom_translation_table,
            }
            with report.stage("lowering"):
                lower(captured.program, staging.main, **options)
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
                say("blame", f"{history.steps} rewrites")
                with report.stage("blame"):
                    blame = find_culprit(history, captured, report, scales, staging, timeout, options)
                raise reject(staging, report, report.validation, blame)
            say("publishing", str(destination))
            with report.stage("publishing"):
                files = staging.publish()
    report.files = {file.name: file.stat().st_size for file in files}
    return Artifact(destination, metadata, report)


def _rewrite(
    captured: Captured,
    pipeline: Sequence[Pass],
    report: Report,
    on_error: Literal["raise", "skip"],
    scales: Scales | None,
) -> History:
    """Runs the passes on the program of ``captured``; with ``scales`` each is judged by its numbers."""
    original, judge = captured.program, None
    if scales is not None:
        judge = judge_on(captured.examples, scales, reference=captured.reference)
    with report.stage("passes"):
        captured.program, report.passes = PassManager(pipeline, on_error=on_error, judge=judge).run(original)
    report.nodes = (original.node_count(), captured.program.node_count())
    report.signature = captured.program.signature
    report.notes = list(captured.program.notes)
    report.notes += [f"{b.path} = {b.value} is fixed in the artifact" for b in report.signature.baked]
    report.notes += [f"pass {r.name} failed and was left out: {r.error}" for r in report.passes if r.error]
    if scales is not None and scales.unstable:
        report.notes.append(
            f"after each pass only shape and dtype of {', '.join(sorted(scales.unstable))} were compared"
        )
    report.versions = {name: version(name) for name in _PACKAGES} | {"python": platform.python_version()}
    return History(original, pipeline, report.passes)


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
