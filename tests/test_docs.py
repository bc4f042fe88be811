"""What README.md and docs/ show is run: Python blocks in one namespace a page, the command lines of cli.md.

A Python block that begins with `# name.py` is also written to that file. A text block is compared with what
the page printed before it: every line must have been printed, but for numbers and white space; a line that
ends in `...` is the beginning of one.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|#)(?P<target>[^)#]+)")
NUMBER = re.compile(r"-?\d[\d.,]*(e[-+]?\d+)?%?")


def blocks(page: Path, *kinds: str) -> Iterator[tuple[str, str, int]]:
    """Kind, text and line number of every fenced block of these kinds."""
    content = page.read_text()
    for found in BLOCK.finditer(content):
        if found["kind"] in kinds:
            yield found["kind"], found["text"], content[: found.start()].count("\n") + 2


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def with_blocks(*kinds: str) -> list[Path]:
    return [page for page in PAGES if any(blocks(page, *kinds))]


def test_pages_have_examples() -> None:
    assert {"README.md", "docs/compile.md", "docs/writing_passes.md"} <= set(map(name_of, with_blocks("python")))
    assert "docs/cli.md" in map(name_of, with_blocks("sh"))


@pytest.mark.parametrize("page", with_blocks("python"), ids=name_of)
def test_python_of(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    printed = io.StringIO()
    for kind, text, line in blocks(page, "python", "text"):
        if kind == "text":
            assert_was_printed(text, printed.getvalue(), f"{name_of(page)}:{line}")
            continue
        code = compile("\n" * (line - 1) + text, str(page), "exec", dont_inherit=True)
        with contextlib.redirect_stdout(printed):
            exec(code, namespace)


def assert_was_printed(text: str, printed: str, place: str) -> None:
    """A drawing before any output is no output; anything else must have been printed."""
    known = {words(line) for line in printed.splitlines()}
    for line in text.splitlines() if printed else ():
        wanted = words(line.removesuffix("..."))
        found = any(have[: len(wanted)] == wanted if line.endswith("...") else have == wanted for have in known)
        if not found and not set(line) <= {"-"}:
            pytest.fail(f"{place}: {line!r} was not printed:\n{printed}")


def words(line: str) -> tuple[str, ...]:
    """``line`` without its numbers."""
    return tuple(filter(None, (NUMBER.sub("", word) for word in line.split())))


@pytest.mark.parametrize("page", [page for page in with_blocks("sh") if page.name == "cli.md"], ids=name_of)
def test_shell_of(page: Path, tmp_path: Path) -> None:
    for _, text, _ in blocks(page, "python"):
        if found := re.match(r"# (\w+\.py)\n", text):
            (tmp_path / found[1]).write_text(text)
    count = 0
    for _, text, line in blocks(page, "sh"):
        for command in text.splitlines():
            program, *arguments = shlex.split(command, comments=True)
            assert program == "fxexport", f"{name_of(page)}:{line} cannot be run: {command}"
            result = run_module(arguments, tmp_path)
            assert result.returncode == 0, f"{command}:\n{result.stdout}\n{result.stderr}"
            count += 1
    assert count >= 4


def run_module(arguments: list[str], directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fxexport", *arguments],
        cwd=directory, capture_output=True, text=True, env=dict(os.environ), timeout=300,
    )  # fmt: skip


def test_commands_of_the_readme_exist() -> None:
    """They name models of the reader's own, so only the options are checked."""
    commands = [line for _, text, _ in blocks(ROOT / "README.md", "sh") for line in text.splitlines()]
    used = {shlex.split(line)[1] for line in commands if line.startswith("fxexport ")}
    assert used == {"compile", "show", "verify", "passes", "explain", "diff"}
    for command in sorted(used):
        assert run_module([command, "--help"], ROOT).returncode == 0


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for found in LINK.finditer(BLOCK.sub("", page.read_text())):
        target = page.parent / found["target"]
        if os.environ.get("FXEXPORT_TEST_WHEEL") and target.suffix != ".md":
            continue  # the wheel is tested beside the pages alone, without the source tree
        assert target.exists(), f"{name_of(page)} links to {found['target']}"


def test_every_promise_has_a_test() -> None:
    promised = set(map(int, re.findall(r"^\| (\d+) \|", (ROOT / "docs/faults/promises.md").read_text(), re.M)))
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    tested = set(map(int, re.findall(r"def test_fault_(\d+)_", sources)))
    assert len(promised) > 20
    assert promised <= tested, f"no test for {sorted(promised - tested)}"
