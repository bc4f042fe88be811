"""One program on its way to a file: captured, rewritten, lowered, proved. ``compile`` runs one or several of these."""

from __future__ import annotations

import inspect
import platform
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from torch import nn
from torch.export import ExportedProgram

from fxexport.artifact import Artifact
from fxexport.assuming import assume, meeting, without_unread
from fxexport.assumptions import check_names
from fxexport.blame import Blame, History
from fxexport.capture import Captured, Reference, bind_example, capture_model
from fxexport.capture.interface import Interface
from fxexport.doctor import diagnose_failure
from fxexport.errors import CaptureError, InputError, ValidationError
from fxexport.lowering import Format, lower
from fxexport.precision import Precision, apply_precision, refuse_unknown_modules, unsupported
from fxexport.program import Program
from fxexport.publishing import publication
from fxexport.rejection import Rejected, find_culprit, reject
from fxexport.report import Report
from fxexport.report.interface import interface_notes
from fxexport.rewrite import Pass, PassManager
from fxexport.validation import ArtifactProcess, Tolerance, ValidationReport, validate
from fxexport.validation.hook_effects import hook_effects
from fxexport.validation.numbers import Scales, judge_on
from fxexport.validation.rounded import run_rounded
from fxexport.validation.sweep import Point, example_sizes

PACKAGES = ("fxexport", "torch", "onnx", "onnxscript", "onnxruntime")
Progress = Callable[[str, str], None]


@dataclass(frozen=True)
class Options:
    """What ``fxexport.compile`` was asked for, checked; see there.

    Attributes:
        capture: the arguments of ``capture_model`` besides model and example.
        lowering: the arguments of ``lower`` besides program, path, metadata and opset.
        assume: input -> what is guaranteed of its values. ``keep_inputs``: inputs that go unread by that stay.
        precision: what it computes in, None for the model's own dtypes. ``keep_fp32``: modules that stay in float32.
    """

    format: Format
    opset: int | None
    pipeline: Sequence[Pass]
    capture: Mapping[str, Any]
    lowering: Mapping[str, Any]
    rtol: float | None = None
    atol: float | None = None
    on_error: Literal["raise", "skip"] = "raise"
    check: Literal["final", "each"] = "final"
    timeout: float = 600.0
    lock_timeout: float = 3600.0
    exact_prepare: bool = False
    assume: Mapping[str, str] = field(default_factory=dict)
    keep_inputs: bool = False
    precision: Precision | None = None
    keep_fp32: Sequence[str] = ()
    notes: Sequence[str] = ()
    say: Progress = lambda stage, detail: None

    @property
    def usual(self) -> Tolerance | None:
        """The default tolerance, where it is not that of the outputs' dtypes."""
        return usual_tolerance(self.precision)


@dataclass
class Source:
    """What one artifact is made from.

    Attributes:
        name: the subnet's name, or ``"self"``.
        original: the module as it was before its hooks prepared it, where they did.
        interface: what typed hooks and recorded calls say of inputs and outputs.
        config: the model's export config, which passes can read.
        given: whether the example is the caller's own, not that of a hook or of a recorded run.
        further: label, example and keyword arguments of more examples to check.
    """

    name: str
    model: nn.Module | ExportedProgram
    example: Any = None
    kwargs: Mapping[str, Any] | None = None
    original: nn.Module | None = None
    interface: Interface | None = None
    given: bool = True
    further: Sequence[tuple[str, Any, Mapping[str, Any] | None]] = ()
    notes: Sequence[str] = ()
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Job:
    """One artifact in the making. ``program`` is what is lowered: without inputs that nothing reads.

    ``changed``: its preparing hooks change the numbers on the example.
    """

    source: Source
    report: Report
    options: Options
    captured: Captured
    program: Program
    history: History
    further: list[Point] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    changed: bool = False

    @property
    def scales(self) -> Scales:
        """How its outputs are weighed."""
        return Scales(self.options.rtol, self.options.atol, self.captured.unstable, self.options.usual)


def usual_tolerance(precision: Precision | None) -> Tolerance | None:
    """The default tolerance of an artifact in ``precision``."""
    return Tolerance(precision.rtol, precision.atol, scaled=True) if precision else None


def capture_job(source: Source, destination: Path, options: Options, *, drop_unread: bool = False) -> Job:
    """Captures and rewrites one program. With ``drop_unread`` inputs that nothing reads any more are left out."""
    report = Report(destination, options.format, opset=options.opset)
    options.say("capture", _named(source, type(source.model).__name__))
    with report.stage("capture"):
        captured = _capture(source, options)
    captured.program.notes[:0] = source.notes
    captured.program.config = source.config
    assume(captured, options.assume, given=source.given)
    _warn_training(captured)
    further = [meeting(_further(captured, *entry), captured) for entry in source.further]
    options.say("passes", ", ".join(map(str, options.pipeline)) or "none")
    scales = Scales(options.rtol, options.atol, captured.unstable) if options.check == "each" else None
    history = _rewrite(captured, options, report, scales)
    if options.precision is not None:
        history, options = _lower_precision(captured, options, options.precision, report, further, history)
    program = without_unread(captured.program, every=drop_unread, keep=options.keep_inputs)
    report.signature = program.signature
    report.notes += options.notes
    report.notes += interface_notes(program)
    job = Job(source, report, options, captured, program, history, further)
    if source.original is not None:
        _weigh_hooks(job, source.original)
    return job


_EXAMINED = ("dynamic_shapes", "dynamic", "dynamic_axes", "input_names", "as_input")


def _capture(source: Source, options: Options) -> Captured:
    """The captured program; where capture fails, the error also tells what else stands in the way."""
    what = {"interface": source.interface, **options.capture}
    try:
        return capture_model(source.model, source.example, source.kwargs, **what)
    except CaptureError as error:
        asked = {key: what[key] for key in ("interface", *_EXAMINED) if key in what}
        others = diagnose_failure(error, source.model, source.example, source.kwargs, **asked)
        error.args = ("\n".join(filter(None, [str(error), others])),)
        raise


def _named(source: Source, detail: str) -> str:
    return detail if source.name == "self" else f"{source.name}: {detail}"


def _further(captured: Captured, label: str, example: Any, kwargs: Mapping[str, Any] | None) -> Point:
    """One more example as a point to check. Raises InputError where its tensors are not those of the first example."""
    own, signature = captured.reference.call, captured.program.signature
    call = bind_example(captured.reference.model, example, kwargs, from_hook=True)  # a last dict holds keywords
    if call.paths != own.paths and kwargs is None and isinstance(example, tuple | list):
        call = bind_example(captured.reference.model, example, {})
    if own.pairs is not None:
        call = call.with_pairs()
    if own.state:  # as it is in the model
        call = call.with_state(dict(zip(own.state, own.tensors[-len(own.state) :], strict=True)))
    if call.paths != own.paths:
        raise InputError(f"{label} has the tensors {call.paths}, the first example {own.paths}")
    if differing := set(call.baked) - set(own.baked):
        first = {each.path: each.value for each in own.baked}
        told = ", ".join(f"{each.path} = {each.value} (not {first.get(each.path, 'given')})" for each in differing)
        raise InputError(
            f"{label} has {told}: a Python value is fixed in the artifact at what the first example gives. Make it a "
            "tensor (as_input=...), or leave this example out"
        )
    for spec, tensor in zip(signature.inputs, call.tensors, strict=True):
        fixed = tuple(a if isinstance(a, int) else s for a, s in zip(spec.axes, tensor.shape, strict=False))
        if tensor.dim() != len(spec.axes) or tensor.dtype != spec.dtype or fixed != tuple(tensor.shape):
            raise InputError(
                f"{label} gives {spec.name!r} as {tensor.dtype} {list(tensor.shape)}, but it was captured as "
                f"{spec.dtype} {list(spec.axes)}; make that axis dynamic, or leave this example out"
            )
    return Point(label, example_sizes(signature, call.tensors), tuple(call.tensors))


def _rewrite(captured: Captured, options: Options, report: Report, scales: Scales | None) -> History:
    """Runs the passes on the program of ``captured``; with ``scales`` each is judged by its numbers."""
    original, judge = captured.program, None
    if scales is not None:
        judge = judge_on(captured.examples, scales, reference=captured.reference)
    with report.stage("passes"):
        manager = PassManager(options.pipeline, on_error=options.on_error, judge=judge)
        captured.program, report.passes = manager.run(original)
    report.nodes = (original.node_count(), captured.program.node_count())
    report.notes = list(captured.program.notes)
    report.notes += [f"{b.path} = {b.value} is fixed in the artifact" for b in captured.program.signature.baked]
    report.notes += [f"pass {r.name} failed and was left out: {r.error}" for r in report.passes if r.error]
    if scales is not None and scales.unstable:
        report.notes.append(
            f"after each pass only shape and dtype of {', '.join(sorted(scales.unstable))} were compared"
        )
    report.versions = {name: version(name) for name in PACKAGES} | {"python": platform.python_version()}
    return History(original, manager.ran, report.passes)


def _lower_precision(
    captured: Captured,
    options: Options,
    precision: Precision,
    report: Report,
    further: Sequence[Point],
    history: History,
) -> tuple[History, Options]:
    """The program of ``captured`` in ``precision``: the history goes on with that rewrite, and so may the lowering."""
    options.say("precision", precision.name)
    examples = [captured.examples, *(point.inputs for point in further)]
    with report.stage("precision"):
        applied = apply_precision(
            captured.program,
            precision,
            examples,
            options.keep_fp32,
            to_onnx=options.format == "onnx",
            rtol=options.rtol,
            atol=options.atol,
        )
    captured.program, report.precision = applied.program, applied.record
    report.nodes = (report.nodes[0], captured.program.node_count())
    if applied.pass_ is not None and applied.entry is not None:
        report.passes = [*report.passes, applied.entry]
        history = History(history.captured, [*history.passes, applied.pass_], report.passes)
    return history, replace(options, lowering={**options.lowering, "after": applied.after})


def _warn_training(captured: Captured) -> None:
    for note in captured.program.notes:
        if "was in training mode" in note:
            _warn(note)


def _warn(text: str) -> None:
    """A warning at the line of the caller's own code."""
    frame, level = inspect.currentframe(), 0
    while frame is not None and frame.f_globals.get("__name__", "").startswith("fxexport."):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, UserWarning, stacklevel=level + 1)


def _weigh_hooks(job: Job, original: nn.Module) -> None:
    """What the preparing hooks changed in the numbers is said, or refused with ``exact_prepare``."""
    before = Reference(original.eval(), job.captured.reference.call)
    effects = hook_effects(before, job.captured, job.scales, job.further)
    job.report.notes += effects.notes
    if effects.on_example and job.options.exact_prepare:
        raise ValidationError(
            f"exact_prepare: {effects.on_example}; correct the hook, or allow it with exact_prepare=False"
        )
    job.changed = bool(effects.on_example)
    if job.changed:
        _warn(effects.on_example)


def lower_job(job: Job, staged: Path) -> None:
    """Writes the file, not yet proved, at ``staged``."""
    options, report = job.options, job.report
    options.say("lowering", _named(job.source, options.format))
    job.metadata = _metadata(job)
    with report.stage("lowering"):
        lower(
            job.program,
            staged,
            job.metadata,
            opset_version=options.opset,
            function_records=report.functions,
            **options.lowering,
        )
    if report.precision is not None:
        job.metadata["precision"] = report.precision.to_json()  # with what the lowering counted


def refuse_unknown_inputs(jobs: Sequence[Job]) -> None:
    """Raises InputError for an assumption about an input, or a module to keep in float32, that no program has."""
    check_names(jobs[0].options.assume, [job.captured.program.signature for job in jobs])
    refuse_unknown_modules(jobs[0].options.keep_fp32, [job.history.captured for job in jobs])


def refuse_missing_functions(jobs: Sequence[Job]) -> None:
    """Raises InputError for a class that was to become a function and of which no program has a module."""
    missing = [{each.class_name: each.note for each in job.report.functions if each.note} for job in jobs]
    for name, note in missing[0].items():
        if all(name in other for other in missing):
            raise InputError(f"export_modules_as_functions: {name}: {note}")


def refuse_idle_precision(jobs: Sequence[Job]) -> None:
    """Raises InputError where no program has an operator that computes with fewer bits; of several, one may have none."""
    idle = [job.report for job in jobs if job.report.precision is not None and not job.report.precision.lowered]
    if len(idle) == len(jobs):
        name = jobs[0].options.precision.name if jobs[0].options.precision else ""
        raise InputError(
            f"precision={name!r} changes nothing: no operator that may have fewer bits computes with float32 numbers (int8 "
            "is for products by weights, not for convolutions); leave precision out, or keep fewer modules in float32"
        )
    for report in idle:
        report.notes.append("nothing in it may have fewer bits: it computes in float32")


def validate_job(job: Job, process: ArtifactProcess, staged: Path, staging: Rejected) -> None:
    """Proves the file at ``staged`` against eager. Raises ValidationError where it is wrong; it is kept for inspection."""
    options, report = job.options, job.report
    with report.stage("validation"):
        report.validation = validate(
            process,
            staged,
            job.captured.reference,
            job.program.signature,
            job.captured.examples,
            expected=job.captured.expected,
            unstable=job.captured.unstable,
            rtol=options.rtol,
            atol=options.atol,
            usual=options.usual,
            further=job.further,
            decisions=job.program.decisions,
            assumptions=job.program.assumptions,
            progress=lambda point: options.say("validation", _named(job.source, point)),
        )
        if report.validation.passed and options.format == "onnx" and options.precision and options.precision.dtype:
            _add_rounded(job, report.validation)
    report.notes += report.validation.limits
    if report.validation.passed:
        return
    options.say("blame", f"{job.history.steps} rewrites")
    with report.stage("blame"):
        blame: Blame | str = unsupported(staged, options.precision, report.validation.points[0].reason)
        if not blame and (options.precision is None or options.precision.dtype is not None):  # int8 is no rewrite
            lowering = {"metadata": job.metadata, "opset_version": options.opset, **options.lowering}
            blame = find_culprit(job.history, job.captured, report, job.scales, staging, options.timeout, lowering)
    names = [spec.name for spec in job.captured.program.signature.inputs]
    raise reject(staging, report, report.validation, blame, names)


def _add_rounded(job: Job, validation: ValidationReport) -> None:
    """The examples once more, each operator rounded: onnxruntime's CPU provider skips roundings to float16."""
    captured = job.captured
    sizes = example_sizes(captured.program.signature, captured.examples)
    examples = [Point("example", sizes, tuple(captured.examples)), *job.further]
    rounded, why_not = run_rounded(captured.program, captured.reference, examples, job.scales)
    validation.points += rounded
    validation.limits += filter(None, [why_not])


def publish_one(job: Job, process: ArtifactProcess, finish: Callable[[], None] = lambda: None) -> Artifact:
    """Lowers, proves and publishes the one file of ``job``; ``finish`` is called when all but publishing is done."""
    report, options = job.report, job.options
    with publication(report.path, lock_timeout=options.lock_timeout) as staging:
        lower_job(job, staging.main)
        refuse_missing_functions([job])
        refuse_idle_precision([job])
        validate_job(job, process, staging.main, staging)
        finish()
        options.say("publishing", str(report.path))
        with report.stage("publishing"):
            files = staging.publish()
    report.files = {file.name: file.stat().st_size for file in files}
    return Artifact(report.path, job.metadata, report)


def _metadata(job: Job) -> dict[str, Any]:
    """What goes into the file: the same on every run and machine directory, so no times and no absolute paths."""
    report = job.report
    subnet = {} if job.source.name == "self" else {"subnet": job.source.name}
    return {
        "format": report.format,
        "opset": report.opset,
        **subnet,
        "signature": job.program.signature.to_json(),
        **({"decisions": [d.to_json() for d in job.program.decisions]} if job.program.decisions else {}),
        **({"assumptions": [a.to_json() for a in job.program.assumptions]} if job.program.assumptions else {}),
        **({"precision": report.precision.to_json()} if report.precision else {}),
        "passes": [{"name": r.name, "count": r.count} for r in report.passes if not r.error],
        "notes": [re.sub(r"(?<![\w.])/(?:[^\s/:'\"]+/)+", "", note) for note in dict.fromkeys(report.notes)],
        "versions": report.versions,
    }


__all__ = ["Job", "Options", "Progress", "Source", "capture_job", "lower_job", "publish_one", "validate_job"]
