"""Where eager itself hangs on its last bit: a tie, a sign of zero, a difference of equal numbers.

At values of our own making (zeros, ones, a thousand times the example) a disagreement proves an artifact wrong only where
eager, run again on inputs that are the same to within rounding, or in float64, does not move about as much.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._ops import HigherOrderOperator
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fxexport.capture.private_copy import preserved_process_state
from fxexport.capture.recording_decisions import decisions_of
from fxexport.capture.reference import Reference, Tensors
from fxexport.control_flow import run_watched
from fxexport.validation.compare import OutputComparison
from fxexport.validation.values import Role

_SHAKE = 1e-6  # of the values, and of the example's root mean square: a few times float32 rounding
_PAIRS = 2  # of shaken inputs, one the mirror image of the other: either of two equal numbers wins once
_FACTOR = 16.0  # how much further than eager moves an artifact may be from it
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@dataclass
class Shaken:
    """Eager's outputs on inputs that are the same to within rounding; made when first asked.

    Runs that take another Python decision than ``inputs`` do are left out: which side of a decision an artifact takes is
    what it has to prove.
    """

    reference: Reference
    roles: Sequence[Role]
    examples: Sequence[torch.Tensor]
    inputs: Tensors
    expected: Tensors
    _neighbours: list[Tensors] = field(default_factory=list)
    _undefined: str | None = None

    def excuse(self, position: int, result: OutputComparison) -> str:
        """Why the failed comparison of the output at ``position`` proves nothing, or ''."""
        if self._undefined is None:
            self._undefined = undefined_cast(self.reference, self.inputs)
            self._neighbours = list(self._runs())
        if self._undefined:
            return self._undefined
        want = self.expected[position]
        moved = [_distance(want, outputs[position]) for outputs in self._neighbours]
        spread = max(moved, default=0.0)
        exact = not (want.is_floating_point() or want.is_complex())
        if math.isinf(spread) or (exact and spread):
            return "eager itself gives something else on inputs that differ by rounding"
        same_places = not result.nan_mismatch and not result.inf_mismatch
        if same_places and not math.isnan(result.max_abs) and 0 < result.max_abs <= _FACTOR * spread:
            return f"eager itself moves by {spread:.1e} on inputs that differ by rounding"
        return ""

    def _runs(self) -> Iterator[Tensors]:
        with suppress(Exception):  # fixed dtypes have no float64 form: the others tell
            yield self.reference.run(self.inputs, double=True)
        taken = decisions_of(self.reference, self.inputs)
        for seed in range(_PAIRS):
            for sign in (1.0, -1.0):
                inputs = [self._shaken(i, sign, torch.Generator().manual_seed(seed)) for i in range(len(self.inputs))]
                try:
                    if decisions_of(self.reference, inputs) == taken:
                        yield self.reference.run(inputs)
                except Exception:  # noqa: BLE001 - eager refuses it: it is no neighbour
                    continue

    def _shaken(self, number: int, sign: float, generator: torch.Generator) -> torch.Tensor:
        tensor, example = self.inputs[number], self.examples[number]
        if self.roles[number].kind != "real" or not tensor.numel():
            return tensor
        power = example.detach().abs().double().square()
        scale = float(power[power.isfinite()].mean().sqrt()) if bool(power.isfinite().any()) else 0.0
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        step = torch.finfo(tensor.dtype).eps * 8 if tensor.dtype.itemsize < 4 else _SHAKE
        return (tensor + sign * step * noise * (tensor.abs() + (scale or 1.0))).to(tensor.dtype)


def _distance(want: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference; infinite where shapes differ, or one of them alone is not finite."""
    if want.shape != other.shape:
        return math.inf
    wide = torch.complex128 if want.is_complex() else torch.float64
    a, b = want.to(wide), other.to(wide)
    if not torch.equal(a.isfinite(), b.isfinite()):
        return math.inf
    finite = (a - b).abs()[a.isfinite()]
    return float(finite.max()) if finite.numel() else 0.0


def undefined_cast(reference: Reference, inputs: Tensors) -> str:
    """Says so where eager turns numbers into an integer type that does not hold them: what comes out is not defined."""
    watch = _Casts()
    with preserved_process_state(), watch:
        reference.run(inputs)
    return watch.found


class _Casts(TorchDispatchMode):
    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if isinstance(func, HigherOrderOperator):
            return run_watched(self, func, args, kwargs)
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.dtype in _INTEGERS and func.namespace == "aten":
            given = [t for t in pytree.tree_leaves(args) if isinstance(t, torch.Tensor) and t.is_floating_point()]
            if str(func).startswith(("aten._to_copy", "aten.copy")) and given:
                self._look(given[-1], result.dtype)
        return result

    def _look(self, values: torch.Tensor, dtype: torch.dtype) -> None:
        bounds = torch.iinfo(dtype)
        wide = values.double()
        if not bool(((wide > bounds.min - 1.0) & (wide < bounds.max + 1.0)).all()):
            self.found = f"eager turns numbers into {str(dtype).removeprefix('torch.')} that it cannot hold"
