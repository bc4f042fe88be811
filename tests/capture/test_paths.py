"""Every way through a model's decisions on data, in one graph: against eager, on inputs of every side."""

from collections import Counter
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxexport
from fxexport import CaptureError, InputError
from fxexport.capture.pipeline import capture_model
from fxexport.control_flow import COND, WHILE_LOOP
from fxexport.program import Program

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


class Applied(nn.Module):
    """A function of a tensor as a model, with two linear layers at hand."""

    def __init__(self, function: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function, self.a, self.b = function, nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def one_sided(m: Any, x: Tensor) -> Tensor:
    if torch.mean(x) != 1:
        x = x * 2
    return x + 1


def input_kept(m: Any, x: Tensor) -> Tensor:
    before = x
    if x.sum() > 0:
        x = x * 2
    if x.max() > 3:
        x = x - 1
    return x + before


def kept_by_the_caller(m: Any, x: Tensor) -> Tensor:
    def inner(x: Tensor) -> Tensor:
        if x.sum() > 0:
            x = x * 2
        if x.max() > 3:
            x = x - 1
        return x

    return x + inner(x)


def networks(m: Any, x: Tensor) -> Tensor:
    if x.sum() > 0:
        y = m.a(x)
        if y.sum() > 0:
            y = m.b(y)
    else:
        y = m.b(x).relu()
    return m.a(y).tanh()


def several_results(m: Any, x: Tensor) -> dict[str, Any]:
    if x.amax() > 1:
        return {"y": m.a(x), "n": x.abs().sum(1)}
    return {"y": x, "n": x.sum(1)}


def counted_loop(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    it, out = 0, x
    while torch.min(out.abs()) > 0.05 and it < 3:
        out = out * 0.6 + it
        it += 1
    return out, x


def open_loop(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    n = torch.zeros((), dtype=torch.int64)
    while x.abs().max() > 0.5:
        x, n = x * 0.7, n + 1
    return x, n


def decision_in_a_loop(m: Any, x: Tensor) -> Tensor:
    while x.abs().max() > 0.5:
        if x.sum() > 0:
            x = x * 0.5
        elif x.min() < -3:
            x = x * 0.25
        else:
            x = x * 0.4
    return x


def loop_over_layers(m: Any, x: Tensor) -> Tensor:
    for layer in (m.a, m.b, m.a):
        x = layer(x)
        if x.mean() > 0:
            x = x.relu()
    return x


def number(m: Any, x: Tensor) -> Tensor:
    if x.mean().item() > 0.1:
        return x / x.mean().item()
    return x


def whole_number(m: Any, x: Tensor) -> Tensor:
    n = (x > 0).sum().item()
    return x * 2 if n > 6 else x + 1


def all_and_equal(m: Any, x: Tensor) -> Tensor:
    if torch.equal(x, x.abs()) or torch.allclose(x, -x.abs()):
        return x * 3
    return x if not (x > 2).any().item() else x - 2


def written_in_place(m: Any, x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    if x.sum() > 0:
        out[:, 0] = x[:, 1]
    out[:, 2] += 1
    if out.sum() > x.shape[0]:
        out.mul_(2)
    return out


def in_an_expression(m: Any, x: Tensor) -> Tensor:
    return m.a(x) + (m.b(x) if x.sum() > 0 else x) * (2 if x.max() > 1 else 3)


def held_in_a_list(m: Any, x: Tensor) -> Tensor:
    parts = [x]
    for _ in range(2):
        if parts[-1].sum() > 0:
            parts.append(parts[-1] * -1.5)
        else:
            parts.append(parts[-1] + 1)
    return torch.cat(parts, 1)


def no_nan(m: Any, x: Tensor) -> Tensor:
    if torch.isnan(x).any():
        x = torch.where(torch.isnan(x), 0.0, x)
    return m.a(x)


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Any:
        while x.abs().max() > 2:
            x = x / 2
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0]


def autograd_function(m: Any, x: Tensor) -> Any:
    return Straight.apply(m.a(x))  # type: ignore[no-untyped-call]


MODELS = [
    one_sided, input_kept, kept_by_the_caller, networks, several_results, counted_loop, open_loop, decision_in_a_loop,
    loop_over_layers, number, whole_number, all_and_equal, written_in_place, in_an_expression, held_in_a_list, no_nan,
    autograd_function,
]  # fmt: skip


def inputs() -> Iterator[Tensor]:
    """Inputs on every side of the decisions above, of several batch sizes."""
    draws = torch.Generator().manual_seed(1)
    for batch in (2, 3, 5):
        for scale in (0.02, 0.3, 1.0, 10.0):
            yield torch.randn(batch, 4, generator=draws) * scale
    yield from (torch.ones(2, 4), -torch.ones(3, 4) * 5, torch.zeros(2, 4), torch.rand(4, 4), -torch.rand(2, 4))


def run(program: Program, x: Tensor) -> tuple[Tensor, ...]:
    return program.run(x.clone())


@pytest.mark.parametrize("function", MODELS, ids=lambda f: f.__name__)
def test_all_ways_give_what_eager_gives(function: Callable[[Any, Tensor], Any]) -> None:
    model = Applied(function).eval()
    captured = capture_model(model, (X,), dynamic_shapes={"x": {0: "batch"}})
    for x in inputs():
        expected = captured.reference.run([x])
        for ours, theirs in zip(run(captured.program, x), expected, strict=True):
            torch.testing.assert_close(ours, theirs, equal_nan=True)
    assert captured.program.decisions


def forms(program: Program) -> Counter[str]:
    return Counter(decision.form for decision in program.decisions)


def captured(function: Callable[[Any, Tensor], Any], **options: Any) -> Program:
    return capture_model(Applied(function).eval(), (X,), dynamic_shapes={"x": {0: "batch"}}, **options).program


def test_cheap_sides_are_selected_between() -> None:
    program = captured(one_sided)
    assert forms(program) == {"select": 1}
    assert not list(program.find(COND))
    assert len(list(program.find(torch.ops.aten.where.self))) == 1
    assert "if torch.mean(x) != 1:" in program.notes[-1]
    assert "capture/test_paths.py:" in program.decisions[0].site


def test_what_follows_both_sides_is_in_the_graph_once() -> None:
    def network_after(m: Any, x: Tensor) -> Tensor:
        x = m.a(x).relu() if x.mean() > 1 else m.b(x).relu()
        return m.a(m.b(x).tanh())

    program = captured(network_after)
    assert forms(program) == {"branch": 1}
    linears = torch.ops.aten.linear.default
    assert len(program.graph.find_nodes(op="call_function", target=linears)) == 2
    counts = [len(graph.find_nodes(op="call_function", target=linears)) for _, _, graph in program.graphs()]
    assert sorted(counts) == [1, 1, 2]


def test_loop_without_a_counter_is_a_loop() -> None:
    program = captured(open_loop)
    assert forms(program)["loop"] == 1
    assert len(list(program.find(WHILE_LOOP))) == 1


def test_decisions_that_change_nothing_leave_nothing() -> None:
    def told(m: Any, x: Tensor) -> Tensor:
        if x.sum() > 0:
            str(x.shape)
        return x + 1

    program = captured(told)
    program.erase_dead()
    assert program.node_count() == 1


def test_side_that_raises_is_left_out_and_told() -> None:
    def checked(m: Any, x: Tensor) -> Tensor:
        if x.isinf().any():
            raise ValueError("infinite input")
        assert (x < 1e6).all(), "too large"
        return x + 1

    program = captured(checked)
    assert forms(program) == {"raises": 2}
    assert any("where it is True, forward raises ValueError: infinite input" in note for note in program.notes)
    assert any("where it is False, forward raises AssertionError: too large" in note for note in program.notes)


def test_sides_of_different_types_are_refused_by_line() -> None:
    def unlike(m: Any, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x.sum(0)
        return x

    with pytest.raises(CaptureError, match=r"if x.sum\(\) > 0:.*test_paths.py"):
        captured(unlike)


def test_too_many_decisions_are_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("fxexport.capture.paths"), "MOST_RUNS", 6)

    def endless(m: Any, x: Tensor) -> Tensor:
        step = 0
        while x.abs().max() > 0.5:
            step += 1
            x = x * (1 - 1 / (step + 1))
        return x

    with pytest.raises(CaptureError, match=r"(?s)test_paths.py.*assume="):
        captured(endless)


def test_assumed_as_in_the_examples() -> None:
    program = captured(networks, assume="as in the examples")
    assert forms(program)["assumed"] >= 1
    assert not list(program.find(COND))
    model = Applied(networks).eval()
    torch.testing.assert_close(run(program, X)[0], model(X))


def test_assumed_at_a_line() -> None:
    site = captured(one_sided).decisions[0].site
    program = captured(one_sided, assume={site.split("/")[-1]: False})
    assert [(d.form, d.value) for d in program.decisions] == [("assumed", False)]
    torch.testing.assert_close(run(program, X)[0], X + 1)
    with pytest.raises(InputError, match=r"assume names 'net\.py:3'"):
        captured(one_sided, assume={"net.py:3": True})
    with pytest.raises(InputError, match="the model decides nothing on data"):
        captured(lambda m, x: m.a(x), assume={"net.py:3": True})
    with pytest.raises(InputError, match="assume is 'always'"):
        captured(one_sided, assume="always")


@pytest.mark.parametrize("suffix", [".onnx", ".pt", ".pt2"])
def test_artifacts_decide_as_eager_does(suffix: str, tmp_path: Path) -> None:
    model = Applied(networks).eval()
    artifact = fxexport.compile(model, tmp_path / f"m{suffix}", (X,), dynamic_shapes={"x": {0: "batch"}})
    for x in inputs():
        torch.testing.assert_close(artifact(x), model(x), rtol=1e-4, atol=1e-5)
    assert {d["form"] for d in artifact.metadata["decisions"]} == {"branch"}


def test_code_without_a_file_has_a_state_too() -> None:
    space: dict[str, Any] = {}
    exec(
        "def halved(m, x):\n"
        "    n = 0\n"
        "    while x.abs().max() > 0.5 and n < 3:\n"
        "        x, n = x * 0.5, n + 1\n"
        "    return x * n\n",
        space,
    )
    program = captured(space["halved"])
    for x in inputs():
        torch.testing.assert_close(run(program, x)[0], space["halved"](None, x))


def test_the_model_is_untouched() -> None:
    model = Applied(networks)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    own = torch.SymBool.__bool__
    capture_model(model.eval(), (X,), dynamic_shapes={"x": {0: "batch"}})
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.SymBool.__bool__ is own
    assert "forward" not in vars(model)
