"""What the numbers inside of a program are on the examples: how large, and how much rounding moves them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxexport.capture.private_copy import preserved_process_state, seed_everything
from fxexport.ops import PERMUTATIONS, RESHAPES, is_pure
from fxexport.program import Program

Rounding = Callable[[Tensor], Tensor]
_MOVES = frozenset((*PERMUTATIONS, *RESHAPES))


@dataclass
class Seen:
    """What one value was on the examples.

    Attributes:
        peak: the largest finite magnitude.
        moved: how far rounding the operands moves the result: root mean square of the change over that of the result.
    """

    peak: float = 0.0
    moved: float = 0.0


def record_ranges(
    program: Program, examples: Sequence[Sequence[Tensor]], rounding: Rounding, probed: Callable[[fx.Node], bool]
) -> dict[str, Seen]:
    """Runs ``program`` in eager PyTorch on each of ``examples`` (the flat inputs); float32 values by node name.

    ``moved`` is measured for the calls that ``probed`` says, with ``rounding`` applied to their float32 operands.
    """
    found: dict[str, Seen] = {}
    names = [node.name for node in program.input_nodes]

    def watch(node: fx.Node, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
        _note(found, node.name, result)
        if is_pure(node) and node.target not in _MOVES and probed(node) and _is_float32(result):
            rounded = pytree.tree_map_only(Tensor, lambda t: rounding(t) if _is_float32(t) else t, (args, kwargs))
            moved = _distance(result, node.target(*rounded[0], **rounded[1]))  # type: ignore[operator]
            found[node.name].moved = max(found[node.name].moved, moved)

    for inputs in examples:
        for name, tensor in zip(names, inputs, strict=True):
            _note(found, name, tensor)
        with preserved_process_state():
            seed_everything(0)
            program.run(*(tensor.detach().clone() for tensor in inputs), watch=watch)
    return found


def peak_of(tensor: Tensor) -> float:
    """The largest finite magnitude; 0 for an empty tensor."""
    finite = tensor.detach()[tensor.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0


def _note(found: dict[str, Seen], name: str, value: Any) -> None:
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, Tensor) and _is_float32(leaf):
            seen = found.setdefault(name, Seen())
            seen.peak = max(seen.peak, peak_of(leaf))


def _is_float32(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.float32


def _distance(exact: Tensor, other: Tensor) -> float:
    """Root mean square of the difference over that of ``exact``, where both are finite; infinite where only one is."""
    if not torch.equal(exact.isfinite(), other.isfinite()):
        return math.inf
    finite = exact.isfinite()
    scale = float(exact[finite].double().square().mean().sqrt()) if bool(finite.any()) else 0.0
    change = float((exact - other)[finite].double().square().mean().sqrt()) if bool(finite.any()) else 0.0
    return change / scale if scale else (math.inf if change else 0.0)
