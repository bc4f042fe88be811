"""What each pass is worth: nodes and latency of a model's file with all default passes, and with all but that one.

For every model, ``fxexport.compile`` with the default passes; then, for each pass that rewrote something there, once more
without it. Every file is validated against eager PyTorch before it is timed. Told are

- nodes: operator calls of the program after the passes (ATen), and nodes of the ONNX file, those of subgraphs and functions
  among them;
- without / with: latency in onnxruntime without the pass over the latency with it, so above 1 the pass makes it faster;
  ratio of medians, with a 95 % interval (bootstrap over rounds);
- control: the same file once more over itself. It is measured in the same rounds; a ratio that is no further from 1
  than this one says nothing. On a machine that others use, ``--clock cpu`` (with one thread).

With ``--assume attention_mask=ones`` (or ``length=full``) there is a row for every model that has such an input: default
passes without the assumption against with it, on an example that meets it.

What writes ONNX (onnxscript's optimizer) and onnxruntime, as it loads a file, fold constants, drop identities and fuse
by themselves. A pass that does what they would do anyway shows in the nodes of the program, and not in those of the file or
in the latency. Passes are not independent either: what one leaves, another may take.

Models are those of models.py, and with ``--zoo FILE`` those that the ``cases()`` of that module yields: ``name``,
``build()``, ``example_inputs()`` -> (args, kwargs), ``dynamic`` and ``seq_dynamic``: {position: {dimension: name}}.

    python benchmarks/passes.py --models bert_base,resnet50 --rounds 30
"""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import onnx
import torch
from latency import CLOCKS, Ratio, interleaved, ratio
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import fxexport
from fxexport.errors import ExportError
from fxexport.rewrite import resolve

RESULTS = Path(__file__).parent / "results" / "passes.json"
DEFAULT_MODELS = ("resnet50", "bert_base", "convnext_tiny", "llama_100m", "wav2vec2_base")
PACKAGES = ("fxexport", "torch", "onnx", "onnxscript", "onnxruntime", "numpy")
FILL = {"ones": torch.ones_like, "zeros": torch.zeros_like, "full": torch.clone}
"""An assumption -> what the example has to be; full lengths the example must have already."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """A model, its example by the names of ``forward``'s parameters, and the axes that stay dynamic."""

    name: str
    model: nn.Module
    example: dict[str, Tensor]
    dynamic: dict[str, Any]


@dataclass(frozen=True)
class Exported:
    """A file, its nodes, and how many places each pass rewrote."""

    path: Path
    aten: int
    onnx: int
    rewritten: dict[str, int]


# ---------------------------------------------------------------- models


def from_models(name: str) -> Subject:
    """A model of models.py."""
    from models import MODELS

    factory, axes = MODELS[name]
    model, _, example = factory()
    return Subject(name, model, example, dict(axes))


def from_zoo(file: Path) -> dict[str, Callable[[], Subject]]:
    """Name -> what builds the model, for the ``cases()`` of a module that is given by its file."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)

    def build(case: Any) -> Subject:
        model = case.build()
        args, kwargs = case.example_inputs()
        names = list(inspect.signature(model.forward).parameters)
        axes = {names[i]: dict(dims) for i, dims in case.dynamic.items()}
        for i, dims in (case.seq_dynamic or {}).items():
            axes.setdefault(names[i], {}).update(dims)
        return Subject(case.name, model, {**dict(zip(names, args, strict=False)), **kwargs}, axes)

    return {case.name: lambda case=case: build(case) for case in module.cases()}


# ---------------------------------------------------------------- one file, one row


def export(subject: Subject, path: Path, without: str | None = None, **options: Any) -> Exported:
    """Compiles ``subject`` with the default passes, but for the one named ``without``."""
    passes = [each for each in resolve("default") if each.name != without]
    artifact = fxexport.compile(
        subject.model, path, kwargs=subject.example, dynamic=subject.dynamic, passes=passes, **options
    )
    records = artifact.report.passes
    rewritten: dict[str, int] = {}
    for record in records:  # a pass that repeats has several; the name comes with the options
        name = record.name.partition("{")[0]
        rewritten[name] = rewritten.get(name, 0) + record.count
    return Exported(path, records[-1].nodes_after, _onnx_nodes(path), rewritten)


def _onnx_nodes(path: Path) -> int:
    model = onnx.load(str(path), load_external_data=False)
    return _count(model.graph.node) + sum(_count(function.node) for function in model.functions)


def _count(nodes: Iterable[onnx.NodeProto]) -> int:
    graphs = (
        graph for node in nodes for a in node.attribute for graph in [*([a.g] if a.HasField("g") else []), *a.graphs]
    )
    return len(list(nodes)) + sum(_count(graph.node) for graph in graphs)


def compare(kept: Exported, plain: Exported, subject: Subject, **how: Any) -> Row:
    """Nodes and latency of ``kept`` (with the pass) and ``plain`` (without), and of ``kept`` once more as the control.

    ``how``: as :func:`interleaved` wants it.
    """
    feed = {name: value.numpy() for name, value in subject.example.items()}
    load = os.getloadavg()[0]
    times = interleaved([each.path for each in (kept, kept, plain)], feed, **how)
    ratios = {"ratio": ratio(times, 2, 0), "control": ratio(times, 1, 0)}
    return {
        "aten": [plain.aten, kept.aten],
        "onnx": [plain.onnx, kept.onnx],
        **{name: dataclasses.asdict(found) for name, found in ratios.items()},
        "load": [load, os.getloadavg()[0]],
        "ms": {arm: times[:, i].round(4).tolist() for i, arm in enumerate(("with", "control", "without"))},
    }


# ---------------------------------------------------------------- a model


def rows_of(
    subject: Subject, chosen: set[str], assume: dict[str, str], measure: Callable[[Exported, Exported, Subject], Row]
) -> Iterator[Row]:
    """A row for each chosen pass that is a default, and for each assumption that fits; errors are rows too."""
    with tempfile.TemporaryDirectory() as folder:
        kept = export(subject, Path(folder) / "with.onnx")
        for name in [each.name for each in resolve("default") if each.name in chosen]:
            row = {"model": subject.name, "what": name, "rewritten": kept.rewritten.get(name, 0)}
            if row["rewritten"]:
                row |= _attempt(
                    lambda name=name: (kept, export(subject, Path(folder) / "out.onnx", name)), subject, measure
                )
            yield row
    for name in assume.keys() & subject.example.keys():
        yield _assumed(subject, name, assume[name], measure)


def _assumed(subject: Subject, name: str, says: str, measure: Callable[[Exported, Exported, Subject], Row]) -> Row:
    met = dataclasses.replace(subject, example={**subject.example, name: FILL[says](subject.example[name])})
    row: Row = {"model": subject.name, "what": f"assume {name}={says}"}
    with tempfile.TemporaryDirectory() as folder:
        plain = export(met, Path(folder) / "without.onnx")

        def pair() -> tuple[Exported, Exported]:
            return export(met, Path(folder) / "with.onnx", assume={name: says}), plain

        found = _attempt(pair, met, measure)
    return row | found


def _attempt(
    pair: Callable[[], tuple[Exported, Exported]],
    subject: Subject,
    measure: Callable[[Exported, Exported, Subject], Row],
) -> Row:
    """The measured row, or why there is no file to measure: some models cannot be written without some pass."""
    try:
        kept, plain = pair()
    except ExportError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return measure(kept, plain, subject)


# ---------------------------------------------------------------- the table


def table(rows: list[Row], name: str) -> Table:
    """The rows of one model that have something to tell."""
    columns = ("rewritten", "ATen nodes", "ONNX nodes", "ms with", "without / with", "control")
    view = Table("", *columns, title=name, title_justify="left")
    for row in rows:
        if "error" in row:
            view.add_row(
                row["what"], str(row.get("rewritten", "")), "cannot be exported:", row["error"].splitlines()[0][:60]
            )
        elif "ratio" in row:
            nodes = ["{} -> {}".format(*row[kind]) for kind in ("aten", "onnx")]
            median = sorted(row["ms"]["with"])[len(row["ms"]["with"]) // 2]
            ratios = [str(Ratio(**row[kind])) for kind in ("ratio", "control")]
            view.add_row(row["what"], str(row.get("rewritten", "")), *nodes, f"{median:.2f}", *ratios)
    return view


def machine(threads: int) -> Row:
    """What the figures hold for."""
    return {
        "cores": os.cpu_count(),
        "threads": threads,
        "load before": os.getloadavg()[0],
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }


def _assumptions(context: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    pairs = [each.partition("=") for each in given]
    wrong = [each for each, (_, _, says) in zip(given, pairs, strict=True) if says not in FILL]
    if wrong:
        raise click.BadParameter(f"{wrong[0]!r} is not INPUT=ones, zeros or full")
    return {name: says for name, _, says in pairs}


@click.command(help="Nodes and latency of each model with and without each default pass.")
@click.option("--models", default=",".join(DEFAULT_MODELS), show_default=True, help="Names, by commas.")
@click.option("--zoo", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A module with cases().")
@click.option("--passes", default="all", show_default=True, help="Default passes by commas, all, or none.")
@click.option("--assume", multiple=True, callback=_assumptions, metavar="INPUT=ones", help="Also with this assumption.")
@click.option("--rounds", type=click.IntRange(min=5), default=30, show_default=True)
@click.option("--least", type=float, default=0.02, show_default=True, help="Seconds of one sample.")
@click.option(
    "--clock", type=click.Choice(list(CLOCKS)), default="wall", show_default=True, help="cpu: on a busy machine."
)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), default=RESULTS, help="Where the JSON goes.")
def main(
    models: str,
    zoo: Path | None,
    passes: str,
    assume: dict[str, str],
    output: Path,
    **how: Any,
) -> None:
    """Every model in turn; what is measured is written after each."""
    torch.set_num_threads(how["threads"])
    known = [each.name for each in resolve("default")]
    chosen = {"all": known, "none": []}.get(passes, passes.split(","))
    if unknown := set(chosen) - set(known):
        raise click.BadParameter(f"not among the default passes: {', '.join(sorted(unknown))}", param_hint="--passes")
    builders = from_zoo(zoo) if zoo else {}
    console, facts = Console(width=None if sys.stdout.isatty() else 150), machine(how["threads"])
    rows: list[Row] = []
    for name in models.split(","):
        subject = builders[name]() if name in builders else from_models(name)
        found: list[Row] = []
        with console.status(name):
            for row in rows_of(subject, set(chosen), assume, lambda a, b, of: compare(a, b, of, **how)):
                found.append(row)
                output.parent.mkdir(parents=True, exist_ok=True)
                output.write_text(json.dumps({"machine": facts, **how, "rows": rows + found}, indent=1) + "\n")
        rows += found
        console.print(table(found, name))
        if idle := [row["what"] for row in found if row.get("rewritten") == 0]:
            console.print(f"nothing rewritten by {', '.join(idle)}\n", highlight=False)
    console.print(f"{how['rounds']} rounds, {how['clock']} time; {facts}\nwritten to {output}", highlight=False)


if __name__ == "__main__":
    main()
