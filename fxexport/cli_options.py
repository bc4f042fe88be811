"""What commands have in common: groups of options, and how a result is printed. Nothing here imports PyTorch."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from fxexport.report.layout import Part

Command = TypeVar("Command", bound=Callable[..., Any])
TRACEBACK = "fxexport.traceback"
"""Where the context keeps whether whole tracebacks were asked for."""


def _keep_traceback(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    ctx.meta[TRACEBACK] = value


def common(command: Command) -> Command:
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


DYNAMIC = click.option(
    "--dynamic",
    multiple=True,
    metavar="INPUT:AXIS,...",
    help="Dimensions that may change, a name for each axis: 'x:batch,_,time' (_ is fixed); "
    "'x:batch[2..64],_' gives a range; 'all' means every dimension that can. Repeatable.",
)


def capturing(command: Command) -> Command:
    """Options of the commands that capture a model."""
    return _with(
        command,
        DYNAMIC,
        click.option("--input-names", metavar="A,B", callback=_names, help="Names of the flat inputs."),
        click.option("--output-names", metavar="A,B", callback=_names, help="Names of the flat outputs."),
        click.option("--as-input", multiple=True, metavar="NAME", help="A number that becomes an input. Repeatable."),
        click.option("--on-error", type=click.Choice(["raise", "skip"]), default="raise", help="For a failing pass."),
    )


def hooked(command: Command) -> Command:
    """Options for models with export hooks."""
    return _with(
        command,
        click.option(
            "--driver", metavar="MODULE:FUNCTION", help="Runs the model as it is used; its subnets are recorded."
        ),
        click.option(
            "--export-config",
            multiple=True,
            metavar="KEY=VALUE",
            callback=_pairs,
            help="For the model's set_export_config, as text. Repeatable.",
        ),
        click.option(
            "--prepare",
            multiple=True,
            metavar="KEY=VALUE",
            callback=_pairs,
            help="For the model's _prepare_for_export, as text. Repeatable.",
        ),
        click.option(
            "--normalize-input",
            "normalize_inputs",
            multiple=True,
            metavar="NAME=KIND",
            callback=_pairs,
            help="Inside the artifact: minmax, max, mean_std, mean_var, grayscale. Repeatable.",
        ),
    )


def exporting(command: Command) -> Command:
    """More options of ``compile`` for models with export hooks, and for the form of the ONNX file."""
    return _with(
        command,
        click.option(
            "--subnets", metavar="A,B", callback=_names, help="Parts to export, by name or path of the submodule."
        ),
        click.option("--exact-prepare", is_flag=True, help="Refuse hooks that change the outputs on the example."),
        click.option(
            "--pipeline-file",
            default="pipeline.json",
            show_default=True,
            help="Where several subnets are described, beside the output.",
        ),
        click.option(
            "--function",
            "export_modules_as_functions",
            multiple=True,
            metavar="CLASS",
            callback=_classes,
            help="Modules of CLASS become an ONNX function; 'all' means every class that repeats. Repeatable.",
        ),
        click.option(
            "--constant-folding/--no-constant-folding", "do_constant_folding", default=True, help="In the ONNX file."
        ),
        click.option("--keep-initializers-as-inputs", is_flag=True, help="Weights of the ONNX file are inputs too."),
    )


def judging(command: Command) -> Command:
    """Options of the commands that compare with eager PyTorch."""
    return _with(
        command,
        click.option("--rtol", type=float, help="Relative tolerance of real outputs [default: by dtype]."),
        click.option("--atol", type=float, help="Absolute tolerance [default: by dtype and scale]."),
        click.option("--timeout", type=float, default=600.0, show_default=True, help="Seconds for one run."),
    )


def running(command: Command) -> Command:
    """Options of the commands that run the eager model on its example."""
    return _with(
        seeded(command),
        click.option("--allow-random", is_flag=True, help="Accept random outputs; values are not compared."),
        click.option("--allow-nan", is_flag=True, help="Accept NaN in eager outputs; positions must match."),
    )


def seeded(command: Command) -> Command:
    """Options of the commands that call the factory of a model."""
    return _with(
        command,
        click.option("--seed", type=int, default=0, show_default=True, help="Random seed for the factory."),
        click.option("--quiet", "-q", is_flag=True, help="Only the verdict: no progress, no warnings."),
    )


def _with(command: Command, *options: Callable[[Command], Command]) -> Command:
    """``command`` with ``options``, which ``--help`` shows in this order."""
    for option in reversed(options):
        command = option(command)
    return command


def _pairs(_: click.Context, parameter: click.Parameter, texts: tuple[str, ...]) -> dict[str, str] | None:
    pairs = [text.partition("=") for text in texts]
    if wrong := [text for text, (key, sign, _) in zip(texts, pairs, strict=True) if not (key.strip() and sign)]:
        raise click.BadParameter(f"{wrong[0]!r} is not KEY=VALUE", param=parameter)
    return {key.strip(): value for key, _, value in pairs} or None


def _sides(_: click.Context, parameter: click.Parameter, texts: tuple[str, ...]) -> str | dict[str, bool | str] | None:
    if "examples" in texts and len(texts) == 1:
        return "as in the examples"
    found: dict[str, bool | str] = {}
    for text in texts:
        key, _sign, said = text.rpartition("=")
        decides = said.lower() in ("true", "false")
        if not key or not (decides or said in ("full", "ones", "zeros") or said.startswith("full:")):
            raise click.BadParameter(
                f"{text!r} is neither 'examples' (alone) nor FILE:LINE=true or =false nor INPUT=full, =ones or =zeros",
                param=parameter,
            )
        found[key] = said.lower() == "true" if decides else said
    return found or None


ASSUME = click.option(
    "--assume",
    multiple=True,
    metavar="FILE:LINE=SIDE|INPUT=VALUES",
    callback=_sides,
    help="The side (true or false) that a decision on data takes; 'examples': as the example decides. Or what an input "
    "always holds: 'length=full', 'mask=ones', 'mask=zeros': masks go. Repeatable.",
)
KEEP_INPUTS = click.option("--keep-inputs", is_flag=True, help="Inputs that go unread by --assume stay.")
PRECISION = click.option(
    "--precision",
    type=click.Choice(["fp16", "bf16", "int8-dynamic"]),
    help="Compute with fewer bits; the file is proved against the float32 model.",
)
KEEP_FP32 = click.option(
    "--keep-fp32", multiple=True, metavar="MODULE", help="A module that stays float32. Repeatable."
)


def _classes(_: click.Context, __: click.Parameter, names: tuple[str, ...]) -> bool | set[str]:
    return True if "all" in names else set(names) or False


def _names(_: click.Context, __: click.Parameter, text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",")]


def print_result(data: dict[str, Any], parts: Sequence[Part], as_json: bool, first_only: bool = False) -> None:
    """The result on stdout: one JSON object, or the parts of a page."""
    from rich.console import Console

    from fxexport.report.text import print_parts

    if as_json:
        click.echo(json.dumps(data, indent=1, allow_nan=False))
    else:
        print_parts(parts[:1] if first_only else parts, Console())
