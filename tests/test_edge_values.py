"""Edge values: what is right at its example alone is found out, and what eager itself leaves open is no fault."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxexport
from fxexport.capture.pipeline import capture_model, reference_for
from fxexport.lowering import lower
from fxexport.signature import Dimension, Signature, TensorSpec
from fxexport.validation import ArtifactProcess, ValidationReport, edges, validate, values
from fxexport.validation.edges import edges as edges_of
from fxexport.validation.judge import Judge
from fxexport.validation.values import roles_of

TIME = 6
Judged = Callable[[nn.Module, nn.Module, Sequence[torch.Tensor]], ValidationReport]


class Right(nn.Module):
    """The same arithmetic as ``Wrong`` on its example, decided and measured anew on each call."""

    def __init__(self, case: str) -> None:
        super().__init__()
        self.case = case
        torch.manual_seed(0)
        self.linear = nn.Linear(TIME, TIME)

    def forward(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = getattr(self, self.case)(x, other)
        return result

    def branch(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return self.linear(x) if x.mean() > 0 else -x

    def branch_on_ones(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return x / x.square().sum() if x.mean() != 1 else x

    def sign(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return self.linear(x.relu())

    def clamp(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return self.linear(x.clamp(-50, 50))

    def empty(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return x / x.norm(dim=1, keepdim=True).clamp(min=1e-6)

    def rows(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return x / x.abs().amax(dim=1, keepdim=True)

    def lengths(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return x * (torch.arange(x.shape[1]) < other[:, None])

    def mask(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return self.linear(x * other)

    def empty_mask(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return (x * other).sum(1) / other.sum(1).clamp(min=1)

    def ids(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return x * (other != 0).sum(1, keepdim=True)


class Wrong(Right):
    """Right at the example and at values like it."""

    def branch(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return self.linear(x)

    def branch_on_ones(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return x / x.square().sum()

    sign = clamp = branch

    def empty(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return x / x.norm(dim=1, keepdim=True)

    def rows(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return x / x.abs().amax(dim=1, keepdim=True).clamp(max=1.01)

    def lengths(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return x * (other[:, None] > 0)

    def mask(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return self.linear(x)

    def empty_mask(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return (x * other).sum(1) / other.sum(1)

    def ids(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return x * other.shape[1]


ONES = torch.ones(3, TIME)
FULL = torch.full((3,), TIME)
SOME = (torch.rand(3, TIME, generator=torch.Generator().manual_seed(0)) > 0.5).float()
IDS = torch.tensor([[1, 5, 2, 2, 3, 4]] * 3)


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judged]:
    """The file made of one model, judged by another; one runtime for all of them."""
    with ArtifactProcess("onnx") as process:

        def judge(model: nn.Module, file: nn.Module, example: Sequence[torch.Tensor]) -> ValidationReport:
            program = capture_model(file.eval(), tuple(example)).program
            reference, expected, _, _ = reference_for(model.eval(), tuple(example))
            path = tmp_path_factory.mktemp("judged") / "m.onnx"
            lower(program, path)
            return validate(process, path, reference, program.signature, example, expected=expected)

        yield judge


@pytest.mark.parametrize(
    ("case", "other", "point"),
    [
        ("branch", ONES, "negated"),
        ("branch_on_ones", ONES, "ones"),
        ("sign", ONES, "negated"),
        ("clamp", ONES, "large"),
        ("empty", ONES, "zeros"),
        ("rows", ONES, "negated"),
        ("lengths", FULL, "ragged lengths"),
        ("mask", ONES.bool(), "other masks"),
        ("mask", ONES.long(), "other masks"),
        ("empty_mask", SOME, "other masks"),
    ],
)  # fmt: skip
def test_what_is_right_at_its_example_alone_is_wrong(
    judged: Judged, case: str, other: torch.Tensor, point: str
) -> None:
    example = [torch.rand(3, TIME) + 0.01, other]
    report = judged(Right(case), Wrong(case), example)
    assert [result.label for result in report.failures] == [point], report.points
    assert report.failing_inputs is not None
    fine = judged(Right(case), Right(case), example) if not case.startswith("branch") else None
    assert fine is None or fine.passed, fine.failures


def test_ids_that_the_example_does_not_have_in_that_place(judged: Judged) -> None:
    ids = torch.tensor([[1, 5, 2, 2, 3, 4]] * 2 + [[0, 1, 2, 3, 5, 6]])
    ids[2, 0] = 7  # nothing is zero in the example
    ids -= 0
    report = judged(Right("ids"), Wrong("ids"), [torch.rand(3, TIME), ids])
    assert report.passed, "ids keep to the observed range, in which nothing shows the difference"
    ids[0, 0] = 0
    report = judged(Right("ids"), Wrong("ids"), [torch.rand(3, TIME), ids])
    assert not report.passed


class Cancelling(nn.Module):
    """Each of these hangs on the last bit, or on nothing at all, at some edge value."""

    def __init__(self, case: str) -> None:
        super().__init__()
        self.case = case
        torch.manual_seed(1)
        self.conv = nn.Conv1d(4, 8, 3, padding=1)
        self.norm = nn.BatchNorm1d(8)
        nn.init.uniform_(self.norm.running_mean, -1, 1)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)
        self.instance = nn.InstanceNorm1d(8)

    def forward(self, x: torch.Tensor) -> Any:
        y = self.norm(self.conv(x))
        return {
            "argmax": lambda: y.softmax(1).argmax(1),
            "topk": lambda: torch.topk(x.flatten(1), 5).indices,
            "sort": lambda: torch.sort(y.flatten(1), dim=1),
            "sign": lambda: torch.sign(y - y.mean()),
            "round": lambda: torch.round(y * 64) / 64,
            "quotient": lambda: y / x.abs().sum(),
            "logarithm": lambda: torch.log(x).sum(1) + y.mean(1),
            "root": lambda: torch.sqrt(y.var(2)) * y.mean(2),
            "instance": lambda: self.instance(self.conv(x)),
            "exponent": lambda: torch.exp(y).sum(1),
            "bytes": lambda: ((x * 255).to(torch.uint8), y),
            "difference": lambda: (y - y.mean(2, keepdim=True)) / (y.std(2, keepdim=True) + 1e-9),
            "fft": lambda: torch.fft.rfft(x).abs(),
        }[self.case]()


CASES = [
    "argmax", "topk", "sort", "sign", "round", "quotient", "logarithm", "root", "instance", "exponent", "bytes",
    "difference", "fft",
]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_eager_leaves_open_is_no_fault(judged: Judged, case: str) -> None:
    report = judged(Cancelling(case), Cancelling(case), [torch.rand(2, 4, 9) + 0.1])
    assert report.passed, report.failures
    assert len([point for point in report.points if point.outputs]) > 2


def test_a_point_that_proves_nothing_says_why(tmp_path: Path) -> None:
    artifact = fxexport.compile(Cancelling("quotient").eval(), tmp_path / "m.onnx", torch.rand(2, 4, 9))
    skipped = {point.label: point.skipped for point in artifact.report.validation.points if point.skipped}
    assert skipped == {"zeros": "not compared: eager returns NaN or Inf"}
    assert "zeros: skipped: not compared: eager returns NaN or Inf" in str(artifact.report)


def test_a_small_constant_is_no_zero(judged: Judged) -> None:
    class Guarded(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x / (x.abs() + 1e-9), (x * 1.000001) * 1 + 0

    report = judged(Guarded(), Guarded(), [torch.rand(2, 3)])
    assert report.passed
    assert all(output.max_ulp <= 1 for point in report.points for output in point.outputs)


def test_a_tail_beneath_the_rounding_of_the_output_is_no_fault_and_one_above_it_is(judged: Judged) -> None:
    class Sigmoid(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sigmoid(x)

    class Floored(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sigmoid(x).clamp(min=1e-6)

    example = [-torch.rand(2, 3) * 0.01 - 0.07]  # a thousand times that: 1e-31 to 1e-35, which onnxruntime gives as 0
    report = judged(Sigmoid(), Sigmoid(), example)
    assert report.passed, report.failures
    large = next(point for point in report.points if point.label == "large")
    assert "less than one rounding of the output's values on the example" in large.skipped
    assert [point.label for point in judged(Sigmoid(), Floored(), example).failures] == ["large"]


class TwoOutputs(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x / y, x + y


def test_the_outputs_that_mean_something_are_compared(judged: Judged) -> None:
    class Half(TwoOutputs):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x / y, (x + y).clamp(min=1e-3)

    example = [torch.rand(2, 3) + 1, torch.rand(2, 3) + 1]
    report = judged(TwoOutputs(), Half(), example)
    assert not report.passed
    fine = judged(TwoOutputs(), TwoOutputs(), example)
    zeros = next(point for point in fine.points if point.label == "zeros")
    assert [output.judge for output in zeros.outputs] == ["shape and dtype only", "eager"]


class Product(nn.Module):
    """Takes zeros in one input, and refuses them in both."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x.sum() / (x.abs() + y.abs()).sum()


def test_inputs_are_changed_one_by_one_where_eager_does_not_take_them_together(tmp_path: Path) -> None:
    artifact = fxexport.compile(Product(), tmp_path / "m.onnx", (torch.rand(2, 3), torch.rand(2, 3)))
    results = {point.label: bool(point.outputs) for point in artifact.report.validation.points}
    assert not results["zeros"]
    assert results["zeros in x"]
    assert results["zeros in y"]
    assert "negated in x" not in results, "together they did"


def test_time_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["fxexport.validation.validate"]
    monkeypatch.setattr(module, "_EDGE_SECONDS", -1.0)
    monkeypatch.setattr(Judge, "spent", property(lambda self: -1.0, lambda self, value: None))
    artifact = fxexport.compile(Cancelling("round").eval(), tmp_path / "m.onnx", torch.rand(2, 4, 9))
    late = [point.label for point in artifact.report.validation.points if "for want of time" in point.skipped]
    assert late == ["negated", "zeros", "large", "ones"]


def signature(*specs: tuple[torch.dtype, tuple[int | str, ...]], dimensions: tuple[Dimension, ...] = ()) -> Signature:
    inputs = tuple(TensorSpec(f"x{i}", dtype, axes) for i, (dtype, axes) in enumerate(specs))
    return Signature(inputs, (), dimensions=dimensions)


def test_roles() -> None:
    known = signature(
        (torch.float32, ("n", 4, "t")), (torch.int64, ("n",)), (torch.int64, ("n", "t")), (torch.int64, ("n", "t")),
        (torch.float32, ("n", "t")), (torch.bool, ("t",)), (torch.int64, ()), (torch.float32, (1, 2)),
        dimensions=(Dimension("n", 3), Dimension("t", 7)),
    )  # fmt: skip
    example = [
        torch.randn(3, 4, 7), torch.tensor([7, 3, 5]), torch.randint(0, 50, (3, 7)), torch.ones(3, 7).long(),
        (torch.rand(3, 7) > 0.5).float(), torch.ones(7).bool(), torch.tensor(3), torch.zeros(1, 2),
    ]  # fmt: skip
    roles = roles_of(known, example)
    assert [role.kind for role in roles] == ["real", "lengths", "ids", "mask", "mask", "mask", "fixed", "real"]
    assert roles[1].axis == (0, 2)
    assert roles_of(known, [*example[:1], torch.tensor([6, 3, 5]), *example[2:]])[1].axis is None
    assert roles_of(known, [*example[:1], torch.tensor([60, 3, 5]), *example[2:]])[1].kind == "ids"


def test_drawn_values_keep_to_what_is_legal() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = values.ragged(torch.tensor([9, 9, 4, 2]), 9, generator)
    assert lengths[0] == 9
    assert lengths[-1] == 1
    assert bool((lengths.diff() <= 0).all()), "longest first, as the example has it"
    assert sorted(values.ragged(torch.tensor([4, 9, 2]), 9, generator).tolist())[::2] == [1, 9]
    assert 1 <= values.ragged(torch.tensor([9]), 9, generator).item() < 9
    permutation = torch.stack([torch.randperm(20), torch.randperm(20)])
    drawn = values.other_ids(permutation, generator)
    assert not torch.equal(drawn, permutation)
    assert all(len(set(row.tolist())) == 20 for row in drawn)
    boundaries = values.other_ids(torch.tensor([0, 3, 3, 9, 12]), generator)
    assert boundaries.tolist() == sorted(boundaries.tolist())
    ids = values.other_ids(torch.tensor([[5, 5, 9], [7, 5, 6]]), generator)
    assert set(ids.flatten().tolist()) <= set(range(5, 10))
    mask = values.other_mask(torch.ones(5, 8).bool(), generator)
    assert 0 < int(mask.sum()) < 40
    assert mask.dtype == torch.bool
    assert values.other_side_of_zero(torch.zeros(3), generator).abs().min() > 0, "a state of zeros gets other values"


def test_one_row_of_lengths_becomes_two_where_it_may() -> None:
    for maximum, rows in ((None, 2), (1, 1)):
        known = signature(
            (torch.float32, ("n", "t")), (torch.int64, ("n",)),
            dimensions=(Dimension("n", 1, maximum=maximum), Dimension("t", 7)),
        )  # fmt: skip
        point = edges_of(known, [torch.randn(1, 7), torch.tensor([7])])[0].point
        assert point.label == "ragged lengths"
        assert [tensor.shape[0] for tensor in point.inputs] == [rows, rows]


def test_edges_are_the_same_on_every_call() -> None:
    known = signature((torch.float32, (3, 7)), (torch.int64, (3,)), (torch.bool, (3, 7)))
    example = [torch.randn(3, 7), torch.tensor([7, 3, 5]), torch.ones(3, 7).bool()]
    first, second = edges_of(known, example), edges_of(known, example)
    assert len(first) > 5
    for a, b in zip(first, second, strict=True):
        assert a.point.label == b.point.label
        assert all(map(torch.equal, a.point.inputs, b.point.inputs))
    assert not any("masks of ones" in edge.point.label for edge in first), "the example has them"
    assert edges.LARGE > 1
