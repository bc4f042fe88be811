"""The commands for those who choose and write passes: ``passes``, ``explain``, ``diff``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import click

from fxexport.cli_console import Progress, undisturbed
from fxexport.cli_options import Command, capturing, common, print_result, running

if TYPE_CHECKING:
    from fxexport.program import Program
    from fxexport.rewrite import Pass, PassRecord


@click.command("passes")
@click.option("--markdown", is_flag=True, help="The page of the built-in passes, from their docstrings.")
@common
def passes_command(markdown: bool, as_json: bool) -> None:
    """List the installed passes and their options."""
    from fxexport.report.pass_list import installed_passes, pass_parts
    from fxexport.report.pass_page import pass_page

    if markdown and as_json:
        raise click.UsageError("--markdown and --json are two forms of the answer: give one of them")
    found = installed_passes()
    if markdown:
        click.echo(pass_page([each for each in found if each.builtin]), nl=False)
        return
    print_result({"passes": [each.to_json() for each in found]}, pass_parts(found), as_json)


def _rewriting(command: Command) -> Command:
    """Options of the commands that run passes on a captured model and write no artifact."""
    passes = click.option(
        "--pass",
        "passes",
        required=True,
        metavar="SPEC",
        help="'name{option=value},other', or module:Class{option=value} for a pass that is not installed.",
    )
    first = click.option("--first", default="none", show_default=True, help="Passes to run before it.")
    subnet = click.option("--subnet", metavar="NAME", help="Of a model with several: which one [default: the first].")
    return passes(first(subnet(capturing(running(command)))))


@click.command("explain")
@click.argument("target")
@_rewriting
@common
def explain_command(
    target: str, passes: str, first: str, on_error: Literal["raise", "skip"], quiet: bool, as_json: bool, **options: Any
) -> None:
    """Tell what a pass rewrites in TARGET, what it almost rewrites and why not.

    Alike places are one row: module paths that differ in numbers only, one line of code. A pass that finds
    nothing says which operators it looks for and which similar ones the model has. Exit status 0 also then.
    """
    with undisturbed(quiet=quiet), Progress(quiet=quiet) as progress:
        program, pipeline = _captured(target, first, passes, on_error, progress, **options)
        progress("passes", ", ".join(map(str, pipeline)) or "none")
        steps = _steps(program, pipeline, on_error)
        from rich.text import Text

        from fxexport.report.explanation import explain, explanation_json

        data = {"target": target, "passes": [explanation_json(record, p, old) for p, old, _, record in steps]}
        pages = [explain(record, pass_, old) for pass_, old, _, record in steps]
        progress("done", target)
    parts = [part for page in pages for part in (Text(), *page)][1:]
    print_result(data, [page[0] for page in pages] if quiet else parts, as_json)


@click.command("diff")
@click.argument("target")
@_rewriting
@click.option("--svg", metavar="FILE", help="Draw the changed places too, one of each kind (needs fxexport[draw]).")
@click.option("--context", type=click.IntRange(0), default=3, show_default=True, help="Unchanged lines around changes.")
@common
def diff_command(
    target: str,
    passes: str,
    first: str,
    on_error: Literal["raise", "skip"],
    svg: str | None,
    context: int,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Show what a pass changes in TARGET: the program before and after, a line for each call.

    Removed lines begin with -, new ones with +; unchanged calls keep their names. Nothing is exported.
    """
    with undisturbed(quiet=quiet), Progress(quiet=quiet) as progress:
        if svg is not None:
            from fxexport.report.program_drawing import check_drawable

            check_drawable(svg)
        program, pipeline = _captured(target, first, passes, on_error, progress, **options)
        progress("passes", ", ".join(map(str, pipeline)) or "none")
        from rich.text import Text

        from fxexport.report.program_diff import diff

        steps = _steps(program, pipeline, on_error)
        difference = diff(program, steps[-1][2] if steps else program)
        if svg is not None:
            progress("drawing", svg)
            difference.save_svg(svg)
        progress("done", target)
    records = [record for *_, record in steps]
    data = {"target": target, "passes": [record.to_json() for record in records], **difference.to_json()}
    head = [Text(str(record), style="bold red" if record.error else "bold") for record in records]
    print_result(data, head if quiet else [*head, *difference.parts(context)], as_json)


def _captured(
    target: str,
    first: str,
    passes: str,
    on_error: Literal["raise", "skip"],
    progress: Progress,
    *,
    subnet: str | None,
    seed: int,
    dynamic: tuple[str, ...],
    **options: Any,
) -> tuple[Program, Sequence[Pass]]:
    """The program of ``target`` after the passes ``first``, and the passes to look at."""
    progress("loading", target)
    from torch import nn

    from fxexport.capture import capture_model
    from fxexport.cli_targets import load_target, read_axes
    from fxexport.exportable import has_hooks
    from fxexport.rewrite import PassManager, resolve
    from fxexport.subnet_export import capture_subnet

    axes = read_axes(dynamic)  # before the factory, which may take its time: what can be refused at once
    earlier, pipeline = resolve(first), resolve(passes)
    loaded = load_target(target, seed=seed)
    progress("capture", type(loaded.model).__name__)
    model, example, kwargs = loaded.model, loaded.example_inputs, loaded.kwargs
    if isinstance(model, nn.Module) and (subnet is not None or has_hooks(model)):
        captured = capture_subnet(model, subnet, example, kwargs, dynamic=axes, **options)
    else:
        captured = capture_model(model, example, kwargs, dynamic=axes, **options)
    return PassManager(earlier, on_error=on_error).run(captured.program)[0], pipeline


def _steps(
    program: Program, pipeline: Sequence[Pass], on_error: Literal["raise", "skip"]
) -> list[tuple[Pass, Program, Program, PassRecord]]:
    """Each pass with the program before it, the one after it, and what it did."""
    from fxexport.rewrite import PassManager

    steps = []
    for pass_ in pipeline:
        after, (record,) = PassManager([pass_], on_error=on_error).run(program)
        steps.append((pass_, program, after, record))
        program = after
    return steps
