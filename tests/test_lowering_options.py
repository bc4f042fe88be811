"""Options of ONNX files: constants that stay in the graph, and weights that are inputs, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fxexport.capture.pipeline import Captured, capture_model
from fxexport.errors import InputError
from fxexport.lowering import lower
from fxexport.session import open_session
from fxexport.validation.runner import ArtifactProcess
from fxexport.validation.validate import validate

X = torch.randn(2, 3)


class Foldable(nn.Module):
    """Layers whose weights are computed with, some from weights alone, some tied, and a branch for the two roads."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv1d(8, 8, 3, padding=1), nn.BatchNorm1d(8)
        self.first, self.tied = nn.Linear(8, 8), nn.Linear(8, 8, bias=False)
        self.tied.weight = self.first.weight
        self.lstm, self.norm = nn.LSTM(8, 8, batch_first=True, bidirectional=True), nn.LayerNorm(8)
        self.a, self.b = nn.Parameter(torch.randn(16, 4)), nn.Parameter(torch.randn(4, 8))
        self.k: torch.Tensor
        self.register_buffer("k", torch.arange(8.0))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = self.bn(self.conv(x.transpose(1, 2))).transpose(1, 2)
        y = self.lstm(self.norm(self.tied(self.first(y))))[0]
        z = y @ (self.a @ self.b) + (self.k * 2 + 1)
        return z, y.reshape(y.shape[0], -1), torch.arange(x.shape[1]), F.interpolate(z, scale_factor=2.0)


@pytest.fixture(scope="module")
def foldable() -> Captured:
    torch.manual_seed(0)
    return capture_model(Foldable().eval(), torch.randn(2, 5, 8), dynamic={"x": ["batch", "time", None]})


def agrees(captured: Captured, path: Path) -> bool:
    """The worker's view: the file takes the signature's inputs and nothing else, and is right at all sizes."""
    with ArtifactProcess("onnx") as process:
        loaded = process.load(path)
        assert [info.name for info in loaded.inputs] == ["x"]
        report = validate(process, path, captured.reference, captured.program.signature, captured.examples)
    assert len(report.points) > 2
    return report.passed


@pytest.mark.parametrize(
    ("fold", "keep", "opset"), [(True, False, 20), (False, False, 20), (True, True, 18), (False, True, 23)]
)
def test_every_combination_is_valid_and_right(
    foldable: Captured, fold: bool, keep: bool, opset: int, out: Path
) -> None:
    options: dict[str, Any] = {"do_constant_folding": fold, "keep_initializers_as_inputs": keep}
    lower(foldable.program, out, opset_version=opset, **options)
    model = onnx.load(out)
    onnx.checker.check_model(model, full_check=True)
    again = out.with_name("again.onnx")
    lower(foldable.program, again, opset_version=opset, **options)
    assert out.read_bytes() == again.read_bytes()
    products = [node.op_type for node in model.graph.node].count("MatMul")
    assert products == (3 if fold and not keep else 4), "a @ b is of weights alone"
    assert ("a" in {weight.name for weight in model.graph.initializer}) is (keep or not fold)
    assert agrees(foldable, out)


def test_constants_that_are_no_weights_are_folded_beside_weights_that_are_inputs(foldable: Captured, out: Path) -> None:
    sizes = []
    for fold in (False, True):
        lower(foldable.program, out, do_constant_folding=fold, keep_initializers_as_inputs=True)
        sizes.append(len([node for node in onnx.load(out).graph.node if node.op_type != "Constant"]))
    assert sizes[0] > sizes[1]


def test_every_initializer_is_an_input_with_type_and_shape_and_the_model_s_own_name(
    foldable: Captured, out: Path
) -> None:
    lower(foldable.program, out, keep_initializers_as_inputs=True)
    graph = onnx.load(out).graph
    inputs = {entry.name: entry.type.tensor_type for entry in graph.input}
    weights = {weight.name: weight for weight in graph.initializer}
    assert [entry.name for entry in graph.input] == ["x", *weights]
    for name, weight in weights.items():
        assert inputs[name].elem_type == weight.data_type
        assert [dim.dim_value for dim in inputs[name].shape.dim] == list(weight.dims)
    model = Foldable()
    state = {name: list(tensor.shape) for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    del state["bn.num_batches_tracked"]
    assert {name: list(weight.dims) for name, weight in weights.items()} == state, "the tied one once"


@pytest.mark.parametrize("fold", [False, True])
def test_a_weight_that_is_fed_replaces_the_one_in_the_file(foldable: Captured, fold: bool, out: Path) -> None:
    lower(foldable.program, out, do_constant_folding=fold, keep_initializers_as_inputs=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(out), options, providers=["CPUExecutionProvider"])
    x = torch.randn(3, 4, 8)
    torch.manual_seed(0)
    model = Foldable().eval()
    for name, value in [*model.named_parameters(), ("k", model.k)]:
        old = value.detach().clone()
        with torch.no_grad():
            before = model(x)
            value.copy_(torch.randn_like(value))
            after = model(x)
            changed = value.detach().clone()
            value.copy_(old)
        got = session.run(None, {"x": x.numpy(), name: changed.numpy()})
        plain = session.run(None, {"x": x.numpy()})
        for a, b, c, d in zip(got, after, plain, before, strict=True):
            torch.testing.assert_close(torch.from_numpy(a), b, rtol=1e-4, atol=1e-4, msg=name)
            torch.testing.assert_close(torch.from_numpy(c), d, rtol=1e-4, atol=1e-4, msg=name)
        assert not torch.equal(after[0], before[0]), name


def test_large_weights_as_inputs_may_lie_in_a_data_file(out: Path) -> None:
    captured = capture_model(nn.Linear(40, 40).eval(), torch.randn(2, 40), input_names=["x"])
    files = lower(captured.program, out, keep_initializers_as_inputs=True, external_data=True)
    assert len(files) == 2
    assert [entry.name for entry in onnx.load(out).graph.input] == ["x", "weight", "bias"]
    torch.testing.assert_close(open_session(out)(["x"], captured.examples), captured.expected)


class Branches(nn.Module):
    """torch.cond goes through the public exporter; without it the model takes the short way."""

    def __init__(self, branches: bool) -> None:
        super().__init__()
        self.branches, self.w, self.unused = branches, nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(5))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.branches:
            return x * self.w, self.w
        return torch.cond(x.sum() > 0, lambda x: x * self.w, lambda x: x - self.w * 2, (x,)), self.w + 1


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("branches", [False, True])
def test_branches_and_weights_that_are_results(branches: bool, keep: bool, out: Path) -> None:
    model = Branches(branches).eval()
    captured = capture_model(model, X)
    lower(captured.program, out, do_constant_folding=False, keep_initializers_as_inputs=keep)
    assert [entry.name for entry in onnx.load(out).graph.input] == ["x", *["w"] * keep], (
        "what nothing reads is left out"
    )
    for x in (X.abs(), -X.abs()):
        torch.testing.assert_close(open_session(out)(["x"], [x]), list(model(x)))


@pytest.mark.parametrize(("suffix", "kind"), [(".pt", "torchscript"), (".pt2", "pt2")])
def test_options_of_onnx_files_are_refused_elsewhere(
    foldable: Captured, tmp_path: Path, suffix: str, kind: str
) -> None:
    path = tmp_path / f"m{suffix}"
    for option in ("keep_initializers_as_inputs", "functions"):
        options: dict[str, Any] = {option: True}
        with pytest.raises(InputError, match=rf"{option} is for \.onnx files; m\{suffix} is {kind}"):
            lower(foldable.program, path, **options)
        assert not path.exists()
    lower(foldable.program, path, do_constant_folding=False)
    got = open_session(path)(["x"], foldable.examples)
    torch.testing.assert_close(got, list(foldable.expected), rtol=1e-4, atol=1e-5)
