"""A model with export hooks: its subnets, each one a file, proved alone and then together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from fxexport.artifact import Artifact
from fxexport.assuming import RECORDED, meets
from fxexport.capture import Captured, bind_example, capture_model
from fxexport.capture.interface import Interface
from fxexport.capture.private_copy import preserved_process_state, unwrap
from fxexport.compiling import Job, Options, Source, capture_job, publish_one, refuse_unknown_inputs
from fxexport.destination import preflight
from fxexport.errors import InputError
from fxexport.exportable import ExportRequest, Part, list_subnets, prepared_part, prepared_whole, subnet_files
from fxexport.exportable.copying import copy_for_hooks
from fxexport.exportable.replacement_registry import chosen_replacements
from fxexport.exportable.subnet_names import subnet_of
from fxexport.lowering import FORMATS
from fxexport.pipeline import Pipeline
from fxexport.pipeline_export import check_ours, of_subnet, publish_pipeline
from fxexport.subnet_examples import Example, Recorded, example_of, read_given, record_subnets
from fxexport.subnet_request import ASKED_NOTHING, SubnetRequest
from fxexport.subnets import Recording, Wiring, record, record_other_sizes
from fxexport.validation import ArtifactProcess

_FIXED = "{} declares no input_types: every axis is fixed unless dynamic= names it"
_EACH = ("dynamic_shapes", "dynamic", "dynamic_axes", "input_names", "output_names")
"""Arguments that belong to one subnet: with several, each is a dict from subnet to value."""


def compile_subnets(
    model: nn.Module, destination: Path, request: SubnetRequest, options: Options, process: ArtifactProcess
) -> Artifact | Pipeline:
    """Exports every subnet of ``model`` and, where they are several or carry a state, their pipeline."""
    whole, notes = unwrap(model)
    whole, copying = copy_for_hooks(whole)
    names = list_subnets(whole, request.config, _asked(request))
    files = subnet_files(destination, names)
    main = destination.parent / request.pipeline_file
    for path in files.values():
        preflight(path, tuple(FORMATS), mkdir=request.mkdir)
    if len(names) > 1:
        check_ours(preflight(main, (".json",)), destination.name)
    given = {name: _options_of(name, names, options) for name in names}
    recorded = record_subnets(whole, names, request, options.say)
    recording = recorded.recording
    notes += [*copying, *recorded.notes]
    alone = len(names) == 1 and recording is None
    if request.normalize and not alone:
        raise InputError(
            f"normalize_inputs is for a model that becomes one file; this one becomes a pipeline of {', '.join(names)}: "
            "call fxexport.replace_for_export(self, kind, inputs=(...)) in the _prepare_for_export of the part that takes "
            "the raw data"
        )
    with ExitStack() as stack:
        jobs = []
        for name in names:
            example = example_of(name, names, recording, request)
            with of_subnet(name) if len(names) > 1 else nullcontext():
                part, used, said = _enter(stack, whole, name, files[name], example, request, options)
                source = _source(part, used, recorded, [*(notes if alone else ()), *said, *part.notes])
                if name == names[0]:
                    source.further = [*source.further, *request.further]
                jobs.append(capture_job(source, files[name], given[name], drop_unread=True))
        refuse_unknown_inputs(jobs)
        if alone:
            return publish_one(jobs[0], process, stack.close)
        return publish_pipeline(
            jobs,
            main,
            destination.name,
            recording,
            lambda wiring: _replays(whole, names, recording, wiring, request, jobs, notes),
            notes,
            process,
            stack.close,
        )


@contextmanager
def entered(model: nn.Module, name: str, path: Path, request: SubnetRequest, options: Options) -> Iterator[Source]:
    """What the file at ``path`` of one subnet is made from, as :func:`compile_subnets` makes it; torn down at the end.

    Raises InputError where ``model`` has no subnet ``name``.
    """
    whole, _ = copy_for_hooks(unwrap(model)[0])
    names = list_subnets(whole, request.config, _asked(request))
    if name not in names:
        raise InputError(f"{path} holds {name!r}, but {type(whole).__name__} is exported as {', '.join(names)}")
    recorded = record_subnets(whole, names, request, options.say)
    with ExitStack() as stack:
        example = example_of(name, names, recorded.recording, request)
        part, used, notes = _enter(stack, whole, name, path, example, request, options)
        yield _source(part, used, recorded, notes)


def capture_subnet(
    model: nn.Module, name: str | None, example: Any, kwargs: Mapping[str, Any] | None, **options: Any
) -> Captured:
    """The program of one subnet (None: the first), as :func:`compile_subnets` would capture it.

    ``options`` are those of ``capture_model``. Raises InputError and CaptureError as there.
    """
    with subnet_source(model, name, example, kwargs) as source:
        return capture_model(source.model, source.example, source.kwargs, interface=source.interface, **options)


@contextmanager
def subnet_source(
    model: nn.Module, name: str | None, example: Any, kwargs: Mapping[str, Any] | None
) -> Iterator[Source]:
    """What one subnet (None: the first) is captured from, prepared; torn down at the end."""
    names = list_subnets(model)
    chosen = name or names[0]
    request = SubnetRequest(
        example,
        kwargs,
        further=(),
        prepare=ASKED_NOTHING,
        config={},
        replacements={},
        driver=None,
        recording=None,
        subnets=None if chosen in names else [chosen],
    )
    plain = Options("onnx", None, (), {}, {})
    with preserved_process_state(), entered(model, chosen, Path(f"{chosen}.onnx"), request, plain) as source:
        yield source


def _asked(request: SubnetRequest) -> Sequence[str] | None:
    """The subnets that were asked for by name, or that a given recording is of."""
    if request.subnets is None and request.recording is not None:
        return list(request.recording.parts)
    return request.subnets


def _options_of(name: str, names: Sequence[str], options: Options) -> Options:
    """The options of one subnet: what belongs to a subnet is given as a dict from subnet to value."""
    if len(names) == 1:
        return options
    own = dict(options.capture)
    for key in _EACH:
        value = own[key]
        if value is None or isinstance(value, bool):
            continue
        if not isinstance(value, Mapping) or not set(value) <= set(names):
            raise InputError(
                f"the model is exported as {', '.join(names)}: give {key} as a dict with one entry for each subnet it "
                f"concerns, such as {{{names[0]!r}: ...}}"
            )
        own[key] = value.get(name)
    return replace(options, capture=own)


def _replays(
    whole: nn.Module,
    names: Sequence[str],
    recording: Recording | None,
    wiring: Wiring,
    request: SubnetRequest,
    jobs: Sequence[Job],
    notes: list[str],
) -> Iterator[Recording]:
    """The runs to prove the pipeline on: what was recorded and the same at other sizes.

    Where preparing hooks change numbers, the run is recorded once more on a copy with all parts prepared: that is what
    the files compute.
    """
    assert recording is not None
    if assumed := [job for job in jobs if job.program.assumptions]:
        yield from _replays_as_assumed(assumed, recording, notes)
        return
    changed = ", ".join(job.source.name for job in jobs if job.changed)
    if not changed:
        yield recording
        yield from _other_sizes(whole, names, wiring, request, notes)
        return
    reason = "the recording was made of the model without its hooks; give driver= instead"
    if request.recording is None:
        export = ExportRequest(jobs[0].report.path, jobs[0].options.format, request.prepare, request.config)
        with prepared_whole(whole, names, export) as ready:
            try:
                again = record(ready, request.driver, request.example, request.kwargs, subnets=names)
            except Exception as error:  # noqa: BLE001 - hooks may leave a model that runs in parts only; reported below
                reason = f"so prepared, the whole does not run: {type(error).__name__}: {error}"
            else:
                yield again
                yield from _other_sizes(ready, names, wiring, replace(request, config={}), notes)
                return
    notes.append(f"the hooks of {changed} change numbers, and the parts were not proved together: {reason}")


def _replays_as_assumed(assumed: Sequence[Job], recording: Recording, notes: list[str]) -> Iterator[Recording]:
    """The recorded run where it meets what ``assumed`` jobs assume of inputs, and hooks changed no numbers."""
    broken = [job.source.name for job in assumed if not meets(job.captured)]
    changed = [job.source.name for job in assumed if job.changed]
    if broken or changed:
        why = "the recorded run does not meet what is assumed of inputs of" if broken else "hooks change numbers of"
        notes.append(f"{why} {', '.join(broken or changed)}: the parts were proved alone, not together")
        return
    yield recording
    notes.append("under what is assumed of inputs the parts were proved together at the recorded sizes only")


def _other_sizes(
    whole: nn.Module, names: Sequence[str], wiring: Wiring, request: SubnetRequest, notes: list[str]
) -> Iterator[Recording]:
    """The recorded run at other sizes; what eager refuses is added to ``notes``."""
    if request.recording is not None or (request.driver is not None and request.example is None and not request.kwargs):
        return  # the run makes its own inputs
    for found in record_other_sizes(
        whole, request.driver, request.example, request.kwargs, wiring.inputs, subnets=names, config=request.config
    ):
        if isinstance(found, str):
            notes.append(found)
        else:
            yield found


def _enter(
    stack: ExitStack,
    whole: nn.Module,
    name: str,
    path: Path,
    example: Example | None,
    request: SubnetRequest,
    options: Options,
) -> tuple[Part, Example | None, list[str]]:
    """The prepared subnet with its example; a recorded one that ``forward_for_export`` cannot take gives way to the hook."""
    export = ExportRequest(
        path=path,
        format=options.format,
        prepare=request.prepare,
        config=request.config,
        replacements=chosen_replacements(whole, request.replacements),
        normalize=request.normalize,
    )
    if example is None:
        return stack.enter_context(prepared_part(whole, name, export)), None, []
    given = read_given(subnet_of(whole, name), example.value, example.kwargs, documented=request.documented)
    trial = ExitStack()
    with trial:
        part = trial.enter_context(prepared_part(whole, name, export, given, source=example.source))
        try:
            bind_example(part.module, part.args, part.kwargs)
        except InputError as error:
            if example.source != "recorded":
                raise
            reason = str(error).splitlines()[0]
        else:
            stack.push(trial.pop_all())
            return part, example, []
    note = f"the recorded call of {name} is not one of what is exported ({reason}): its hook's example was taken"
    return stack.enter_context(prepared_part(whole, name, export)), None, [note]


def _source(part: Part, used: Example | None, recorded: Recorded, notes: Sequence[str]) -> Source:
    """What is captured of one part; recorded calls are examples to prove it on, and say which axes vary."""
    recording = recorded.of(typed=part.input_types is not None)
    seen = recording is not None and used is not None and used.source == "recorded"
    varying = recording.varying_axes(part.name) if seen and recording is not None else {}
    if part.input_types is None and not varying:
        notes = [*notes, _FIXED.format(part.owner)]
    interface = Interface(part.owner, part.input_types, part.output_types, part.disabled_outputs, varying)
    further: list[tuple[str, Any, Mapping[str, Any] | None]] = []
    if seen and recording is not None:
        calls = recording.further_examples(part.name)
        further = [(f"{RECORDED} {number}", args, kwargs) for number, (args, kwargs) in enumerate(calls, 1)]
    return Source(
        part.name,
        part.module,
        part.args,
        part.kwargs,
        original=part.original,
        interface=interface,
        given=used is not None and used.source == "given",
        further=further,
        notes=notes,
        config=part.config,
    )
