"""Complex inputs and outputs: real pairs in an ONNX file, complex numbers for whoever calls it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import nn

import fxexport
from fxexport import Artifact, InputError, ValidationError
from fxexport.pipeline.spec import TensorPort
from fxexport.signature import TensorSpec
from fxexport.verification import verify


class Mixed(nn.Module):
    """Complex and real, nested, some of it twice."""

    def forward(self, z: torch.Tensor, states: dict[str, torch.Tensor]) -> dict[str, Any]:
        doubled = z * 2
        return {"a": doubled, "b": [states["w"] + z.real, z.conj()], "c": doubled}


class Counting(nn.Module):
    """A complex buffer that every call changes."""

    total: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.full((3,), 1 - 2j, dtype=torch.complex64))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        self.total += z.sum(0)
        return self.total.real * 2


def complex_numbers(*shape: int) -> torch.Tensor:
    return torch.complex(torch.randn(*shape), torch.randn(*shape))


def export(model: nn.Module, path: Path, *example: Any, **options: Any) -> Artifact:
    artifact = fxexport.compile(model.eval(), path, example, **options)
    assert isinstance(artifact, Artifact)
    return artifact


@pytest.fixture
def mixed(tmp_path: Path, request: pytest.FixtureRequest) -> Artifact:
    example = (complex_numbers(2, 3), {"w": torch.randn(2, 3)})
    axes = {"z": {-2: "batch"}, "states": {"w": {0: "batch"}}}
    return export(Mixed(), tmp_path / f"m{getattr(request, 'param', '.onnx')}", *example, dynamic=axes)


@pytest.mark.parametrize("mixed", [".onnx", ".pt", ".pt2"], indirect=True)
def test_it_is_called_like_the_model(mixed: Artifact) -> None:
    z, w = complex_numbers(5, 3), torch.randn(5, 3)
    expected = Mixed()(z, {"w": w})
    for artifact in (mixed, Artifact.load(mixed.path)):
        torch.testing.assert_close(artifact(z, {"w": w})["b"], tuple(expected["b"]))
        torch.testing.assert_close(artifact(z.conj(), {"w": w})["a"], z.conj() * 2)  # a lazy conjugate
        arrays = artifact(z.numpy(), {"w": w.numpy()})
        assert arrays["c"].dtype == np.complex64
        np.testing.assert_allclose(arrays["b"][1], z.numpy().conj())


def test_the_file_has_pairs_and_says_so(mixed: Artifact) -> None:
    session = ort.InferenceSession(str(mixed.path))
    assert [(v.name, v.type, v.shape) for v in session.get_inputs()] == [
        ("z", "tensor(float)", ["batch", 3, 2]),
        ("states_w", "tensor(float)", ["batch", 3]),
    ]
    loaded = Artifact.load(mixed.path)
    assert loaded.inputs[0] == TensorSpec("z", torch.float32, ("batch", 3, 2), "z", pairs=True)
    assert [spec.pairs for spec in loaded.outputs] == [True, False, True, True]
    assert "float32 pairs" in str(loaded)
    assert "output['b'][1] is complex: real in the file" in str(loaded)


def test_pairs_may_be_given_too(mixed: Artifact) -> None:
    z, w = complex_numbers(4, 3), torch.randn(4, 3)
    torch.testing.assert_close(mixed(z=torch.view_as_real(z), states_w=w)["a"], 2 * z)
    with pytest.raises(InputError, match=r"'z' is torch.complex64, got torch.complex128"):
        mixed(z.to(torch.complex128), {"w": w})
    with pytest.raises(InputError, match=r"'z' has axes \['batch', 3\], got shape \[4, 3, 1\]"):
        mixed(z[..., None], {"w": w})
    with pytest.raises(InputError, match=r"'z' is torch.float32, got torch.float64"):
        mixed(z.real.double(), {"w": w})


def test_it_is_verified_again(mixed: Artifact) -> None:
    example = (complex_numbers(2, 3), {"w": torch.randn(2, 3)})
    report = verify(mixed.path, Mixed().eval(), example)
    assert report.passed
    assert {point.label for point in report.points} >= {"example", "batch=1", "batch=3"}

    class Wrong(Mixed):
        def forward(self, z: torch.Tensor, states: dict[str, torch.Tensor]) -> dict[str, Any]:
            return super().forward(z + 0.01j, states)

    assert not verify(mixed.path, Wrong().eval(), example).passed


def test_a_wrong_imaginary_part_is_found(tmp_path: Path) -> None:
    from fxexport.rewrite import PatternPass

    class LoseImaginary(PatternPass):
        name = "lose-imaginary"

        def pattern(self, z: Any) -> Any:
            return torch.ops.aten.mul.Tensor(z, 2)

        def replacement(self, z: Any) -> Any:
            return torch.ops.aten.mul.Tensor(torch.ops.aten._conj.default(z), 2)

    class Plain(nn.Module):
        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return z * 2

    with pytest.raises(ValidationError, match="lose-imaginary"):
        export(Plain(), tmp_path / "m.onnx", complex_numbers(2, 3), passes=[LoseImaginary()])


def test_a_complex_buffer_is_explicit_state(tmp_path: Path) -> None:
    artifact = export(Counting(), tmp_path / "m.onnx", complex_numbers(2, 3), state="explicit")
    assert [spec.axes for spec in artifact.inputs] == [(2, 3, 2), (3, 2)]
    start, z = complex_numbers(3), complex_numbers(2, 3)
    result, state = artifact(z, state={"total": start})
    torch.testing.assert_close(state["total"], start + z.sum(0))
    torch.testing.assert_close(result, (start + z.sum(0)).real * 2)


def test_a_python_complex_number_is_an_output(tmp_path: Path) -> None:
    class Number(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, complex]:
            return x * 2, 1 + 2j

    assert export(Number(), tmp_path / "m.onnx", torch.randn(2))(torch.ones(2))[1] == 1 + 2j


def test_double_precision_and_further_examples(tmp_path: Path) -> None:
    class Plain(nn.Module):
        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return (z * 2).conj()

    wide, more = complex_numbers(2, 3).to(torch.complex128), [(complex_numbers(2, 3).to(torch.complex128),)]
    artifact = export(Plain(), tmp_path / "m.onnx", wide, check_trace=more)
    assert artifact.inputs[0].dtype == torch.float64
    torch.testing.assert_close(artifact(wide), Plain()(wide))
    assert artifact(wide).dtype == torch.complex128


def test_ports_of_a_pipeline_round_trip() -> None:
    port = TensorPort("z", "complex64", ("batch", 3), pairs=True)
    assert TensorPort.from_json(port.to_json()) == port
    assert TensorPort.from_json({"name": "z", "dtype": "float32", "axes": [2]}) == TensorPort("z", "float32", (2,))
