"""Passes are found by entry point, made from names, classes and pipeline strings."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from fxexport.errors import InputError, PassError
from fxexport.passes import PASSES, DecomposeGroupedMm, FoldBatchnorm, RemoveDropout, RemoveNoops
from fxexport.program import Program
from fxexport.rewrite import Pass, PassResult, available, registry, resolve


@dataclass(frozen=True)
class Options(Pass):
    """One option of every type."""

    name: ClassVar[str] = "options"
    flag: bool = False
    size: int = 1
    rate: float = 0.5
    mode: str = "fast"
    limit: int | None = None
    either: float | str = 1.0
    items: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError("size must not be negative")

    def run(self, program: Program) -> PassResult:
        return PassResult(0)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Puts a distribution with a module and entry points on the path, as pip would."""

    def install(name: str, source: str, *entries: str) -> None:
        monkeypatch.delitem(sys.modules, name, raising=False)
        (tmp_path / f"{name}.py").write_text(source)
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[fxexport.passes]\n" + "\n".join(entries) + "\n")
        monkeypatch.syspath_prepend(str(tmp_path))

    return install


PLUGIN = """
from dataclasses import dataclass
from typing import ClassVar
from fxexport.rewrite import Pass, PassResult

@dataclass(frozen=True)
class Mine(Pass):
    name: ClassVar[str] = {name!r}
    default: ClassVar[bool] = True
    def run(self, program):
        return PassResult(0)

@dataclass(frozen=True)
class Other(Mine):
    name: ClassVar[str] = "other"

BOTH = [Mine, Other]
"""


def test_built_in_passes_are_available_in_order() -> None:
    assert list(available().values())[: len(PASSES)] == list(PASSES)
    built_in = ["decompose-grouped-mm", "remove-dropout", "remove-noops", "fold-batchnorm"]
    assert list(available())[:4] == built_in


def test_the_default_pipeline() -> None:
    default = [cls() for cls in PASSES if cls.default]
    assert default == [DecomposeGroupedMm(), RemoveDropout(), RemoveNoops(), FoldBatchnorm()]
    assert resolve() == resolve(None) == resolve("default") == resolve(["default"]) == default


def test_none_is_no_passes() -> None:
    assert resolve("none") == resolve([]) == []


def test_names_classes_instances_and_lists_mix() -> None:
    mine = FoldBatchnorm(into_next=False)
    spec = ["remove-dropout", RemoveNoops, mine, ["fold-batchnorm{into_next=false}"]]
    assert resolve(spec) == [RemoveDropout(), RemoveNoops(), mine, mine]
    assert resolve(mine) == [mine]
    assert resolve(RemoveNoops) == [RemoveNoops()]
    assert resolve(iter([RemoveNoops])) == [RemoveNoops()]


def test_pipeline_strings() -> None:
    text = " remove-dropout , fold-batchnorm{ into-next = no },default"
    assert resolve(text) == [RemoveDropout(), FoldBatchnorm(into_next=False), *resolve("default")]


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "available", lambda: {"options": Options})


@pytest.mark.usefixtures("options")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("options", Options()),
        ("options{}", Options()),
        ("options{flag=true}", Options(flag=True)),
        ("options{flag=1,size=-0}", Options(flag=True, size=0)),
        ("options{size=7,rate=1e-3,mode=slow}", Options(size=7, rate=1e-3, mode="slow")),
        ("options{limit=none}", Options(limit=None)),
        ("options{limit=3}", Options(limit=3)),
        ("options{either=2}", Options(either=2.0)),
        ("options{either=two}", Options(either="two")),
        ("options{mode=}", Options(mode="")),
    ],
)
def test_options_are_read_by_type(text: str, expected: Options) -> None:
    assert resolve(text) == [expected]


@pytest.mark.usefixtures("options")
def test_a_pass_prints_as_it_is_written() -> None:
    for pass_ in (
        Options(),
        Options(flag=True, size=3),
        Options(limit=2, either="x"),
        FoldBatchnorm(into_next=False),
    ):
        if isinstance(pass_, Options):
            assert resolve(str(pass_)) == [pass_]
    assert str(FoldBatchnorm(into_next=False)) == "fold-batchnorm{into_next=False}"


@pytest.mark.usefixtures("options")
@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("options{size=big}", "option 'size' of pass 'options' must be int, got 'big'"),
        ("options{flag=maybe}", "must be bool, got 'maybe'"),
        ("options{limit=x}", "must be int or None"),
        ("options{items=1}", "option 'items' of pass 'options' must be tuple"),
        ("options{sizes=1}", "has no option 'sizes'; its options: flag, size"),
        ("options{size}", "option 'size' of pass 'options' has no value"),
        ("options{size=-1}", "size must not be negative"),
        ("options{size=1", "cannot read the pipeline"),
        ("options options", "cannot read the pipeline"),
        ("options,,options", "cannot read the pipeline"),
        ("", "cannot read the pipeline"),
        ("none{x=1}", "'none' takes no options"),
        ("option", "no pass named 'option'; did you mean options"),
        ("zzz", "no pass named 'zzz'; known passes: options"),
        (3, "got 3"),
        ({"options": 1}, "got {'options': 1}"),
    ],
)
def test_what_cannot_be_read_is_refused(spec, message: str) -> None:
    with pytest.raises(InputError) as caught:
        resolve(spec)
    assert message in str(caught.value)


def test_close_names_are_suggested() -> None:
    with pytest.raises(InputError, match="did you mean fold-batchnorm"):
        resolve("fold-batch-norm")


# ---------------------------------------------------------------- other people's passes


def test_a_plugin_runs_only_where_it_is_named(install) -> None:
    before = resolve("default")
    install("plug_a", PLUGIN.format(name="mine"), "one = plug_a:Mine", "many = plug_a:BOTH")
    assert {"mine", "other"} <= set(available())
    assert [type(p).__name__ for p in resolve("mine,other")] == ["Mine", "Other"]
    assert resolve("default") == before


def test_two_passes_of_one_name_are_both_named(install) -> None:
    install("plug_b", PLUGIN.format(name="fold-batchnorm"), "one = plug_b:Mine")
    message = r"fxexport.passes.fold_batchnorm.FoldBatchnorm and plug_b.Mine of .* distribution 'plug_b'"
    with pytest.raises(PassError, match=message):
        available()


@pytest.mark.parametrize(
    ("source", "entry", "message"),
    [
        ("raise RuntimeError('no GPU')", "x = plug_c:Mine", "RuntimeError: no GPU"),
        ("", "x = plug_c:Mine", "AttributeError"),
        ("Mine = 3", "x = plug_c:Mine", "gives 3, which is not a Pass class"),
        ("class Mine: pass", "x = plug_c:Mine", "not a Pass class with a name"),
        (
            "from fxexport.rewrite import Pass\nclass Mine(Pass): pass",
            "x = plug_c:Mine",
            "not a Pass class with a name",
        ),
    ],
)
def test_a_broken_plugin_is_named_and_does_not_stop_the_default(install, source, entry, message) -> None:
    install("plug_c", source, entry)
    with pytest.raises(PassError, match=message) as caught:
        available()
    assert "distribution 'plug_c'" in str(caught.value)
    assert len(resolve("default")) >= 3


def test_the_library_cannot_be_imported_under_another_name() -> None:
    root = Path(__file__).parents[2]
    code = "import passes"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode != 0
    assert "is the package 'fxexport.passes'" in done.stderr


def test_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "entry_points", lambda group: [])
    with pytest.raises(PassError, match="pip install -e"):
        resolve("default")
