"""The command line, ``fxexport compile | verify | show | doctor | run | passes...``. Only the commands import PyTorch."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from fxexport import __version__
from fxexport.cli_console import INTERRUPTED, Progress, report_failure, undisturbed
from fxexport.cli_doctor import doctor_command
from fxexport.cli_options import (
    ASSUME,
    KEEP_FP32,
    KEEP_INPUTS,
    PRECISION,
    TRACEBACK,
    capturing,
    common,
    exporting,
    hooked,
    judging,
    print_result,
    running,
)
from fxexport.cli_passes import diff_command, explain_command, passes_command
from fxexport.cli_run import run_command

_FATE = "fxexport.fate"


class _Commands(click.Group):
    """Turns what a command raises into a message and an exit status: 1 failed, 2 bad input, 130 Ctrl-C."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            fate: Callable[[], str] = ctx.meta.get(_FATE, lambda: "nothing was written")
            click.echo(f"\ninterrupted; {fate()}", err=True)
            ctx.exit(INTERRUPTED)
        except Exception as error:  # noqa: BLE001 - every error ends here, as a message and an exit status
            shown = ctx.meta.get(TRACEBACK, False) or os.environ.get("FXEXPORT_TRACE") == "1"
            ctx.exit(report_failure(error, with_traceback=shown))


_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(cls=_Commands, context_settings=_SETTINGS)
@click.version_option(__version__, prog_name="fxexport")
def main() -> None:
    """Export PyTorch models to ONNX, TorchScript or pt2, each file proved right against the eager model.

    TARGET names what to export: package.module:name, where name is a torch.nn.Module, its class, or a
    factory that returns model, (model, example_inputs) or (model, args, kwargs).

    \b
    fxexport compile my.models:tiny -o tiny.onnx --dynamic "x:batch,_,time"
    fxexport verify tiny.onnx --model my.models:tiny
    fxexport show tiny.onnx
    fxexport doctor my.models:tiny --dynamic all
    fxexport run pipeline.json --inputs batch.npz
    fxexport explain my.models:tiny --pass default

    Exit status: 0 done, 1 the work failed, 2 bad usage or input, 130 interrupted.
    """
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal cannot show must not end the work
        if (reconfigure := getattr(stream, "reconfigure", None)) is not None:
            reconfigure(errors="backslashreplace")


# ---------------------------------------------------------------- compile


@main.command("compile")
@click.argument("target")
@click.option("-o", "--output", required=True, help="The file to write: .onnx, .pt, .ts or .pt2.")
@capturing
@click.option("--opset", type=int, help="ONNX opset, exactly.")
@click.option("--passes", default="default", show_default=True, help="'name{option=value},other' or 'none'.")
@click.option(
    "--check",
    type=click.Choice(["final", "each"]),
    default="final",
    show_default=True,
    help="'each' also compares the numbers after every pass.",
)
@click.option("--external-data/--no-external-data", default=None, help="ONNX weights in a file of their own.")
@click.option("--mkdir", is_flag=True, help="Make the directory of the output.")
@ASSUME
@KEEP_INPUTS
@PRECISION
@KEEP_FP32
@hooked
@exporting
@judging
@running
@common
@click.pass_context
def compile_command(
    ctx: click.Context,
    /,
    target: str,
    output: str,
    dynamic: tuple[str, ...],
    opset: int | None,
    passes: str,
    mkdir: bool,
    driver: str | None,
    seed: int,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Export TARGET to a file that is proved right, or leave no file.

    A model with export hooks needs no factory that gives an example. One with several subnets becomes a file for each,
    SUBNET-OUTPUT, and a pipeline.json beside them.
    """
    with undisturbed(quiet=quiet), Progress(quiet=quiet) as progress:
        ctx.meta[_FATE] = lambda: _fate(progress.stage, output)
        progress("loading", target)
        from fxexport.cli_targets import load_driver, load_target, read_axes
        from fxexport.compiler import compile
        from fxexport.destination import preflight
        from fxexport.lowering import FORMATS
        from fxexport.rewrite import resolve

        # Before the factory, which may take its time: what can be refused at once.
        axes = read_axes(dynamic)
        resolve(passes)
        preflight(output, tuple(FORMATS), mkdir=mkdir)
        loaded = load_target(target, seed=seed)
        run = load_driver(driver) if driver else None
        artifact = compile(
            loaded.model,
            output,
            loaded.example_inputs,
            loaded.kwargs,
            dynamic=axes,
            passes=passes,
            mkdir=mkdir,
            opset_version=opset,
            driver=run,
            progress=progress,
            **options,
        )
        progress("done", str(artifact.path))
    from fxexport.report.pipeline_text import parts_of

    assert artifact.report is not None
    print_result(artifact.report.to_json(), parts_of(artifact.report), as_json, quiet)


def _fate(stage: str, output: str) -> str:
    if stage == "publishing":
        return f"{output} is the old file or the new one, whole"
    return f"{output} was written" if stage == "done" else "nothing was written"


# ---------------------------------------------------------------- verify, show


@main.command("verify")
@click.argument("file")
@click.option("--model", "target", required=True, metavar="TARGET", help="What the file should compute.")
@hooked
@judging
@running
@common
@click.pass_context
def verify_command(
    ctx: click.Context,
    /,
    file: str,
    target: str,
    driver: str | None,
    seed: int,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Check an existing FILE against the eager model, or against the subnet of it that FILE holds.

    Exit status 1 if it is wrong. A factory that draws weights at random needs the --seed of the export; a model with
    export hooks the --driver, --export-config and --prepare of it.
    """
    with undisturbed(quiet=quiet), Progress(quiet=quiet) as progress:
        progress("loading", target)
        from fxexport.cli_targets import load_driver, load_target
        from fxexport.report.description import describe
        from fxexport.verification import verify

        _ = describe(file).signature  # before the factory: refuses a file that cannot be verified
        loaded = load_target(target, seed=seed)
        progress("eager", target)
        report = verify(
            file,
            loaded.model,
            loaded.example_inputs,
            loaded.kwargs,
            driver=load_driver(driver) if driver else None,
            progress=lambda point: progress("validation", point),
            **options,
        )
    from fxexport.report.text import verification_parts

    print_result({"path": file, **report.to_json()}, verification_parts(Path(file), report), as_json, quiet)
    ctx.exit(0 if report.passed else 1)


@main.command("show")
@click.argument("file")
@common
def show_command(file: str, as_json: bool) -> None:
    """Describe an exported FILE or a pipeline.json, without running it.

    Names and axes, passes, versions, operators, sizes; of another tool's ONNX file, what it declares.
    """
    from fxexport.report.description import describe, description_parts

    if Path(file).suffix.lower() == ".json" or Path(file).is_dir():
        from fxexport.pipeline import Pipeline
        from fxexport.report.layout import paragraph

        pipeline = Pipeline.load(file)
        print_result({"path": file, **pipeline.spec.to_json()}, [paragraph(str(pipeline))], as_json)
        return
    description = describe(file)
    print_result(description.to_json(), description_parts(description), as_json)


for _command in (doctor_command, run_command, passes_command, explain_command, diff_command):
    main.add_command(_command)
