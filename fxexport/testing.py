"""For pass authors: what a rewrite must do, and must not do, in one call each.

assert_rewrites(FoldBatchnorm(), model, (image,), gone=[aten.batch_norm.default], count=1)
assert_unchanged(FoldBatchnorm(), model_with_batch_statistics, (image,))
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from fxexport.capture import Captured
from fxexport.capture.pipeline import capture_model
from fxexport.capture.resize import resize_axis
from fxexport.program import Program
from fxexport.rewrite import Pass, PassManager, PassRecord

TOLERANCES = {
    torch.float64: (1e-9, 1e-9),
    torch.float32: (1e-4, 1e-5),
    torch.float16: (1e-2, 1e-2),
    torch.bfloat16: (5e-2, 5e-2),
}
"""dtype of an output -> (rtol, atol) where a test states none; other dtypes must be equal."""


def assert_rewrites(
    pass_: Pass,
    model: nn.Module,
    inputs: Any,
    *,
    gone: Sequence[Any] = (),
    ops: Mapping[Any, int] | None = None,
    count: int | None = None,
    dynamic: Any = None,
    after: Sequence[Pass] = (),
    rtol: float | None = None,
    atol: float | None = None,
) -> Program:
    """Captures ``model`` on ``inputs``, rewrites it with ``pass_``, and returns the rewritten program.

    Asserts that the pass fired (``count`` times), that no operator of ``gone`` is left and ``ops`` has the
    number of calls of each operator; that the result agrees with eager on ``inputs``, on fresh random values
    and, along ``dynamic`` axes, at another size; that a second run changes nothing; and that the program it
    was given and the model are as before. ``after`` are passes to run first; ``dynamic`` is the argument of
    ``fxexport.capture``.
    """
    untouched = _state(model)
    captured = capture_model(model, inputs, dynamic=dynamic)
    before, _ = PassManager(after).run(captured.program)
    text, calls = str(before), _calls(before)
    program, record = _run(pass_, before)
    assert str(before) == text, f"{pass_} changed the program it was given a copy of"
    assert record.count > 0, f"{pass_} did not fire; notes: {record.notes}\n{text}"
    assert count is None or record.count == count, f"{pass_} fired {record.count} times, not {count}\n{program}"
    for op in gone:
        assert calls.get(op), f"{op} was not there before {pass_}, so the test proves nothing\n{text}"
    wanted = {**dict.fromkeys(gone, 0), **(ops or {})}
    found = {op: _calls(program).get(op, 0) for op in wanted}
    assert found == wanted, f"wanted {wanted} calls, found {found}\n{program}"
    _assert_equal_numbers(program, captured, rtol, atol)
    again, second = _run(pass_, program)
    assert second.count == 0, f"{pass_} fired {second.count} times more on its own result\n{again}"
    assert str(again.graph) == str(program.graph), f"{pass_} changed its own result"
    _assert_same_state(model, untouched)
    return program


def assert_unchanged(
    pass_: Pass,
    model: nn.Module,
    inputs: Any,
    *,
    dynamic: Any = None,
    after: Sequence[Pass] = (),
    note: str = "",
) -> Program:
    """Asserts that ``pass_`` changes nothing, with a note that contains ``note``; returns the program."""
    untouched = _state(model)
    captured = capture_model(model, inputs, dynamic=dynamic)
    # Dead code is the manager's to erase, so it is erased in what we compare with.
    before, _ = PassManager(after).run(captured.program)
    before = before.clone()
    before.erase_dead()
    program, record = _run(pass_, before)
    assert record.count == 0, f"{pass_} fired {record.count} times\n{program}"
    assert str(program.graph) == str(before.graph), f"{pass_} changed the graph\n{program}"
    assert any(note in text for text in (*record.notes, "")), f"no note says {note!r}: {record.notes}"
    _assert_equal_numbers(program, captured, None, None)
    _assert_same_state(model, untouched)
    return program


def random_like(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Fresh values: normal for real tensors, in the range of the old ones for integers, coins for bool."""
    if tensor.is_floating_point() or tensor.is_complex():
        return torch.randn(tensor.shape, dtype=tensor.dtype, generator=generator)
    low, high = (0, 1) if tensor.dtype == torch.bool or not tensor.numel() else (int(tensor.min()), int(tensor.max()))
    return torch.randint(low, high + 1, tensor.shape, generator=generator).to(tensor.dtype)


def _run(pass_: Pass, program: Program) -> tuple[Program, PassRecord]:
    result, (record,) = PassManager([pass_]).run(program)
    result.verify()
    return result, record


def _calls(program: Program) -> dict[Any, int]:
    found: dict[Any, int] = {}
    for node in program.graph.nodes:
        if node.op == "call_function":
            found[node.target] = found.get(node.target, 0) + 1
    return found


def _assert_equal_numbers(program: Program, captured: Captured, rtol: float | None, atol: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    fresh = [random_like(t, generator) for t in captured.examples]
    for inputs in (captured.examples, fresh, *_resized(program, fresh)):
        expected = captured.reference.run(inputs)
        for spec, got, want in zip(program.signature.outputs, program.run(*inputs), expected, strict=True):
            loose = TOLERANCES.get(want.dtype, (0.0, 0.0))
            torch.testing.assert_close(
                got,
                want,
                rtol=loose[0] if rtol is None else rtol,
                atol=loose[1] if atol is None else atol,
                equal_nan=True,
                msg=functools.partial("output {!r} differs from eager: {}".format, spec.name),
            )


def _resized(program: Program, inputs: Sequence[torch.Tensor]) -> list[list[torch.Tensor]]:
    """The inputs with every dynamic axis one longer; nothing where an axis is a formula of others."""
    specs = program.signature.inputs
    labels = {label for spec in specs for label in spec.dynamic_axes.values()}
    if not labels or not all(label.isidentifier() for label in labels):
        return []
    longer = []
    for spec, tensor in zip(specs, inputs, strict=True):
        for axis in spec.dynamic_axes:
            tensor = resize_axis(tensor, axis, tensor.shape[axis] + 1)
        longer.append(tensor)
    return [longer]


State = dict[str, tuple[torch.Tensor, torch.Tensor]]


def _state(model: nn.Module) -> State:
    """Name -> (tensor, copy of it) of every parameter and buffer."""
    return {name: (t, t.detach().clone()) for name, t in [*model.named_parameters(), *model.named_buffers()]}


def _assert_same_state(model: nn.Module, untouched: State) -> None:
    now = _state(model)
    assert now.keys() == untouched.keys(), "the model gained or lost tensors"
    for name, (tensor, copy) in untouched.items():
        assert now[name][0] is tensor, f"{name} of the model is another tensor now"
        assert torch.equal(_bits(tensor), _bits(copy)), f"{name} of the model was written to"


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().view(-1).view(torch.uint8)
