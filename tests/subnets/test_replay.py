"""The proof of the chain: right wirings pass at every step, wrong ones fail."""

from dataclasses import replace

import pytest
import torch
from subnet_samples import (
    Transducer,
    Translator,
    eager_parts,
    generate,
    greedy,
    interface,
    transducer_interfaces,
    translator_interfaces,
)
from torch import Tensor, nn

from fxexport.errors import ValidationError
from fxexport.subnets.recording import record
from fxexport.subnets.replay import check_pipeline
from fxexport.subnets.wiring import wire


def halves(model: Transducer, audio: Tensor, lengths: Tensor) -> Tensor:
    return greedy(model, audio[:1, :, :7], lengths[1:] - 2)


@pytest.fixture(scope="module")
def transducer():  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    model = Transducer()
    recording = record(model, [greedy, halves], (torch.randn(2, 4, 16), torch.tensor([16, 9])))
    interfaces = transducer_interfaces(recording)
    return recording, interfaces, wire(recording, interfaces), eager_parts(model, recording, interfaces)


def failures(results) -> list[str]:  # type: ignore[no-untyped-def]
    return [f"{result.label}: {result.reason}" for result in results if not result.passed]


def test_transducer_passes_step_by_step(transducer) -> None:  # type: ignore[no-untyped-def]
    recording, interfaces, wiring, run = transducer
    results = check_pipeline(run, recording, wiring, interfaces)
    assert failures(results) == []
    labels = [result.label for result in results]
    assert "run 1, call 8 of decoder_joint" in labels
    assert "run 2, call 4 of decoder_joint" in labels
    assert labels[-1] == "run 2, what the driver returned"
    assert results[0].sizes == {"batch": 2, "time": 16}
    assert all(result.outputs for result in results)


def test_swapped_states_fail(transducer) -> None:  # type: ignore[no-untyped-def]
    recording, interfaces, wiring, run = transducer
    h, c = wiring.states
    swapped = replace(wiring, states=(replace(h, output=c.output), replace(c, output=h.output)))
    assert "call 2 of decoder_joint" in failures(check_pipeline(run, recording, swapped, interfaces))[0]


def test_a_wrong_initial_value_fails(transducer) -> None:  # type: ignore[no-untyped-def]
    recording, interfaces, wiring, run = transducer
    h, c = wiring.states
    wrong = replace(wiring, states=(replace(h, initial=replace(h.initial, fill=1.0)), c))
    assert "call 1 of decoder_joint" in failures(check_pipeline(run, recording, wrong, interfaces))[0]


def test_a_wrong_artifact_fails_and_an_error_is_told(transducer) -> None:  # type: ignore[no-untyped-def]
    recording, interfaces, wiring, run = transducer

    def noisy(name: str, feed: dict[str, Tensor]) -> dict[str, Tensor]:
        outputs = run(name, feed)
        return outputs if name == "encoder" else {**outputs, "outputs": outputs["outputs"] + 0.01}

    assert "call 1 of decoder_joint" in failures(check_pipeline(noisy, recording, wiring, interfaces))[0]

    def broken(name: str, feed: dict[str, Tensor]) -> dict[str, Tensor]:
        raise ValidationError("crashed with signal 11")

    found = failures(check_pipeline(broken, recording, wiring, interfaces))
    assert len(found) == 2  # each run stops at its first failure
    assert found[0] == "run 1, call 1 of encoder: ValidationError: crashed with signal 11"


@pytest.mark.parametrize("direct", [True, False])
def test_swapped_states_fail_with_and_without_a_filter(direct: bool) -> None:
    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.cell = nn.LSTMCell(3, 4)

        def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
            return self.cell(x, (h, c))  # type: ignore[no-any-return]

    def loop(model: nn.Module, x: Tensor) -> Tensor:
        h = c = torch.zeros(2, 4)
        for step in range(x.shape[1]):
            new_h, new_c = model.cell(x[:, step], h, c)
            rows = torch.tensor([[True], [False]])
            h, c = (new_h, new_c) if direct else (torch.where(rows, new_h, h), torch.where(rows, new_c, c))
        return h

    model = nn.Module()
    model.cell = Cell()
    recording = record(model, loop, torch.randn(2, 3, 3), subnets=["cell"])
    interfaces = [interface(recording, "cell", names={"output[0]": "new_h", "output[1]": "new_c"})]
    wiring, run = wire(recording, interfaces), eager_parts(model, recording, interfaces)
    assert failures(check_pipeline(run, recording, wiring, interfaces)) == []
    h, c = wiring.states
    assert (h.output.name, c.output.name) == ("new_h", "new_c")
    swapped = replace(wiring, states=(replace(h, output=c.output), replace(c, output=h.output)))
    assert "call 2 of cell" in failures(check_pipeline(run, recording, swapped, interfaces))[0]


def test_a_swapped_wire_fails() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.lin(x), x.cos()

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(4)
            self.first, self.second = Two(), nn.Bilinear(4, 4, 2)

    model = Model()
    recording = record(model, lambda m, x: m.second(*m.first(x)), torch.randn(3, 4), subnets=["first", "second"])
    interfaces = [interface(recording, part) for part in recording.parts]
    wiring, run = wire(recording, interfaces), eager_parts(model, recording, interfaces)
    assert failures(check_pipeline(run, recording, wiring, interfaces)) == []
    a, b = wiring.wires
    swapped = replace(wiring, wires=(replace(a, source=b.source), replace(b, source=a.source)))
    assert "call 1 of second" in failures(check_pipeline(run, recording, swapped, interfaces))[0]
    lost_view = replace(wiring, wires=(replace(a, through=()), b))
    assert failures(check_pipeline(run, recording, lost_view, interfaces)) == []  # there was none


def test_a_lost_view_fails() -> None:
    model = nn.ModuleDict({"first": nn.Linear(4, 4), "second": nn.Linear(4, 2)})
    recording = record(
        model, lambda m, x: m["second"](m["first"](x).t()), torch.randn(4, 4), subnets=["first", "second"]
    )
    interfaces = [interface(recording, part) for part in recording.parts]
    wiring, run = wire(recording, interfaces), eager_parts(model, recording, interfaces)
    assert failures(check_pipeline(run, recording, wiring, interfaces)) == []
    (only,) = wiring.wires
    assert failures(check_pipeline(run, recording, replace(wiring, wires=(replace(only, through=()),)), interfaces))


def test_cache_passes_and_swapped_caches_fail() -> None:
    model = Translator()
    longer = lambda m, source: generate(m, source[:2, :3], steps=6)  # noqa: E731
    recording = record(model, [generate, longer], torch.randn(3, 5, 4))
    interfaces = translator_interfaces(recording)
    wiring, run = wire(recording, interfaces), eager_parts(model, recording, interfaces)
    assert failures(check_pipeline(run, recording, wiring, interfaces)) == []
    keys, values = wiring.states
    swapped = replace(wiring, states=(replace(keys, output=values.output), replace(values, output=keys.output)))
    assert "of decoder" in failures(check_pipeline(run, recording, swapped, interfaces))[0]


def test_glue_is_executed_on_the_values_of_the_artifacts() -> None:
    model = nn.ModuleDict({"first": nn.Linear(4, 4), "second": nn.Linear(4, 2)})

    def driver(m: nn.Module, x: Tensor) -> Tensor:
        y = m["first"](x)
        buffer = torch.zeros(6, 4)
        buffer[1:4] = y * torch.rand(1).clamp(0.5)  # random numbers are replayed, not drawn again
        buffer[0] += y[0]
        return m["second"](buffer.relu_()) + 1

    recording = record(model, driver, torch.randn(3, 4), subnets=["first", "second"])
    interfaces = [interface(recording, part) for part in recording.parts]
    wiring, run = wire(recording, interfaces), eager_parts(model, recording, interfaces)
    results = check_pipeline(run, recording, wiring, interfaces)
    assert failures(results) == []
    assert results[-1].label == "run 1, what the driver returned"

    def doubled(name: str, feed: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: value * 2 if name == "first" else value for key, value in run(name, feed).items()}

    assert "call 1 of first" in failures(check_pipeline(doubled, recording, wiring, interfaces))[0]


def test_a_decision_that_would_go_another_way_is_told() -> None:
    model = nn.ModuleDict({"first": nn.Linear(4, 4)})

    def driver(m: nn.Module, x: Tensor) -> int:
        return int((m["first"](x) * 1e6).to(torch.int64).sum())

    recording = record(model, driver, torch.randn(3, 4), subnets=["first"])
    interfaces = [interface(recording, "first")]
    wiring, run = wire(recording, interfaces), eager_parts(model, recording, interfaces)
    assert failures(check_pipeline(run, recording, wiring, interfaces)) == []

    def almost(name: str, feed: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: value * (1 + 2e-5) for key, value in run(name, feed).items()}

    (told,) = failures(check_pipeline(almost, recording, wiring, interfaces))
    assert "the driver read" in told
    assert "test_replay.py:" in told
