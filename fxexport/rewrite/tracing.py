"""Plain torch functions as ATen graphs: the operators that capture records for a model, at given shapes and dtypes."""

from __future__ import annotations

import contextlib
import inspect
import logging
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from fxexport.capture.functionalize import make_writes_functional
from fxexport.errors import CaptureError, PassError
from fxexport.shape_rules import shape_rules

aten = torch.ops.aten


@dataclass(frozen=True)
class Traced:
    """A function as a functional ATen graph.

    Attributes:
        inputs: the placeholder of each tensor or symbolic size among the flattened arguments, in order.
        outputs: the nodes returned.
        single: whether the function returned one tensor, not a sequence of them.
        tensors: the values of the graph's ``get_attr`` nodes: tensors that the function made from Python numbers.
    """

    graph: fx.Graph
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]
    single: bool
    tensors: dict[str, torch.Tensor]


class UndecidedSize(PassError):
    """A function decides on a symbolic size, of which what it asks is not known for all sizes."""


class _OnlyTensors(TorchFunctionMode):
    """Notes whether anything but tensors came out of a call: a size, a dtype, a bool."""

    def __init__(self) -> None:
        super().__init__()
        self.held = True

    def __torch_function__(self, func: Any, classes: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        compiled = inspect.isbuiltin(func) or isinstance(func, _COMPILED)
        tensors = all(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(result))
        self.held = self.held and compiled and tensors
        return result


_COMPILED = (types.MethodDescriptorType, types.WrapperDescriptorType, torch._ops.OpOverload)


def works_on_tensors_alone(function: Callable[..., Any], arguments: Sequence[Any], mode: FakeTensorMode) -> bool:
    """Whether ``function`` makes the same calls whatever the sizes, dtypes and devices of its arguments: it never asks.

    False where that is not certain: functions of torch that are written in Python may ask on their own.
    """
    if not all(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(list(arguments))):
        return False
    with mode, torch.no_grad(), _OnlyTensors() as watch:
        function(*arguments)
    return bool(watch.held)


def is_traced(value: Any) -> bool:
    """Whether an argument becomes an input of the graph; anything else is part of the function."""
    return isinstance(value, torch.Tensor | torch.SymInt)


def trace(function: Callable[..., Any], arguments: Sequence[Any], mode: FakeTensorMode) -> Traced:
    """The graph of ``function(*arguments)``; tensors are of ``mode``, and may stand in lists.

    The same dispatch-level tracer that torch.export uses records it, so each spelling gives the operators it gives in
    a captured model. Symbolic sizes are not fixed.

    Raises PassError where the function fails, decides on values or on unknown sizes, or returns no tensors.
    """
    leaves, form = pytree.tree_flatten(list(arguments))
    places = [i for i, leaf in enumerate(leaves) if is_traced(leaf)]
    single = False

    def flat(*inputs: Any) -> Any:
        nonlocal single
        given = list(leaves)
        for position, value in zip(places, inputs, strict=True):
            given[position] = value
        result = function(*pytree.tree_unflatten(given, form))
        single = isinstance(result, torch.Tensor)
        if not single and not isinstance(result, tuple | list):
            raise TypeError(f"it returns {type(result).__name__}, and must return a tensor or a tuple of tensors")
        return (result,) if single else tuple(result)

    try:
        with mode, enable_python_dispatcher(), shape_rules(), torch.no_grad(), no_new_guards(mode), _silent():
            tracer = make_fx(flat, pre_dispatch=True, _allow_non_fake_inputs=True, record_stack_traces=False)
            module = tracer(*_distinct([leaves[i] for i in places]))
    except Exception as error:
        if is_new_guard(error):
            raise UndecidedSize(f"{_name(function)} decides on a dynamic size, of which that is not known") from error
        raise PassError(f"{_name(function)} cannot be traced: {type(error).__name__}: {_first_line(error)}") from error
    graph = module.graph
    outputs: Any = graph.output_node().args[0]
    if not outputs or not all(isinstance(node, fx.Node) for node in outputs):
        raise PassError(f"{_name(function)} must return a tensor or a tuple of tensors")
    inputs = tuple(graph.find_nodes(op="placeholder"))
    try:
        make_writes_functional(graph)
    except CaptureError as error:
        raise PassError(f"{_name(function)} cannot be traced: {error}") from error
    graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    tensors = {str(node.target): getattr(module, str(node.target)) for node in graph.find_nodes(op="get_attr")}
    return Traced(graph, inputs, tuple(graph.output_node().args[0]), single, tensors)  # type: ignore[arg-type]


def _distinct(values: list[Any]) -> list[Any]:
    """One tensor given for two arguments would be one input of the graph."""
    seen: set[int] = set()
    for position, value in enumerate(values):
        if isinstance(value, torch.Tensor) and id(value) in seen:
            values[position] = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
        seen.add(id(value))
    return values


def fake_like(value: Any, mode: FakeTensorMode, factor: int = 1) -> Any:
    """An argument as it is given to :func:`trace`: tensors of ``mode``, each size but 1 times ``factor``."""
    if isinstance(value, list | tuple):
        return [fake_like(item, mode, factor) for item in value]
    if not isinstance(value, torch.Tensor):
        return value
    sizes = [size * factor if size > 1 else size for size in value.shape]
    with mode:
        return torch.empty(sizes, dtype=value.dtype, device=value.device)


def constant_of(tensor: torch.Tensor) -> torch.Tensor | None:
    """The value behind a tensor literal; None for a tensor that is not known while tracing (random weights)."""
    return tensor.constant if isinstance(tensor, FakeTensor) else tensor


def no_new_guards(mode: FakeTensorMode) -> contextlib.AbstractContextManager[Any]:
    """What a pattern asks of symbolic sizes must follow from what is known of them: nothing is fixed by asking."""
    env = mode.shape_env
    return env.error_on_new_guards() if isinstance(env, ShapeEnv) else contextlib.nullcontext()


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """torch logs what fails here as if it were its own failure; it is answered in other words."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def is_new_guard(error: Exception) -> bool:
    """Whether an error is that of :func:`no_new_guards`."""
    return type(error).__name__ == "_ShapeEnvGuardError"


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", repr(function))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
