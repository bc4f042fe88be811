"""The rewrite engine beside its peers: the same rules on the same graphs, at three sizes.

Rules are in ``rewrite_rules.py``, graphs in ``rewrite_graphs.py``: sites that match, sites that almost do, filler; the
number of places that match is known. Two sets of rules are run on each graph: all of them, and ``silu`` alone. A second
graph, ``dense``, has a match of ``silu`` at every fourth call, read twice: where each match costs a walk, it shows.

- fxexport: a ``PatternSet`` through ``PassManager``: copied, matched, rewritten, verified, in a transaction;
- fxexport bare: ``PatternSet.run`` alone, in place;
- replace_pattern: ``torch.fx.replace_pattern_with_filters``, once a rule, on a GraphModule of the same graph;
- inductor: ``PatternMatcherPass`` with ``register_replacement``, all rules in one pass, then lint and recompile;
- inductor cached: the same, each function traced once for all matches, which ``register_replacement`` does not do;
- onnxscript: ``RewriteRuleSet.apply_to_model`` on the ONNX form of the graph and of the rules;
- by hand: a loop over the graph that does ``silu`` only, then lint and recompile.

Each measurement is a process of its own, which first rewrites a small graph (imports and what is traced once), then
builds the graph, then rewrites it. Shown: the median of the repeats, the ratio to fxexport within a repeat, places
rewritten and planted, the growth of resident memory over that before rewriting (sampled every 20 ms), and the slope of
log seconds over log nodes from one size to the next. The engines take turns in each repeat. A process that takes longer than
``--limit`` seconds for rewriting is ended and shown as over the limit, and left out at larger sizes. Before all that,
every engine rewrites a graph of 1000 nodes, and what it computes is compared with the original on a random input.
"""

from __future__ import annotations

import gc
import itertools
import json
import math
import os
import platform
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

RESULTS = Path(__file__).parent / "results" / "rewrite_engine.json"
ARMS = ("fxexport", "fxexport bare", "replace_pattern", "inductor", "inductor cached", "onnxscript", "by hand")
SETS = ("all", "silu", "all@dense", "silu@dense")
CHECKED = 1000
WARM = 300
PACKAGES = ("fxexport", "torch", "onnxscript", "onnx-ir")
Run = dict[str, Any]


# ---------------------------------------------------------------- one measurement, in a process of its own


def measure(arm: str, rules: str, size: int) -> None:
    """Warms up, builds, says so, waits for a line on stdin, rewrites once; prints a JSON line before and after."""
    import torch
    from rewrite_adapters import ENGINES
    from rewrite_graphs import build
    from rewrite_rules import RULES

    torch.set_num_threads(1)
    wanted, _, kind = rules.partition("@")
    chosen = tuple(rule for rule in RULES if wanted in ("all", rule.name))
    engine = ENGINES[arm](chosen)
    engine.rewrite(engine.prepare(build(WARM, seed=1).program))
    planted = build(size, dense=kind == "dense")
    expected = {rule.name: planted.expected(rule) for rule in chosen}
    graph, nodes = engine.prepare(planted.program), planted.program.node_count()
    inputs = [torch.randn(8, 16, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    before = engine.run(graph, *inputs) if size <= CHECKED else None
    del planted
    gc.collect()
    gc.freeze()  # a full collection of what torch has imported would cost more than some engines
    print(json.dumps({"nodes": nodes, "expected": expected}), flush=True)
    sys.stdin.readline()
    start = time.perf_counter()
    graph, found = engine.rewrite(graph)
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "found": found}), flush=True)
    if before is not None:
        error = (engine.run(graph, *inputs) - before).abs().max().item()
        print(json.dumps({"error": error}), flush=True)


# ---------------------------------------------------------------- driving and sampling


def run(arm: str, rules: str, size: int, limit: float) -> Run:
    """One measurement; ``seconds`` is None where it was over the limit. Raises RuntimeError where the process fails."""
    command = [sys.executable, __file__, "--measure", arm, "--rules", rules, "--sizes", str(size)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    result: Run = {"arm": arm, "rules": rules, "size": size, "seconds": None, "found": None, "peak": None}
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        )
        assert process.stdin is not None
        assert process.stdout is not None
        ready = process.stdout.readline()
        if ready:
            result |= json.loads(ready)
            process.stdin.write("go\n")
            process.stdin.flush()
            result["peak"], over = _sample(process, limit)
            if over:
                process.kill()
                process.communicate()
                return result
        for line in process.stdout:
            result |= json.loads(line)
        process.communicate()
        if process.returncode != 0 or result["seconds"] is None:
            errors.seek(0)
            raise RuntimeError(f"{arm} on {size} nodes failed ({process.returncode}):\n{errors.read()[-3000:]}")
    return result


def _sample(process: subprocess.Popen[str], limit: float) -> tuple[float, bool]:
    """Growth of resident memory in MiB until ``process`` prints something, and whether it took longer than ``limit``."""
    assert process.stdout is not None
    watched, start = psutil.Process(process.pid), time.perf_counter()
    base = peak = watched.memory_info().rss
    while not select.select([process.stdout.fileno()], [], [], 0.02)[0]:
        peak = max(peak, watched.memory_info().rss)
        if time.perf_counter() - start > limit:
            return (peak - base) / 2**20, True
    return (max(peak, watched.memory_info().rss) - base) / 2**20, False


def check(arms: list[str], rules: list[str], limit: float) -> list[Run]:
    """Every engine on the small graph. Raises SystemExit where what it rewrote computes something else."""
    runs = []
    for arm, chosen in _cells(arms, rules):
        result = run(arm, chosen, CHECKED, limit)
        if result["seconds"] is not None and not result["error"] < 1e-4:
            raise SystemExit(f"{arm}, rules {chosen}: the rewritten graph is off by {result['error']}")
        runs.append(result)
    return runs


def _cells(arms: list[str], rules: list[str]) -> list[tuple[str, str]]:
    return [(arm, chosen) for chosen in rules for arm in arms if arm != "by hand" or chosen.startswith("silu")]


# ---------------------------------------------------------------- the table


def summary(runs: list[Run], arm: str, rules: str, size: int) -> Run | None:
    """Medians of the repeats of one cell, or None where there are none; ``seconds`` None where one was over the limit."""
    found = [r for r in runs if (r["arm"], r["rules"], r["size"]) == (arm, rules, size)]
    if not found:
        return None
    if any(r["seconds"] is None for r in found):
        return {**found[0], "seconds": None}
    ours = {r["repeat"]: r["seconds"] for r in runs if (r["arm"], r["rules"], r["size"]) == (ARMS[0], rules, size)}
    shares = [r["seconds"] / ours[r["repeat"]] for r in found if ours.get(r["repeat"])]
    medians = {key: statistics.median(r[key] for r in found) for key in ("seconds", "peak")}
    return {**found[0], **medians, "ratio": statistics.median(shares) if shares else None}


def growth(runs: list[Run], arm: str, rules: str, sizes: list[int]) -> dict[int, float]:
    """For each size but the first: the slope of log seconds over log nodes from the size before."""
    cells = {size: summary(runs, arm, rules, size) for size in sizes}
    known = [cell for size in sizes if (cell := cells[size]) is not None and cell["seconds"]]
    return {
        b["size"]: math.log(b["seconds"] / a["seconds"]) / math.log(b["nodes"] / a["nodes"])
        for a, b in itertools.pairwise(known)
    }


def table(runs: list[Run], rules: str, arms: list[str], sizes: list[int]) -> Table:
    """One row for each size and engine."""
    title = f"rules: {rules}"
    view = Table("nodes", "engine", "rewritten", "planted", "seconds", "of fxexport", "peak MiB", "growth", title=title)
    slopes = {arm: growth(runs, arm, rules, sizes) for arm in arms}
    for size in sizes:
        for arm in arms:
            cell = summary(runs, arm, rules, size)
            if cell is not None:
                planted = str(sum(cell["expected"].values())) if "expected" in cell else "?"
                view.add_row(str(size), arm, *_row(cell, planted), _number(slopes[arm].get(size)))
        view.add_section()
    return view


def _row(cell: Run, planted: str) -> tuple[str, ...]:
    if cell["seconds"] is None:
        return "", planted, "over limit", "", ""
    places = str(sum(cell["found"].values()))
    return places, planted, f"{cell['seconds']:.3f}", _number(cell["ratio"]), f"{cell['peak']:.0f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def machine() -> Run:
    """What the figures hold for."""
    return {
        "cores": os.cpu_count(),
        "load before": os.getloadavg()[0],
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }


def measure_size(console: Console, cells: list[tuple[str, str]], size: int, repeats: int, limit: float) -> list[Run]:
    """Every engine at one size, in turns; one that was over the limit is not repeated."""
    runs: list[Run] = []
    over: set[tuple[str, str]] = set()
    for repeat in range(repeats):
        for arm, chosen in cells:
            if (arm, chosen) not in over:
                with console.status(f"{size} nodes, repeat {repeat + 1} of {repeats}: {arm}, rules {chosen}"):
                    runs.append({**run(arm, chosen, size, limit), "repeat": repeat})
                if runs[-1]["seconds"] is None:
                    over.add((arm, chosen))
    return runs


@click.command(help="The rewrite engine beside torch.fx, Inductor and onnxscript: matches, seconds, memory, growth.")
@click.option("--sizes", default="1000,10000,100000", show_default=True, help="Operator calls, by commas.")
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--rules", default=",".join(SETS), show_default=True, help='"all" or a rule, "@dense", by commas.')
@click.option("--engines", default=",".join(ARMS), show_default=True, help="By commas.")
@click.option("--limit", default=120.0, show_default=True, help="Seconds of rewriting after which a run is ended.")
@click.option("--output", type=click.Path(path_type=Path), default=RESULTS, help="Where the JSON goes.")
@click.option("--measure", "arm", type=click.Choice(ARMS), hidden=True)
def main(sizes: str, repeats: int, rules: str, engines: str, limit: float, output: Path, arm: str | None) -> None:
    """The driver, or with ``--measure`` the process that is measured."""
    numbers = sorted(int(size) for size in sizes.split(","))
    if arm is not None:
        measure(arm, rules, numbers[0])
        return
    console, facts = Console(width=None if sys.stdout.isatty() else 120), machine()
    arms, sets = engines.split(","), rules.split(",")
    checks = check(arms, sets, limit)
    runs: list[Run] = []
    for unchecked in (r for r in checks if r["seconds"] is None):
        console.print(f"not checked, over the limit: {unchecked['arm']}, rules {unchecked['rules']}")
    cells = _cells(arms, sets)
    output.parent.mkdir(parents=True, exist_ok=True)
    for size in numbers:
        runs += measure_size(console, cells, size, repeats, limit)
        over = {(r["arm"], r["rules"]) for r in runs if r["seconds"] is None}
        cells = [cell for cell in cells if cell not in over]
        facts_and_runs = {"machine": facts, "limit": limit, "checks": checks, "runs": runs}
        output.write_text(json.dumps(facts_and_runs, indent=1) + "\n")
    for chosen in sets:
        console.print(table(runs, chosen, arms, numbers))
    console.print(f"{repeats} repeats; {facts}\nwritten to {output}", highlight=False)


if __name__ == "__main__":
    main()
