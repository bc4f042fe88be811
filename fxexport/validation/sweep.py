"""The points at which an artifact is checked: the example, fresh values, and other sizes of every dynamic dimension."""

from __future__ import annotations

import ast
import itertools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fxexport.capture.resize import resize_axis, vary
from fxexport.errors import InputError
from fxexport.signature import Axis, Dimension, Signature
from fxexport.validation.values import descending, roles_of

_OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "min": min,
    "max": max,
    "round": round,
    "float": float,
    "torch.sym_float": float,
    "math.floor": math.floor,
    "math.ceil": math.ceil,
    "math.trunc": math.trunc,
}


FRESH = "fresh values"
_MOST_DECISIONS = 8  # a model that decides more often on sizes is checked at the first eight


@dataclass(frozen=True)
class Point:
    """One set of inputs to try: a label for the report, the size of every dynamic dimension, the flat inputs.

    ``edge``: a size that code often treats differently on purpose (1, or the other side of a decision on sizes).
    ``lenient``: values of our own making, at which eager may not be finite, or hang on its last bit: where it does,
    nothing is compared.
    """

    label: str
    sizes: Mapping[str, int]
    inputs: tuple[torch.Tensor, ...]
    edge: bool = False
    lenient: bool = False


def points(signature: Signature, examples: Sequence[torch.Tensor], *, sizes: bool = True) -> list[Point]:
    """The example as given, then for each dynamic dimension 1, 2 and a larger prime, all dimensions changed at once, the
    other side of every decision on sizes, and last the example's own sizes, all with fresh values. Sizes outside the
    range the graph allows are not tried.
    """
    own = example_sizes(signature, examples)
    found = [Point("example", own, tuple(examples))]
    plans: list[tuple[str, dict[str, int]]] = []
    edges: list[tuple[str, dict[str, int]]] = []
    if sizes:
        for dimension in signature.dimensions:
            plans += [(f"{dimension.name}={n}", {**own, dimension.name: n}) for n in other_sizes(dimension, own)]
        if len(signature.dimensions) > 1:
            plans.append(("all together", {d.name: _together(i, d, own) for i, d in enumerate(signature.dimensions)}))
        edges = _other_side(signature, own)
    plans += [*edges, (FRESH, own)]
    for number, (label, plan) in enumerate(plans):
        edge = (label, plan) in edges or (label.endswith("=1") and 1 in plan.values())
        found.append(Point(label, plan, draw(signature, examples, plan, seed=number), edge))
    return found


def example_sizes(signature: Signature, examples: Sequence[torch.Tensor]) -> dict[str, int]:
    """The sizes that the dynamic dimensions have in the user's example."""
    sizes = {d.name: d.example for d in signature.dimensions}
    for spec, tensor in zip(signature.inputs, examples, strict=True):
        for position, label in spec.dynamic_axes.items():
            if label in sizes:
                sizes[label] = tensor.shape[position]
    return sizes


def other_sizes(dimension: Dimension, own: Mapping[str, int]) -> list[int]:
    """Sizes to try: 1, 2 and a larger prime (or the largest that is allowed); within the dimension's range and not the
    example's own."""
    size = own[dimension.name]
    larger = _next_prime(max(size, 2) + size // 8)
    upper = larger if dimension.maximum is None else min(larger, dimension.maximum)
    fitting = {n for n in (1, 2, upper) if dimension.minimum <= n <= upper}
    return sorted(fitting - {size})


def _other_side(signature: Signature, own: Mapping[str, int]) -> list[tuple[str, dict[str, int]]]:
    """For each decision the model took on sizes, sizes within the range for which it comes out the other way."""
    found: dict[str, dict[str, int]] = {}
    for guard in signature.guards:
        for dimension in signature.dimensions:
            upper = 4 * own[dimension.name] + 16 if dimension.maximum is None else dimension.maximum
            trials = ({**own, dimension.name: n} for n in range(max(2, dimension.minimum), upper + 1))
            plan = next((trial for trial in trials if not evaluate(guard.condition, trial)), None)
            if plan is not None and plan not in found.values():
                found[f"not {guard.condition}"] = plan
                break
    return list(found.items())[:_MOST_DECISIONS]


def _next_prime(size: int) -> int:
    """The smallest prime above ``size``."""
    return next(n for n in itertools.count(max(size + 1, 2)) if all(n % d for d in range(2, math.isqrt(n) + 1)))


def _together(position: int, dimension: Dimension, own: Mapping[str, int]) -> int:
    """A size for the point where all dimensions change at once: about half, and a different one for each."""
    upper = own[dimension.name] + position + 1 if dimension.maximum is None else dimension.maximum
    size = min(max(own[dimension.name] // 2, 2, dimension.minimum) + position, upper)
    return size if size != own[dimension.name] else min(size + 1, upper)


def draw(
    signature: Signature, examples: Sequence[torch.Tensor], sizes: Mapping[str, int], seed: int
) -> tuple[torch.Tensor, ...]:
    """Inputs of the given sizes with fresh values like the example's; the same for the same seed.

    All inputs are rotated alike along each named dimension, so that ids and masks, whose values only the model can
    judge, are not where the example has them. Lengths grow and shrink with the axis that the longest one fills.
    """
    generator = torch.Generator().manual_seed(seed)
    inputs = []
    for spec, tensor in zip(signature.inputs, examples, strict=True):
        for position, axis in enumerate(spec.axes):
            if isinstance(axis, str):
                tensor = resize_axis(tensor, position, evaluate(axis, sizes))
            if axis in sizes:
                tensor = tensor.roll(seed + 1, position)
        inputs.append(vary(tensor.detach(), generator))
    return _with_fitting_lengths(signature, examples, inputs)


def _with_fitting_lengths(
    signature: Signature, examples: Sequence[torch.Tensor], inputs: list[torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    """``inputs`` with lengths that mean the same share of their axis as in the example, and in its order."""
    for number, role in enumerate(roles_of(signature, examples)):
        if role.axis is None:
            continue
        other, axis = role.axis
        old, new = examples[other].shape[axis], inputs[other].shape[axis]
        lengths = inputs[number]
        if new != old:
            lengths = (-(-lengths.long() * new // old)).clamp(1, max(new, 1)).to(lengths.dtype)
        if descending(examples[number]):
            lengths = lengths.sort(descending=True).values
        inputs[number] = lengths
    return tuple(inputs)


def evaluate(axis: Axis, sizes: Mapping[str, int]) -> int:
    """The size of ``axis``: itself, a named dimension, or a formula over them such as ``2*time + 1``; 0 or 1 for a
    condition such as ``batch % 2 == 0``.

    Raises InputError for a name that has no size.
    """
    if isinstance(axis, int):
        return axis

    def value(node: ast.expr) -> Any:
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            return node.value
        if isinstance(node, ast.Name) and node.id in sizes:
            return sizes[node.id]
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](value(node.left), value(node.right))
        if isinstance(node, ast.Compare) and type(node.ops[0]) in _OPERATORS:
            return _OPERATORS[type(node.ops[0])](value(node.left), value(node.comparators[0]))
        if isinstance(node, ast.Call) and (name := ast.unparse(node.func)) in _FUNCTIONS:
            return _FUNCTIONS[name](*map(value, node.args))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -value(node.operand)
        raise InputError(f"no size for {ast.unparse(node)!r} in the axis {axis!r}; known: {dict(sizes)}")

    return int(value(ast.parse(axis, mode="eval").body))
