"""``explain``: alike places are one row, near-misses are ranked, and a search in vain says what was looked for."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx, nn

import fxexport
from fxexport.program import Program, module_path
from fxexport.report import Report, explain
from fxexport.report.explanation import explanation_json, looks_for, merged_modules, sorted_out
from fxexport.report.program_text import shown_place, shown_text
from fxexport.report.text import plain, render
from fxexport.rewrite import NearMiss, NodePass, Pass, PassManager, PassRecord, PassResult, Rewrite

aten = torch.ops.aten
HERE = os.path.join(os.getcwd(), "model.py")


def rewrite(number: int, module: str = "blocks.{}.act", line: str = f"{HERE}:12", rule: str = "fuse") -> Rewrite:
    operators = ("aten.mul.Tensor", "aten.mul.Tensor", "aten.tanh.default")
    return Rewrite(rule, f"tanh_{number}", operators, module.format(number), line)


def miss(number: int, matched: int, reason: str, module: str = "blocks.{}") -> NearMiss:
    return NearMiss("fuse", f"mul_{number}", module.format(number), f"{HERE}:{20 + matched}", matched, 4, reason)


def record(rewrites: list[Rewrite], misses: list[NearMiss], **fields: Any) -> PassRecord:
    fields = {"near_miss_count": len(misses)} | fields
    return PassRecord("fuse", len(rewrites), 40, 30, 0.01, (), None, tuple(rewrites), tuple(misses), **fields)


def rows(text: str, start: str) -> list[list[str]]:
    return [re.split(r"  +", line.strip()) for line in text.splitlines() if line.strip().startswith(start)]


def test_alike_places_are_one_row() -> None:
    other = [rewrite(0, "head"), rewrite(1, line=f"{HERE}:99"), rewrite(2, rule="fuse/tanh")]
    text = plain(explain(record([rewrite(i) for i in range(6)] + other, [])))
    assert text.startswith("fuse: 9 rewritten, 40 -> 30 nodes, 10 ms\n")
    operators = "aten.mul.Tensor x2 + aten.tanh"
    assert rows(text, "6") == [["6", operators, "blocks.{0..5}.act", "model.py:12"]]
    assert rows(text, "1") == [
        ["1", operators, "head", "model.py:12"],
        ["1", operators, "blocks.1.act", "model.py:99"],
        ["1", "fuse/tanh", operators, "blocks.2.act", "model.py:12"],
    ]


def test_near_misses_are_ranked_and_alike_ones_are_one_row() -> None:
    far = [miss(i, 2, f"mul_{i}: expected aten.mul.Tensor, found aten.div.Tensor ({HERE}:21)") for i in range(3)]
    loose = [miss(9, 1, "a root")]
    near = [miss(7, 3, "the weight is no constant")]
    text = plain(explain(record([], loose + far + near, near_miss_count=24)))
    assert text.startswith("fuse: nothing rewritten, 24 near misses, 40 -> 30 nodes")
    found = [line for line in text.splitlines() if " of 4" in line]
    assert [re.split(r"  +", line.strip())[:4] for line in found] == [
        ["1", "3 of 4", "blocks.7", "model.py:23"],
        ["3", "2 of 4", "blocks.{0..2}", "model.py:22"],
    ]
    whole = " ".join(text.split())
    assert "the weight is no constant" in whole
    assert "mul_0: expected aten.mul.Tensor, found aten.div.Tensor (model.py:21)" in whole
    assert "and 20 near misses more" in whole
    assert "last operator" not in whole


def test_places_where_only_the_root_agrees_are_told_where_there_are_no_better_ones() -> None:
    loose = [miss(i, 1, f"expected {'abcd'[i]}", module="head") for i in range(4)]
    only = record([], loose, near_miss_count=0)
    text = plain(explain(only))
    assert "near miss" not in text
    head, *_ = rows(text, "Only")
    assert head == ["Only the last operator agrees"]
    assert [row[-1] for row in rows(text, "1")] == ["expected a", "expected b", "expected c"]
    both, left = sorted_out(record([], [*loose, miss(8, 3, "near")], near_miss_count=1))
    assert ([each.reason for each in both.near_misses], both.near_miss_count, left) == (["near"], 1, [])
    assert " more" not in plain(explain(both))


def test_what_the_pass_made_is_no_near_miss() -> None:
    own = [replace(rewrite(0), made=("mul_7", "mul_8"))]
    made = [miss(7, 4, "its own"), miss(8, 1, "its own")]
    text = plain(explain(record(own, [*made, miss(3, 2, "another")], near_miss_count=2)))
    assert text.startswith("fuse: 1 rewritten, 1 near miss, ")
    assert "its own" not in text
    assert "another" in text
    assert " more" not in text
    assert "left" not in render(Report(Path("net.onnx"), "onnx", passes=[record(own, made[:1])], nodes=(40, 30)))


def test_a_reason_tells_each_place_once() -> None:
    there = f"{HERE}:220"
    reason = (
        f"self of mul (aten.mul) made at {HERE}:22: expected div, found a (aten.a) made at {there}, b made at {there}"
    )
    told = " ".join(plain(explain(record([], [miss(0, 2, reason)]))).split())
    assert told.endswith("self of mul (aten.mul): expected div, found a (aten.a) made at model.py:220, b")


def test_one_failed_near_miss_is_not_grouped_with_another_reason() -> None:
    text = plain(explain(record([], [miss(0, 2, "a is dynamic"), miss(1, 2, "b is shared")])))
    assert rows(text, "1") == [
        ["1", "2 of 4", "blocks.0", "model.py:22", "a is dynamic"],
        ["1", "2 of 4", "blocks.1", "model.py:22", "b is shared"],
    ]


def test_a_failed_pass_and_notes_and_delta() -> None:
    failed = PassRecord("fuse", 0, 4, 4, 0.001, error=f"mul at {HERE}:3 is wrong")
    assert plain(explain(failed)).splitlines()[1] == "failed and rolled back: mul at model.py:3 is wrong"
    noted = replace(record([rewrite(0)], []), notes=("bn stays: read twice",), delta=1.5e-7)
    text = plain(explain(noted))
    assert "outputs moved by 1.50e-07" in text
    assert "- bn stays: read twice" in text
    blind = PassRecord("other", 3, 4, 1, 0.001)
    assert "does not say where" in plain(explain(blind))


def test_the_report_shows_it_briefly() -> None:
    many = [rewrite(i) for i in range(6)] + [rewrite(0, name) for name in ("a", "b", "c", "d")]
    passes = [record(many, [miss(0, 2, "no")], near_miss_count=7, delta=2e-6), record([], [])]
    text = render(Report(Path("net.onnx"), "onnx", passes=passes, nodes=(40, 30)))
    assert "near misses" in text
    assert "moved outputs by" in text
    first, second, *_ = rows(text, "fuse")
    assert first[:6] == ["fuse", "10", "7", "40 -> 30", "10", "2.00e-06"]
    assert "blocks.{0..5}.act, a, b and 2 more" in " ".join(text.split())
    assert second == ["fuse", "0", "40 -> 30", "10"]
    plain_text = render(Report(Path("net.onnx"), "onnx", passes=[record([], [])], nodes=(40, 30)))
    assert "near misses" not in plain_text
    assert "moved" not in plain_text


@pytest.mark.parametrize(
    ("paths", "merged"),
    [
        (["a.0.b", "a.1.b", "a.2.b"], ["a.{0..2}.b"]),
        (["a.0", "a.2", "a.10"], ["a.{0,2,10}"]),
        (["a.0.b.1", "a.1.b.1"], ["a.{0,1}.b.1"]),
        (["stem", "", "head", "stem"], ["stem", "head"]),
        ([], []),
    ],
)
def test_module_paths_are_merged(paths: list[str], merged: list[str]) -> None:
    assert merged_modules(paths) == merged


def test_places_are_shown_from_where_the_reader_is() -> None:
    assert shown_place(f"{HERE}:3") == "model.py:3"
    assert shown_place("/usr/lib/python3/site-packages/timm/layers.py:4") == "timm/layers.py:4"
    assert shown_place("/usr/lib/python3/site-packages/torch/nn/functional.py:4") == ""
    assert shown_place(f"{os.path.dirname(fxexport.__file__)}/capture/flat_model.py:4") == ""
    assert shown_place("/elsewhere/model.py:3") == "/elsewhere/model.py:3"
    assert shown_text(f"see ({HERE}:3)  and /elsewhere/b.py:1") == "see (model.py:3)  and /elsewhere/b.py:1"


# ---------------------------------------------------------------- with real passes


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x).relu().mean(1, keepdim=True) + x


@dataclass(frozen=True)
class ClampInBlocks(NodePass):
    """relu(x) -> clamp_min(x, 0), in blocks but the first."""

    name = "clamp-in-blocks"
    targets = (aten.relu.default,)

    def rewrite(self, program: Program, node: fx.Node) -> fx.Node | str:
        if module_path(node) == "0":
            return "the first block stays"
        return program.insert(aten.clamp_min.default, (node.args[0], 0), before=node)


@dataclass(frozen=True)
class LooksInVain(NodePass):
    """native_batch_norm(x) -> x, never."""

    name = "looks-in-vain"
    targets = (aten.native_batch_norm.default, aten.mean.default)

    def rewrite(self, program: Program, node: fx.Node) -> None:
        raise AssertionError("not reached")


@dataclass(frozen=True)
class Refuses(LooksInVain):
    """relu(x) -> x, never."""

    name = "refuses"
    targets = (aten.relu.default,)

    def rewrite(self, program: Program, node: fx.Node) -> None:
        return None


@dataclass(frozen=True)
class Whole(Pass):
    """x -> x"""

    name = "whole"

    def run(self, program: Program) -> PassResult:
        return PassResult(0)


@pytest.fixture(scope="module")
def program() -> Program:
    return fxexport.capture(nn.Sequential(Block(), Block(), Block()).eval(), torch.randn(3, 4))


def explained(pass_: Pass, program: Program) -> str:
    _, (found,) = PassManager([pass_]).run(program)
    return plain(explain(found, pass_, program))


def test_a_node_pass_is_explained_in_the_models_words(program: Program) -> None:
    text = explained(ClampInBlocks(), program)
    assert text.startswith("clamp-in-blocks: 2 rewritten, 1 near miss, ")
    line = Block.forward.__code__.co_firstlineno + 1
    place = shown_place(f"{__file__}:{line}")
    assert rows(text, "2") == [["2", "aten.relu", "{1,2}", place]]
    assert rows(text, "1") == [["1", "1 of 1", "0", place, "the first block stays"]]


def test_a_search_in_vain_names_what_is_similar(program: Program) -> None:
    text = " ".join(explained(LooksInVain(), program).split())
    assert "it looks for aten.native_batch_norm, aten.mean: the program has none" in text
    assert "similar operators in the program: aten.batch_norm 3, aten.mean.dim 3" in text
    assert "it looks at aten.relu 3 in the program" in explained(Refuses(), program)
    assert "does not say which operators" in explained(Whole(), program)


def test_json_has_the_record_and_what_was_looked_for(program: Program) -> None:
    _, (found,) = PassManager([ClampInBlocks()]).run(program)
    data = explanation_json(found, ClampInBlocks(), program)
    assert [each["module"] for each in data["rewrites"]] == ["1", "2"]
    assert data["looks_for"] == {"aten.relu.default": {"calls": 3, "similar": {}}}
    assert looks_for(Whole(), program) is None
    loose = record([], [miss(i, 1, "a root") for i in range(5)], near_miss_count=0)
    data = explanation_json(loose, Whole(), program)
    assert (data["near_miss_count"], data["near_misses"]) == (0, [])
    assert [each["reason"] for each in data["last_operator_only"]] == ["a root"] * 3
