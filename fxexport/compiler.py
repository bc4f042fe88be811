"""``compile``: capture -> passes -> lowering -> validation -> publishing, and nothing at the path before all of it held."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import nn
from torch.export import ExportedProgram

from fxexport.artifact import Artifact
from fxexport.assumptions import split
from fxexport.capture.private_copy import preserved_process_state
from fxexport.compiling import Options, Progress, Source, capture_job, publish_one, refuse_unknown_inputs
from fxexport.destination import preflight
from fxexport.errors import InputError
from fxexport.exportable import has_hooks
from fxexport.exportable.entry import register
from fxexport.exportable.inserting import as_layers
from fxexport.exportable.replacement_registry import Replacements
from fxexport.lowering import FORMATS, TranslationTable, check_opset, format_of, refuse_options
from fxexport.pipeline import Pipeline
from fxexport.precision import requested_precision
from fxexport.rewrite import PassSpec
from fxexport.rewrite.ordering import moves, ordered
from fxexport.rewrite.registry import requested
from fxexport.subnet_examples import read_given
from fxexport.subnet_export import compile_subnets
from fxexport.subnet_request import SubnetRequest
from fxexport.subnets import Driver, Recording
from fxexport.validation import ArtifactProcess


def compile(
    model: nn.Module | ExportedProgram,
    path: str | Path,
    example_inputs: Any = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    dynamic: Any = None,
    dynamic_axes: Mapping[str, Any] | None = None,
    input_names: Any = None,
    output_names: Any = None,
    opset_version: int | None = None,
    passes: PassSpec = "default",
    target: Literal["onnx"] | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    as_input: Sequence[str] = (),
    allow_random: bool = False,
    allow_nan: bool = False,
    training: bool = False,
    assume: str | Mapping[str, bool | str] | None = None,
    keep_inputs: bool = False,
    precision: Literal["fp16", "bf16", "int8-dynamic"] | None = None,
    keep_fp32: Sequence[str] = (),
    state: Literal["frozen", "explicit"] = "frozen",
    external_data: bool | None = None,
    custom_translation_table: TranslationTable | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    check: Literal["final", "each"] = "final",
    mkdir: bool = False,
    exact_prepare: bool = False,
    export_config: Mapping[str, Any] | None = None,
    prepare: Mapping[str, Any] | None = None,
    replacements: Replacements | None = None,
    normalize_inputs: Mapping[str, str | nn.Module] | None = None,
    subnets: Sequence[str] | None = None,
    driver: Driver | Sequence[Driver] | None = None,
    recording: Recording | None = None,
    pipeline_file: str = "pipeline.json",
    do_constant_folding: bool = True,
    export_modules_as_functions: bool | Collection[type[nn.Module] | str] = False,
    keep_initializers_as_inputs: bool | None = None,
    check_trace: bool | Sequence[Any] = False,
    check_tolerance: float | None = None,
    input_example: Any = None,
    onnx_opset_version: int | None = None,
    use_dynamo: bool | None = None,
    verbose: bool = False,
    timeout: float = 600.0,
    lock_timeout: float = 3600.0,
    progress: Progress | None = None,
) -> Artifact | Pipeline:
    """Exports ``model`` to ``path``, which appears only after the file ran and agreed with the eager model.

    A model with export hooks (``input_example``, ``input_types``, ``list_export_subnets``...: see docs/exportable.md)
    needs no other argument. One with several subnets becomes the files ``<subnet>-<name>`` beside ``path`` and a
    ``pipeline.json``; all of them appear, or none.

    Args:
        model: an nn.Module, a torch.export.ExportedProgram or an fx.GraphModule. It is left exactly as it is.
        path: the extension decides the format: ``.onnx``, ``.pt``/``.ts`` (TorchScript), ``.pt2`` (torch.export).
        example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments; None takes the
            model's ``input_example()`` hook. With several subnets: of the whole model, or of the first subnet.
        kwargs: keyword arguments of ``forward``.
        dynamic_shapes, dynamic: which dimensions may change: ``True``; ``{"x": ["batch", None, "time"]}``;
            ``{"x": {0: "batch"}}``; ``{"x": [0, 2]}``; or torch.export's own form with ``Dim``. Keys are parameters of
            ``forward``, flat inputs, or the given ``input_names``.
            With several subnets: a dict from subnet to one of these, as for the names.
        dynamic_axes: the same in torch.onnx's form, in which outputs may be named too.
        input_names, output_names: one name for each flat tensor; default: from the parameters and the result's keys.
        opset_version: the ONNX opset, exactly.
        passes: ``"default"``, ``"none"``, a pipeline such as ``"remove-dropout,fold-batchnorm"``, a Pass, or a list.
        target: ``"onnx"``: standard operators only, for any runtime.
        rtol, atol: tolerance for every real output; default by dtype, ``atol`` relative to the output's scale.
        as_input: Python numbers among the arguments that become 0-d tensor inputs instead of being fixed.
        allow_random: accept outputs that differ from run to run in eager; only shape and dtype are then checked.
        allow_nan: accept NaN in the eager outputs; positions must match.
        assume: what you guarantee of decisions that forward takes on data, where both sides shall not or cannot be in the
            artifact: ``"as in the examples"``, or the side for a line: ``{"net.py:41": True}``. Or of the values of an
            input: ``{"length": "full"}`` (as long as the padded tensor), ``{"attention_mask": "ones"}``, ``"zeros"``: masks
            that become trivial are taken out (see docs/masks.md). It is told in report and artifact.
        keep_inputs: inputs that nothing reads any more by such an assumption stay inputs of the artifact.
        precision: compute with fewer bits: weights and activations of float16 or bfloat16, or integer products in ONNX.
            Inputs and outputs stay float32; what the ranges on the examples forbid stays float32 too (see
            docs/precision.md). The file is compared with the float32 model, by ``rtol`` and ``atol`` or the precision's
            documented default.
        keep_fp32: modules that stay in float32, by their paths: ``("decoder.norm", "head")``.
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
        exact_prepare: refuse a model whose preparing hooks change its outputs on the example (default: a warning).
        export_config: given to the model's ``set_export_config``, on the private copy.
        prepare: further keyword arguments for the ``_prepare_for_export`` hooks.
        replacements: ``{"ClassName": factory}``: modules of that class become ``factory(module)``, on the private copy.
            ``"default"`` in place of a factory, or of the dict: the registered one (``fxexport.register_replacement``).
        normalize_inputs: ``{"image": "minmax"}``: that parameter of ``forward`` is normalized inside the artifact, which
            takes raw data; a kind of ``InputNormalization``, or a module. The file is compared with the model after the same
            normalization in PyTorch.
        subnets: names of the parts to export, or paths of submodules (``"model.encoder"``); default: those of the
            model's ``list_export_subnets``, or of ``recording``.
        driver: runs the model the way it is used (``driver(model, *example_inputs, **kwargs)``, a decode loop for
            instance), or a list of those: what really flows between the subnets is recorded from it.
        recording: such a recording, made by ``fxexport.record``.
        pipeline_file: name of the file that describes how the subnets are wired.
        do_constant_folding: False keeps operators over weights and constants in the file (no pass ``fold-constants``).
        export_modules_as_functions: True, or a set of classes: modules that become ONNX functions, repeated blocks once.
        keep_initializers_as_inputs: True lists the weights of the ONNX file as inputs too.
        check_trace: a list of further example inputs to prove the artifact on.
        check_tolerance: sets ``rtol`` and ``atol``.
        input_example, onnx_opset_version: other spellings of ``example_inputs`` and ``opset_version``.
        use_dynamo: accepted for compatibility, without effect.
        verbose: prints the stages on stderr.
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
    example_inputs = _one_of(example_inputs=example_inputs, input_example=input_example)
    opset_version = _one_of(opset_version=opset_version, onnx_opset_version=onnx_opset_version)
    if check_tolerance is not None:
        rtol, atol = (
            _one_of(rtol=rtol, check_tolerance=check_tolerance),
            _one_of(atol=atol, check_tolerance=check_tolerance),
        )
    sides, inputs_assumed = split(assume)
    destination = preflight(path, tuple(FORMATS), mkdir=mkdir)
    kind = format_of(destination)
    wanted = requested_precision(
        precision,
        kind,
        keep_initializers_as_inputs=keep_initializers_as_inputs,
        export_modules_as_functions=export_modules_as_functions,
    )
    if keep_fp32 and wanted is None:
        raise InputError("keep_fp32 names modules to leave out of a lower precision: give precision, too")
    if isinstance(keep_fp32, str):
        raise InputError(f"keep_fp32 is a sequence of module paths: ({keep_fp32!r},)")
    if kind != "onnx" and opset_version is not None:
        raise InputError(f"opset_version is for .onnx files; {destination.name} is {kind}")
    if kind != "onnx":
        refuse_options(
            destination,
            kind,
            keep_initializers_as_inputs=keep_initializers_as_inputs,
            export_modules_as_functions=export_modules_as_functions,
        )
    given = requested(passes)
    folds = do_constant_folding and not keep_initializers_as_inputs  # else each weight stays, for callers to replace
    fitting = [each for each in ordered(given) if not each.formats or kind in each.formats]
    unasked = "keep_initializers_as_inputs=True" if do_constant_folding else "do_constant_folding=False"
    unfolded = [each for each in fitting if each.name == "fold-constants" and not folds]
    fitting = [each for each in fitting if each not in unfolded]
    left_out = [each for each in given if each.formats and kind not in each.formats and passes != "default"]
    if inputs_assumed and not any(each.name == "disable-masks" for each in fitting):
        raise InputError(f"assume says something of {', '.join(inputs_assumed)}: passes must include disable-masks")
    lowering: dict[str, Any] = {
        "external_data": external_data,
        "custom_translation_table": custom_translation_table,
        "do_constant_folding": do_constant_folding,
        "keep_initializers_as_inputs": bool(keep_initializers_as_inputs),
        "functions": export_modules_as_functions,
    }
    options = Options(
        format=kind,
        opset=check_opset(opset_version) if kind == "onnx" else None,
        pipeline=fitting,
        capture={
            "dynamic_shapes": dynamic_shapes,
            "dynamic": dynamic,
            "dynamic_axes": dynamic_axes,
            "input_names": input_names,
            "output_names": output_names,
            "as_input": as_input,
            "allow_random": allow_random,
            "allow_nan": allow_nan,
            "state": state,
            "assume": sides,
            "complex_pairs": kind == "onnx",
        },
        lowering=lowering,
        rtol=rtol,
        atol=atol,
        on_error=on_error,
        check=check,
        timeout=timeout,
        lock_timeout=lock_timeout,
        exact_prepare=exact_prepare,
        assume=inputs_assumed,
        keep_inputs=keep_inputs,
        precision=wanted,
        keep_fp32=tuple(keep_fp32),
        notes=[
            *moves(given),
            *(f"pass {each.name} is for {', '.join(each.formats)}: left out" for each in left_out),
            *(f"pass {each.name} was left out, as {unasked} asks" for each in unfolded),
        ],
        say=progress or (_print_stage if verbose else lambda stage, detail: None),
    )
    further = _further_examples(check_trace)
    hooks = (export_config, prepare, replacements, normalize_inputs, subnets, driver, recording)
    layers = as_layers(normalize_inputs or {})
    if layers and not isinstance(model, nn.Module):
        raise InputError(
            f"normalize_inputs needs an nn.Module; a {type(model).__name__} has no forward to put it in front of"
        )
    process = ArtifactProcess(kind, timeout=timeout)
    with preserved_process_state(), process:
        if isinstance(model, nn.Module) and (has_hooks(model) or any(hook is not None for hook in hooks)):
            told = {
                "verbose": verbose,
                "do_constant_folding": do_constant_folding,
                "onnx_opset_version": options.opset,
                "check_trace": check_trace,
                "dynamic_axes": dynamic_axes,
                "check_tolerance": check_tolerance,
                "export_modules_as_functions": export_modules_as_functions,
                "keep_initializers_as_inputs": keep_initializers_as_inputs,
                "use_dynamo": use_dynamo,
            }
            request = SubnetRequest(
                example_inputs,
                kwargs,
                further,
                prepare={**told, **(prepare or {})},
                config=export_config or {},
                replacements=replacements or {},
                driver=driver,
                recording=recording,
                subnets=subnets,
                pipeline_file=pipeline_file,
                mkdir=mkdir,
                documented=input_example is not None,
                normalize=layers,
            )
            return compile_subnets(model, destination, request, options, process)
        if isinstance(model, nn.Module) and input_example is not None:
            example_inputs, kwargs = read_given(model, example_inputs, kwargs, documented=True)
        job = capture_job(Source("self", model, example_inputs, kwargs, further=further), destination, options)
        refuse_unknown_inputs([job])
        return publish_one(job, process)


def _one_of(**spellings: Any) -> Any:
    """The value that was given, of several names for one argument."""
    given = {name: value for name, value in spellings.items() if value is not None}
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)} are names for one argument; give one of them")
    return next(iter(given.values()), None)


def _further_examples(check_trace: bool | Sequence[Any]) -> list[tuple[str, Any, None]]:
    if isinstance(check_trace, bool):
        return []  # the example itself is always checked
    if not isinstance(check_trace, list | tuple):
        raise InputError(f"check_trace is True, False or a list of example inputs, got {type(check_trace).__name__}")
    return [(f"check_trace[{number}]", example, None) for number, example in enumerate(check_trace)]


def _print_stage(stage: str, detail: str) -> None:
    print(f"fxexport: {stage}: {detail}", file=sys.stderr)


register(compile)
