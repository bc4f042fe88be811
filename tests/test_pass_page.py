"""``docs/passes.md`` is what the command prints, each pass on it says what it must, and the list fits a terminal."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from fxexport.cli import main
from fxexport.passes import PASSES
from fxexport.report.pass_list import InstalledPass, installed_passes, pass_parts
from fxexport.report.pass_page import pass_page
from fxexport.rewrite import resolve

PAGE = Path(__file__).parents[1] / "docs" / "passes.md"


def run(*words: str) -> Result:
    return CliRunner().invoke(main, ["passes", *words])


def sections(page: str) -> dict[str, str]:
    heads = page.split("\n## ")[1:]
    return {head.partition("\n")[0]: head.partition("\n")[2] for head in heads}


def test_the_page_is_what_the_command_prints() -> None:
    result = run("--markdown")
    assert result.exit_code == 0
    assert PAGE.read_text() == result.output, "fxexport passes --markdown > docs/passes.md"


def test_every_builtin_pass_is_on_the_page_in_the_order_it_runs() -> None:
    found = list(sections(PAGE.read_text()))
    default = [each.name for each in resolve("default")]
    assert found[: len(default)] == default
    assert sorted(found) == sorted(each.name for each in PASSES)


@pytest.mark.parametrize("name", [each.name for each in PASSES])
def test_a_section_draws_the_rewrite_and_says_when_it_is_exact(name: str) -> None:
    text = sections(PAGE.read_text())[name]
    assert "->" in text.split("\n\n")[0], "the first paragraph of the docstring draws the rewrite"
    assert "exact" in text.lower(), "the docstring says when the rewrite is exact"


def an_entry(**fields: object) -> InstalledPass:
    usual = dict(
        name="fuse-x", default=False, place=None, options={"limit": "3"}, rewrite="a | b -> c", origin="mine 1.0",
        doc="``a | b -> c``: exact.\n\nMore.", builtin=True, after=("remove-noops",), before=(), formats=("onnx",),
        repeats=True,
    )  # fmt: skip
    return InstalledPass(**{**usual, **fields})  # type: ignore[arg-type]


def test_a_section_has_options_order_and_formats() -> None:
    page = pass_page([an_entry()])
    assert "|  | [fuse-x](#fuse-x) | `a \\| b -> c`: exact. |" in page
    text = sections(page)["fuse-x"]
    assert text.startswith("\n`a | b -> c`: exact.\n\nMore.\n")
    assert "*not a default: runs where it is named; after remove-noops; onnx only; repeats.*" in text
    assert "| `limit` | `3` |" in text
    assert "| option" not in pass_page([an_entry(options={})])


def test_the_list_is_readable_in_80_columns() -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    found = [*installed_passes(), an_entry(name="from-elsewhere", builtin=False)]
    for part in pass_parts(found):
        console.print(part)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    for each in found:
        head = next(i for i, line in enumerate(lines) if str(each) in line)  # name and options, unbroken
        assert lines[head + 1].startswith("    ")
        assert lines[head + 1].split()[:3] == each.rewrite.split()[:3]
    assert any(line.endswith("from-elsewhere{limit=3}  from mine 1.0") for line in lines)


def test_json_has_place_and_formats_and_excludes_markdown() -> None:
    passes = {each["name"]: each for each in json.loads(run("--json").output)["passes"]}
    assert passes["decompose-stft"]["formats"] == ["onnx"]
    assert passes["add-casts-around-norms"]["place"] is None
    places = [each["place"] for each in passes.values() if each["default"]]
    assert places == list(range(1, len(resolve("default")) + 1))
    both = run("--json", "--markdown")
    assert both.exit_code == 2
    assert "--markdown and --json" in both.output
