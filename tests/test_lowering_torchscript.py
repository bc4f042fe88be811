"""TorchScript and .pt2 files: what the interpreter needs, and nothing that depends on the process."""

from __future__ import annotations

import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import ProveEverywhere
from torch import nn

from fxexport.capture.pipeline import capture_model
from fxexport.errors import LoweringError
from fxexport.lowering import lower
from fxexport.lowering.unlift import storable, storage_key, unlift

X = torch.randn(2, 3, 8)


class Free(nn.Module):
    def __init__(self, forward: Any) -> None:
        super().__init__()
        self.forward = forward


def sizes(x: Any) -> Any:
    n, c, t = x.shape
    y = x.reshape(n * c, t).repeat_interleave(2, 0)
    return (
        y[: n + 1],
        x.new_zeros(n, t),
        torch.arange(t).expand(n, t),
        x.mean(-1) * t,
        x[:, :, : t // 2],
        (n, t),
    )


def factories(x: Any) -> Any:
    ones = torch.ones(x.shape[0], 3, dtype=torch.float64)
    return ones, torch.full_like(x, 2.5), torch.tensor([1, 2]), torch.linspace(0, 1, 5), torch.eye(3)


def many_results(x: Any) -> Any:
    values, indices = x.topk(2, -1)
    a, b, c = x.split(1, 1)
    return values, indices, a + b * c, x.max(-1).values, *x.unbind(1)


def options(x: Any) -> Any:
    y = F.interpolate(x, scale_factor=2.0, mode="linear")
    return (
        F.pad(y, (1, 1), mode="replicate"),
        x.std(-1, keepdim=True),
        x.to(torch.float16),
        F.gelu(x, approximate="tanh"),
    )


def attention(x: Any) -> Any:
    return F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], is_causal=True)


@pytest.mark.parametrize("forward", [sizes, factories, many_results, options, attention], ids=lambda f: f.__name__)
def test_sizes_stay_dynamic(forward: Any, prove: ProveEverywhere) -> None:
    captured = prove(Free(forward).eval(), X, dynamic={"x": {0: "n", 2: "t"}}, formats=["pt"])
    assert captured.program.signature.inputs[0].axes == ("n", 3, "t")


def test_the_file_is_plain_torchscript_with_the_names_of_the_inputs(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    lower(capture_model(nn.Conv1d(3, 4, 1).eval(), X, input_names=["signal"]).program, path)
    module = torch.jit.load(path)
    assert [a.name for a in module.forward.schema.arguments] == ["self", "signal"]
    assert sorted(b.shape for b in module.buffers()) == [(4,), (4, 3, 1)]
    module.double().save(tmp_path / "again.pt")
    assert torch.jit.load(tmp_path / "again.pt")(X.double())[0].dtype == torch.float64


def test_nothing_of_the_process_is_in_the_archive(tmp_path: Path) -> None:
    program = capture_model(nn.Conv1d(3, 4, 1).eval(), X).program
    for name in ("a", "b", "c"):
        folder = tmp_path / name
        folder.mkdir()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            lower(program, folder / "m.pt")
        assert [file.name for file in folder.iterdir()] == ["m.pt"], "no temporary file is left"
    files = [(tmp_path / name / "m.pt").read_bytes() for name in ("a", "b", "c")]
    assert files[0] == files[1] == files[2]
    with zipfile.ZipFile(tmp_path / "a" / "m.pt") as archive:
        names = archive.namelist()
        code = "".join(archive.read(name).decode() for name in names if name.endswith(".py"))
    assert not re.search(r"mangle|debug_pkl|eval_with_key", " ".join(names) + code)
    assert "def forward" in code


def test_an_operator_without_a_script_form_is_named(tmp_path: Path) -> None:
    def foreign(x: Any) -> Any:
        return x + 1

    program = capture_model(nn.ReLU().eval(), X).program
    (call,) = program.find(torch.ops.aten.relu.default)
    program.replace(call, program.insert(foreign, call.args, before=call))
    with pytest.raises(LoweringError, match=r"TorchScript has no form of .*foreign.*used in the model itself"):
        lower(program, tmp_path / "m.pt")
    assert not list(tmp_path.iterdir())


def test_one_tensor_is_one_buffer_and_views_are_cut_out_of_their_storage() -> None:
    big = torch.randn(100, 4)
    assert storage_key(big) == storage_key(big.detach())
    assert storage_key(big[:2]) != storage_key(big[:3])
    assert storable(big) is big
    small = storable(nn.Parameter(big[:2]))
    assert isinstance(small, nn.Parameter)
    assert small.untyped_storage().nbytes() == 2 * 4 * 4
    assert torch.equal(small, big[:2])

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.ones(3))
            self.b = self.a
            self.register_buffer("c", torch.zeros(0))
            self.register_buffer("d", torch.zeros(0, 2))

        def forward(self, x: torch.Tensor) -> Any:
            return x + self.a[:, None] * self.b[:, None], self.c + 1, self.d + 1

    module = unlift(capture_model(Twice().eval(), X).program)
    assert sorted(tuple(b.shape) for b in module.buffers()) == [(0,), (0, 2), (3,)]


def test_pt2_keeps_module_paths_and_no_source_lines(tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    program = capture_model(nn.Sequential(nn.Conv1d(3, 4, 1), nn.ReLU()).eval(), X, dynamic={"input": {0: "n"}}).program
    lower(program, path)
    loaded = torch.export.load(path)
    paths = {list(n.meta["nn_module_stack"].values())[-1][0] for n in loaded.graph.nodes if "nn_module_stack" in n.meta}
    assert paths == {"0", "1"}
    assert __file__.encode() not in path.read_bytes()
    assert any("stack_trace" in n.meta for n in program.graph.nodes), "only the file goes without"
    assert loaded.module()(torch.randn(7, 3, 8))[0].shape == (7, 4, 8)
