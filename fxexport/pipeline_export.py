"""Several proved files as one pipeline: wired as recorded, checked end to end, published together with its description."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from fxexport.compiling import PACKAGES, Job, lower_job, refuse_idle_precision, refuse_missing_functions, validate_job
from fxexport.errors import ExportError, InputError, ValidationError
from fxexport.lowering.shared_weights import share_weights
from fxexport.pipeline import Pipeline
from fxexport.pipeline.files import pipeline_text, sha256_of
from fxexport.pipeline.spec import PartFile, PipelineSpec, TensorPort
from fxexport.pipeline.values import to_torch
from fxexport.publishing import JointStaging, joint_publication
from fxexport.report.pipeline_report import PipelineReport
from fxexport.signature import TensorSpec, dtype_name
from fxexport.subnets import (
    PartInterface,
    Recording,
    Wiring,
    check_pipeline,
    contradictions,
    unwired,
    wire,
    with_buffer_states,
    with_declared_states,
)
from fxexport.validation import ArtifactProcess, ValidationReport
from fxexport.validation.numbers import Scales


def publish_pipeline(
    jobs: Sequence[Job],
    main: Path,
    name: str,
    recording: Recording | None,
    replays: Callable[[Wiring], Iterable[Recording]],
    notes: list[str],
    process: ArtifactProcess,
    finish: Callable[[], None] = lambda: None,
) -> Pipeline:
    """Lowers and proves every job, then all of them together, and publishes the files and ``main`` (pipeline.json).

    ``name`` is that of the path that was asked for; ``replays`` gives the runs to prove the whole on; ``notes`` are the
    report's, of the whole model, and may grow while ``replays`` runs; ``finish`` is called when all but publishing is
    done.

    Raises ValidationError where a part or the whole is wrong, InputError where ``main`` belongs to another export.
    """
    options = jobs[0].options
    paths = {job.source.name: job.report.path for job in jobs}
    with joint_publication(list(paths.values()), main, lock_timeout=options.lock_timeout) as staging:
        check_ours(main, name)  # under its lock: another export may just have written it
        staged = {part: staging.path_of(path) for part, path in paths.items()}
        for job in jobs:
            with of_subnet(job.source.name):
                lower_job(job, staged[job.source.name])
        refuse_missing_functions(jobs)
        refuse_idle_precision(jobs)
        report = PipelineReport(main, {job.source.name: job.report for job in jobs}, notes=notes)
        if options.format == "onnx":
            report.shared = share_weights(list(staged.values()), staging.main).bytes_saved
        for job in jobs:
            validate_job(job, process, staged[job.source.name], staging)
        interfaces = [PartInterface(job.source.name, job.program.signature.in_model, _held(job)) for job in jobs]
        wiring = wire(recording, interfaces) if recording else unwired(interfaces)
        uncalled = recording.uncalled if recording else paths
        wiring = with_declared_states(wiring, interfaces, uncalled)
        wiring = with_buffer_states(wiring, interfaces)
        report.notes += [*wiring.notes, *(contradictions(recording, interfaces) if recording else ())]
        report.spec = _spec(jobs, staged, wiring, name)
        staging.main.write_text(pipeline_text(report.spec), encoding="utf-8")
        if recording is not None:
            options.say("validation", "the pipeline, end to end")
            whole = Pipeline.load(staging.main)
            if runs := list(replays(wiring)):
                report.check = _check(whole, runs, wiring, interfaces, jobs)
                _refuse_wrong(report, staging)
        finish()
        options.say("publishing", str(main))
        files = staging.publish()
    _sizes(report, jobs, files)
    pipeline = Pipeline.load(main)
    pipeline.report = report
    return pipeline


@contextmanager
def of_subnet(name: str) -> Iterator[None]:
    """Errors within the block say which subnet they are about."""
    try:
        yield
    except ExportError as error:
        error.args = (f"subnet {name!r}: {error}", *error.args[1:])
        raise
    except Exception as error:
        error.add_note(f"fxexport: this was in the subnet {name!r}")
        raise


def _held(job: Job) -> dict[str, torch.Tensor]:
    """The flat inputs that are buffers of the module (explicit state), with the values they have now."""
    call, signature = job.captured.reference.call, job.captured.program.signature
    own = len(call.tensors) - len(call.state)
    held = zip(signature.inputs[own:], call.tensors[own:], strict=True)
    return {spec.name: torch.view_as_complex(value) if spec.pairs else value for spec, value in held}


def check_ours(main: Path, name: str) -> None:
    """Raises InputError where ``main`` exists and describes another export."""
    if not main.exists():
        return
    try:
        owner = json.loads(main.read_text(encoding="utf-8")).get("name")
    except (ValueError, AttributeError):
        owner = None
    if owner != name:
        what = f"describes the pipeline of {owner}" if owner else "is not a pipeline of fxexport"
        raise InputError(f'{main} {what}: export to another directory, or give pipeline_file="another.json"')


def _spec(jobs: Sequence[Job], staged: Mapping[str, Path], wiring: Wiring, name: str) -> PipelineSpec:
    files = {job.source.name: _part_file(job, staged[job.source.name]) for job in jobs}
    return PipelineSpec(
        name=name,
        format=jobs[0].options.format,
        parts=tuple(files[part] for part in wiring.order),
        loop=wiring.loop,
        inputs=wiring.inputs,
        wires=wiring.wires,
        states=wiring.states,
        outputs=wiring.outputs,
        notes=wiring.notes,
        versions={key: jobs[0].report.versions[key] for key in PACKAGES},
    )


def _part_file(job: Job, path: Path) -> PartFile:
    def port(spec: TensorSpec) -> TensorPort:
        own = spec.in_model  # wires and their views are between complex tensors
        return TensorPort(spec.name, dtype_name(own.dtype), own.axes, spec.pairs)

    signature = job.program.signature
    inputs, outputs = tuple(map(port, signature.inputs)), tuple(map(port, signature.outputs))
    return PartFile(job.source.name, path.name, sha256_of(path), inputs, outputs)


def _check(
    pipeline: Pipeline,
    recordings: Sequence[Recording],
    wiring: Wiring,
    interfaces: Sequence[PartInterface],
    jobs: Sequence[Job],
) -> ValidationReport:
    """The recorded runs once more, with the files in place of the eager parts and values flowing along the wires."""

    def run_part(part: str, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: to_torch(value) for name, value in pipeline.run(part, **inputs).items()}

    options = jobs[0].options
    scales = Scales(options.rtol, options.atol, usual=options.usual)
    unstable = {job.source.name: job.captured.unstable for job in jobs}
    report = ValidationReport()
    for recording in recordings:
        report.points += check_pipeline(run_part, recording, wiring, interfaces, scales, unstable)
    return report


def _refuse_wrong(report: PipelineReport, staging: JointStaging) -> None:
    assert report.check is not None
    if report.check.passed:
        return
    lines = [f"{point.label}: {point.reason}" for point in report.check.failures[:5]] or ["nothing could be compared"]
    staging.directory.joinpath("report.txt").write_text(str(report), encoding="utf-8")
    kept = staging.reject()
    raise ValidationError(
        "\n".join(
            [
                "every subnet agrees with eager, but together, wired as recorded, they do not; nothing was published:",
                *(f"  {line}" for line in lines),
                f"The candidates are in {kept}; what was there before is as it was.",
            ]
        )
    )


def _sizes(report: PipelineReport, jobs: Sequence[Job], files: Sequence[Path]) -> None:
    report.files = {file.name: file.stat().st_size for file in files}
    for job in jobs:
        own = job.report.path.name
        job.report.files = {
            name: size for name, size in report.files.items() if name == own or name.startswith(f"{own}.")
        }
