"""Which whole models of ATOMMIC become correct files: ``fxexport.compile`` beside ``torch.onnx.export(dynamo=True)``.

For each model of ``atommic_models.py``, each time in a process of its own with a time limit:

- onnx, torchscript: ``fxexport.compile(model, "model.onnx" or "model.pt", ...)`` with a dynamic batch where ATOMMIC's
  own forward runs at any batch size, else with fixed shapes;
- torch fixed, torch dynamic: ``torch.onnx.export(dynamo=True)`` with fixed shapes, and with a dynamic batch.

A file counts only if it is right: what it computes is compared here with eager PyTorch on values drawn after the
export, and at batch sizes 3 and 1 where the batch is dynamic (complex numbers as pairs). The error is the largest
difference of an output divided by its largest magnitude; above 1e-4, or with another shape, another number of outputs
or other places without a finite value, the file is wrong. Outputs that ATOMMIC leaves uninitialised are not compared.

Seconds are wall seconds of the export alone (ours with its own validation), on one core, and include what is imported
on first use. Needs ATOMMIC: ``make test-zoo`` makes ``.venv-zoo``; then
``.venv-zoo/bin/python benchmarks/atommic_export.py``. Measurements that are in the output file already are kept:
``--again`` repeats them.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

ARMS = ("onnx", "torchscript", "torch fixed", "torch dynamic")
RESULTS = Path(__file__).parent / "results" / "atommic_export.json"
PACKAGES = ("fxexport", "torch", "onnx", "onnxscript", "onnxruntime", "atommic")
TOLERANCE = 1e-4
Run = dict[str, Any]


# ---------------------------------------------------------------- one measurement, in a process of its own


def measure(arm: str, name: str) -> Run:
    """Exports one model one way and judges the file. Whatever is raised is the result, with the line it points to."""
    import torch
    from atommic_models import MODELS

    torch.set_num_threads(1)
    model = MODELS[name]
    result: Run = {"model": name, "arm": arm, "fixed": model.only is not None or arm == "torch fixed"}
    if arm == "torch dynamic" and model.only is not None:
        return {**result, "outcome": "not applicable", "reason": "ATOMMIC's forward runs at one batch size only"}
    built = model.build()
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        try:
            run = (
                _ours(arm, model, built, Path(folder), result)
                if " " not in arm
                else _torch(model, built, folder, result)
            )
            result["seconds"] = time.perf_counter() - start
            result["errors"] = _errors(model, built, run, result["fixed"])
        except Exception as error:  # noqa: BLE001 - an exporter's failure is what is measured here
            outcome = "failed" if "seconds" not in result else "wrong"
            result.setdefault("seconds", time.perf_counter() - start)
            return {**result, "outcome": outcome, "reason": _reason(error)}
    worst = max(result["errors"].values())
    return {**result, "outcome": "right" if worst <= TOLERANCE else "wrong", "error": worst}


def _ours(arm: str, model: Any, built: Any, folder: Path, result: Run) -> Any:
    import fxexport

    shapes = None
    if model.only is None:
        shapes = tuple(None if axis is None else {axis: "batch"} for axis in model.batch_axes())
    path = folder / ("model.onnx" if arm == "onnx" else "model.pt")
    artifact = fxexport.compile(built, path, model.example(), dynamic_shapes=shapes)
    assert artifact.report is not None
    result["notes"], result["stages"] = [_plain(note) for note in artifact.report.notes], dict(artifact.report.stages)
    found = artifact.metadata.get("decisions", ())
    result["decisions"] = [f"{decision['form']} at {_plain(decision['site'])}" for decision in found]
    return artifact


def _torch(model: Any, built: Any, folder: str, result: Run) -> Any:
    import onnxruntime
    import torch

    args, path = model.example(), str(Path(folder) / "model.onnx")
    names, shapes = [f"input_{i}" for i in range(len(args))], None
    if not result["fixed"]:
        batch = torch.export.Dim("batch", min=1, max=64)
        shapes = tuple(None if axis is None else {axis: batch} for axis in model.batch_axes())
    torch.onnx.export(built, args, path, dynamo=True, verbose=False, input_names=names, dynamic_shapes=shapes)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    kept = {value.name for value in session.get_inputs()}

    def run(*tensors: torch.Tensor) -> Any:
        given = {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True) if name in kept}
        return [torch.from_numpy(array) for array in session.run(None, given)]

    return run


def _errors(model: Any, built: Any, run: Any, fixed: bool) -> dict[str, float]:
    """What is compared -> the largest relative error there."""
    points = {"fresh values": (None, 1)}
    if not fixed:
        points |= {"batch 3": (3, 2), "batch 1": (1, 3)}
    return {label: _difference(model, built, run, *point) for label, point in points.items()}


def _difference(model: Any, built: Any, run: Any, batch: int | None, seed: int) -> float:
    import torch
    from torch.utils._pytree import tree_leaves

    args = model.example(batch, seed)
    wanted = [x for x in tree_leaves(built(*(arg.clone() for arg in args))) if isinstance(x, torch.Tensor)]
    given = [x for x in tree_leaves(run(*args)) if isinstance(x, torch.Tensor)]
    assert len(wanted) == len(given), f"{len(given)} outputs instead of {len(wanted)}"
    worst = 0.0
    for position, (want, got) in enumerate(zip(wanted, given, strict=True)):
        if position in model.unset:
            continue
        want, got = (torch.view_as_real(x.resolve_conj()) if x.is_complex() else x for x in (want, got))
        assert want.shape == got.shape, f"output {position} has shape {tuple(got.shape)} instead of {tuple(want.shape)}"
        finite = want.isfinite()
        assert torch.equal(finite, got.isfinite()), f"output {position} is finite in other places"
        if finite.any():
            scale = want[finite].abs().max().clamp(min=1e-6)
            worst = max(worst, float((want - got)[finite].abs().max() / scale))
    return worst


def _reason(error: BaseException) -> str:
    """Type and first lines of the innermost cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in _plain(str(error)).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' | '.join(lines[:3])[:400]}"


def _plain(text: str) -> str:
    """``text`` without colours and without the folders of this machine."""
    return re.sub(r"[^\s\"'(]*/site-packages/", "", re.sub(r"\x1b\[[0-9;]*m", "", text))


# ---------------------------------------------------------------- driving


def run(arm: str, name: str, limit: float) -> Run:
    """One measurement in a fresh process; a crash and the time limit are outcomes, too."""
    command = [sys.executable, __file__, "--measure", arm, "--models", name]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, env=environment)
    except subprocess.TimeoutExpired:
        return {"model": name, "arm": arm, "outcome": "failed", "seconds": limit, "reason": f"over {limit:g} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"model"')]
    if not lines:
        end = f"the process ended with {done.returncode}: {done.stderr[-300:]}"
        return {"model": name, "arm": arm, "outcome": "failed", "seconds": None, "reason": end}
    result: Run = json.loads(lines[-1])
    return result


def table(runs: dict[tuple[str, str], Run], names: list[str], arms: list[str]) -> Table:
    """One row a model: each arm's outcome, error and seconds; what ours assumed."""
    view = Table("model", *arms, "assumed, fixed or decided", title="whole ATOMMIC models", title_justify="left")
    for name in names:
        cells = [_cell(runs.get((name, arm))) for arm in arms]
        ours = runs.get((name, "onnx")) or runs.get((name, "torchscript")) or {}
        view.add_row(name, *cells, "; ".join(ours.get("decisions", ())))
    totals = [sum(runs.get((name, arm), {}).get("outcome") == "right" for name in names) for arm in arms]
    view.add_section()
    view.add_row("right", *(f"{total} of {len(names)}" for total in totals), "")
    return view


def _cell(run: Run | None) -> str:
    if run is None:
        return ""
    seconds = f"{run['seconds']:.0f} s" if run.get("seconds") is not None else ""
    if run["outcome"] == "right":
        return f"{run['error']:.0e}  {seconds}" + ("  fixed" if run["fixed"] else "")
    if run["outcome"] == "wrong":
        return f"[red]wrong[/]  {seconds}"
    return "[dim]-[/]" if run["outcome"] == "not applicable" else f"[yellow]none[/]  {seconds}"


def machine() -> Run:
    """What the figures hold for."""
    facts = {"cores": os.cpu_count(), "system": f"{platform.system()} {platform.machine()}"}
    return {**facts, "python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


@click.command(help="Whole ATOMMIC models through fxexport and through torch.onnx, judged against eager PyTorch.")
@click.option("--models", default="", help="Names, by commas; all by default.")
@click.option("--arms", default=",".join(ARMS), show_default=True)
@click.option("--limit", type=float, default=240, show_default=True, help="Seconds for one measurement.")
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Processes at a time.")
@click.option("--again", is_flag=True, help="Measure what the output file has already.")
@click.option("--output", type=click.Path(path_type=Path), default=RESULTS, help="Where the JSON is, and goes.")
@click.option("--measure", "measured", type=click.Choice(ARMS), hidden=True)
def main(models: str, arms: str, limit: float, jobs: int, again: bool, output: Path, measured: str | None) -> None:
    """The driver, or with ``--measure`` the process that is measured."""
    if measured is not None:
        print(json.dumps(measure(measured, models)), flush=True)
        return
    from atommic_models import MODELS

    names, chosen = models.split(",") if models else list(MODELS), arms.split(",")
    kept = json.loads(output.read_text())["runs"] if output.exists() else []
    runs = {(run["model"], run["arm"]): run for run in kept}
    todo = [(arm, name) for name in names for arm in chosen if again or (name, arm) not in runs]
    console = Console(width=None if sys.stdout.isatty() else 150)
    with ThreadPoolExecutor(jobs) as pool:
        for done in as_completed([pool.submit(run, arm, name, limit) for arm, name in todo]):
            found = done.result()
            runs[found["model"], found["arm"]] = found
            line = f"{found['model']:28s} {found['arm']:14s} {found['outcome']:8s} {found.get('reason', '')}"
            console.print(line, highlight=False, markup=False, soft_wrap=True)
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_text(json.dumps({"machine": machine(), "runs": list(runs.values())}, indent=1) + "\n")
    console.print(table(runs, names, chosen))


if __name__ == "__main__":
    main()
