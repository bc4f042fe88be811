"""Operators of PyTorch that ONNX has no form of, or torch.onnx none that is right: each compiled, and run at other sizes.

``fxexport.compile`` proves every file by itself at values and batches of its own, too.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxexport
from fxexport import Artifact
from fxexport.errors import LoweringError

Function = Callable[[Tensor], Any]
L = torch.linalg


class Calls(nn.Module):
    def __init__(self, functions: dict[str, Function]) -> None:
        super().__init__()
        self.functions = functions

    def forward(self, x: Tensor) -> dict[str, Any]:
        return {name: function(x) for name, function in self.functions.items()}


def proves(functions: dict[str, Function], sizes: list[list[int]], axes: dict[int, str], make: Any, path: Path) -> None:
    """One artifact of all ``functions``, at each of ``sizes``; the first is the example's."""
    torch.manual_seed(0)
    model = Calls(functions).eval()
    artifact = fxexport.compile(model, path / "m.onnx", (make(sizes[0]),), dynamic={"x": axes})
    assert isinstance(artifact, Artifact)
    for size in sizes[1:]:
        x = make(size)
        expected = torch.utils._pytree.tree_leaves(model(x))
        got = torch.utils._pytree.tree_leaves(artifact(x))
        for one, other in zip(got, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, equal_nan=True)


def normal(size: list[int]) -> Tensor:
    return torch.randn(size)


def positive(size: list[int]) -> Tensor:
    return torch.rand(size) * 3 + 0.1


def definite(size: list[int]) -> Tensor:
    a = torch.randn(size)
    return a @ a.mT + size[-1] * torch.eye(size[-1])


def groups(x: Tensor) -> Tensor:
    return (x > 0).long() + 1


def reduced(kind: str, keep: bool) -> Function:
    return lambda x: torch.zeros(x.shape[0], 3).scatter_reduce(1, groups(x), x, kind, include_self=keep)


def by_index(kind: str) -> Function:
    return lambda x: torch.ones(x.shape[0], 3).index_reduce(1, torch.tensor([0, 1, 1, 0, 2]), x, kind)


STATISTICS: dict[str, Function] = {
    "amax": lambda x: x.amax(),
    "amin": lambda x: x.amin(),
    "mode": lambda x: tuple(x.round().mode(-1)),
    "nanmedian": lambda x: torch.where(x > 1, float("nan"), x).nanmedian(-1).values,
    "fmax": lambda x: torch.fmax(torch.where(x > 1, float("nan"), x), x.flip(-1)),
    "fmin": lambda x: torch.fmin(torch.where(x > 1, float("nan"), x), x.flip(-1)),
    "cov": lambda x: torch.cov(x.T),
    "gradient": lambda x: torch.gradient(x, spacing=2.0, dim=-1, edge_order=2)[0],
    "cdist": lambda x: torch.cdist(x, x.flip(0)),
    "cdist 1": lambda x: torch.cdist(x, x + 1, p=1.0),
    "pdist": lambda x: F.pdist(torch.cat([x, -x])),
    "smoothed": lambda x: F.cross_entropy(x, x.argmax(-1), label_smoothing=0.1),
    "soft": lambda x: F.cross_entropy(x, x.softmax(-1)),
}
INDICES: dict[str, Function] = {
    "mean with self": reduced("mean", True),
    "mean": reduced("mean", False),
    "index mean": by_index("mean"),
    "index prod": by_index("prod"),
    "index amax": by_index("amax"),
    "put": lambda x: torch.put(x, torch.tensor([0, -1]), torch.tensor([9.0, 8.0])),
    "diagonal": lambda x: torch.zeros(x.shape[0], 5, 6).diagonal_scatter(x, 1, 1, 2),
    "triangle": lambda x: (x @ x.T)[tuple(torch.triu_indices(x.shape[0], x.shape[0], 1))],
    "vander": lambda x: torch.vander(x[:, 0], 4),
    "kron": lambda x: torch.kron(x, torch.eye(2)),
    "shuffle": lambda x: torch.native_channel_shuffle(x[:, :4, None, None], 2),
    "pairs": lambda x: torch.combinations(x[:, 0]),
    "pairs of a row": lambda x: torch.combinations(x[0]),
}


def along(function: Callable[[Tensor, int], Any], dim: int) -> Function:
    return lambda x: tuple(function(x, dim)) if function in (torch.cummax, torch.cummin) else function(x * 5, dim)


RUNNING: dict[str, Function] = {
    f"{function.__name__} {dim}": along(function, dim)
    for function in (torch.cumprod, torch.logcumsumexp, torch.cummax, torch.cummin)
    for dim in (0, 1)
}
RUNNING["logaddexp"] = lambda x: torch.logaddexp(x * 100, x.flip(-1) * 100)
SPECIAL: dict[str, Function] = {
    "lgamma": torch.lgamma,
    "lgamma below 0": lambda x: torch.lgamma(-x - 0.01),
    "digamma": torch.digamma,
    "multigammaln": lambda x: torch.special.multigammaln(x + 3, 2),
    "erfinv": lambda x: torch.erfinv(x.sin() * 0.99),
}
MATRICES: dict[str, Function] = {
    "inv": L.inv,
    "power -1": lambda x: L.matrix_power(x, -1),
    "power 0": lambda x: L.matrix_power(x, 0),
    "slogdet": lambda x: tuple(L.slogdet(-x)),
    "cholesky": L.cholesky,
    "upper": lambda x: L.cholesky(x, upper=True),
    "qr": lambda x: tuple(L.qr(x)),
    "qr of a wide one": lambda x: tuple(L.qr(x[:, :2], mode="complete")),
    "triangle": lambda x: L.solve_triangular(x, x[..., :2], upper=True),
    "from the right": lambda x: L.solve_triangular(x, x[:, :2], upper=False, left=False, unitriangular=True),
    "cholesky_solve": lambda x: torch.cholesky_solve(x, L.cholesky(x)),
    "norm 1": lambda x: L.norm(x, 1, (-2, -1)),
}
BATCH = {0: "batch"}
SUITES: dict[str, Any] = {
    "statistics": (STATISTICS, [[3, 5], [2, 5], [7, 5]], normal),
    "indices": (INDICES, [[3, 5], [2, 5], [7, 5]], normal),
    "running": (RUNNING, [[3, 5], [1, 5], [11, 5]], normal),
    "special functions": (SPECIAL, [[3, 5], [1, 5], [7, 5]], positive),
    "matrices": (MATRICES, [[2, 3, 3], [1, 3, 3], [5, 3, 3]], definite),
}


@pytest.mark.parametrize("suite", SUITES)
def test_operators_in_the_words_of_others(suite: str, tmp_path: Path) -> None:
    functions, sizes, make = SUITES[suite]
    proves(functions, sizes, BATCH, make, tmp_path)


POOLS: dict[int, dict[str, Function]] = {
    1: {
        "average": lambda x: F.adaptive_avg_pool1d(x, 3),
        "maximum": lambda x: F.adaptive_max_pool1d(x, 2),
    },
    2: {
        "average": lambda x: F.adaptive_avg_pool2d(x, (2, 3)),
        "one axis": lambda x: F.adaptive_avg_pool2d(x, (None, 3)),
        "one": lambda x: F.adaptive_avg_pool2d(x, (1, 3)),
        "maximum, places": lambda x: F.adaptive_max_pool2d(x, 3, return_indices=True),
        "area": lambda x: F.interpolate(x, size=(7, 5), mode="area"),
        "divisor": lambda x: F.avg_pool2d(F.pad(x, (2, 2, 2, 2)), 3, 2, 1, divisor_override=5),
    },
    3: {
        "average": lambda x: F.adaptive_avg_pool3d(x, 2),
        "maximum": lambda x: F.adaptive_max_pool3d(x, (1, 2, 3)),
    },
}


@pytest.mark.parametrize("rank", POOLS)
def test_adaptive_pools_over_open_sizes(rank: int, tmp_path: Path) -> None:
    axes = {0: "batch", **{2 + axis: f"size_{axis}" for axis in range(rank)}}
    sizes = [[2, 2, 5, 8, 7][: 2 + rank], [1, 2, 1, 1, 2][: 2 + rank], [3, 2, 11, 6, 4][: 2 + rank]]
    proves(POOLS[rank], sizes, axes, normal, tmp_path)


def test_a_pool_keeps_infinities_to_their_windows(tmp_path: Path) -> None:
    x = torch.randn(1, 1, 5, 7)
    artifact = fxexport.compile(
        nn.AdaptiveAvgPool2d(3), tmp_path / "m.onnx", x, dynamic={"input": [None, None, "height", "width"]}
    )
    assert isinstance(artifact, Artifact)
    x[0, 0, 0, 0] = float("inf")
    torch.testing.assert_close(artifact(x), F.adaptive_avg_pool2d(x, 3))


SIZES: dict[str, Function] = {
    "remainder": lambda x: torch.arange(x.shape[1]) % x.shape[0],
    "remainder of floats": lambda x: x % x.shape[0],
    "power": lambda x: x.abs() ** x.shape[0],
    "bits": lambda x: torch.arange(x.shape[1]) & x.shape[0] | x.shape[1],
    "size from the end": lambda x: torch.ops.aten.sym_size.int(x, -2) * x,
}


def test_sizes_in_the_place_of_numbers(tmp_path: Path) -> None:
    proves(SIZES, [[3, 5], [2, 9], [6, 4]], {0: "batch", 1: "width"}, normal, tmp_path)


OPSET_17: dict[str, Function] = {
    "mean": lambda x: x.mean(),
    "rows": lambda x: x.mean(-1, keepdim=True) + x.amax(0) + x.norm(),
    "deviation": lambda x: x.std() + x.prod(1).logsumexp(0),
    "flags": lambda x: (x > 0).any() | (x > -9).all(-1),
    "parts": lambda x: x.chunk(2, 1),
    "pad": lambda x: F.pad(x, (1, 2), value=0.5),
    "median": lambda x: x.median(-1).values,
}


def test_opset_17(tmp_path: Path) -> None:
    model = Calls(OPSET_17).eval()
    artifact = fxexport.compile(
        model, tmp_path / "m.onnx", (torch.randn(3, 5),), dynamic={"x": BATCH}, opset_version=17
    )
    assert isinstance(artifact, Artifact)
    x = torch.randn(6, 5)
    got, expected = (torch.utils._pytree.tree_leaves(each(x)) for each in (artifact, model))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_what_opset_17_lacks_is_refused_by_name(tmp_path: Path) -> None:
    model = Calls({"y": lambda x: x & 3}).eval()
    with pytest.raises(LoweringError, match="this model need opset 18: it has no BitwiseAnd"):
        fxexport.compile(model, tmp_path / "m.onnx", (torch.arange(6),), opset_version=17)
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda x: torch.special.i1(x), "aten.special_i1.default"),
        (lambda x: L.eigvalsh(x + x.mT), "aten.linalg_eigvalsh.default"),
    ],
    ids=["i1", "eigvalsh"],
)
def test_what_has_no_exact_translation_is_refused_by_name_and_line(
    function: Function, name: str, tmp_path: Path
) -> None:
    """Also where the operator is made of others, which torch.onnx would name instead."""
    with pytest.raises(LoweringError) as caught:
        fxexport.compile(Calls({"y": function}).eval(), tmp_path / "m.onnx", (positive([4, 4]),))
    message = str(caught.value)
    assert f"1 operator has no ONNX translation:\n  {name}  used in the model itself at {__file__}:" in message
    assert not (tmp_path / "m.onnx").exists()
