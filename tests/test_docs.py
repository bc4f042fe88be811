"""What README.md and docs/ show is run, in order: Python blocks in one namespace a page, and command lines.

A Python block that begins with `# name.py` is that file, for what comes after it. A text block is compared with what
the page printed before it: every line must have been printed, but for numbers and white space; a line that
ends in `...` is the beginning of one. The command lines of README.md name models of the reader's own, and are not run.
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
from click.testing import CliRunner

from fxexport.cli import main

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
    taught = {"README.md", "docs/compile.md", "docs/exportable.md", "docs/pipelines.md", "docs/writing_passes.md"}
    assert taught <= set(map(name_of, with_blocks("python")))
    for page, least in (("docs/cli.md", 8), ("docs/pipelines.md", 4)):
        commands = [line for _, text, _ in blocks(ROOT / page, "sh") for line in text.splitlines()]
        assert len(commands) >= least, page


@pytest.mark.parametrize("page", with_blocks("python"), ids=name_of)
def test_blocks_of(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    printed = io.StringIO()
    for kind, text, line in blocks(page, "python", "text", *(["sh"] if page.parent != ROOT else [])):
        if kind == "text":
            assert_was_printed(text, printed.getvalue(), f"{name_of(page)}:{line}")
        elif kind == "sh":
            for command in text.splitlines():
                printed.write(run_command(command, tmp_path, f"{name_of(page)}:{line}"))
        elif found := re.match(r"# (\w+)\.py\n", text):
            (tmp_path / f"{found[1]}.py").write_text(text)
            sys.modules.pop(found[1], None)
        else:
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


def run_command(command: str, directory: Path, place: str) -> str:
    """What ``fxexport ...``, in this process, or ``python file.py``, in one of its own, prints."""
    program, *arguments = shlex.split(command, comments=True)
    assert program in ("fxexport", "python"), f"{place} cannot be run: {command}"
    if program == "python":
        result = run_python(arguments, directory)
        assert result.returncode == 0, f"{place}: {command}:\n{result.stdout}\n{result.stderr}"
        return result.stdout
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, f"{place}: {command}:\n{done.output}"
    return done.stdout


def run_python(arguments: list[str], directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=directory, capture_output=True, text=True, env=dict(os.environ), timeout=300,
    )  # fmt: skip


def test_commands_of_the_readme_exist() -> None:
    """They name models of the reader's own, so only the options are checked."""
    commands = [line for _, text, _ in blocks(ROOT / "README.md", "sh") for line in text.splitlines()]
    used = {shlex.split(line)[1] for line in commands if line.startswith("fxexport ")}
    assert used == {"compile", "show", "verify", "run", "passes", "explain", "diff"}
    for command in sorted(used):
        assert CliRunner().invoke(main, [command, "--help"]).exit_code == 0


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
