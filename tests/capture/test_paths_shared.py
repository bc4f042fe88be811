"""Several runs of a model in one capture: what they share is computed once, and nothing of one shows in another."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxexport.capture.paths import runs, tracing
from fxexport.capture.paths.python_state import PythonState
from fxexport.capture.paths.tape import NotShared
from fxexport.capture.pipeline import capture_model

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


class Model(nn.Module):
    def __init__(self, function: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function, self.a, self.b = function, nn.Linear(4, 4), nn.Linear(4, 4)
        self.count, self.seen = 0, list[int]()
        self.register_buffer("total", torch.zeros(4))

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def network_before(m: Any, x: Tensor) -> Tensor:
    for _ in range(4):
        x = m.a(x).tanh()
    y = x
    for _ in range(3):
        if y.sum() > 0:
            y = m.b(y) - 0.5
    return y + x


def writes_on_one_side(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    shown = y[:, 0]
    if x.sum() > 0:
        y.relu_()
        shown += 1
    if x.max() > 1:
        y.mul_(2)
    return torch.cat([y, shown[:, None]], 1)


def writes_after_the_last_decision(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    if x.sum() > 0:
        return y.add_(1)
    return y.sub_(1)


def python_state(m: Any, x: Tensor) -> Tensor:
    m.count += 1
    m.seen.append(m.count)
    if x.sum() > 0:
        m.count += 10
        m.seen.append(7)
        x = m.a(x)
    return x * m.count + len(m.seen)


def iterated(m: Any, x: Tensor) -> Tensor:
    total = x.sum() * 0
    for row in x.t():
        total = total + row.sum()
        if total > 1:
            total = total * 0.5
    parts = list(x.split(2, 1))
    parts.append(total.expand(x.shape[0], 1))
    return torch.cat(parts, 1)


def gradients_switched(m: Any, x: Tensor) -> Tensor:
    with torch.enable_grad():
        y = m.a(x)
        if y.sum() > 0:
            y = m.b(y)
    if torch.is_grad_enabled():
        y = y + 1
    return y.detach()


def writes_into_its_input(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    if y.sum() > 0:
        x += 1
    return x + y


def writes_into_its_state(m: Any, x: Tensor) -> Tensor:
    if x.sum() > 0:
        m.total.add_(1)
    if x.max() > 1:
        m.total.add_(2)
    return x + m.total


SHARED = [
    network_before, writes_on_one_side, writes_after_the_last_decision, python_state, iterated, gradients_switched,
]  # fmt: skip
APART = [writes_into_its_input, writes_into_its_state]


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """'shared' for each capture of several runs, 'refused' where they are refused, 'alone' for that of one run."""
    found: list[str] = []
    own = tracing.Capturing.capture

    def capture(self: Any) -> Any:
        found.append("shared" if self.several else "alone")
        try:
            return own(self)
        except NotShared:
            found[-1] = "refused"
            raise

    monkeypatch.setattr(tracing.Capturing, "capture", capture)
    return found


@pytest.mark.parametrize("function", [*SHARED, *APART], ids=lambda f: f.__name__)
def test_all_sides_give_what_eager_gives(function: Callable[[Any, Tensor], Any], captures: list[str]) -> None:
    captured = capture_model(Model(function).eval(), (X,), dynamic_shapes={"x": {0: "batch"}})
    for batch in (2, 5):
        for scale in (0.1, 1.0, 10.0, -1.0):
            x = torch.randn(batch, 4, generator=torch.Generator().manual_seed(batch)) * scale
            for ours, theirs in zip(captured.program.run(x.clone()), captured.reference.run([x]), strict=True):
                torch.testing.assert_close(ours, theirs)
    assert captures[0] == ("shared" if function in SHARED else "refused")
    assert set(captures[1:]) <= {"shared" if function in SHARED else "alone"}


def test_what_runs_share_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    own = tracing.nodes_of

    def counted(trace: tracing.Trace) -> Any:
        assert trace.exported is not None
        counts.append(len(trace.exported.graph.find_nodes(op="call_function", target=torch.ops.aten.tanh.default)))
        return own(trace)

    monkeypatch.setattr(runs, "nodes_of", counted)
    capture_model(Model(network_before).eval(), (X,), dynamic_shapes={"x": {0: "batch"}})
    assert set(counts) == {4}


def test_python_state_is_put_back_each_time() -> None:
    model = Model(network_before)
    model.hook = model.a.forward  # type: ignore[assignment]
    model.again = model.seen  # type: ignore[assignment]
    state = PythonState(model)
    for _ in range(2):
        model.count, model.new = 5, 1  # type: ignore[assignment]
        model.seen.append(3)
        model.register_buffer("other", torch.ones(1))
        state.restore()
        assert (model.count, model.seen) == (0, [])
        assert model.seen is model.again
        assert not hasattr(model, "new")
        assert list(model._buffers) == ["total"]
        assert model.hook.__self__ is model.a  # type: ignore[union-attr]
