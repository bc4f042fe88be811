"""Artifacts: called like the model they came from, loaded again, in structure and in the caller's arrays."""

from __future__ import annotations

import warnings
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fxexport
from fxexport import Artifact, InputError
from fxexport.capture.pipeline import capture_model

X = torch.arange(6.0).reshape(2, 3)
State = namedtuple("State", "h c")


@dataclass
class Sample:
    image: torch.Tensor
    mask: torch.Tensor


torch.export.register_dataclass(Sample)


class Cell(nn.Module):
    """Every kind of parameter, nested arguments, nested results."""

    def forward(
        self, x: torch.Tensor, state: State, scale: int = 2, mask: Any = None, *, gain: float = 1.0
    ) -> dict[str, Any]:
        y = x * scale + state.h * gain
        return {"y": y, "state": (State(state.h + 1, state.c[0]), None), "length": x.shape[0]}


def artifact_of(model: nn.Module, folder: Path, *example: Any, suffix: str = "onnx", **options: Any) -> Artifact:
    """Lowered and loaded, without the proof that ``compile`` adds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = capture_model(model.eval(), *example, **options).program
    path = folder / f"{type(model).__name__}.{suffix}"
    fxexport.lower(program, path)
    return Artifact.load(path)


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return artifact_of(
        Cell(),
        tmp_path_factory.mktemp("cell"),
        (X, State(X, [X]), 3),
        {"gain": 0.5},
        as_input=["gain"],
        dynamic={"x": ["n", None], "state": {"h": ["n", None], "c": [["n", None]]}},
    )


def expected(x: torch.Tensor, gain: float) -> torch.Tensor:
    return x * 3 + x * gain


def test_what_it_says_of_itself(cell: Artifact) -> None:
    assert [s.name for s in cell.inputs] == ["x", "state_h", "state_c_0", "gain"]
    assert [s.path for s in cell.inputs] == ["x", "state['h']", "state['c'][0]", "gain"]
    assert cell.format == "onnx"
    assert cell.report is None
    assert "state_c_0" in str(cell)
    assert repr(cell) == f"Artifact({str(cell.path)!r})"


@pytest.mark.parametrize("n", [2, 5])
def test_every_way_to_call(cell: Artifact, n: int) -> None:
    x = torch.randn(n, 3)
    calls = [
        cell(x, State(x, [x]), 3, gain=0.25),
        cell(x, State(x, (x,)), gain=0.25),
        cell(x=x, state=State(x, [x]), gain=torch.tensor(0.25), scale=3),
        cell(x, x, x, torch.tensor(0.25)),
        cell(x, x, x, np.float32(0.25)),
        cell(x, x, state_c_0=x, gain=0.25),
        cell(x=x, state_h=x, state_c_0=x, gain=0.25),
    ]
    for result in calls:
        torch.testing.assert_close(result["y"], expected(x, 0.25))


def test_results_come_back_in_structure_and_order(cell: Artifact) -> None:
    result = cell(X, State(X, [X]), gain=1)
    assert list(result) == ["y", "state", "length"]
    (inner, nothing) = result["state"]
    assert nothing is None
    assert list(inner) == ["h", "c"]
    assert torch.equal(inner["h"], X + 1)
    assert result["length"] == 2
    assert result["length"].dtype == torch.int64


def test_arrays_in_arrays_out(cell: Artifact) -> None:
    array = X.numpy().copy()
    array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = cell(array, State(array, [array]), gain=0.5)
    assert isinstance(result["y"], np.ndarray)
    np.testing.assert_allclose(result["y"], expected(X, 0.5).numpy())
    assert isinstance(result["state"][0]["h"], np.ndarray)
    mixed = cell(array, State(X, [X]), gain=0.5)
    assert isinstance(mixed["y"], torch.Tensor)


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((X, State(X, [X]), 4), {"gain": 1.0}, "scale is fixed at 3 in the artifact, got 4"),
        ((X, State(X, [X])), {}, r"missing inputs \['gain'\]"),
        ((X, State(X, [X])), {"gain": 1.0, "foo": 1}, "unexpected keyword argument 'foo'"),
        ((X, State(X, [X]), 3, X), {"gain": 1.0}, "mask is no input"),
        ((X, X), {"gain": 1.0}, "state is no input"),
        ((X.double(), State(X, [X])), {"gain": 1.0}, "'x' is torch.float32, got torch.float64"),
        ((X[0], State(X, [X])), {"gain": 1.0}, r"'x' has axes \['n', 3\], got shape \[3\]"),
        ((X[:, :2], State(X, [X])), {"gain": 1.0}, r"'x' has axes \['n', 3\], got shape \[2, 2\]"),
        ((X, State(X[:1], [X])), {"gain": 1.0}, r"'state_h' has axes .* got shape \[1, 3\], and 'n' is 2"),
        (("abc", State(X, [X])), {"gain": 1.0}, "'x' must be a tensor, an array or a number, got 'abc'"),
    ],
)
def test_what_does_not_fit_is_refused(cell: Artifact, args: Any, kwargs: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        cell(*args, **kwargs)


class Free(nn.Module):
    def __init__(self, forward: Any) -> None:
        super().__init__()
        self.forward = forward


def test_varargs_and_keywords(tmp_path: Path) -> None:
    artifact = artifact_of(Free(lambda *xs, **more: sum(xs) + more["bias"]), tmp_path, (X, X), {"bias": X}, suffix="pt")
    torch.testing.assert_close(artifact(X, 2 * X, bias=X), 4 * X)
    torch.testing.assert_close(artifact(X, 2 * X, X), 4 * X)
    with pytest.raises(InputError, match=r"xs\[2\] is no input"):
        artifact(X, X, X, bias=X)


def test_keyword_only_arguments(tmp_path: Path) -> None:
    def forward(*, x: torch.Tensor, y: Any = None) -> torch.Tensor:
        return x if y is None else x + y

    artifact = artifact_of(Free(forward), tmp_path, None, {"x": X, "y": X}, suffix="pt")
    torch.testing.assert_close(artifact(y=X, x=X * 2), 3 * X)


def test_a_registered_dataclass_goes_in_and_comes_out(tmp_path: Path) -> None:
    model = Free(lambda s: Sample(s.image * 2, s.mask & (s.image > 1)))
    artifact = artifact_of(
        model, tmp_path, (Sample(X, X > 0),), dynamic={"s": {"image": ["n", None], "mask": ["n", None]}}
    )
    assert [s.name for s in artifact.inputs] == ["s_image", "s_mask"]
    result = artifact(Sample(X[:1], X[:1] > 0))
    assert torch.equal(result["image"], X[:1] * 2)
    assert torch.equal(result["mask"], (X[:1] > 0) & (X[:1] > 1))


def test_a_model_that_returns_the_dict_it_was_given(tmp_path: Path) -> None:
    def forward(d: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        d["y"] = d["x"] * 2
        return d

    example = {"x": X}
    artifact = artifact_of(Free(forward), tmp_path, (example,), suffix="pt")
    assert list(example) == ["x"], "the user's dict is not written to"
    assert {k: v.tolist() for k, v in artifact({"x": X}).items()} == {"x": X.tolist(), "y": (X * 2).tolist()}


def test_a_hugging_face_cache_goes_in_and_comes_out(tmp_path: Path, transformers: Any) -> None:
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=20
    )
    model = transformers.LlamaForCausalLM(config).eval()
    first = model(input_ids=torch.tensor([[1, 2, 3]]), use_cache=True)
    names = {"key_cache": [["n", None, "past", None]] * 2, "value_cache": [["n", None, "past", None]] * 2}
    example = {"input_ids": torch.tensor([[4]]), "past_key_values": first.past_key_values, "use_cache": True}
    dynamic = {"input_ids": ["n", None], "past_key_values": names}
    artifact = artifact_of(model, tmp_path, None, example, dynamic=dynamic, suffix="pt")
    assert artifact.inputs[1].name == "past_key_values_key_cache_0"
    assert artifact.inputs[1].axes == ("n", 2, "past", 8)
    longer = model(input_ids=torch.tensor([[1, 2, 3, 4, 5]]), use_cache=True).past_key_values
    result = artifact(input_ids=torch.tensor([[6]]), past_key_values=longer, use_cache=True)
    want = model(input_ids=torch.tensor([[1, 2, 3, 4, 5, 6]]), use_cache=True)
    torch.testing.assert_close(result["logits"][:, -1], want.logits[:, -1].detach(), rtol=1e-4, atol=1e-5)
    keys = result["past_key_values"]["key_cache"]
    torch.testing.assert_close(keys[1], want.past_key_values.layers[1].keys.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("suffix", ["onnx", "pt", "pt2"])
def test_compile_returns_what_load_gives_back(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"m.{suffix}"
    model = nn.Linear(3, 2).eval()
    made = fxexport.compile(model, path, X, dynamic={"input": {0: "n"}}, passes="none")
    loaded = Artifact.load(path)
    assert loaded.metadata == made.metadata
    assert loaded.signature == made.signature
    assert made.report is not None
    assert made.report.files == {path.name: path.stat().st_size}
    for artifact in (made, loaded):
        torch.testing.assert_close(artifact(torch.ones(7, 3)), model(torch.ones(7, 3)).detach())


def test_loading_runs_nothing_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A .pt2 or .pt may hold pickles: what the file says of itself is read without opening them."""
    paths = []
    for suffix in ("pt", "pt2"):
        path = tmp_path / f"m.{suffix}"
        fxexport.lower(fxexport.capture(nn.ReLU().eval(), X), path)
        paths.append(path)
    for loader in ("torch.jit.load", "torch.export.load", "torch.load"):
        monkeypatch.setattr(loader, lambda *args, **kwargs: pytest.fail("the file was loaded"))
    assert [Artifact.load(path).inputs[0].name for path in paths] == ["input", "input"]
