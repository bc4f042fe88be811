"""Every built-in pass, and the pipeline, on random programs: fires often, is never wrong; and a wrong pass is caught.

FXEXPORT_RANDOM_PROGRAMS=20000 draws so many programs instead of four hundred.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from leftovers import LEFTOVERS

from fxexport.program import Program
from fxexport.rewrite import Pass, PassResult, arguments, available, resolve
from fxexport.testing import RandomProgram, assert_preserves, programs

aten = torch.ops.aten
PARTS = 2  # so that workers share the work
COUNT = max(400, int(os.environ.get("FXEXPORT_RANDOM_PROGRAMS", "0"))) // PARTS
BUILTIN = {name: cls for name, cls in available().items() if cls.__module__.startswith("fxexport.passes.")}
WEIGHTS = {
    **{"elementwise": 1, "shapes": 1, "reductions": 1, "layers": 1, "copies": 4, "assertions": 6, "grouped_mm": 12},
    **{"batch_norm_conv": 3, "conv_batch_norm": 3, "linear_batch_norm": 3, "dropout": 10},
    **{step: 4 * weight for step, weight in LEFTOVERS.items()},
}
FIRES = {
    **{"decompose-grouped-mm": 0.004, "remove-dropout": 0.05, "remove-noops": 0.1, "remove-assertions": 0.03},
    **{"fold-constants": 0.05, "fold-batchnorm": 0.01, "fold-affine": 0.01, "simplify-shapes": 0.01},
    **{"simplify-arithmetic": 0.05, "cancel-casts": 0.01, "simplify-slices": 0.05, "cancel-reshapes": 0.05},
    **{"cancel-transposes": 0.04, "merge-common-subexpressions": 0.01, "default pipeline": 0.5},
}
"""The share of the programs in which a pass must find something, else these tests prove little."""
ELSEWHERE = sorted(set(BUILTIN) - set(FIRES))
"""Passes for what these programs do not have: in the pipeline only here, on programs that have it in their own tests."""
QUIET = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.mark.parametrize("part", range(PARTS))
def test_every_builtin_pass_and_the_pipeline_compute_the_same(part: int) -> None:
    lists: dict[str, list[Pass]] = {name: [cls()] for name, cls in BUILTIN.items() if name in FIRES}
    lists["default pipeline"] = resolve("default")
    fired: Counter[str] = Counter()
    drawn = [0]

    @seed(part)
    @settings(QUIET, derandomize=False, max_examples=COUNT)
    @given(programs(WEIGHTS))
    def never_wrong(sample: RandomProgram) -> None:
        drawn[0] += 1
        for name, passes in lists.items():
            records = assert_preserves(passes, sample)
            fired[name] += any(record.count for record in records)

    never_wrong()
    assert drawn[0] >= COUNT * 0.9
    for name in lists:
        wanted = FIRES[name] * drawn[0]
        assert fired[name] >= wanted, (
            f"{name} fired in {fired[name]} of {drawn[0]} programs; draw more of what it rewrites"
        )


@pytest.mark.parametrize("name", ELSEWHERE)
def test_every_other_pass_is_tried_by_tests_of_its_own(name: str) -> None:
    own = Path(__file__).parents[1] / "passes" / f"test_{name.replace('-', '_')}.py"
    assert own.exists()


# ---------------------------------------------------------------- wrong passes are caught


@dataclass(frozen=True)
class FoldIgnoringEps(Pass):
    """``batch_norm(x, eps) -> batch_norm(x, 0)``: wrong by 1e-5 to 0.1 of the variance."""

    name: ClassVar[str] = "fold-ignoring-eps"

    def run(self, program: Program) -> PassResult:
        count = 0
        for node in program.find(aten.batch_norm.default):
            call = arguments(node)
            if call["eps"] and not call["training"]:
                program.replace(node, program.insert(node.target, tuple({**call, "eps": 0.0}.values()), before=node))
                count += 1
        return PassResult(count)


@dataclass(frozen=True)
class CommuteScaledSum(Pass):
    """``x + alpha * y -> y + alpha * x``: right only for alpha = 1."""

    name: ClassVar[str] = "commute-scaled-sum"

    def run(self, program: Program) -> PassResult:
        count = 0
        for node in program.find(aten.add.Tensor):
            a, b = node.args
            if isinstance(b, torch.fx.Node) and a is not b:
                program.replace(node, program.insert(aten.add.Tensor, (b, a), dict(node.kwargs), before=node))
                count += 1
        return PassResult(count)


@dataclass(frozen=True)
class RemoveTransposes(Pass):
    """``transpose(x) -> x`` where the shape stays: wrong for squares."""

    name: ClassVar[str] = "remove-transposes"

    def run(self, program: Program) -> PassResult:
        count = 0
        for node in program.find(aten.transpose.int):
            (source,) = node.all_input_nodes
            if list(map(str, source.meta["val"].shape)) == list(map(str, node.meta["val"].shape)):
                program.replace(node, source)
                count += 1
        return PassResult(count)


@dataclass(frozen=True)
class RoundInsteadOfFloor(Pass):
    """``floor(x) -> round(x)``: wrong for every other number."""

    name: ClassVar[str] = "round-instead-of-floor"

    def run(self, program: Program) -> PassResult:
        count = 0
        for node in program.find(aten.floor.default):
            program.replace(node, program.insert(aten.round.default, node.args, before=node))
            count += 1
        return PassResult(count)


WRONG = [
    (FoldIgnoringEps(), aten.batch_norm.default, {"elementwise": 1, "batch_norm": 10, "conv": 5}),
    (CommuteScaledSum(), aten.add.Tensor, {"elementwise": 1, "shapes": 1, "add_scaled": 10}),
    (RemoveTransposes(), aten.transpose.int, {"elementwise": 1, "transpose": 20}),
    (RoundInsteadOfFloor(), aten.floor.default, {"elementwise": 1, "reductions": 1, "copies": 1, "floor": 20}),
]


def caught_by(wrong: Pass, weights: dict[str, int], number: int) -> str:
    """What a search with the random seed ``number`` says of a wrong pass, shrunk; '' where it finds nothing."""

    @seed(number)
    @settings(QUIET, derandomize=False, max_examples=300, phases=[Phase.generate, Phase.shrink])
    @given(programs(weights, max_steps=8))
    def never_wrong(sample: RandomProgram) -> None:
        assert_preserves(wrong, sample)

    try:
        never_wrong()
    except AssertionError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("wrong", "operator", "weights"), WRONG, ids=[str(case[0]) for case in WRONG])
def test_a_wrong_pass_is_caught_and_shrunk(wrong: Pass, operator: object, weights: dict[str, int]) -> None:
    message = next(filter(None, (caught_by(wrong, weights, number) for number in range(8))), "")
    assert "differs by" in message, f"{wrong} was not caught"
    graph = message.partition("from: ")[2]
    calls = re.findall(r"target=torch\.ops\.(\S+?)\]", graph)
    assert str(operator) in calls
    assert len(calls) <= 4, f"not shrunk:\n{graph}"
