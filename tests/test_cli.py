"""The command line: what it prints where, how it reads its words, and its exit status."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from onnx import helper
from torch.export import Dim

import fxexport
from fxexport.cli import main
from fxexport.cli_targets import load_target, read_axes
from fxexport.errors import InputError, ValidationError
from fxexport.verification import verify

MODELS = '''
import sys, time, warnings
import torch
from torch import nn

class Net(nn.Module):
    """One linear layer and an int output; prints and warns like real models do."""
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)
    def forward(self, x, scale: float = 2.0):
        print("printed by forward")
        y = self.layer(x) * scale
        return {"y": y, "best": y.argmax(-1), "none": None}

class Wrong(nn.Module):
    def forward(self, x):
        return self.inner(x)
    def inner(self, x):
        return x @ torch.ones(3, 3)

class Slow(nn.Module):
    def forward(self, x):
        open("started", "w").close()
        time.sleep(60)
        return x

class Random(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)

class Branch(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x

class OtherRank(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else x.sum(-1)

def net():
    print("printed by the factory")
    warnings.warn("be careful")
    return Net().eval(), torch.ones(4, 3)

def scaled(): return Net().eval(), (torch.ones(4, 3),), {"scale": 3.0}
def doubled(): return Net().eval(), (torch.ones(4, 3),), {"scale": 6.0}
def wide(): return Net().eval(), torch.ones(4, 4)
def double(): return Net().eval().double(), torch.ones(4, 3, dtype=torch.float64)
def wrong(): return Wrong(), torch.ones(2, 5)
def folded():
    norm = nn.BatchNorm1d(64)
    norm.running_mean.normal_()
    return nn.Sequential(nn.Linear(64, 64), norm).eval(), torch.randn(8, 64)
def linear(): return nn.Linear(3, 2), torch.ones(4, 3)
def random(): return Random(), torch.ones(2, 3)
def branch(): return Branch(), torch.ones(2, 3)
def other_rank(): return OtherRank(), torch.ones(2, 3)
def stack(): return nn.Sequential(*(nn.Sequential(nn.Linear(3, 3), nn.ReLU()) for _ in range(3))), torch.ones(2, 3)
def slow(): return Slow(), torch.ones(2, 3)
def sleeps():
    open("started", "w").close()
    time.sleep(60)
def raises(): return 1 / 0
def quits(): sys.exit(3)
def needs(a, b=1): return a
def text(): return "a model"
def pair(): return Net(), torch.ones(4, 3), torch.ones(4, 3)
instance = nn.Linear(3, 2)
number = 7
'''


PASSES = '''
from dataclasses import dataclass
import torch
from fxexport.program import module_path
from fxexport.rewrite import NodePass

aten = torch.ops.aten

@dataclass(frozen=True)
class ReluToClamp(NodePass):
    """relu(x) -> clamp_min(x, 0), but in one module."""
    name = "relu-to-clamp"
    targets = (aten.relu.default,)
    skip: str = "2.1"
    def rewrite(self, program, node):
        if module_path(node) == self.skip:
            return f"{self.skip} is left alone"
        return program.insert(aten.clamp_min.default, (node.args[0], 0), before=node)

@dataclass(frozen=True)
class Broken(NodePass):
    """relu(x) -> an error"""
    name = "broken"
    targets = (aten.relu.default,)
    def rewrite(self, program, node):
        raise KeyError("weight")
'''


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    folder.joinpath("cli_zoo.py").write_text(MODELS)
    folder.joinpath("cli_rules.py").write_text(PASSES)
    folder.joinpath("cli_broken.py").write_text("import no_such_package_at_all\n")
    folder.joinpath("cli_garbled.py").write_text("def f(:\n")
    return folder


@pytest.fixture(autouse=True)
def _inside(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(place)
    monkeypatch.delenv("FXEXPORT_TRACE", raising=False)
    path = list(sys.path)
    yield
    sys.path[:] = path


def run(*words: str, status: int = 0) -> Result:
    result = CliRunner().invoke(main, list(words))
    assert result.exit_code == status, result.output
    return result


@pytest.fixture(scope="module")
def exported(place: Path) -> Path:
    """``scaled`` as an ONNX file with a dynamic batch."""
    before = Path.cwd()
    os.chdir(place)
    try:
        run("compile", "cli_zoo:scaled", "-o", "scaled.onnx", "--dynamic", "x:batch,_", "--quiet")
    finally:
        os.chdir(before)
    return place / "scaled.onnx"


# ---------------------------------------------------------------- compile


def test_compile_prints_the_report_and_keeps_stdout_clean() -> None:
    result = run("compile", "cli_zoo:net", "-o", "net.onnx", "--dynamic", "x:batch,_", "--opset", "18")
    assert re.match(r"net\.onnx: verified: [4-9] points, ", result.stdout)
    assert "printed by" not in result.stdout
    assert "printed by the factory" in result.stderr
    assert "printed by forward" in result.stderr
    assert result.stderr.count("warning: be careful\n") == 1
    stages = [line.split(":")[0] for line in result.stderr.splitlines() if not line.startswith("printed")]
    assert stages == [
        "loading",
        "warning",
        "capture",
        "passes",
        "lowering",
        "validation",
        "publishing",
        "done",
    ]
    loaded = onnx.load("net.onnx")
    assert [each.version for each in loaded.opset_import] == [18]
    assert [d.dim_param or d.dim_value for d in loaded.graph.input[0].type.tensor_type.shape.dim] == [
        "batch",
        3,
    ]


def test_compile_json_is_one_object_on_stdout() -> None:
    words = ["--input-names", "a", "--output-names", "b, c", "--passes", "remove-noops", "--rtol", "0.25"]
    result = run("compile", "cli_zoo:net", "-o", "named.onnx", "--json", *words)
    report = json.loads(result.stdout)
    assert [spec["name"] for spec in report["signature"]["inputs"]] == ["a"]
    assert [spec["name"] for spec in report["signature"]["outputs"]] == ["b", "c"]
    assert [record["name"] for record in report["passes"]] == ["remove-noops"]
    assert report["validation"]["points"][0]["outputs"][0]["rtol"] == 0.25


def test_quiet_prints_the_verdict_alone() -> None:
    result = run("compile", "cli_zoo:linear", "-o", "quiet.pt", "--quiet")
    assert re.match(r"quiet\.pt: verified: [2-9] points, ", result.stdout)
    assert result.stdout.count("\n") == 1
    assert result.stderr == ""


def test_as_input_mkdir_and_names_with_a_dash() -> None:
    run("compile", "cli_zoo:scaled", "-o", "new/-x.onnx", "--mkdir", "--as-input", "scale", "-q")
    os.chdir("new")
    result = run("show", "--json", "--", "-x.onnx")
    assert [spec["name"] for spec in json.loads(result.stdout)["metadata"]["signature"]["inputs"]] == [
        "x",
        "scale",
    ]


def test_an_unknown_suffix_is_refused_before_the_factory_runs() -> None:
    result = run("compile", "cli_zoo:raises", "-o", "net.txt", status=2)
    assert "error: 'net.txt' has the unknown suffix '.txt'" in result.stderr
    assert (
        "error: there is no pass named 'nope'"
        in run("compile", "cli_zoo:raises", "-o", "a.onnx", "--passes", "nope", status=2).stderr
    )
    assert "--mkdir" in run("compile", "cli_zoo:raises", "-o", "no/a.onnx", status=2).stderr


def test_a_failed_capture_is_status_1_and_leaves_no_file() -> None:
    result = run("compile", "cli_zoo:other_rank", "-o", "other.onnx", status=1)
    assert "error: the model decides on data, 'return x if x.sum() > 0 else x.sum(-1)' at " in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert list(Path.cwd().glob("*other*")) == []


def test_a_decision_on_data_is_printed_with_its_line() -> None:
    result = run("compile", "cli_zoo:branch", "-o", "branch.onnx")
    assert re.search(
        r"x if x\.sum\(\) > 0 else -x' at \S*cli_zoo\.py:\d+ depends on the data: both sides", result.stdout
    )


def test_a_random_model_is_refused_unless_allowed() -> None:
    assert "random" in run("compile", "cli_zoo:random", "-o", "r.onnx", "-q", status=1).stderr
    run("compile", "cli_zoo:random", "-o", "r.onnx", "-q", "--allow-random")
    run("verify", "r.onnx", "--model", "cli_zoo:random", "-q", "--allow-random")
    run("verify", "r.onnx", "--model", "cli_zoo:random", "-q", status=1)


def test_a_file_outside_the_tolerance_is_rejected_with_status_1() -> None:
    words = ("compile", "cli_zoo:folded", "-o", "tight.onnx", "-q", "--atol", "0", "--rtol")
    result = run(*words, "0", status=1)
    assert "error: tight.onnx does not agree with the eager model and was not published" in result.stderr
    assert result.stdout == ""
    assert not Path("tight.onnx").exists()
    assert Path("tight.onnx.rejected").is_dir()
    assert "rtol=-1.0 is not a tolerance" in run(*words, "-1", status=2).stderr


def test_the_models_own_error_shows_its_line_and_note() -> None:
    result = run("compile", "cli_zoo:wrong", "-o", "w.onnx", status=1)
    assert "error: RuntimeError: mat1 and mat2 shapes cannot be multiplied (2x5 and 3x3)" in result.stderr
    assert "fxexport: this is the model's own error on the example inputs" in result.stderr
    assert "    return x @ torch.ones(3, 3)\n" in result.stderr
    assert "compiler.py" not in result.stderr


@pytest.mark.parametrize("how", ["option", "environment"])
def test_traceback_on_request(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "environment":
        monkeypatch.setenv("FXEXPORT_TRACE", "1")
    words = ["--traceback"] if how == "option" else []
    result = run("compile", "cli_zoo:wrong", "-o", "w.onnx", *words, status=1)
    assert "Traceback (most recent call last)" in result.stderr
    assert "compiler.py" in result.stderr


@pytest.mark.parametrize("words", [["compile"], ["compile", "a:b"], ["nope"], ["verify", "x.onnx"]])
def test_usage_errors_are_status_2(words: list[str]) -> None:
    assert "Usage: " in run(*words, status=2).stderr


# ---------------------------------------------------------------- targets


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("cli_zoo", "does not name a model; write package.module:name"),
        (":net", "does not name a model"),
        ("cli_zoo:", "does not name a model"),
        ("./cli_zoo.py:net", "is a file; write package.module:name"),
        ("cli_zo:net", "there is no module 'cli_zo' (No module named 'cli_zo'); did you mean cli_zoo"),
        ("cli_zoo.sub:net", "there is no module 'cli_zoo.sub'"),
        ("cli_zoo:nett", "did you mean net"),
        ("cli_zoo:qqqq", "it has Net, Wrong, Slow, Random, Branch, OtherRank, net, "),
        ("cli_zoo:net.x", "there is no 'x' in net"),
        ("cli_zoo:needs", "cli_zoo:needs(a, b=1) cannot be called without arguments"),
        ("cli_zoo:text", "cli_zoo:text gave str; it must give a model"),
        ("cli_zoo:pair", "gave (Net, Tensor, Tensor); it must give a model"),
        ("cli_zoo:number", "cli_zoo:number is a int"),
        ("cli_zoo:quits", "sys.exit(3) was called in the factory cli_zoo:quits"),
        ("cli_zoo:instance", "no example_inputs given, and Linear has no input_example() hook"),
    ],
)
def test_targets_that_name_no_model(target: str, message: str) -> None:
    result = run("compile", target, "-o", "t.onnx", "-q", status=2)
    assert message in result.stderr


def test_errors_of_the_users_module_and_factory_keep_their_traceback() -> None:
    broken = run("compile", "cli_broken:f", "-o", "t.onnx", "-q", status=1).stderr
    assert "error: ModuleNotFoundError: No module named 'no_such_package_at_all'" in broken
    assert "fxexport: this was raised on importing cli_broken" in broken
    assert "cli_broken.py" in broken
    assert "SyntaxError" in run("compile", "cli_garbled:f", "-o", "t.onnx", "-q", status=1).stderr
    raised = run("compile", "cli_zoo:raises", "-o", "t.onnx", "-q", status=1).stderr
    assert "error: ZeroDivisionError: division by zero" in raised
    assert "in raises" in raised


def test_what_a_factory_may_give() -> None:
    net = load_target("cli_zoo:net")
    assert type(net.model).__name__ == "Net"
    assert net.example_inputs.shape == (4, 3)
    assert load_target("cli_zoo:scaled").kwargs == {"scale": 3.0}
    assert type(load_target("cli_zoo:Net").model).__name__ == "Net"
    assert load_target("cli_zoo:instance").example_inputs is None


def test_the_seed_decides_the_weights() -> None:
    def weight(seed: int) -> Any:
        model: Any = load_target("cli_zoo:net", seed=seed).model
        return model.layer.weight

    assert torch.equal(weight(1), weight(1))
    assert not torch.equal(weight(1), weight(2))


def test_dynamic_axes_are_read() -> None:
    assert read_axes(()) is None
    assert read_axes(("all",)) is True
    assert read_axes(("x:batch,_, time ", "y: ,n")) == {"x": ["batch", None, "time"], "y": [None, "n"]}
    batch, fixed, least = read_axes(("x:batch[2..64],_,n[3..]",))["x"]
    assert isinstance(batch, Dim)
    assert (batch.__name__, batch.min, batch.max, fixed, least.min) == ("batch", 2, 64, None, 3)


@pytest.mark.parametrize(
    "entries",
    [("x",), (":n",), ("all", "x:n"), ("x:n", "x:m"), ("x:0,1",), ("x:n[2-4]",), ("x:n[5..3]",), ("x:a b",)],
)
def test_dynamic_axes_that_cannot_be_read(entries: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="--dynamic"):
        read_axes(entries)


# ---------------------------------------------------------------- verify


def test_verify_agrees_with_the_factory_of_the_export(exported: Path) -> None:
    result = run("verify", exported.name, "--model", "cli_zoo:scaled")
    assert re.match(r"scaled\.onnx: verified: [4-9] points, ", result.stdout)
    assert "printed by" not in result.stdout
    report = json.loads(run("verify", exported.name, "--model", "cli_zoo:scaled", "--json").stdout)
    assert report["passed"] is True
    assert [point["label"] for point in report["points"]][:2] == ["example", "batch=1"]


def test_verify_finds_other_weights(exported: Path) -> None:
    before = exported.read_bytes()
    result = run("verify", exported.name, "--model", "cli_zoo:scaled", "--seed", "5", status=1)
    assert result.stdout.startswith("scaled.onnx: WRONG: 4 of 4 points failed")
    assert "FAILED: 'y': " in result.stdout
    assert exported.read_bytes() == before
    assert not exported.with_name("scaled.onnx.rejected").exists()


def test_verify_judges_by_the_given_tolerance(exported: Path) -> None:
    run("verify", exported.name, "--model", "cli_zoo:scaled", "-q", "--rtol", "1e-3", "--atol", "1e-5")
    one = ("verify", exported.name, "--model", "cli_zoo:scaled", "--json", "--rtol", "0.5")
    assert json.loads(run(*one).stdout)["points"][0]["outputs"][0]["rtol"] == 0.5


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("doubled", "scale is 6.0 in the example, fixed at 3.0 in the file"),
        ("net", "scale is 2.0 in the example, fixed at 3.0 in the file"),
        ("linear", "the example gives the tensors ['input'], scaled.onnx takes ['x']"),
    ],
)
def test_verify_refuses_an_example_that_does_not_fit(exported: Path, factory: str, message: str) -> None:
    assert message in run("verify", exported.name, "--model", f"cli_zoo:{factory}", "-q", status=2).stderr


def test_verify_compares_dtypes_and_fixed_sizes(exported: Path) -> None:
    target = load_target("cli_zoo:scaled")
    assert isinstance(target.model, torch.nn.Module)
    with pytest.raises(InputError, match=r"x is float64 \[4, 3\] in the example and float32 \['batch', 3\]"):
        verify(exported, target.model.double(), torch.ones(4, 3, dtype=torch.float64), {"scale": 3.0})
    other = torch.nn.Module()
    other.forward = lambda x, scale: x.sum()
    with pytest.raises(InputError, match=r"x is float32 \[4, 7\] in the example"):
        verify(exported, other, torch.ones(4, 7), {"scale": 3.0})
    with pytest.raises(ValidationError, match=r"the model returns \['output'\], .* holds "):
        verify(exported, other, torch.ones(4, 3), {"scale": 3.0})


def test_verify_knows_numbers_that_became_inputs() -> None:
    run("compile", "cli_zoo:scaled", "-o", "number.pt2", "--as-input", "scale", "-q")
    run("verify", "number.pt2", "--model", "cli_zoo:doubled", "-q")


# ---------------------------------------------------------------- show, passes


def test_show_tells_what_the_file_holds(exported: Path) -> None:
    text = run("show", exported.name).stdout
    assert text.startswith("scaled.onnx: onnx, opset 20, made by fxexport ")
    assert "- scale = 3.0 is fixed in the artifact" in text
    assert "2 nodes: ArgMax 1, Gemm 1" in text
    data = json.loads(run("show", exported.name, "--json").stdout)
    assert data["files"] == {"scaled.onnx": exported.stat().st_size}
    assert data["made_by_fxexport"] is True


def test_show_counts_data_files() -> None:
    run("compile", "cli_zoo:linear", "-o", "outside.onnx", "--external-data", "-q")
    data = json.loads(run("show", "outside.onnx", "--json").stdout)
    assert {name: Path(name).stat().st_size for name in data["files"]} == data["files"]


def test_show_of_a_foreign_onnx_file_shows_what_it_declares() -> None:
    body = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["t"]), helper.make_node("Odd", ["t"], ["z"], domain="my.ops")],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 3, None])],
        [helper.make_tensor_value_info("z", onnx.TensorProto.BFLOAT16, None)],
    )
    onnx.save(helper.make_model(body, opset_imports=[helper.make_opsetid("", 15)]), "foreign.onnx")
    text = run("show", "foreign.onnx").stdout
    assert text.startswith("foreign.onnx: onnx, not made by fxexport\n")
    for fact in ("input   x     float32   [n, 3, ?]", "output  z     bfloat16  ?", "opset ai.onnx 15"):
        assert fact in text
    assert "2 nodes: Relu 1, my.ops::Odd 1" in text
    assert json.loads(run("show", "foreign.onnx", "--json").stdout)["metadata"] is None
    message = run("verify", "foreign.onnx", "--model", "cli_zoo:raises", status=2).stderr
    assert "foreign.onnx was not made by fxexport" in message


def test_show_does_not_unpickle_an_archive() -> None:
    described = json.dumps({"format": "pt2", "signature": _empty_signature()})
    with zipfile.ZipFile("untrusted.pt2", "w") as archive:
        archive.writestr("untrusted/extra/fxexport.json", described)
        archive.writestr("untrusted/data/sample_inputs/model.pt", b"cos\nsystem\n(S'touch owned'\ntR.")
    assert run("show", "untrusted.pt2").stdout.startswith("untrusted.pt2: pt2, made by fxexport")
    assert not Path("owned").exists()


def _empty_signature() -> dict[str, Any]:
    return {"inputs": [], "outputs": [], "structure": None, "dimensions": [], "baked": [], "dropped": []}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.onnx", None, "does not exist"),
        ("cut.onnx", b"\x08\x07garbage", "cut.onnx (9 bytes) is not a complete ONNX model"),
        ("cut.pt2", b"PK", "cut.pt2 (2 bytes) is not a readable pt2 file"),
        ("cut.pt", b"", "cut.pt (0 bytes) is not a readable torchscript file"),
        ("notes.txt", b"", "is none of .onnx, .pt, .ts, .pt2"),
    ],
)
def test_unreadable_files_are_status_2(name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        Path(name).write_bytes(content)
    assert message in run("show", name, status=2).stderr


@pytest.mark.parametrize("text", ["{", "[]", '{"signature": {}}'])
def test_damaged_description_is_named(text: str) -> None:
    with zipfile.ZipFile("damaged.pt", "w") as archive:
        archive.writestr("damaged/extra/fxexport.json", text)
    assert "what fxexport wrote in it is damaged" in run("show", "damaged.pt", status=2).stderr
    with zipfile.ZipFile("bare.pt", "w") as archive:
        archive.writestr("bare/version", "3")
    assert "was not made by fxexport" in run("show", "bare.pt", status=2).stderr


def test_passes_lists_every_registered_pass() -> None:
    passes = {each["name"]: each for each in json.loads(run("passes", "--json").stdout)["passes"]}
    assert set(passes) == set(fxexport.rewrite.available())
    assert passes["fold-batchnorm"]["options"] == {"into_next": "True"}
    assert passes["fold-batchnorm"]["origin"] == f"fxexport {fxexport.__version__}"
    assert passes["remove-dropout"]["rewrite"].startswith("dropout(x, p, train=False) -> x")
    text = run("passes").stdout
    assert all(name in text for name in passes)


# ---------------------------------------------------------------- explain, diff

CLAMP = ("cli_zoo:stack", "--pass", "cli_rules:ReluToClamp")


def test_explain_says_where_and_why_not() -> None:
    result = run("explain", *CLAMP)
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[0][:7] == ["relu-to-clamp:", "2", "rewritten,", "1", "near", "miss,", "6"]
    assert ["2", "aten.relu", "{0,1}.1"] in lines
    assert ["1", "1", "of", "1", "2.1", "2.1", "is", "left", "alone"] in lines
    stages = [line.split(":")[0] for line in result.stderr.splitlines()]
    assert stages == ["loading", "capture", "passes", "done"]


def test_explain_as_json_with_options_and_earlier_passes() -> None:
    spec = ("--pass", "cli_rules:ReluToClamp{skip=0.1}", "--dynamic", "input:batch,_", "--json", "--quiet")
    (first,) = json.loads(run("explain", "cli_zoo:stack", *spec).stdout)["passes"]
    assert [each["module"] for each in first["rewrites"]] == ["1.1", "2.1"]
    assert [each["reason"] for each in first["near_misses"]] == ["0.1 is left alone"]
    assert first["looks_for"]["aten.relu.default"]["calls"] == 3
    words = ("explain", "cli_zoo:stack", *spec, "--first", "cli_rules:ReluToClamp{skip=1.1}")
    (second,) = json.loads(run(*words).stdout)["passes"]
    assert [each["module"] for each in second["rewrites"]] == ["1.1"]


def test_explain_of_several_passes_and_in_vain() -> None:
    text = run("explain", "cli_zoo:stack", "--pass", "remove-noops,cli_rules:ReluToClamp", "-q").stdout
    assert [line.split(":")[0] for line in text.splitlines()] == ["remove-noops", "relu-to-clamp"]
    assert "aten.dropout" in run("explain", "cli_zoo:stack", "--pass", "remove-dropout").stdout


def test_a_pass_that_fails_is_an_error_or_is_told(tmp_path: Path) -> None:
    words = ("cli_zoo:stack", "--pass", "cli_rules:Broken")
    for command in ("explain", "diff"):
        assert "error: pass broken at relu" in run(command, *words, status=1).stderr
        assert "rolled back" in run(command, *words, "--on-error", "skip").stdout
    assert "nothing changed: 6 nodes" in run("diff", *words, "--on-error", "skip").stdout


def test_diff_shows_the_lines_that_changed(tmp_path: Path) -> None:
    result = run("diff", *CLAMP, "--context", "0", "--dynamic", "input:batch,_")
    head, counts, *lines = result.stdout.splitlines()
    assert head.startswith("relu-to-clamp: 2 rewritten")
    assert counts == "nodes 6 -> 6: aten.relu 3 -> 1, aten.clamp_min 0 -> 2"
    assert lines[1:3] == [
        "-relu: f32[batch, 3] = aten.relu(linear)  # 0.1",
        "-linear_1: f32[batch, 3] = aten.linear(relu, 1.0.weight, 1.0.bias)  # 1.0",
    ]
    data = json.loads(run("diff", *CLAMP, "--json").stdout)
    assert data["operators"] == {"aten.relu": {"before": 3, "after": 1}, "aten.clamp_min": {"before": 0, "after": 2}}
    assert [each["module"] for each in data["places"]] == ["0.1", "1.1"]


def test_diff_draws_where_it_may(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run("diff", *CLAMP, "-q", "--svg", str(tmp_path / "a.svg"))
    assert "aten.clamp_min" in (tmp_path / "a.svg").read_text()
    refused = run("diff", "cli_zoo:raises", "--pass", "none", "--svg", str(tmp_path / "a.png"), status=2)
    assert "unknown suffix '.png'" in refused.stderr
    assert [each.name for each in tmp_path.iterdir()] == ["a.svg"]


@pytest.mark.parametrize("command", ["explain", "diff"])
def test_what_cannot_be_read_is_refused_before_the_factory_runs(command: str) -> None:
    for words in (["--pass", "nope"], ["--pass", "none", "--first", "nope"], ["--pass", "none", "--dynamic", "x"]):
        assert "ZeroDivisionError" not in run(command, "cli_zoo:raises", *words, status=2).stderr
    assert "Missing option '--pass'" in run(command, "cli_zoo:stack", status=2).stderr


def test_compile_checks_each_pass_when_asked_to() -> None:
    words = ("compile", "cli_zoo:folded", "-o", "each.onnx", "--passes", "fold-batchnorm", "--json")
    (record,) = json.loads(run(*words, "--check", "each").stdout)["passes"]
    assert 0 < record["delta"] < 1e-4
    (record,) = json.loads(run(*words).stdout)["passes"]
    assert record["delta"] is None


# ---------------------------------------------------------------- the process


def python(*words: str) -> list[str]:
    return [sys.executable, *words]


def test_help_and_version_do_not_import_torch() -> None:
    script = (
        "import sys\nfrom fxexport.cli import main\n"
        "for words in (['--help'], ['--version'], ['compile', '--help']):\n"
        "    try: main(words)\n"
        "    except SystemExit as end: assert end.code == 0\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    done = subprocess.run(python("-c", script), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"fxexport, version {fxexport.__version__}" in done.stdout


def test_python_m_fxexport() -> None:
    done = subprocess.run(python("-m", "fxexport", "--version"), capture_output=True, text=True, check=True)
    assert done.stdout == f"fxexport, version {fxexport.__version__}\n"
    failed = subprocess.run(python("-m", "fxexport", "show", "no.onnx"), capture_output=True, text=True, check=False)
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr == "error: no.onnx does not exist or is not a file\n"


@pytest.mark.parametrize("target", ["cli_zoo:sleeps", "cli_zoo:slow"])
def test_fault_43_ctrl_c_leaves_nothing(target: str, tmp_path: Path, place: Path) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(place), os.environ.get("PYTHONPATH", "")]),
    }
    command = python("-m", "fxexport", "compile", target, "-o", "never.onnx")
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "started").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        said = process.stderr.read()
    assert process.returncode == 130
    assert said.endswith("\ninterrupted; nothing was written\n")
    assert "Traceback" not in said
    assert [each.name for each in tmp_path.iterdir()] == ["started"]


# ---------------------------------------------------------------- the lazy package


def test_public_names_survive_imports_of_their_modules() -> None:
    script = (
        "import fxexport, fxexport.capture.pipeline\n"
        "from fxexport.capture import bind_example\n"
        "assert fxexport.capture.__name__ == 'capture' and callable(fxexport.capture), fxexport.capture\n"
        "assert callable(fxexport.compile) and fxexport.validation.compare_output\n"
        "assert all(getattr(fxexport, name) for name in fxexport.__all__)\n"
        "assert set(fxexport.__all__) <= set(dir(fxexport))\n"
        "assert not hasattr(fxexport, 'no_such_name')"
    )
    done = subprocess.run(python("-c", script), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
