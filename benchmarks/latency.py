"""Latencies of ONNX files beside each other in onnxruntime: interleaved, as ratios with an interval."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

RESAMPLES = 4000
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
"""Wall is the latency. With one thread, CPU time is the latency of a core of one's own, whatever else the machine does."""

Feed = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Ratio:
    """``value``: median over median. ``low`` and ``high`` hold it in 95 of 100 cases."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f}..{self.high:.3f})"


def open_session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    """The file in onnxruntime on the CPU, with all of its own optimizations."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def interleaved(
    paths: Sequence[Path], feed: Feed, *, rounds: int, least: float, threads: int, clock: str = "wall"
) -> np.ndarray:
    """Milliseconds of one run of each file by one of ``CLOCKS``, [rounds, files].

    In every round each file is opened anew and has one sample, both in an order that is drawn anew: what the machine does
    besides hits all alike, and so does where a session happens to lie in memory, which is worth some percent. A sample
    is the mean of as many runs as take ``least`` seconds, after three to warm up. A file gets those entries of ``feed``
    that it has inputs of.
    """
    times, random, now, runs = np.empty((rounds, len(paths))), np.random.default_rng(0), CLOCKS[clock], 0
    for row in times:
        opened = [(i, open_session(paths[i], threads)) for i in random.permutation(len(paths))]
        arms = [(i, each, {value.name: feed[value.name] for value in each.get_inputs()}) for i, each in opened]
        fastest = min(_seconds(session, given) for _, session, given in arms)
        runs = runs or max(1, round(least / fastest))
        for turn in random.permutation(len(arms)):
            i, session, given = arms[turn]
            start = now()
            for _ in range(runs):
                session.run(None, given)
            row[i] = 1e3 * (now() - start) / runs
    return times


def _seconds(session: onnxruntime.InferenceSession, feed: Feed) -> float:
    """The fastest of three runs, which also warm the session up."""
    found = []
    for _ in range(3):
        start = time.perf_counter()
        session.run(None, feed)
        found.append(time.perf_counter() - start)
    return min(found)


def ratio(times: np.ndarray, above: int, below: int) -> Ratio:
    """The median of column ``above`` of ``times`` over that of ``below``, with a 95 % interval.

    The interval is the percentile bootstrap (Efron 1979): rounds are drawn with replacement, whole, so that what slows a
    round down stays in both columns.
    """
    rounds = len(times)
    drawn = times[np.random.default_rng(0).integers(rounds, size=(RESAMPLES, rounds))]
    medians = np.median(drawn, axis=1)
    low, high = np.percentile(medians[:, above] / medians[:, below], [2.5, 97.5])
    middle = np.median(times, axis=0)
    return Ratio(float(middle[above] / middle[below]), float(low), float(high))
