"""ONNX files: exact opset, exact names, the same bytes everywhere, every missing operator named at once."""

from __future__ import annotations

import getpass
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import torch.nn.functional as F
from conftest import ProveEverywhere
from onnxscript import opset20
from torch import nn

import fxexport
from fxexport.capture.pipeline import Captured, capture_model
from fxexport.errors import InputError, LoweringError
from fxexport.lowering import DEFAULT_OPSET, OPSETS, check_opset, lower
from fxexport.session import open_session

X = torch.randn(2, 3)


class Free(nn.Module):
    def __init__(self, forward: Any) -> None:
        super().__init__()
        self.forward = forward


class Encoder(nn.Module):
    """An encoder layer with whatever opsets disagree about: norms, softmax, interpolation, gelu."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.conv = nn.Conv1d(8, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.conv(self.layer(x).transpose(1, 2))
        return F.gelu(F.interpolate(y, scale_factor=2.0)), y.softmax(-1).argmax(-1)


@pytest.fixture(scope="module")
def encoder() -> Captured:
    return capture_model(Encoder().eval(), torch.randn(2, 5, 8), dynamic={"x": ["b", "t", None]})


@pytest.mark.parametrize("opset", OPSETS)
def test_the_opset_asked_for_is_the_opset_of_the_file(opset: int, encoder: Captured, out: Path) -> None:
    lower(encoder.program, out, opset_version=opset)
    model = onnx.load(out)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
    onnx.checker.check_model(model, full_check=True)
    got = open_session(out)(["x"], encoder.examples)
    for a, b in zip(got, encoder.expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_an_opset_that_the_operators_do_not_allow_is_refused_with_the_way_out(out: Path) -> None:
    program = capture_model(Free(lambda x: F.mish(x).bitwise_and_(1) if False else x.int() & 3).eval(), X).program
    with pytest.raises(LoweringError, match=r"opset 17 was asked.*give opset_version=18 or a later one"):
        lower(program, out, opset_version=17)
    assert not out.exists()
    lower(program, out, opset_version=18)


@pytest.mark.parametrize("version", [9, 16, 24, 99, 0, -1, True, 20.0, "20"])
def test_an_impossible_opset_is_refused(version: Any) -> None:
    with pytest.raises(InputError, match=f"opset_version {version!r} cannot be produced; give one from 17 to 23"):
        check_opset(version)
    assert check_opset(None) == DEFAULT_OPSET


NOISY = """
import sys, torch, warnings
from pathlib import Path
from fxexport.capture.pipeline import capture_model
from fxexport.lowering import lower
warnings.simplefilter("ignore")
torch.manual_seed(0)
class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.e = torch.nn.Linear(6, 6), torch.nn.LayerNorm(6), torch.nn.Embedding(9, 6)
    def forward(self, ids, x):
        h = self.b(self.a(self.e(ids)) + x)
        return {"h": h, "p": h.softmax(-1), "n": x.shape[1]}
options = dict(dynamic={"ids": ["n", "t"], "x": ["n", "t", None]})
model = Model().eval()
example = (torch.zeros(2, 4, dtype=torch.long), torch.randn(2, 4, 6))
for _ in range(int(sys.argv[2])):  # what torch numbers through the life of a process must not matter
    program = capture_model(model, example, **options).program
    for suffix in ("onnx", "pt", "pt2"):
        lower(program, Path(sys.argv[1]) / f"model.{suffix}")
"""


def test_same_bytes_in_every_format_directory_and_process(tmp_path: Path) -> None:
    """Two processes with other hash seeds, working directories and histories write the same three files."""
    script = tmp_path / "secret_script.py"
    script.write_text(NOISY)
    runs = []
    for number, name in enumerate(("one", "other place")):
        folder = tmp_path / name
        folder.mkdir()
        environment = {**os.environ, "PYTHONHASHSEED": str(number), "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, str(script), str(folder), str(number + 1)]
        subprocess.run(command, check=True, cwd=folder, env=environment, timeout=300)
        runs.append({path.name: path.read_bytes() for path in sorted(folder.iterdir())})
    assert list(runs[0]) == ["model.onnx", "model.pt", "model.pt2"]
    for name, content in runs[0].items():
        assert content == runs[1][name], f"{name} differs"
        for secret in (b"secret_script", str(tmp_path).encode(), os.path.dirname(torch.__file__).encode()):
            assert secret not in content, f"{secret!r} in {name}"
    text = runs[0]["model.onnx"]
    for private in (
        b".py",
        b"site-packages",
        b"pkg.torch",
        b"s77",
        b"/home/",
        getpass.getuser().encode() + b"/",
    ):
        assert private not in text, private


def test_inputs_and_outputs_have_their_names_and_axes(encoder: Captured, out: Path) -> None:
    lower(encoder.program, out)
    graph = onnx.load(out).graph
    shape = [d.dim_param or d.dim_value for d in graph.input[0].type.tensor_type.shape.dim]
    assert shape == ["b", "t", 8]
    assert [o.name for o in graph.output] == ["output_0", "output_1"]
    symbols = {d.dim_param for v in graph.value_info for d in v.type.tensor_type.shape.dim if d.dim_param}
    assert symbols <= {"b", "t", "2*t"}, "torch's own symbols are no names"


def test_the_file_says_which_module_each_node_came_from(encoder: Captured, out: Path) -> None:
    lower(encoder.program, out)
    places = {p.value for n in onnx.load(out).graph.node for p in n.metadata_props if p.key == "fxexport.module"}
    assert {"conv", "layer.self_attn", "layer.linear1"} <= places


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        (["conv.weight"], None),
        (["conv_weight"], ["relu"]),
        (["relu"], ["conv.bias"]),
        (["val_0"], ["val_1"]),
        (["self"], ["class"]),
        (["torch"], ["input"]),
        (["1 a/b"], ["λ:0"]),
    ],
)
def test_interface_names_win_over_inner_names(
    inputs: list[str], outputs: list[str] | None, prove: ProveEverywhere
) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(3, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x).relu() + self.conv.weight.sum()

    captured = prove(
        Named().eval(),
        torch.randn(2, 3, 4),
        input_names=inputs,
        output_names=outputs,
        dynamic={inputs[0]: {0: "n"}},
    )
    assert [s.name for s in captured.program.signature.inputs] == inputs
    assert [s.name for s in captured.program.signature.outputs] == (outputs or ["output"])


def test_outputs_that_are_inputs_weights_or_one_another(prove: ProveEverywhere, out: Path) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3))
            self.register_buffer("table", torch.ones(2), persistent=False)

        def forward(self, x: torch.Tensor) -> Any:
            y = x + self.weight
            return y, x, self.weight, y, self.table, x, torch.ones(2), y.view(-1)

    captured = prove(Odd().eval(), X, dynamic={"x": ["n", None]})
    lower(captured.program, out)
    names = [o.name for o in onnx.load(out).graph.output]
    assert names == [f"output_{i}" for i in range(8)]


def test_models_without_inputs_parameters_or_either(prove: ProveEverywhere) -> None:
    class Buffers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("b", torch.arange(3.0))

        def forward(self) -> torch.Tensor:
            return self.b * 2

    prove(nn.ReLU().eval(), X)
    captured = capture_model(Buffers().eval())
    assert captured.program.signature.inputs == ()
    torch.testing.assert_close(captured.expected[0], torch.tensor([0.0, 2.0, 4.0]))


@pytest.mark.parametrize("suffix", ["onnx", "pt", "pt2"])
def test_a_model_without_inputs_runs(suffix: str, tmp_path: Path) -> None:
    captured = capture_model(Free(lambda: torch.arange(5)).eval())
    path = tmp_path / f"m.{suffix}"
    lower(captured.program, path)
    assert open_session(path)([], [])[0].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("suffix", ["onnx", "pt", "pt2"])
def test_weights_are_stored_once_and_no_more_than_is_used(suffix: str, tmp_path: Path) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(200, 64)
            self.head = nn.Linear(64, 200, bias=False)
            self.head.weight = self.embed.weight
            big = torch.randn(4000, 64)
            self.view = nn.Parameter(big[:2])
            self.register_buffer("other", big[2:4])
            self.strided = nn.Parameter(torch.randn(64, 64).t())

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            x = self.embed(ids) @ self.strided + self.view.sum(0) + self.other.sum(0)
            result: torch.Tensor = self.head(x) + self.embed.weight.sum()
            return result

    captured = capture_model(Shared().eval(), torch.arange(4)[None])
    path = tmp_path / f"m.{suffix}"
    lower(captured.program, path)
    needed = 4 * (200 * 64 + 2 * 2 * 64 + 64 * 64)
    assert needed < path.stat().st_size < needed + 4 * 200 * 64, "one more copy of the embedding would not fit"
    got = open_session(path)(["ids"], captured.examples)[0]
    torch.testing.assert_close(got, captured.expected[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.bfloat16])
def test_other_float_types(dtype: torch.dtype, prove: ProveEverywhere) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU()).eval().to(dtype)
    formats = ["pt", "pt2"] if dtype == torch.bfloat16 else ["onnx", "pt", "pt2"]  # this runtime lacks Gemm(bf16)
    captured = prove(model, X.to(dtype), dynamic={"input": {0: "n"}}, formats=formats)
    assert captured.program.signature.outputs[0].dtype == dtype


def test_integers_masks_and_bytes(prove: ProveEverywhere) -> None:
    def forward(x: torch.Tensor, lengths: torch.Tensor, mask: torch.Tensor) -> Any:
        return (
            lengths * 2,
            mask & (x[:, 0] > 0),
            (x.clamp(0, 1) * 255).to(torch.uint8),
            lengths.sum(),
            lengths.int() ^ 1,
        )

    captured = prove(
        Free(forward).eval(),
        (torch.rand(2, 3), torch.tensor([2**40, 7]), torch.tensor([True, False])),
        dynamic={"x": {0: "n"}, "lengths": {0: "n"}, "mask": {0: "n"}},
    )
    dtypes = [spec.dtype for spec in captured.program.signature.outputs]
    assert dtypes == [torch.int64, torch.bool, torch.uint8, torch.int64, torch.int32]


def test_operators_without_tensor_inputs(prove: ProveEverywhere) -> None:
    def forward(x: torch.Tensor) -> torch.Tensor:
        grid = F.affine_grid(torch.eye(2, 3)[None].repeat(2, 1, 1), [2, 4, 6, 6], align_corners=False)
        return F.grid_sample(x, grid, align_corners=False)

    prove(Free(forward).eval(), torch.randn(2, 4, 6, 6), formats=["onnx"])


@torch.library.custom_op("fxexport_test::warp", mutates_args=())
def warp(x: torch.Tensor) -> torch.Tensor:
    return x * 3


@torch.library.custom_op("fxexport_test::weft", mutates_args=())
def weft(x: torch.Tensor, k: float) -> torch.Tensor:
    return x + k


warp.register_fake(torch.empty_like)
weft.register_fake(lambda x, k: torch.empty_like(x))


class Loom(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = weft(warp(x), 0.5)
        return result


class Mill(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.front, self.back = Loom(), Loom()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.back(self.front(x).int().float())
        return result


def test_every_missing_operator_is_listed_at_once_with_place_and_stub(out: Path) -> None:
    program = capture_model(Mill().eval(), X).program
    with pytest.raises(LoweringError) as caught:
        lower(program, out)
    message = str(caught.value)
    assert message.startswith("2 operators have no ONNX translation:")
    for name in ("warp", "weft"):
        assert f"fxexport_test.{name}.default  used in front at {__file__}:" in message
        assert f", back at {__file__}:" in message
        assert f"custom_translation_table={{torch.ops.fxexport_test.{name}.default: fxexport_test_{name}}}" in message
    assert "_assert" not in message
    assert not out.exists()


def test_a_translation_table_makes_them_work(out: Path) -> None:
    captured = capture_model(Mill().eval(), X)
    table: dict[Any, Any] = {
        torch.ops.fxexport_test.warp.default: lambda x: opset20.Mul(x, 3.0),
        torch.ops.fxexport_test.weft.default: lambda x, k: opset20.Add(x, k),
    }
    lower(captured.program, out, custom_translation_table=table)
    got = open_session(out)(["x"], captured.examples)[0]
    torch.testing.assert_close(got, captured.expected[0])
    with pytest.raises(LoweringError, match=r"1 operator has no ONNX translation:\s+fxexport_test.weft.default"):
        lower(
            captured.program,
            out,
            custom_translation_table={k: v for k, v in table.items() if "warp" in str(k)},
        )


def test_metadata_is_in_the_file_in_the_order_it_was_made(encoder: Captured, out: Path) -> None:
    lower(encoder.program, out, {"b": 1, "a": {"z": 0, "y": 0}})
    (entry,) = onnx.load(out).metadata_props
    assert entry.key == "fxexport"
    assert entry.value == json.dumps({"b": 1, "a": {"z": 0, "y": 0}})


def test_nodes_keep_their_module_and_the_passes_that_made_them(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Sigmoid()).eval()
    fxexport.compile(model, tmp_path / "m.onnx", torch.randn(1, 3, 8, 8))
    nodes = onnx.load(tmp_path / "m.onnx").graph.node
    found = {node.op_type: {entry.key: entry.value for entry in node.metadata_props} for node in nodes}
    assert found["Conv"] == {"fxexport.module": "0", "fxexport.passes": "fold-batchnorm"}
    assert found["Sigmoid"] == {"fxexport.module": "3"}


def test_a_pool_that_torch_decomposes_for_its_example_alone_holds_for_every_size(tmp_path: Path) -> None:
    """torch does it for sizes that the output divides, whatever the sizes are later."""
    pool, x = nn.AdaptiveAvgPool2d((2, 3)), torch.randn(2, 1, 8, 12)
    artifact = fxexport.compile(pool, tmp_path / "m.onnx", x, dynamic={"input": ["batch", None, "height", "width"]})
    for size in ((1, 1, 11, 7), (3, 1, 1, 2), (2, 1, 8, 12)):
        other = torch.randn(size)
        torch.testing.assert_close(artifact(other), pool(other))
