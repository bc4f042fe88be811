"""What ``fxexport.compile`` costs beside ``torch.onnx.export(dynamo=True)`` alone, on the same models.

Measured in one run, for each model, each time in a fresh process:

- ours: ``fxexport.compile(model, "model.onnx", ...)``: capture, passes, lowering, validation at every size,
  publishing;
- torch: ``torch.onnx.export(model, ..., "model.onnx", dynamo=True, dynamic_shapes=...)``: no passes, and
  nothing is checked;
- control: torch once more. What control / torch shows is noise: a difference of that size means nothing.

Wall seconds; CPU seconds of the process and its children (validation runs the file in one); peak memory
(resident set) of the process itself and of it with its children, as reached and as growth since the model
was built. The runs of one repeat follow each other, in an order that changes; a ratio is taken within a
repeat, and the median of the repeats is shown with the lowest and the highest.

Not measured: imports (shown on their own; what is imported on first use is in the figures of all three),
building the model, and the speed of the exported file. Memory is sampled every 20 ms, so a shorter peak may
be missed; memory that two processes share counts twice in "with children". On Linux each run is pinned to
``--threads`` cores.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import select
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import psutil
from rich.console import Console
from rich.table import Table

ARMS = ("ours", "torch", "control")
METRICS = {
    "wall s": "wall", "CPU s": "cpu", "peak MB": "peak", "peak growth MB": "growth",
    "peak MB with children": "tree_peak", "growth MB with children": "tree_growth",
}  # fmt: skip
RESULTS = Path(__file__).parent / "results" / "compile_cost.json"
DEFAULT_MODELS = ("resnet50", "bert_base", "convnext_tiny", "llama_100m", "wav2vec2_base")
PACKAGES = ("fxexport", "torch", "onnx", "onnxscript", "onnxruntime", "transformers")
Run = dict[str, Any]


# ---------------------------------------------------------------- one measurement, in a process of its own


def measure(arm: str, name: str, threads: int) -> None:
    """Imports, builds, waits for a line on stdin, exports once; prints a JSON line before and one after."""
    start = time.perf_counter()
    import onnx  # noqa: F401 - imported here so that its time counts as import time in every arm
    import onnxruntime  # noqa: F401
    import onnxscript  # noqa: F401
    import torch
    from models import MODELS

    import fxexport

    compile = fxexport.compile
    imported = time.perf_counter() - start
    torch.set_num_threads(threads)
    factory, axes = MODELS[name]
    model, args, kwargs = factory()
    print(json.dumps({"import": imported}), flush=True)
    sys.stdin.readline()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        wall, cpu = time.perf_counter(), _cpu_seconds()
        if arm == "ours":
            artifact = compile(model, path, args, kwargs, dynamic=axes)
            assert artifact.report is not None
            stages, opset = artifact.report.stages, artifact.report.opset
        else:
            shapes = {k: {i: torch.export.Dim.DYNAMIC for i, a in enumerate(v) if a} for k, v in axes.items()}
            program = torch.onnx.export(
                model, args, path, kwargs=kwargs, dynamo=True, dynamic_shapes=shapes, verbose=False
            )
            assert program is not None
            stages, opset = {}, program.model.opset_imports[""]
        result = {"wall": time.perf_counter() - wall, "cpu": _cpu_seconds() - cpu}
    print(json.dumps({**result, "stages": stages, "opset": opset}), flush=True)


def _cpu_seconds() -> float:
    """User and system time of this process and of the children it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


# ---------------------------------------------------------------- driving and sampling


def run(arm: str, name: str, threads: int) -> Run:
    """One measurement. Raises RuntimeError with the end of its stderr when the process fails."""
    command = [sys.executable, __file__, "--measure", arm, "--models", name, "--threads", str(threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"}
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        )
        assert process.stdin is not None
        assert process.stdout is not None
        head = _json_line(process.stdout)
        if head is not None:
            sampler = _Sampler(process.pid)
            process.stdin.write("go\n")
            process.stdin.flush()
            sampler.sample_until_output(process.stdout.fileno())
            tail = _json_line(process.stdout)
        process.communicate()
        if head is None or tail is None or process.returncode != 0:
            errors.seek(0)
            raise RuntimeError(f"{arm} on {name} failed ({process.returncode}):\n{errors.read()[-2000:]}")
    return {"arm": arm, "model": name, **head, **tail, **sampler.result()}


def _json_line(pipe: Any) -> Run | None:
    """The next line that is a JSON object: exporters may print lines of their own. None at the end."""
    for line in pipe:
        if line.startswith("{"):
            found: Run = json.loads(line)
            return found
    return None


class _Sampler:
    """Resident memory of a process, and of it with all its children, in MB."""

    def __init__(self, pid: int) -> None:
        self.process = psutil.Process(pid)
        self.children: list[psutil.Process] = []
        self.base = self.peak = self.tree_peak = self._resident(self.process)

    def sample_until_output(self, descriptor: int) -> None:
        """Samples until something can be read from ``descriptor`` (or it is closed)."""
        count = 0
        while not select.select([descriptor], [], [], 0.02)[0]:
            if count % 25 == 0:  # looking for children costs far more than reading their memory
                self.children = self.process.children(recursive=True)
            count += 1
            own = self._resident(self.process)
            self.peak = max(self.peak, own)
            self.tree_peak = max(self.tree_peak, own + sum(map(self._resident, self.children)))

    @staticmethod
    def _resident(process: psutil.Process) -> float:
        try:
            return float(process.memory_info().rss) / 1e6
        except psutil.NoSuchProcess:
            return 0.0

    def result(self) -> Run:
        return {
            "base": self.base,
            "peak": self.peak,
            "growth": self.peak - self.base,
            "tree_peak": self.tree_peak,
            "tree_growth": self.tree_peak - self.base,
        }


# ---------------------------------------------------------------- the table


def ratios(runs: list[Run], name: str, metric: str, arm: str) -> list[float]:
    """``arm`` over torch in each repeat."""
    value = {(r["repeat"], r["arm"]): r[metric] for r in runs if r["model"] == name}
    repeats = sorted({repeat for repeat, _ in value})
    return [value[k, arm] / max(value[k, "torch"], 1e-9) for k in repeats]


def table(runs: list[Run], name: str) -> Table:
    """Medians of the three arms and the two ratios, for one model."""
    view = Table("", *ARMS, "ours / torch", "control / torch", title=name, title_justify="left")
    for title, metric in METRICS.items():
        found = {arm: [r for r in runs if (r["model"], r["arm"]) == (name, arm)] for arm in ARMS}
        medians = [statistics.median(r[metric] for r in found[arm]) for arm in ARMS]
        shares = [ratios(runs, name, metric, arm) for arm in ("ours", "control")]
        cells = [f"{statistics.median(s):.2f} ({min(s):.2f}..{max(s):.2f})" for s in shares]
        view.add_row(title, *(f"{value:.1f}" for value in medians), *cells)
    return view


def stage_line(runs: list[Run], name: str) -> str:
    """Median wall seconds of each stage of ours, and of the imports."""
    ours = [r for r in runs if (r["model"], r["arm"]) == (name, "ours")]
    stages = {stage: statistics.median(r["stages"][stage] for r in ours) for stage in ours[0]["stages"]}
    imports = statistics.median(r["import"] for r in ours)
    opsets = {r["arm"]: r["opset"] for r in runs if r["model"] == name}
    parts = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in stages.items())
    opset = f"opset ours {opsets['ours']}, torch {opsets['torch']}"
    return f"ours by stage: {parts}; imports {imports:.1f} s; {opset}"


def machine(threads: int) -> Run:
    """What the figures hold for."""
    return {
        "cores": os.cpu_count(),
        "threads": threads,
        "load before": os.getloadavg()[0],
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }


@click.command(help="The cost of fxexport.compile beside torch.onnx.export, as ratios.")
@click.option("--models", default=",".join(DEFAULT_MODELS), show_default=True, help="Names, by commas.")
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Cores of a run.")
@click.option("--output", type=click.Path(path_type=Path), default=RESULTS, help="Where the JSON goes.")
@click.option("--measure", "arm", type=click.Choice(ARMS), hidden=True)
def main(models: str, repeats: int, threads: int, output: Path, arm: str | None) -> None:
    """The driver, or with ``--measure`` the process that is measured."""
    names = models.split(",")
    if arm is not None:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
        measure(arm, names[0], threads)
        return
    console, facts = Console(width=None if sys.stdout.isatty() else 130), machine(threads)
    runs: list[Run] = []
    for name in names:
        for repeat in range(repeats):
            for turn in (*ARMS[repeat % 3 :], *ARMS[: repeat % 3]):
                with console.status(f"{name}: repeat {repeat + 1} of {repeats}, {turn}"):
                    runs.append({**run(turn, name, threads), "repeat": repeat})
        console.print(table(runs, name))
        console.print(stage_line(runs, name), "\n", highlight=False)
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps({"machine": facts, "runs": runs}, indent=1) + "\n")
    console.print(f"{repeats} repeats; {facts}\nwritten to {output}", highlight=False)


if __name__ == "__main__":
    main()
