"""``Draft``: a program in the making, one random operator call after the other."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from fxexport.errors import VerifyError
from fxexport.program import Program

T = TypeVar("T")
MAX_ELEMENTS, MAX_RANK = 2048, 5
KINDS: dict[str, Callable[[torch.dtype], bool]] = {
    "float": lambda dtype: dtype.is_floating_point,
    "float32": lambda dtype: dtype == torch.float32,
    "int": lambda dtype: dtype == torch.int64,
    "bool": lambda dtype: dtype == torch.bool,
    "number": lambda dtype: dtype != torch.bool,
    "any": lambda dtype: True,
}


class Refused(Exception):
    """The drawn operator has nothing to work on here, or does not accept it: the step is left out."""


class Draft:
    """A program in the making, and what the operators of ``fxexport.testing`` draw from.

    Every call is made three times: on fake tensors (by ``Program.insert``) and for real on two sets of inputs, so that
    a finished program is known to run. A call that fails in any of them is refused.

    Attributes:
        program: what was made so far.
        values: the tensors to draw operands from, oldest first.
        wild: whether results may be infinite or NaN.
    """

    def __init__(self, program: Program, inputs: Sequence[Sequence[Tensor]], *, seed: int, wild: bool = False) -> None:
        self.program, self.wild = program, wild
        self.values: list[fx.Node] = list(program.input_nodes)
        self._real: dict[fx.Node, list[Any]] = {
            node: list(tensors) for node, *tensors in zip(self.values, *inputs, strict=True)
        }
        self._end = program.graph.output_node()
        self._pool: dict[tuple[Any, ...], list[fx.Node]] = {}
        self._random = torch.Generator().manual_seed(seed)
        self._choices: Iterator[int] = iter(())

    def step(self, operator: Callable[[Draft], Any], choices: bytes) -> bool:
        """Adds what ``operator`` makes by the drawn ``choices``; False where it refused."""
        self._choices = iter(choices)
        try:
            made = operator(self)
        except Refused:
            return False
        for node in made if isinstance(made, (list, tuple)) else [made]:
            if isinstance(node.meta["val"], Tensor) and node not in self.values:
                self.values.append(node)
        return True

    # ---------------------------------------------------------------- drawing

    def pick(self, items: Sequence[T]) -> T:
        """One of ``items``: the first where the choices have run out, and in the simplest example."""
        if not items:
            raise Refused("nothing to pick from")
        return items[next(self._choices, 0) % len(items)]

    def tensor(self, kind: str = "float", rank: Sequence[int] = range(6)) -> fx.Node:
        """One of the values, the latest first: of a dtype of ``kind`` (see KINDS) and a rank in ``rank``."""
        fits = KINDS[kind]
        return self.pick([v for v in reversed(self.values) if fits(dtype_of(v)) and len(shape_of(v)) in rank])

    def partner(self, x: fx.Node) -> Any:
        """A second operand for ``x``: a value of its shape, a constant row, a number, or any value of its dtype."""
        dtype, shape = dtype_of(x), shape_of(x)
        alike = [v for v in reversed(self.values) if dtype_of(v) == dtype]
        same = [v for v in alike if list(map(str, shape_of(v))) == list(map(str, shape))]
        number = 2 if dtype in (torch.int64, torch.bool) else self.pick([2.0, 0.5, 1, -1.0, 3, 0.0])
        row: list[Callable[[], Any]] = [lambda: self.constant(shape[-1:], dtype)] if shape else []
        kinds: list[Callable[[], Any]] = [lambda: self.pick(same), *row, lambda: number, lambda: self.pick(alike)]
        return self.pick(kinds)()

    def axis(self, x: fx.Node) -> int:
        """One of the axes of ``x``, counted from the front or from the back."""
        rank = len(shape_of(x))
        return int(self.pick([*range(rank), *range(-rank, 0)]))

    def size(self, x: fx.Node, axis: int) -> Any:
        """The size of an axis as an argument: a number, or a ``sym_size`` node where it is dynamic."""
        size = shape_of(x)[axis]
        return size if isinstance(size, int) else self.call(torch.ops.aten.sym_size.int, x, axis)

    def constant(self, shape: Sequence[Any], dtype: torch.dtype = torch.float32, *, positive: bool = False) -> fx.Node:
        """A weight of ``shape``, normal (or in 0.2 to 2); sometimes one that the program already has."""
        if not all(isinstance(size, int) for size in shape) or math.prod(shape) > MAX_ELEMENTS:
            raise Refused("a constant has fixed, small sizes")
        known = self._pool.setdefault((tuple(shape), dtype, positive), [])
        again: bool = self.pick([False, False, True])
        if known and again:
            return self.pick(known)
        if dtype.is_floating_point:
            value = torch.randn(*shape, generator=self._random, dtype=dtype)
            value = value.abs() * 0.6 + 0.2 if positive else value
        else:
            value = torch.randint(0, 2 if dtype == torch.bool else 4, tuple(shape), generator=self._random).to(dtype)
        known.append(self.given(f"layer{len(self._real)}.weight", value))
        return known[-1]

    def given(self, name: str, value: Tensor) -> fx.Node:
        """A constant that holds ``value``."""
        node = self.program.add_constant(name, value)
        self._real[node] = [value, value]
        return node

    # ---------------------------------------------------------------- making

    def call(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """A new call at the end of the program; raises Refused where the operator does not accept its arguments."""
        real = [self._run(which, target, args, kwargs) for which in range(2)]
        try:
            with self._no_new_guards():
                node = self.program.insert(target, args, kwargs, before=self._end)
        except VerifyError as error:
            raise Refused(str(error)) from error
        self._real[node] = real
        return node

    @contextlib.contextmanager
    def _no_new_guards(self) -> Iterator[None]:
        """A call that fixes or bounds a dynamic size would change every program that shares the size."""
        env = self.program.fake_mode.shape_env
        with _quiet(), env.error_on_new_guards() if isinstance(env, ShapeEnv) else contextlib.nullcontext():
            yield

    def _run(self, which: int, target: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        args, kwargs = fx.map_arg((args, kwargs), lambda n: self._real[n][which])
        try:
            with torch.no_grad():
                result = target(*args, **kwargs)
        except (RuntimeError, IndexError, ValueError, ZeroDivisionError) as error:
            raise Refused(str(error)) from error
        for tensor in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(tensor, Tensor) and not self._acceptable(tensor):
                raise Refused("too large, or not finite")
        return result

    def _acceptable(self, value: Tensor) -> bool:
        small = value.numel() <= MAX_ELEMENTS and value.dim() <= MAX_RANK
        return small and (self.wild or not value.is_floating_point() or bool((value.abs() < 1e6).all()))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch logs each refusal with its trace; here refusals are part of drawing."""
    loggers = [logging.getLogger(f"torch.{n}") for n in ("_subclasses.fake_tensor", "fx.experimental.symbolic_shapes")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def shape_of(node: fx.Node) -> list[Any]:
    """The sizes of a value, symbolic where they are dynamic."""
    return list(node.meta["val"].shape)


def dtype_of(node: fx.Node) -> torch.dtype:
    """The dtype of a value."""
    dtype: torch.dtype = node.meta["val"].dtype
    return dtype
