"""Passes are found by entry point, made from names, classes and pipeline strings."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, replace
from enum import Enum
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from fxexport.errors import InputError, PassError
from fxexport.passes import PASSES, DecomposeGroupedMm, FoldBatchnorm, RemoveDropout, RemoveNoops
from fxexport.program import Program
from fxexport.rewrite import Pass, PassResult, available, registry, resolve
from fxexport.rewrite.pipeline_text import read, spell


class Colour(Enum):
    RED = 1
    DARK_BLUE = "b"


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
    words: tuple[str, ...] = ()
    pair: tuple[int, float | None] = (0, 1.0)
    level: Literal["auto", "off", 3, None] = "auto"
    colour: Colour = Colour.RED
    maybe: tuple[int, ...] | Colour | None = None
    others: list[int] | None = None

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
    assert [name for name in available() if name in built_in] == built_in


def test_the_default_pipeline() -> None:
    default = [cls() for cls in PASSES if cls.default]
    ours = (DecomposeGroupedMm(), RemoveDropout(), RemoveNoops(), FoldBatchnorm())
    assert tuple(pass_ for pass_ in default if pass_ in ours) == ours
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
    entry = EntryPoint("any", f"{__name__}:Options", registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry])


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
        ("options{mode='a, {b}=\\'c\\''}", Options(mode="a, {b}='c'")),
        ('options{mode="none", size=2}', Options(mode="none", size=2)),
        ('options{either="2"}', Options(either="2")),
        ("options{items=3}", Options(items=(3,))),
        ("options{items=1|2 | 3}", Options(items=(1, 2, 3))),
        ("options{items=}", Options(items=())),
        ('options{words=a|"b|c, d"|""}', Options(words=("a", "b|c, d", ""))),
        ('options{words=""}', Options(words=("",))),
        ("options{pair=1|2}", Options(pair=(1, 2.0))),
        ("options{pair=1|none}", Options(pair=(1, None))),
        ("options{level=off}", Options(level="off")),
        ("options{level=3}", Options(level=3)),
        ("options{level=None}", Options(level=None)),
        ("options{colour=RED}", Options(colour=Colour.RED)),
        ("options{colour=dark-blue}", Options(colour=Colour.DARK_BLUE)),
        ("options{maybe=red}", Options(maybe=Colour.RED)),
        ("options{maybe=4|5}", Options(maybe=(4, 5))),
        ("options{others=none}", Options(others=None)),
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
        (
            "options{items=a}",
            "option 'items' of pass 'options' must be values with | between them (such as 1|2|3), each",
        ),
        ("options{items=1|}", "each int, got '1|'"),
        ("options{items=(1,2)}", "has no value"),
        ("options{pair=1}", "must be 2 values with | between them (int|float or None), got '1'"),
        ("options{level=on}", "must be one of auto, off, 3, None, got 'on'"),
        ("options{colour=blue}", "must be one of RED, DARK_BLUE, got 'blue'"),
        ("options{others=1}", "list[int] (which text cannot express: make the pass in Python) or None, got '1'"),
        ("options{mode=it's}", "a value with commas, braces or quotes in it in quotes"),
        ("options{mode=a'b'}", "must be str, got"),
        ("options{size=1,size=2}", "option 'size' of pass 'options' is given twice"),
        ("options{sizes=1}", "has no option 'sizes'; did you mean size? its options: flag, size"),
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


@pytest.mark.parametrize(
    "value",
    [
        "",
        "a",
        "a b",
        'a"b\\',
        "'",
        "none",
        "1",
        "1e3",
        "yes",
        "x|y",
        "a,b",
        True,
        None,
        3,
        -0.5,
        1e-30,
    ],
)
def test_a_value_is_read_as_it_is_spelled(value) -> None:
    hint = bool | int | float | str | None
    for kind, given in ((hint, value), (tuple[hint, ...], (value, value))):
        back = read(kind, spell(given))
        assert back == given
        assert repr(back) == repr(given)  # 1 and True are equal


@pytest.mark.usefixtures("options")
def test_every_option_is_read_as_it_is_spelled() -> None:
    given = replace(
        Options(),
        mode="a, b",
        either="7",
        items=(1, 2),
        words=("a b", ""),
        level=3,
        colour=Colour.DARK_BLUE,
        maybe=(4,),
    )
    text = ",".join(f"{name}={spell(getattr(given, name))}" for name in Options.option_names())
    assert resolve(f"options{{{text}}}") == [given]


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
    message = (
        r"2 passes are named 'fold-batchnorm': fxexport.passes.fold_batchnorm.FoldBatchnorm of .* distribution 'fxexport' "
        r"and plug_b.Mine of .* distribution 'plug_b'; .* such as plug_b:Mine"
    )
    for ask in (available, lambda: resolve("fold-batchnorm")):
        with pytest.raises(PassError, match=message):
            ask()
    # Who does not ask for that name is not concerned, and the class itself can still be named.
    assert resolve("remove-noops,default") == [RemoveNoops(), *resolve("default")]
    assert [type(p).__module__ for p in resolve("plug_b:Mine")] == ["plug_b"]


@pytest.mark.parametrize(
    ("source", "entry", "message"),
    [
        ("raise RuntimeError('no GPU')", "x = plug_c:Mine", r"RuntimeError: no GPU \(.*plug_c.py:1\); repair or"),
        ("import sys; sys.exit(3)", "x = plug_c:Mine", "SystemExit: 3"),
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
    assert resolve("remove-noops") == [RemoveNoops()]
    with pytest.raises(InputError, match=r"no pass named 'mine'.*\nnot looked into: .*'plug_c'"):
        resolve("mine")


def test_all_that_is_wrong_is_said_at_once(install) -> None:
    install("plug_d", "raise RuntimeError('no GPU')", "x = plug_d:Mine")
    install("plug_e", PLUGIN.format(name="fold-batchnorm"), "x = plug_e:Mine")
    with pytest.raises(PassError, match=r"'plug_d'.*RuntimeError(.|\n)*2 passes are named 'fold-batchnorm'"):
        available()
    with pytest.raises(PassError, match=r"2 passes are named 'fold-batchnorm'.*\nnot looked into: .*'plug_d'"):
        resolve("fold-batchnorm")


# ---------------------------------------------------------------- module:Class

LOCAL = """
from dataclasses import dataclass
from fxexport.rewrite import Pass, PassResult

@dataclass(frozen=True)
class FuseX(Pass):
    name = "fuse-x"
    limit: int = 1
    later: "Missing | None" = None
    def run(self, program):
        return PassResult(0)

class Holder:
    @dataclass(frozen=True)
    class Inner(Pass):
        name = "inner"
        limit: int = 1
        def run(self, program):
            return PassResult(0)

class Nameless(Pass):
    pass

made = FuseX(limit=7)
"""


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A current directory with modules of the user's own, among them passes."""
    (tmp_path / "own_passes.py").write_text(LOCAL)
    (tmp_path / "own_broken.py").write_text("import sys\nimport own_helper\nimport not_there_at_all\n")
    (tmp_path / "own_helper.py").write_text("")
    (tmp_path / "own_exit.py").write_text("raise SystemExit(2)\n")
    monkeypatch.chdir(tmp_path)
    for name in ("own_passes", "own_broken", "own_helper", "own_exit"):
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.mark.usefixtures("local")
def test_a_class_of_the_current_directory_can_be_named() -> None:
    path = list(sys.path)
    default = resolve("default")
    *first, inner, made = resolve("default , own_passes:Holder.Inner{limit=2},own_passes:made")
    assert (first, str(inner), str(made)) == (default, "inner{limit=2}", "fuse-x{limit=7}")
    assert str(resolve("own_passes:FuseX")[0]) == "fuse-x"
    assert sys.path == path


@pytest.mark.usefixtures("local")
@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("own_pases:FuseX", InputError, "there is no module 'own_pases'; did you mean own_passes"),
        ("own_passes.sub:FuseX", InputError, "there is no module 'own_passes.sub'; looked in"),
        ("no_such_thing_here:FuseX", InputError, "there is no module 'no_such_thing_here'; looked in"),
        ("own_passes:FuseY", InputError, r"there is no 'FuseY' in .*own_passes.py; did you mean FuseX"),
        ("own_passes:Zzz", InputError, r"there is no 'Zzz' in .*; passes there: FuseX, made"),
        ("own_passes:Holder", InputError, "Holder'>, which is not a Pass class with a name; passes there: FuseX, made"),
        ("own_passes:Nameless", InputError, "not a Pass class with a name"),
        ("own_helper:x", InputError, "there is no 'x' in .*; passes there: none"),
        ("own_passes.py:FuseX", InputError, "write package.module:Class, the module without .py"),
        ("own-passes:FuseX", InputError, "does not name a pass"),
        ("own_passes:", InputError, "cannot read the pipeline"),
        ("own_passes:made{limit=3}", InputError, r"already made \(fuse-x{limit=7}\); its options are set where"),
        ("own_passes:FuseX{limti=3}", InputError, "no option 'limti'; did you mean limit"),
        ("own_passes:FuseX{limit=3}", PassError, r"own_passes.FuseX cannot be read \(name 'Missing' is not defined\)"),
        ("own_broken:FuseX", PassError, r"ModuleNotFoundError: .*'not_there_at_all' \(.*own_broken.py:3\)"),
        ("own_exit:FuseX", PassError, r"cannot import own_exit .* SystemExit: 2 \(.*own_exit.py:1\)"),
    ],
)
def test_what_is_no_pass_is_refused(spec: str, error: type[Exception], message: str) -> None:
    path = list(sys.path)
    with pytest.raises(error, match=message):
        resolve(spec)
    assert sys.path == path


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
