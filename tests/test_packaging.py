"""What is installed: every package of the tree, the passes under their own name only, types and entry points."""

import os
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest

import fxexport

ROOT = Path(__file__).parents[1]


def run(code: str, **kwargs: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, **kwargs)  # type: ignore[call-overload, no-any-return]


def test_every_package_of_the_tree_is_listed() -> None:
    configured = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    house = Path(next(iter(fxexport.__path__)))
    found = {".".join(p.parent.relative_to(house.parent).parts) for p in house.rglob("__init__.py")}
    found |= {"fxexport.passes"}  # a link beside the sources, a folder of its own in the wheel
    assert set(configured) == found


def test_the_wheel_is_what_runs_where_it_should() -> None:
    installed = Path(next(iter(fxexport.__path__))).resolve()
    if os.environ.get("FXEXPORT_TEST_WHEEL"):
        assert "site-packages" in str(installed)
    assert (installed / "py.typed").exists()
    assert version("fxexport") == fxexport.__version__


def test_the_builtin_passes_come_through_the_entry_point() -> None:
    (entry,) = entry_points(group="fxexport.passes", name="builtin")
    assert {cls.name for cls in entry.load()} >= {"remove-dropout", "remove-noops", "fold-batchnorm"}


def test_passes_refuse_any_other_name(tmp_path: Path) -> None:
    house = Path(next(iter(fxexport.__path__)))
    (tmp_path / "passes").symlink_to((house / "passes").resolve())
    result = run("import passes", cwd=tmp_path)
    assert result.returncode != 0
    assert "fxexport.passes" in result.stderr


def test_the_bare_word_passes_is_not_claimed(tmp_path: Path) -> None:
    assert "ModuleNotFoundError" in run("import passes", cwd=tmp_path).stderr


@pytest.mark.parametrize("command", [["-m", "fxexport"], [str(Path(sys.executable).with_name("fxexport"))]])
def test_both_ways_to_start_the_tool(command: list[str], tmp_path: Path) -> None:
    full = [sys.executable, *command] if command[0] == "-m" else command
    result = subprocess.run([*full, "--version"], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert result.returncode == 0, result.stderr
    assert fxexport.__version__ in result.stdout
