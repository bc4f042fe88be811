"""``fxexport doctor``: everything that an export of a model would meet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from fxexport.cli_console import FAILED, Progress, undisturbed
from fxexport.cli_options import DYNAMIC, common, print_result, seeded

if TYPE_CHECKING:
    from fxexport.doctor import Diagnosis


@click.command("doctor")
@click.argument("target")
@DYNAMIC
@click.option("--as-input", multiple=True, metavar="NAME", help="A number that becomes an input. Repeatable.")
@click.option("--subnet", metavar="NAME", help="Of a model with several: which one [default: the first].")
@seeded
@common
@click.pass_context
def doctor_command(
    ctx: click.Context,
    /,
    target: str,
    dynamic: tuple[str, ...],
    as_input: tuple[str, ...],
    subnet: str | None,
    seed: int,
    quiet: bool,
    as_json: bool,
) -> None:
    """List all that stands in the way of an export of TARGET, with the lines of its code and ways out.

    Branches and numbers that depend on data, NumPy, loops over a dynamic dimension, sizes that the model fixes,
    operators without a translation, writes into inputs, state, training mode, random numbers, baked values.
    Exit status 1 if something blocks. Nothing is written.
    """
    with undisturbed(quiet=quiet), Progress(quiet=quiet) as progress:
        diagnosis = _diagnosis(target, dynamic, as_input, subnet, seed, progress)
        progress("done", target)
    from fxexport.doctor.page import diagnosis_parts

    print_result({"target": target, **diagnosis.to_json()}, diagnosis_parts(diagnosis), as_json, quiet)
    ctx.exit(FAILED if diagnosis.blockers else 0)


def _diagnosis(
    target: str, dynamic: tuple[str, ...], as_input: tuple[str, ...], subnet: str | None, seed: int, progress: Progress
) -> Diagnosis:
    progress("loading", target)
    from torch import nn

    from fxexport.cli_targets import load_target, read_axes
    from fxexport.doctor import doctor
    from fxexport.exportable import has_hooks
    from fxexport.subnet_export import subnet_source

    axes = read_axes(dynamic)  # before the factory, which may take its time: what can be refused at once
    loaded = load_target(target, seed=seed)
    progress("examination", type(loaded.model).__name__)
    options: dict[str, Any] = {"dynamic": axes, "as_input": as_input}
    model, example, kwargs = loaded.model, loaded.example_inputs, loaded.kwargs
    if not isinstance(model, nn.Module) or not (subnet is not None or has_hooks(model)):
        return doctor(model, example, kwargs, **options)
    with subnet_source(model, subnet, example, kwargs) as source:
        return doctor(source.model, source.example, source.kwargs, interface=source.interface, **options)
