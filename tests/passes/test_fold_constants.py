"""What depends on weights alone becomes a weight, bit for bit, and the file does not grow by it."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import fxexport
from fxexport.capture import capture, capture_model
from fxexport.errors import PassError
from fxexport.ops import KnownCalls
from fxexport.passes import FoldConstants, MergeCommonSubexpressions, RemoveAssertions, RemoveNoops
from fxexport.program import Program
from fxexport.rewrite import PassManager, resolve
from fxexport.testing import assert_rewrites, assert_unchanged

aten = torch.ops.aten
X = torch.randn(3, 8)
BATCH = {"x": {0: "batch"}}
CLEAN = [RemoveNoops(), RemoveAssertions()]


class Symmetric(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.triu() + weight.triu(1).transpose(-1, -2)


def own(layer: nn.Module) -> nn.Module:
    parametrize.register_parametrization(layer, "weight", Symmetric())
    return layer


def both(layer: nn.Module) -> nn.Module:
    return parametrizations.spectral_norm(own(layer))


PARAMETRIZED = {
    "weight norm": lambda: parametrizations.weight_norm(nn.Linear(8, 8)),
    "weight norm of all": lambda: parametrizations.weight_norm(nn.Linear(8, 8), dim=None),
    "weight norm, old": lambda: torch.nn.utils.weight_norm(nn.Linear(8, 8)),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(8, 8)),
    "spectral norm, old": lambda: torch.nn.utils.spectral_norm(nn.Linear(8, 8)),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(8, 8)),
    "orthogonal, householder": lambda: parametrizations.orthogonal(nn.Linear(8, 8), orthogonal_map="householder"),
    "orthogonal, cayley": lambda: parametrizations.orthogonal(nn.Linear(8, 8), orthogonal_map="cayley"),
    "of the user": lambda: own(nn.Linear(8, 8)),
    "two of them": lambda: both(nn.Linear(8, 8)),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", PARAMETRIZED)
def test_a_parametrized_weight_is_plain(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(PARAMETRIZED[name](), nn.ReLU()).eval()
    program = assert_rewrites(
        FoldConstants(),
        model,
        None,
        (X,),
        ops={aten.linear.default: 1},
        dynamic={"input": {0: "batch"}},
        first=CLEAN,
        rtol=0,
        atol=0,
    )
    assert program.node_count() == 2
    assert {key: list(value.shape) for key, value in program.constants().items()} == {
        "0.weight": [8, 8],
        "0.bias": [8],
    }


@pytest.mark.parametrize("kind", ["conv", "conv transpose"])
def test_a_large_weight_norm_of_a_convolution_is_plain_in_the_file(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = nn.Conv1d(32, 48, 5) if kind == "conv" else nn.ConvTranspose1d(32, 48, 5)
    model = nn.Sequential(parametrizations.weight_norm(layer), nn.BatchNorm1d(48)).eval()
    x = torch.randn(2, 32, 9)
    fxexport.compile(model, tmp_path / "m.onnx", x, dynamic={"input": {0: "batch", 2: "time"}})
    graph = onnx.load(tmp_path / "m.onnx").graph
    assert [node.op_type for node in graph.node] == ["Conv" if kind == "conv" else "ConvTranspose"]
    assert sum(onnx.numpy_helper.to_array(w).nbytes for w in graph.initializer) == (32 * 48 * 5 + 48) * 4
    assert parametrize.is_parametrized(model[0])


@pytest.mark.parametrize("format", ["ts", "pt2"])
def test_other_formats(format: str, tmp_path: Path) -> None:
    model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(8, 4)), nn.Tanh()).eval()
    artifact = fxexport.compile(model, tmp_path / f"m.{format}", X, dynamic={"input": {0: "batch"}})
    fold = next(record for record in artifact.report.passes if record.name == "fold-constants")
    assert fold.count == 1


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = parametrizations.weight_norm(nn.Linear(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.relu(self.layer(x)))


def test_a_layer_that_is_used_twice_has_one_weight() -> None:
    for passes in ([FoldConstants()], [MergeCommonSubexpressions(), FoldConstants()]):
        program, _ = PassManager(passes).run(capture(Shared().eval(), (X,)))
        assert len(program.constants()) == 2
        assert program.node_count() == 3


class Tied(nn.Module):
    """An embedding whose weight is the last layer's as well, scaled there."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size, 16))

    def forward(self, ids: Tensor) -> Tensor:
        hidden = nn.functional.embedding(ids, self.weight)
        return hidden @ (self.weight * 0.5).T


def test_a_tied_weight_is_not_stored_twice() -> None:
    ids = torch.randint(0, 9, (2, 3))
    assert_unchanged(FoldConstants(), Tied(1000), (ids,), reason="than the weights that would leave the file for it")
    assert_rewrites(FoldConstants(), Tied(10), None, (ids,), gone=[aten.mul.Tensor])


def test_one_weight_does_not_pay_for_many() -> None:
    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(100, 100))

        def forward(self, x: Tensor) -> list[Tensor]:
            return [x @ (self.weight * (i + 2)) for i in range(5)]

    program = capture(Many().eval(), (torch.randn(2, 100),))
    after, (record,) = PassManager([FoldConstants()]).run(program)
    # One fold would fit, but the weight stays for the others, so none does.
    assert (record.count, after.constants_bytes()) == (0, program.constants_bytes())


def constants_in(x: Tensor) -> Tensor:
    return x + torch.arange(8) * torch.linspace(0, 1, 8) + torch.ones([], dtype=torch.float64)


def test_numbers_alone() -> None:
    program = assert_rewrites(FoldConstants(), constants_in, None, (X,), dynamic=BATCH, first=CLEAN, rtol=0, atol=0)
    assert program.node_count() == 2


class Table(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("row", torch.randn(1, 64))
        self.register_buffer("index", torch.arange(64)[None])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        wide = (self.row * 2).expand(1000, 64)
        return wide + x, self.index[:, :10]


def test_what_is_cheaper_as_a_call_stays() -> None:
    model = Table()
    program = assert_rewrites(
        FoldConstants(), model, None, (torch.randn(1000, 64),), first=CLEAN, gone=[aten.mul.Tensor]
    )
    assert len(list(program.find(aten.expand.default))) == 1
    assert program.constants_bytes() == 64 * 4 + 10 * 8  # the folded slice has memory of its own


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.bernoulli(self.weight.sigmoid())


def test_random_numbers_are_drawn_each_time() -> None:
    program = capture_model(Noisy().eval(), (X,), allow_random=True).program
    after, _ = PassManager([FoldConstants()]).run(program)
    assert len(list(after.find(aten.bernoulli.default))) == 1
    assert not list(after.find(aten.sigmoid.default))


def test_what_depends_on_the_size_of_an_input_stays() -> None:
    assert_unchanged(FoldConstants(), lambda x: x + torch.zeros_like(x) + x.new_ones(x.shape), (X,), dynamic=BATCH)


class Inverse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.zeros(2, 2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(
            x.sum() > 0, lambda x: x + torch.linalg.inv(self.matrix), lambda x: x * self.matrix.exp(), (x,)
        )


def test_what_raises_is_left_for_the_one_who_runs_it() -> None:
    model, x = Inverse().eval(), -torch.ones(2, 2)
    program, (record,) = PassManager([FoldConstants()]).run(capture(model, (x,)))
    assert record.count == 1
    assert any("cannot be computed" in miss.reason for miss in record.near_misses)
    torch.testing.assert_close(program.run(x)[0], model(x), rtol=0, atol=0)


class ReadTwice(nn.Module):
    """What becomes a constant is also read by calls that become constants after it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.arange(24.0).reshape(3, 8))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        scaled = self.table * 2
        chosen = scaled.cumsum(0).select(0, 2)
        return x + scaled, x + scaled.sum(), x * chosen, x - chosen.amax()


def test_a_constant_is_read_by_the_calls_that_are_folded_after_it(tmp_path: Path) -> None:
    assert_rewrites(
        FoldConstants(), ReadTwice(), None, (X,), gone=[aten.sum.default, aten.cumsum.default], rtol=0, atol=0
    )
    artifact = fxexport.compile(ReadTwice(), tmp_path / "m.onnx", X)
    for made, wanted in zip(artifact(-X), ReadTwice()(-X), strict=True):
        torch.testing.assert_close(torch.as_tensor(made), wanted)


def test_a_value_that_is_not_known_is_never_made_up() -> None:
    program = capture(ReadTwice(), (X,))
    known = KnownCalls(program)
    scaled, total = next(program.find(aten.mul.Tensor)), next(program.find(aten.sum.default))
    program.replace(scaled, program.add_constant("other", torch.ones(3, 8)))
    with pytest.raises(PassError, match="which is not"):
        known.value(total)


class Raising(nn.Module):
    """Refused with an IndexError, by a call that is never reached."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("index", torch.tensor([9]))
        self.register_buffer("table", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda x: x + self.table[self.index], lambda x: x * 2, (x,))


def test_whatever_an_operator_raises_is_left_for_the_one_who_runs_it() -> None:
    program, (record,) = PassManager([FoldConstants()]).run(capture(Raising(), (-X.abs(),)))
    assert any("cannot be computed: index 9 is out of bounds" in miss.reason for miss in record.near_misses)
    torch.testing.assert_close(program.run(-X.abs())[0], -X.abs() * 2, rtol=0, atol=0)


class Loop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("start", torch.zeros(3))
        self.register_buffer("step", torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        def more(count: Tensor, total: Tensor) -> Tensor:
            return count < 3

        def body(count: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
            return count + 1, total * 2 + self.step.sin() + x

        return torch._higher_order_ops.while_loop(more, body, (torch.tensor(0), self.start))[1]


def test_a_constant_that_a_loop_carries_is_one_in_the_first_round_only() -> None:
    model, x = Loop().eval(), torch.randn(3)
    program, _records = PassManager(resolve("remove-noops,fold-constants")).run(capture(model, (x,)))
    inside = [n.target for path, _, graph in program.graphs() if path for n in graph.nodes if n.op == "call_function"]
    assert aten.sin.default not in inside
    assert aten.lt.Scalar in inside
    assert inside.count(aten.add.Tensor) == 3
    torch.testing.assert_close(program.run(x)[0], model(x), rtol=0, atol=0)


@pytest.mark.parametrize("option", ["do_constant_folding", "keep_initializers_as_inputs"])
def test_off_where_weights_must_stay(option: str, tmp_path: Path) -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(8, 8))).eval()
    given = {option: option != "do_constant_folding"}
    artifact = fxexport.compile(model, tmp_path / "m.onnx", X, **given)
    names = {each.name for each in onnx.load(tmp_path / "m.onnx").graph.initializer}
    assert {"0.parametrizations.weight.original0", "0.parametrizations.weight.original1"} <= names
    assert "fold-constants" not in {record.name for record in artifact.report.passes}
    assert any("fold-constants was left out" in note and option in note for note in artifact.report.notes)


def test_each_prefix_of_the_rewrites_is_right() -> None:
    model = nn.Sequential(*(parametrizations.weight_norm(nn.Linear(8, 8)) for _ in range(3))).eval()
    program: Program = capture(model, (X,))
    for limit in range(4):
        after, (record,) = PassManager([FoldConstants()]).run(program, limit=limit)
        assert record.count == limit
        torch.testing.assert_close(after.run(X)[0], model(X), rtol=0, atol=0)
