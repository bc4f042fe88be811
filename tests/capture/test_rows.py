"""Python loops over a dynamic axis: batched where every row is computed from itself alone, else refused by line."""

import inspect
import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, dropout
from torch.utils._pytree import tree_leaves

import fxexport
from fxexport import CaptureError
from fxexport.capture.preparing import prepare
from fxexport.capture.reference import Reference
from fxexport.capture.rows.reading import Reader
from fxexport.capture.rows.watching import Seen, decision_on_rows, loop_over_rows, watching
from fxexport.program import Program

IMAGES, SEQUENCES = torch.randn(2, 3, 6, 6), torch.randn(2, 5, 4)
OTHER_SIZES = (1, 2, 5, 17)


class Plain(nn.Module):
    """A function of tensors as a model."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor) -> Any:
        return self.function(self, *tensors)


class Applied(nn.Module):
    """A function of tensors as a model, with some layers at hand."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.conv, self.norm, self.linear = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(4, 4)
        self.lstm = nn.LSTM(4, 3, batch_first=True, bidirectional=True)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, *tensors: Tensor) -> Any:
        return self.function(self, *tensors)


def cropped(m: Any, x: Tensor) -> Tensor:
    y = m.norm(m.conv(x)).relu()
    return torch.stack([y[i, :, 1:4, 2:] for i in range(y.shape[0])])


def kept_axis(m: Any, x: Tensor) -> Tensor:
    return torch.cat([m.norm(m.conv(x[i : i + 1])) for i in range(x.shape[0])])


def unsqueezed(m: Any, x: Tensor) -> Tensor:
    out = []
    for row in x:
        out.append(m.norm(m.conv(row.unsqueeze(0))).squeeze(0))
    return torch.stack(out)


def without_batch(m: Any, x: Tensor) -> Tensor:
    return torch.vstack([m.conv(row).amax((1, 2)) for row in x.unbind(0)])


def transformed(m: Any, x: Tensor) -> Tensor:
    return torch.stack([torch.fft.fft2(x[i], norm="ortho").abs() for i in range(len(x))])


def scaled(m: Any, x: Tensor) -> Tensor:
    low = torch.stack([row.min() for row in x]).view(-1, 1, 1, 1)
    return (x - low) / torch.stack([row.max() for row in x])[:, None, None, None]


def inverted(m: Any, x: Tensor) -> Tensor:
    return torch.stack([torch.linalg.inv(row.T @ row + 9 * torch.eye(4)) for row in x])


def zipped(m: Any, x: Tensor, y: Tensor) -> Tensor:
    out = torch.zeros(x.shape[0], 5)
    for i, (a, b) in enumerate(zip(x, y)):  # noqa: B905 - as people write it
        out[i] = a @ b + m.linear(b).sum()
    return out


def padded(m: Any, x: Tensor) -> Tensor:
    return nn.utils.rnn.pad_sequence([m.linear(row) for row in x])


def grown(m: Any, x: Tensor) -> Tensor:
    out = None
    for i in range(x.shape[0]):
        row = x[i].softmax(-1)[None]
        out = row if out is None else torch.cat([out, row])
    assert out is not None
    return out


def in_place(m: Any, x: Tensor) -> Tensor:
    x = x.clone()
    for i in range(x.shape[0]):
        x[i] /= x[i].abs().max()
        x[i, 0] = 0
    return x


def with_layers_around(m: Any, x: Tensor) -> Tensor:
    y, _ = m.attention(x, x, x, need_weights=False)
    y, _ = m.lstm(y)
    return torch.stack([row / row.norm() for row in y]).flatten(1)


def recurrent_rows(m: Any, x: Tensor) -> Tensor:
    return torch.cat([m.lstm(x[i : i + 1])[0] for i in range(x.shape[0])])


def merged_axes(m: Any, x: Tensor) -> Tensor:
    y = m.linear(x.transpose(0, 1).reshape(-1, 4)).view(5, x.shape[0], 4)
    return torch.cat([y[:, i].cumsum(0) for i in range(y.shape[1])])


def two_outputs(m: Any, x: Tensor) -> dict[str, Tensor]:
    soft, sums = [], []
    for row in x:
        soft.append(row.softmax(-1))
        sums.append(row.sum())
    return {"soft": torch.stack(soft, 1), "sums": torch.stack(sums), "same": m.linear.bias * 2}


def constants(m: Any, x: Tensor) -> Tensor:
    return torch.stack([row * torch.tensor([1.0, 2.0, 3.0, 4.0]) + m.linear.bias for row in x])


def best(m: Any, x: Tensor) -> Tensor:
    out = []
    for i in range(x.shape[0]):
        values, places = x[i].reshape(-1).topk(3)
        out.append(values * places)
    return torch.stack(out)


def last_frames(m: Any, x: Tensor, lengths: Tensor) -> Tensor:
    return torch.stack([x[i, lengths[i] - 1] for i in range(x.shape[0])])


IMAGE_LOOPS = [cropped, kept_axis, unsqueezed, without_batch, transformed, scaled]
SEQUENCE_LOOPS = [inverted, padded, grown, in_place, two_outputs, constants, best]
LAYERED_LOOPS = [with_layers_around, recurrent_rows, merged_axes]


def each_of(functions: list[Callable[..., Any]]) -> Callable[..., Any]:
    """All of ``functions`` in one model: one capture proves them all."""
    return lambda m, *tensors: {function.__name__: function(m, *tensors) for function in functions}


def captured(
    function: Callable[..., Any], *tensors: Tensor, model: nn.Module | None = None
) -> tuple[nn.Module, Program]:
    model = (model or Applied(function)).eval()
    shapes = tuple({0: "batch"} for _ in tensors)
    return model, fxexport.capture(model, tensors, dynamic_shapes=(shapes,))


def more_rows(tensors: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, ...]]:
    for size in OTHER_SIZES:
        rows = torch.arange(size) % 2
        yield tuple(
            t[rows] + 0.1 * torch.randn(size, *t.shape[1:]) if t.is_floating_point() else t[rows] for t in tensors
        )


def check(function: Callable[..., Any], *tensors: Tensor) -> Program:
    model, program = captured(function, *tensors)
    assert program.signature.inputs[0].axes[0] == "batch"
    assert program.signature.dimensions[0].maximum is None
    assert sum("for all rows at once" in note and "test_rows.py:" in note for note in program.notes) == 1
    for inputs in more_rows(tensors):
        expected = tree_leaves(model(*inputs))
        names = [output.name for output in program.signature.outputs]
        for name, given, wanted in zip(names, program.run(*inputs), expected, strict=True):
            torch.testing.assert_close(given, wanted, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")
    return program


def test_loops_over_images_are_batched() -> None:
    check(each_of(IMAGE_LOOPS), IMAGES)


@pytest.mark.parametrize("functions", [SEQUENCE_LOOPS, LAYERED_LOOPS], ids=["operators", "layers"])
def test_loops_over_sequences_are_batched(functions: list[Callable[..., Any]]) -> None:
    check(each_of(functions), SEQUENCES)


def test_a_loop_over_two_inputs_at_once() -> None:
    check(zipped, SEQUENCES, torch.randn(2, 4))


def test_each_row_takes_what_its_own_number_says() -> None:
    check(last_frames, SEQUENCES, torch.tensor([2, 5]))


def test_layers_stay_as_they_are() -> None:
    program = check(unsqueezed, IMAGES)
    names = [str(n.target) for n in program.graph.nodes if n.op == "call_function"]
    assert names == ["aten.conv2d.default", "aten.batch_norm.default"]


@pytest.mark.parametrize(
    ("suffix", "function"),
    [(".onnx", cropped), (".pt", cropped), (".onnx", grown)],
    ids=["cropped.onnx", "cropped.pt", "grown.onnx"],
)
def test_the_artifact_takes_any_number_of_rows(suffix: str, function: Callable[..., Any], tmp_path: Path) -> None:
    model, example = Applied(function).eval(), IMAGES if function is cropped else SEQUENCES
    artifact = fxexport.compile(model, tmp_path / f"m{suffix}", (example,), dynamic_shapes=(({0: "batch"},),))
    assert "batch=1" in {point.label for point in artifact.report.validation.points}
    for inputs in more_rows((example,)):
        torch.testing.assert_close(artifact(*inputs), model(*inputs), rtol=1e-4, atol=1e-5)


def test_another_axis_stays_dynamic() -> None:
    model = Applied(lambda m, x: torch.stack([row.cumsum(0) / row.shape[0] for row in x])).eval()
    program = fxexport.capture(model, (SEQUENCES,), dynamic_shapes=(({0: "batch", 1: "time"},),))
    assert program.signature.inputs[0].axes == ("batch", "time", 4)
    x = torch.randn(4, 9, 4)
    torch.testing.assert_close(program.run(x)[0], model(x))


def test_the_loop_may_go_over_the_second_axis() -> None:
    model = Applied(lambda m, x: torch.stack([m.linear(x[:, t]) for t in range(x.shape[1])], 1)).eval()
    program = fxexport.capture(model, (SEQUENCES,), dynamic_shapes=(({0: "batch", 1: "time"},),))
    x = torch.randn(3, 8, 4)
    torch.testing.assert_close(program.run(x)[0], model(x))


# -------------------------------------------------------------------- rows that are not independent


def with_the_first(m: Any, x: Tensor) -> Tensor:
    return torch.stack([x[i] - x[0] for i in range(x.shape[0])])


def normalised_over_the_batch(m: Any, x: Tensor) -> Tensor:
    return torch.stack([row * 2 for row in x.softmax(0)])


def summed(m: Any, x: Tensor) -> Tensor:
    total = torch.zeros(5, 4)
    for row in x:
        total = total + row
    return total


def carried(m: Any, x: Tensor) -> Tensor:
    state, out = torch.zeros(5, 4), []
    for row in x:
        state = state * 0.5 + row
        out.append(state)
    return torch.stack(out)


def backwards(m: Any, x: Tensor) -> Tensor:
    return torch.stack([x[len(x) - 1 - i] for i in range(len(x))])


def numbered(m: Any, x: Tensor) -> Tensor:
    return torch.stack([x[i] * (i + 1) for i in range(x.shape[0])])


def first_otherwise(m: Any, x: Tensor) -> Tensor:
    return torch.stack([row if i else row * 2 for i, row in enumerate(x)])


def by_their_number(m: Any, x: Tensor) -> Tensor:
    return torch.stack([row / x.shape[0] for row in x])


def otherwise_where_many(m: Any, x: Tensor) -> Tensor:
    return torch.stack([row.exp() if x.shape[0] > 3 else row for row in x])


def with_the_mirrored(m: Any, x: Tensor) -> Tensor:
    return torch.stack([a * b for a, b in zip(x, x.flip(0))])  # noqa: B905


def training_statistics(m: Any, x: Tensor) -> Tensor:
    return torch.stack([row * 2 for row in batch_norm(x, None, None, training=True)])


def running_sum_afterwards(m: Any, x: Tensor) -> Tensor:
    return torch.stack([row.sum() for row in x]).cumsum(0)


def only_one_row(m: Any, x: Tensor) -> Tensor:
    rows = [row * 2 for row in x]
    return rows[0]


def a_list_of_rows(m: Any, x: Tensor) -> list[Tensor]:
    return [row * 2 for row in x]


def neighbours(m: Any, x: Tensor) -> Tensor:
    return torch.stack([a + b for a, b in pairwise([x[-1], *x])])


def written_elsewhere(m: Any, x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for i in range(x.shape[0]):
        out[i - 1] = x[i]
    return out


def some_of_many(m: Any, x: Tensor) -> Tensor:
    return torch.stack([row.exp() for row in x[:8]])


def in_eight_parts(m: Any, x: Tensor) -> Tensor:
    return torch.cat([part - part.mean(0, keepdim=True) for part in x.chunk(8)])


def not_all_written(m: Any, x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for i in range(1, x.shape[0]):
        out[i] = x[i] * 2
    return out


def largest_row(m: Any, x: Tensor) -> Tensor:
    return torch.stack([row for row in x]).amax(0)


REFUSED = {
    with_the_first: "row 0 and row 1 together",
    normalised_over_the_batch: "goes over the rows",
    summed: "row 0 and row 1 together",
    carried: "row 0 and row 1 together",
    backwards: "in another order",
    numbered: "not computed alike",
    first_otherwise: "decides on the number of rows, or on that of a row",
    by_their_number: "the number of rows is used as a number",
    otherwise_where_many: "decides on the number of rows, or on that of a row",
    with_the_mirrored: "aten.flip.default may read other rows",
    training_statistics: "takes the mean over the rows",
    running_sum_afterwards: "goes over the rows",
    only_one_row: "an output has only some of the rows",
    a_list_of_rows: "an output has only some of the rows",
    neighbours: "together",
    written_elsewhere: "is written to the place of row",
    some_of_many: "takes some of the rows",
    in_eight_parts: "not batched",
    not_all_written: "before all of them are written",
    largest_row: "goes over the rows",
}


@pytest.mark.parametrize("function", REFUSED, ids=lambda f: f.__name__)
def test_rows_that_are_not_independent_are_refused(function: Callable[..., Any]) -> None:
    with pytest.raises(CaptureError) as error:
        captured(function, SEQUENCES, model=Plain(function))
    text = str(error.value)
    assert "It was not batched: " in text
    assert REFUSED[function] in text
    source, first = inspect.getsourcelines(function)
    loop = re.search(r"test_rows\.py:(\d+)", text)
    assert loop is not None
    assert first <= int(loop[1]) < first + len(source)
    assert "leave it out of the dynamic shapes (the artifact then takes" in text


# -------------------------------------------------------------------- decisions that two numbers of rows do not show


def before_the_loop(m: Any, x: Tensor) -> Tensor:
    if x.shape[0] == 6:
        x = x * 2
    return torch.stack([row.exp() for row in x])


def after_the_loop(m: Any, x: Tensor) -> Tensor:
    rows = [row.exp() for row in x]
    return torch.stack(rows) if len(rows) <= 8 else torch.stack(rows) * 2


def by_a_counter(m: Any, x: Tensor) -> Tensor:
    out, count = [], 0
    for row in x:
        count += 1  # noqa: SIM113 - as people write it
        out.append(row * 2 if count > 9 else row)
    return torch.stack(out)


def in_a_function(m: Any, x: Tensor) -> Tensor:
    def doubled(rows: list[Tensor]) -> bool:
        return x.size(0) not in (3, 4, 5)

    return torch.stack([row * (1 + doubled([])) for row in x])


def with_what_grew(m: Any, x: Tensor) -> Tensor:
    out = x[:1]
    for row in x[1:]:
        if out.shape[0] > 7:
            row = row * 2
        out = torch.cat([out, row[None]])
    return out


def at_most(m: Any, x: Tensor) -> Tensor:
    return torch.stack([row * min(i, 0) for i, row in enumerate(x)])


def by_eights(m: Any, x: Tensor) -> Tensor:
    return torch.stack([row * (i // 8) for i, row in enumerate(x)])


def every_eighth(m: Any, x: Tensor) -> Tensor:
    return torch.stack([row * len(range(0, len(x), 8)) for row in x])


def in_eights(m: Any, x: Tensor) -> Tensor:
    return torch.stack([row * int(len(x) / 8) for row in x])


def truncated(m: Any, x: Tensor) -> Tensor:
    return torch.stack([row for row, _ in zip(x, range(9))])  # noqa: B905


def first_of_a_list(m: Any, x: Tensor) -> Tensor:
    rows = [row * 2 for row in x]
    return torch.stack(rows[:8])


def while_there_are(m: Any, x: Tensor) -> Tensor:
    out: list[Tensor] = []
    i = 0
    while i < x.shape[0]:
        out.append(x[i])
        i += 1
    return torch.stack(out)


def by_a_number_kept(m: Any, x: Tensor) -> Tensor:
    left = len(x) - 6
    return torch.stack([row * 2 if left else row for row in x])


def matched(m: Any, x: Tensor) -> Tensor:
    match len(x):
        case 7:
            return torch.stack([row * 2 for row in x])
        case _:
            return torch.stack([row * 1 for row in x])


DECISIONS = {
    before_the_loop: "x.shape[0] == 6",
    after_the_loop: "len(rows) <= 8",
    by_a_counter: "count > 9",
    in_a_function: "not in (3, 4, 5)",
    with_what_grew: "out.shape[0] > 7",
    at_most: "min(i, 0)",
    by_eights: "i // 8",
    every_eighth: "range(0, len(x), 8)",
    in_eights: "int(len(x) / 8)",
    truncated: "zip(x, range(9))",
    first_of_a_list: "rows[:8]",
    while_there_are: "while i < x.shape[0]",
    by_a_number_kept: "if left",
    matched: "match len(x)",
}


def watched(function: Callable[..., Any], *tensors: Tensor) -> list[Seen]:
    """What eager does with 3 and with 4 rows."""
    model = Reference(*prepare(Plain(function).eval(), tensors, None, (), []))
    found = []
    for size in (3, 4):
        with watching() as seen:
            model.run([t[torch.arange(size) % 2] for t in tensors])
        found.append(seen)
    return found


@pytest.mark.parametrize("function", DECISIONS, ids=lambda f: f.__name__)
def test_a_decision_on_the_number_of_rows_is_found(function: Callable[..., Any]) -> None:
    fewer, more = watched(function, SEQUENCES)
    assert loop_over_rows(fewer, more)
    assert DECISIONS[function] in decision_on_rows(fewer, more)


@pytest.mark.parametrize("function", [before_the_loop, by_a_counter, while_there_are], ids=lambda f: f.__name__)
def test_such_a_model_is_not_batched(function: Callable[..., Any]) -> None:
    with pytest.raises(CaptureError, match="not batched: the code decides on the number of rows") as error:
        captured(function, SEQUENCES, model=Plain(function))
    assert DECISIONS[function] in str(error.value)


def with_harmless_questions(m: Any, x: Tensor, y: Tensor) -> Tensor:
    assert 0 < x.shape[0] < 99
    if len(x) > 99:
        raise ValueError("too many rows")
    if x.shape[0] != y.shape[0]:
        y = y.expand(x.shape[0], 4)
    halves = x.reshape(x.shape[0] * 2 // 2, 5, 4)
    out: list[Tensor] = []
    for row, other in zip(halves, y):  # noqa: B905
        for i in range(3):
            row = row.tanh() if i < 2 else row + other
        out = [*out, row] if out else [row]
    return torch.stack(out)


def test_other_questions_are_no_decisions() -> None:
    fewer, more = watched(with_harmless_questions, SEQUENCES, torch.randn(2, 4))
    assert decision_on_rows(fewer, more) == ""
    assert "for row, other in zip(halves, y)" in loop_over_rows(fewer, more)
    check(with_harmless_questions, SEQUENCES, torch.randn(2, 4))


def test_without_a_loop_nothing_is_batched(monkeypatch: pytest.MonkeyPatch) -> None:
    captures: list[Any] = []
    monkeypatch.setattr(Reader, "read", lambda self: captures.append(self))
    model = Plain(lambda m, x: x * 2 if x.shape[1] == 5 else x + 1).eval()
    with pytest.raises(CaptureError, match="declared dynamic") as error:
        fxexport.capture(model, (SEQUENCES,), dynamic_shapes=(({1: "time"},),))
    assert "batched" not in str(error.value)
    assert not captures


def test_random_rows_are_refused() -> None:
    model = Applied(lambda m, x: torch.stack([dropout(row, 0.5, training=True) * 0 + row for row in x])).eval()
    with pytest.raises(CaptureError, match=r"draws random numbers, at .*test_rows\.py"):
        fxexport.capture(model, (SEQUENCES,), dynamic_shapes=(({0: "batch"},),))


def test_a_fixed_number_of_rows_is_the_way_out() -> None:
    model = Applied(carried).eval()
    program = fxexport.capture(model, (SEQUENCES,))
    torch.testing.assert_close(program.run(SEQUENCES)[0], model(SEQUENCES))


def test_the_model_is_left_as_it_is() -> None:
    model = Applied(unsqueezed).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fxexport.capture(model, (IMAGES,), dynamic_shapes=(({0: "batch"},),))
    torch.testing.assert_close(dict(model.state_dict()), before)
