"""The command line: ``fxexport compile | verify | show | passes``. Only the commands import PyTorch."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fxexport import __version__
from fxexport.cli_console import INTERRUPTED, Progress, report_failure, undisturbed

if TYPE_CHECKING:
    from fxexport.report.layout import Part

_Command = TypeVar("_Command", bound=Callable[..., Any])
_TRACEBACK, _FATE = "fxexport.traceback", "fxexport.fate"


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
            shown = ctx.meta.get(_TRACEBACK, False) or os.environ.get("FXEXPORT_TRACE") == "1"
            ctx.exit(report_failure(error, with_traceback=shown))


def _keep_traceback(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    ctx.meta[_TRACEBACK] = value


def _common(command: _Command) -> _Command:
    """Options of every command."""
    traceback = click.option(
        "--traceback",
        is_flag=True,
        expose_value=False,
        callback=_keep_traceback,
        help="Show the whole traceback of an error (also: FXEXPORT_TRACE=1).",
    )
    as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object, not text.")
    return as_json(traceback(command))


def _judging(command: _Command) -> _Command:
    """Options of the commands that compare with eager PyTorch."""
    options = [
        click.option("--rtol", type=float, help="Relative tolerance of real outputs [default: by dtype]."),
        click.option("--atol", type=float, help="Absolute tolerance [default: by dtype and scale]."),
        click.option("--allow-random", is_flag=True, help="Accept random outputs; values are not compared."),
        click.option("--allow-nan", is_flag=True, help="Accept NaN in eager outputs; positions must match."),
        click.option("--timeout", type=float, default=600.0, show_default=True, help="Seconds for one run."),
        click.option("--seed", type=int, default=0, show_default=True, help="Random seed for the factory."),
        click.option("--quiet", "-q", is_flag=True, help="Only the verdict: no progress, no warnings."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


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

    Exit status: 0 done, 1 the work failed, 2 bad usage or input, 130 interrupted.
    """
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal cannot show must not end the work
        if (reconfigure := getattr(stream, "reconfigure", None)) is not None:
            reconfigure(errors="backslashreplace")


# ---------------------------------------------------------------- compile


@main.command("compile")
@click.argument("target")
@click.option("-o", "--output", required=True, help="The file to write: .onnx, .pt, .ts or .pt2.")
@click.option(
    "--dynamic",
    multiple=True,
    metavar="INPUT:AXIS,...",
    help="Dimensions that may change, a name for each axis: 'x:batch,_,time' (_ is fixed); "
    "'x:batch[2..64],_' gives a range; 'all' means every dimension that can. Repeatable.",
)
@click.option("--opset", type=int, help="ONNX opset, exactly.")
@click.option("--passes", default="default", show_default=True, help="'name{option=value},other' or 'none'.")
@click.option("--input-names", metavar="A,B", help="Names of the flat inputs.")
@click.option("--output-names", metavar="A,B", help="Names of the flat outputs.")
@click.option("--as-input", multiple=True, metavar="NAME", help="A number that becomes an input. Repeatable.")
@click.option("--external-data/--no-external-data", default=None, help="ONNX weights in a file of their own.")
@click.option("--on-error", type=click.Choice(["raise", "skip"]), default="raise", help="For a failing pass.")
@click.option("--mkdir", is_flag=True, help="Make the directory of the output.")
@_judging
@_common
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
    input_names: str | None,
    output_names: str | None,
    seed: int,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Export TARGET to a file that is proved right, or leave no file."""
    with undisturbed(quiet=quiet), Progress(quiet=quiet) as progress:
        ctx.meta[_FATE] = lambda: _fate(progress.stage, output)
        progress("loading", target)
        from fxexport.cli_targets import load_target, read_axes
        from fxexport.compiler import compile
        from fxexport.destination import preflight
        from fxexport.lowering import FORMATS
        from fxexport.rewrite import resolve

        # Before the factory, which may take its time: what can be refused at once.
        axes, pipeline = read_axes(dynamic), resolve(passes)
        preflight(output, tuple(FORMATS), mkdir=mkdir)
        loaded = load_target(target, seed=seed)
        artifact = compile(
            loaded.model,
            output,
            loaded.example_inputs,
            loaded.kwargs,
            dynamic=axes,
            passes=pipeline,
            mkdir=mkdir,
            opset_version=opset,
            input_names=_names(input_names),
            output_names=_names(output_names),
            progress=progress,
            **options,
        )
        progress("done", str(artifact.path))
    from fxexport.report.text import report_parts

    assert artifact.report is not None
    _print(artifact.report.to_json(), report_parts(artifact.report), as_json, quiet)


def _fate(stage: str, output: str) -> str:
    if stage == "publishing":
        return f"{output} is the old file or the new one, whole"
    return f"{output} was written" if stage == "done" else "nothing was written"


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",")]


# ---------------------------------------------------------------- verify, show, passes


@main.command("verify")
@click.argument("file")
@click.option("--model", "target", required=True, metavar="TARGET", help="What the file should compute.")
@_judging
@_common
@click.pass_context
def verify_command(
    ctx: click.Context, /, file: str, target: str, seed: int, quiet: bool, as_json: bool, **options: Any
) -> None:
    """Check an existing FILE against the eager model.

    Exit status 1 if it is wrong. A factory that draws weights at random needs the --seed of the export.
    """
    with undisturbed(quiet=quiet), Progress(quiet=quiet) as progress:
        progress("loading", target)
        from fxexport.cli_targets import load_target
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
            progress=lambda point: progress("validation", point),
            **options,
        )
    from fxexport.report.text import verification_parts

    _print({"path": file, **report.to_json()}, verification_parts(Path(file), report), as_json, quiet)
    ctx.exit(0 if report.passed else 1)


@main.command("show")
@click.argument("file")
@_common
def show_command(file: str, as_json: bool) -> None:
    """Describe an exported FILE, without running it.

    Names and axes, passes, versions, operators, sizes; of another tool's ONNX file, what it declares.
    """
    from fxexport.report.description import describe, description_parts

    description = describe(file)
    _print(description.to_json(), description_parts(description), as_json)


@main.command("passes")
@_common
def passes_command(as_json: bool) -> None:
    """List the installed passes and their options."""
    from fxexport.report.pass_list import installed_passes, pass_parts

    found = installed_passes()
    _print({"passes": [each.to_json() for each in found]}, pass_parts(found), as_json)


def _print(data: dict[str, Any], parts: list[Part], as_json: bool, first_only: bool = False) -> None:
    """The result on stdout: one JSON object, or the parts of a page."""
    from rich.console import Console

    from fxexport.report.text import print_parts

    if as_json:
        click.echo(json.dumps(data, indent=1, allow_nan=False))
    else:
        print_parts(parts[:1] if first_only else parts, Console())
