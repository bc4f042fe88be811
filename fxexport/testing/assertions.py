"""What a rewrite must do, and must not do, in one call each."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from fxexport.capture import Captured
from fxexport.capture.pipeline import capture_model
from fxexport.capture.resize import resize_axis
from fxexport.program import Program
from fxexport.rewrite import Pass, PassManager, PassRecord
from fxexport.testing.graph_comparison import TOLERANCES, first_difference

Model = nn.Module | Callable[..., Any]
"""A module, or a plain function of tensors."""


def assert_rewrites(
    pass_: Pass,
    before: Model,
    after: Model | None,
    inputs: Any,
    *,
    gone: Sequence[Any] = (),
    ops: Mapping[Any, int] | None = None,
    count: int | None = None,
    dynamic: Any = None,
    first: Sequence[Pass] = (),
    rtol: float | None = None,
    atol: float | None = None,
) -> Program:
    """Captures ``before`` on ``inputs``, rewrites it with ``pass_``, and returns the rewritten program.

    Asserts that

    - the pass fired (``count`` times); where it did not, the message shows its near-misses;
    - the graph it made is the graph captured from ``after``: the same operators on the same values with the same
      literals (see :func:`fxexport.testing.first_difference` for what is not looked at). With ``after=None`` only
      this: no operator of ``gone`` is left, and ``ops`` has the number of calls of each operator;
    - the result agrees with ``before`` in eager on ``inputs``, on fresh random values and, along ``dynamic`` axes, at
      another size (``rtol``, ``atol``; default by dtype, integers and bool exact);
    - a second run changes nothing, and the program it was given and the models are as before.

    ``before`` and ``after`` are modules or plain functions of the same parameters, captured in eval mode; ``first``
    are passes to run on both before; ``dynamic`` is the argument of ``fxexport.capture``.
    """
    model = as_module(before)
    untouched = _state(model)
    captured = capture_model(model, inputs, dynamic=dynamic)
    start, _ = PassManager(first).run(captured.program)
    text, program, record = str(start), *_run(pass_, start)
    assert record.count > 0, f"{pass_} did not fire{_reasons(record)}\n{text}"
    assert count is None or record.count == count, (
        f"{pass_} fired {record.count} times, not {count}{_reasons(record)}\n{program}"
    )
    _assert_calls(pass_, start, program, gone, ops or {})
    if after is not None:
        wanted, _ = PassManager(first).run(capture_model(as_module(after, like=model), inputs, dynamic=dynamic).program)
        _assert_same_graph(pass_, program, wanted, rtol, atol)
    _assert_equal_numbers(program, captured, rtol, atol)
    again, second = _run(pass_, program)
    assert second.count == 0, f"{pass_} fired {second.count} times more on its own result\n{again}"
    assert str(again.graph) == str(program.graph), f"{pass_} changed its own result"
    _assert_same_state(model, untouched)
    return program


def assert_unchanged(
    pass_: Pass,
    model: Model,
    inputs: Any,
    *,
    dynamic: Any = None,
    first: Sequence[Pass] = (),
    reason: str = "",
) -> Program:
    """Asserts that ``pass_`` leaves ``model`` as it is, and says why; returns the program.

    ``reason`` must be part of one of the notes or near-misses of the pass. The other arguments are those of
    :func:`assert_rewrites`.
    """
    module = as_module(model)
    untouched = _state(module)
    captured = capture_model(module, inputs, dynamic=dynamic)
    start, _ = PassManager(first).run(captured.program)
    # Dead code is the manager's to erase, so it is erased in what we compare with.
    start = start.clone()
    start.erase_dead()
    program, record = _run(pass_, start)
    assert record.count == 0, f"{pass_} fired {record.count} times\n{program}"
    assert str(program.graph) == str(start.graph), f"{pass_} changed the graph\n{program}"
    given = [*record.notes, *(miss.reason for miss in record.near_misses)]
    assert not reason or any(reason in text for text in given), f"{pass_} does not say {reason!r}{_reasons(record)}"
    _assert_equal_numbers(program, captured, None, None)
    _assert_same_state(module, untouched)
    return program


def as_module(model: Model, like: nn.Module | None = None) -> nn.Module:
    """``model`` itself, or a module whose ``forward`` is the function ``model``.

    The functions of torch that are written in C++ do not tell their parameters: they get those of ``like``.
    """
    if isinstance(model, nn.Module):
        return model
    if like is not None and isinstance(model, types.BuiltinFunctionType):
        model = _with_parameters_of(like, model)
    kind = type(getattr(model, "__name__", "Function"), (nn.Module,), {"forward": staticmethod(_named_forward(model))})
    module: nn.Module = kind().eval()
    return module


def _with_parameters_of(like: nn.Module, function: Callable[..., Any]) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        return function(*signature.bind(*args, **kwargs).args)

    signature = inspect.signature(like.forward)
    vars(forward)["__signature__"] = signature
    return forward


def _named_forward(function: Callable[..., Any]) -> Callable[..., Any]:
    """torch records the source lines of functions named ``forward`` only, and messages should show the user's."""
    if not isinstance(function, types.FunctionType):
        return function
    code = function.__code__.replace(co_name="forward")
    twin = types.FunctionType(code, function.__globals__, "forward", function.__defaults__, function.__closure__)
    twin.__kwdefaults__, twin.__annotations__ = function.__kwdefaults__, function.__annotations__
    vars(twin).update(vars(function))
    return twin


def random_like(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Fresh values: normal for real tensors, in the range of the old ones for integers, coins for bool."""
    if tensor.is_floating_point() or tensor.is_complex():
        return torch.randn(tensor.shape, dtype=tensor.dtype, generator=generator)
    low, high = (0, 1) if tensor.dtype == torch.bool or not tensor.numel() else (int(tensor.min()), int(tensor.max()))
    return torch.randint(low, high + 1, tensor.shape, generator=generator).to(tensor.dtype)


def _run(pass_: Pass, program: Program) -> tuple[Program, PassRecord]:
    """The program that ``pass_`` makes, and its record; the program given must stay as it is."""
    text, values = str(program), {name: (t, t.detach().clone()) for name, t in program.constants().items()}
    result, (record,) = PassManager([pass_]).run(program)
    result.verify()
    assert str(program) == text, f"{pass_} changed the program it was given a copy of"
    for name, (tensor, copy) in values.items():
        assert torch.equal(_bits(tensor), _bits(copy)), f"{pass_} wrote into the constant {name}; make a new one"
    return result, record


def _reasons(record: PassRecord) -> str:
    misses = [f"{m.node}: {m.matched} of {m.total} calls match; {m.reason}" for m in record.near_misses]
    lines = [*(f"near-miss at {miss}" for miss in misses), *(f"note: {note}" for note in record.notes)]
    return ":\n  " + "\n  ".join(lines) if lines else ", without a near-miss or a note"


def calls_of(program: Program) -> dict[Any, int]:
    """Operator -> how often ``program`` calls it."""
    found: dict[Any, int] = {}
    for node in program.graph.nodes:
        if node.op == "call_function":
            found[node.target] = found.get(node.target, 0) + 1
    return found


def _assert_calls(pass_: Pass, start: Program, program: Program, gone: Sequence[Any], ops: Mapping[Any, int]) -> None:
    calls = calls_of(start)
    for op in gone:
        assert calls.get(op), f"{op} was not there before {pass_}, so the test proves nothing\n{start}"
    wanted = {**dict.fromkeys(gone, 0), **ops}
    found = {op: calls_of(program).get(op, 0) for op in wanted}
    assert found == wanted, f"wanted {wanted} calls, found {found}\n{program}"


def _assert_same_graph(pass_: Pass, program: Program, wanted: Program, rtol: float | None, atol: float | None) -> None:
    difference = first_difference(program, wanted, rtol=rtol, atol=atol)
    assert difference is None, (
        f"{pass_} did not make the graph of `after`; first difference:\n  {difference}\nfound: {program}\nwanted: {wanted}"
    )


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
