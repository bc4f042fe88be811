"""``diff``: readable lines, unchanged ones equal, the right calls in the right group; and a drawing of it."""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from difflib import SequenceMatcher
from html import unescape
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
import torch
from rich.console import Console
from torch import fx, nn

import fxexport
from fxexport.errors import InputError
from fxexport.program import Program
from fxexport.report import ProgramDiff, diff
from fxexport.report.layered_layout import lay_out
from fxexport.report.program_diff import _LineMatcher, operator_of
from fxexport.report.text import plain

aten = torch.ops.aten


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.line(x).relu().neg()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(), Block(), Block())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.blocks(x).sigmoid().chunk(2, -1)
        return torch.cat([a, b.double().float()], 1).reshape(x.shape[0], -1)


@pytest.fixture(scope="module")
def net() -> Program:
    return fxexport.capture(Net().eval(), torch.randn(3, 4), dynamic={"x": ["batch", None]})


Edit = Callable[[Program, fx.Node], fx.Node]


def edited(program: Program, target: object, edit: Edit, count: int | None = None) -> ProgramDiff:
    """The difference that ``edit`` makes, which returns what stands for each call of ``target``."""
    after = program.clone()
    for node in list(after.find(target))[:count]:
        after.replace(node, edit(after, node))
    after.erase_dead()
    return diff(program, after)


def clamp(program: Program, node: fx.Node) -> fx.Node:
    """-relu(x) -> clamp_min(x, 0) * -1"""
    relu = node.args[0]
    assert isinstance(relu, fx.Node)
    new = program.insert(aten.clamp_min.default, (relu.args[0], 0), before=node)
    return program.insert(aten.mul.Tensor, (new, -1), before=node)


def test_a_line_says_it_all_in_the_models_words(net: Program) -> None:
    difference = diff(net, net)
    lines = {node.name: difference.texts[0].line(node) for node in net.graph.nodes}
    assert lines["x"] == "x: f32[batch, 4]"
    assert re.fullmatch(
        r"linear_1: f32\[batch, 4\] = aten.linear\(add, blocks.1.line.weight, blocks.1.line.bias\)"
        r"  # blocks.1.line \S*test_program_diff.py:\d+",
        lines["linear_1"],
    )
    assert lines["chunk"].startswith("chunk: (f32[batch, 2], f32[batch, 2]) = aten.chunk(sigmoid, 2, -1)  # ")
    assert lines["getitem"].startswith("getitem: f32[batch, 2] = chunk[0]")
    assert any("f64[batch, 2] = aten." in line and "f64" in line.split("=", 1)[1] for line in lines.values())
    assert lines["cat"].startswith("cat: f32[batch, 4] = aten.cat([getitem, ")
    size = next(line for name, line in lines.items() if name.startswith("sym_size"))
    assert size == f"{size.split(':')[0]}: int(batch) = aten.sym_size.int(x, 0)"
    assert lines["output"] == "return (reshape,)"


def test_nothing_changed(net: Program) -> None:
    difference = diff(net, net.clone())
    assert str(difference) == f"nothing changed: {net.node_count()} nodes\n"
    assert difference.places == []
    assert difference.to_json()["removed"] == {}


def test_counts_hunks_and_equal_lines(net: Program) -> None:
    difference = edited(net, aten.neg.default, clamp)
    head, *body = difference.text.splitlines()
    nodes = net.node_count()
    assert head == (
        f"nodes {nodes} -> {nodes}: aten.relu 3 -> 0, aten.neg 3 -> 0, aten.clamp_min 0 -> 3, aten.mul.Tensor 0 -> 3"
    )
    assert next(line for line in body if line.startswith("@@")).endswith("@@ blocks.0")
    changed = [line[:1] + line[1:].split(":")[0] for line in body if line[0] in "+-"]
    assert changed[:6] == ["-relu", "-neg", "-add", "+clamp_min_default", "+mul_tensor", "+add"]
    assert len(changed) == 18
    assert not any("linear" in word for word in changed)


def test_context_is_as_asked_for(net: Program) -> None:
    difference = edited(net, aten.neg.default, clamp, 1)
    assert sum(line[0] == " " for line in difference.lines(0)) == 0
    assert sum(line[0] == " " for line in difference.lines(1)) == 2
    assert difference.text.splitlines()[1:] == difference.lines(3)


def test_a_patch_of_the_lines_before_gives_those_after(net: Program) -> None:
    difference = edited(net, aten.neg.default, clamp)
    shown = difference.lines(10_000)[1:]
    for side, other in enumerate("+-"):
        nodes = [n for n in (net, difference.after)[side].graph.nodes if not net.is_constant(n)]
        wanted = [difference.texts[side].line(node) for node in nodes if node.op != "placeholder" or node.name == "x"]
        assert [line[1:] for line in shown if line[0] != other] == wanted


def test_each_place_is_a_group_of_its_own(net: Program) -> None:
    places = edited(net, aten.neg.default, clamp).places
    assert [place.form for place in places] == ["aten.relu + aten.neg -> aten.clamp_min + aten.mul.Tensor"] * 3
    assert [place.module for place in places] == ["blocks.0", "blocks.1", "blocks.2"]
    assert [node.name for node in places[1].removed] == ["relu_1", "neg_1"]
    assert places[0].to_json()["made"] == ["clamp_min_default", "mul_tensor"]
    assert "test_program_diff.py:" in places[0].line


def test_removed_calls_and_other_constants(net: Program) -> None:
    gone = edited(net, aten.relu.default, lambda program, node: node.args[0], 1)  # type: ignore[arg-type, return-value]
    assert [place.form for place in gone.places] == ["aten.relu -> nothing"]
    assert [line.split(":")[0] for line in gone.lines(0) if line[0] in "+-"] == ["-relu", "-neg", "+neg"]

    after = net.clone()
    (first, *_) = after.find(aten.linear.default)
    weight = after.add_constant("blocks.0.line.halved", torch.zeros(4, 4))
    first.args = (first.args[0], weight, first.args[2])
    after.erase_dead()
    changed = diff(net, after)
    assert list(changed.removed) == list(changed.made) == ["linear"]
    assert [place.form for place in changed.places] == ["aten.linear -> aten.linear"]
    assert changed.head[0] == f"nodes {net.node_count()} -> {net.node_count()}: aten.linear 3 -> 3"
    assert "constants" not in changed.text.splitlines()[0]
    assert changed.to_json()["constants"] == {"before": 6, "after": 6}


def test_a_name_used_again_for_another_operator_is_another_call(net: Program) -> None:
    after = net.clone()
    (first, *_) = after.find(aten.relu.default)
    first.target = aten.sigmoid.default
    difference = diff(net, after)
    assert [operator_of(node) for node in difference.removed.values()] == ["aten.relu"]
    assert [operator_of(node) for node in difference.made.values()] == ["aten.sigmoid"]


def test_long_lines_stay_whole_and_are_coloured(net: Program) -> None:
    difference = edited(net, aten.neg.default, clamp)
    assert plain(difference.parts()).splitlines() == difference.text.splitlines()
    terminal = Console(force_terminal=True, color_system="standard", width=60)
    with terminal.capture() as capture:
        terminal.print(*difference.parts()[1:], width=300)
    assert "\x1b[31m-relu" in capture.get()
    assert "\x1b[32m+clamp_min_default" in capture.get()


# ---------------------------------------------------------------- the drawing


def words(path: Path) -> list[str]:
    """Texts of the drawing: matplotlib draws glyphs and keeps each text as a comment."""
    return [unescape(text) for text in re.findall(r"<!-- (.*?) -->", path.read_text())]


def test_the_drawing_has_one_place_of_each_form(net: Program, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = edited(net, aten.neg.default, clamp).save_svg(tmp_path / "effect.svg")
    assert ElementTree.parse(path).getroot().tag.endswith("svg")
    found = words(path)
    assert sum("and 2 more like it" in text for text in found) == 1
    for once in ("aten.relu", "aten.neg", "aten.clamp_min", "aten.mul.Tensor"):
        assert found.count(once) == 1
    assert found.count("aten.linear") == found.count("aten.add.Tensor") == 2
    assert [each.name for each in tmp_path.iterdir()] == ["effect.svg"]
    first = path.read_bytes()
    edited(net, aten.neg.default, clamp).save_svg(path)
    assert path.read_bytes() == first


def test_the_drawing_is_limited_and_says_so(net: Program, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    after = net.clone()
    for target in (aten.relu.default, aten.sigmoid.default, aten.linear.default):
        for node in list(after.find(target)):
            after.replace(node, after.insert(aten.tanh.default, (node.args[0],), before=node))
    after.erase_dead()
    difference = diff(net, after)
    kinds = {place.form for place in difference.places}
    assert len(kinds) == 2
    assert "kinds of change that are not drawn: 1" in words(difference.save_svg(tmp_path / "a.svg", limit=1))
    assert not any("not drawn" in text for text in words(difference.save_svg(tmp_path / "a.svg", limit=2)))
    everything = diff(net, net).save_svg(tmp_path / "none.svg")
    assert words(everything) == [f"nothing changed: {net.node_count()} nodes"]


def test_a_huge_place_is_cut_off_in_words(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    chain = nn.Sequential(*(nn.ReLU() for _ in range(40)))
    program = fxexport.capture(chain, torch.randn(3))
    after = program.clone()
    (node, *_) = after.output_nodes
    after.replace(node, after.insert(aten.relu.default, (after.input_nodes[0],), before=node))
    after.erase_dead()
    found = words(diff(program, after).save_svg(tmp_path / "a.svg"))
    assert "before, 16 more calls not drawn" in found
    assert "aten.relu + aten.relu + ... + aten.relu (40 calls) -> aten.relu" in " ".join(found)


@pytest.mark.parametrize(("name", "message"), [("a.png", "unknown suffix"), ("no/a.svg", "does not exist")])
def test_a_drawing_that_cannot_be_written_is_refused(net: Program, tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        diff(net, net).save_svg(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_the_way_out_is_named(net: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"pip install 'fxexport\[draw\]'"):
        diff(net, net).save_svg(tmp_path / "a.svg")


def test_layout_has_no_overlap_and_flows_downward() -> None:
    sizes = {name: (40.0 + 10 * i, 20.0 + i) for i, name in enumerate("abcdefgh")}
    edges = [("a", "b"), ("b", "c"), ("c", "d"), ("a", "d"), ("e", "d"), ("e", "c"), ("f", "d"), ("d", "g")]
    layout = lay_out(sizes, edges)
    for name, (left, top, wide, tall) in layout.boxes.items():
        assert left >= 0 <= top
        assert left + wide <= layout.width + 1e-6
        assert top + tall <= layout.height + 1e-6
        for other, (x, y, w, h) in layout.boxes.items():
            apart = left + wide <= x or x + w <= left or top + tall <= y or y + h <= top
            assert name == other or apart
    assert layout.boxes["f"][1] == layout.boxes["c"][1]  # a source stands just above what reads it
    for route in layout.routes:
        assert all(a[1] < b[1] for a, b in pairwise(route))
    through = [(x, y) for route in layout.routes for x, y in route[1:-1]]
    assert through
    for x, y in through:
        inside = [
            n for n, (left, top, wide, tall) in layout.boxes.items() if left < x < left + wide and top < y < top + tall
        ]
        assert not inside
    assert lay_out({}, []).height == 0


@pytest.mark.parametrize(
    ("old", "new", "blocks"),
    [
        ("abcdef", "abcdef", [(0, 0, 6)]),
        ("abcdef", "abXdef", [(0, 0, 2), (3, 3, 3)]),
        ("abcdef", "bcdefa", [(1, 0, 5)]),
        ("abcdef", "defabc", [(3, 0, 3)]),
        ("abc", "aXYbc", [(0, 0, 1), (1, 3, 2)]),
        ("abc", "xyz", []),
        ("", "a", []),
    ],
)
def test_lines_in_the_same_order_are_matched(old: str, new: str, blocks: list[tuple[int, int, int]]) -> None:
    found = _LineMatcher(list(old), list(new)).get_matching_blocks()
    assert [tuple(match) for match in found] == [*blocks, (len(old), len(new), 0)]


def test_random_edits_are_matched_as_well_as_by_difflib() -> None:
    random = Random(0)
    for _ in range(50):
        old = [str(i) for i in range(40)]
        new = [line for line in old if random.random() < 0.8] + ["x", "y"]
        a, b = random.randrange(len(new)), random.randrange(len(new))
        new[a], new[b] = new[b], new[a]
        ours = _LineMatcher(old, new)
        kept = sum(match.size for match in ours.get_matching_blocks())
        assert kept >= sum(match.size for match in SequenceMatcher(None, old, new, False).get_matching_blocks())
        rebuilt = [
            line for tag, i, j, k, m in ours.get_opcodes() for line in (old[i:j] if tag == "equal" else new[k:m])
        ]
        assert rebuilt == new
