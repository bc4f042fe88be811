"""The benchmark of the rewrite engine: every engine finds what was planted, and what it leaves computes the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
ENGINES = ("fxexport", "fxexport bare", "replace_pattern", "inductor", "inductor cached", "onnxscript", "by hand")
KNOWS_ORDERS = {"fxexport", "fxexport bare", "onnxscript", "by hand"}
"""Engines that match operands of commutative operators in both orders; the others find the pattern as written."""


@pytest.fixture
def benchmark_modules(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any, Any]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import rewrite_adapters
    import rewrite_graphs
    import rewrite_rules

    return rewrite_rules, rewrite_graphs, rewrite_adapters


def test_the_table_of_engines_is_whole(benchmark_modules: tuple[Any, Any, Any]) -> None:
    assert tuple(benchmark_modules[2].ENGINES) == ENGINES
    assert len(benchmark_modules[0].RULES) == 30


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_finds_what_was_planted(name: str, benchmark_modules: tuple[Any, Any, Any]) -> None:
    rules, graphs, adapters = benchmark_modules
    cls = adapters.ENGINES[name]
    chosen = tuple(rule for rule in rules.RULES if cls.only is None or rule.name in cls.only)
    planted, engine = graphs.build(400, seed=3), cls(chosen)
    kinds = ("match", "swapped") if name in KNOWS_ORDERS else ("match",)
    expected = {rule.name: sum(planted.sites[rule.name][kind] for kind in kinds) for rule in chosen}
    assert any(expected.values())
    assert name == "by hand" or any(planted.sites[rule.name]["swapped"] for rule in chosen), "choose another seed"
    inputs = [torch.randn(8, 16, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    graph = engine.prepare(planted.program)
    original = planted.program.run(*inputs)[0]
    torch.testing.assert_close(engine.run(graph, *inputs), original, rtol=1e-4, atol=1e-4)
    after, found = engine.rewrite(graph)
    assert {rule.name: found.get(rule.name, 0) for rule in chosen} == expected
    torch.testing.assert_close(engine.run(after, *inputs), original, rtol=1e-4, atol=1e-4)
