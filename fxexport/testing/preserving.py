"""Whether a pass leaves what a program computes as it is, up to rounding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fxexport.program import Program
from fxexport.rewrite import Pass, PassManager, PassRecord
from fxexport.rewrite.checks import untouched
from fxexport.testing.graph_comparison import TOLERANCES
from fxexport.testing.random_programs import RandomProgram


def assert_preserves(passes: Pass | Sequence[Pass], sample: RandomProgram) -> list[PassRecord]:
    """Runs ``passes`` on a random program, and returns their records.

    Asserts that the program made is valid, computes the same on both sets of inputs (dtypes, shapes, integers and NaN
    positions equal, real numbers close), and that the program given is as it was. Numbers may differ by more than the
    tolerance only where rounding each operator's result differently makes the program given differ from itself as
    much: a comparison or a difference of two nearly equal numbers.
    """
    given = sample.program.clone()
    made, records = PassManager([passes] if isinstance(passes, Pass) else passes).run(sample.program)
    made.verify()
    assert untouched(sample.program, given), "the program given was changed"
    given.erase_dead()
    if untouched(given, made) and _memory(made) == _memory(given):
        return records  # the same calls on the same constants
    for inputs in (sample.inputs, sample.other_inputs):
        for problem in differences(sample.program, made, inputs):
            raise AssertionError(f"{problem}\nafter {', '.join(map(str, records))}\nmade: {made}\nfrom: {sample}")
    return records


def _memory(program: Program) -> dict[str, tuple[Any, ...]]:
    """Name -> where and how the values of each constant lie."""
    return {k: (t.data_ptr(), t.shape, t.stride(), t.dtype) for k, t in program.constants().items()}


def differences(before: Program, after: Program, inputs: Sequence[Tensor]) -> Iterator[str]:
    """What tells the outputs of two programs apart and rounding does not explain, in words."""
    wanted, found = before.run(*inputs), after.run(*inputs)
    spread: list[float] | None = None
    for i, (spec, got, want) in enumerate(zip(before.signature.outputs, found, wanted, strict=True)):
        if (got.dtype, got.shape) != (want.dtype, want.shape):
            yield f"output {spec.name!r} is {got.dtype}{list(got.shape)}, not {want.dtype}{list(want.shape)}"
        elif not close(got, want):
            spread = rounding_spread(before, inputs) if spread is None else spread
            error = _distance(got, want)
            if error > 10 * spread[i]:
                yield f"output {spec.name!r} differs by {error:.3g}, rounding alone by {spread[i]:.3g}\n{got}\n{want}"


def close(got: Tensor, want: Tensor) -> bool:
    """Whether two tensors of one dtype are equal within the tolerance of that dtype; integers and NaN exactly."""
    rtol, atol = TOLERANCES.get(want.dtype, (0.0, 0.0))
    return torch.allclose(got, want, rtol, atol, equal_nan=True) if want.is_floating_point() else torch.equal(got, want)


def rounding_spread(program: Program, inputs: Sequence[Tensor], runs: int = 12) -> list[float]:
    """For each output, how far it moves when the result of every operator is moved by a few units of rounding.

    Infinite where infinities or NaN come or go.
    """
    exact = program.run(*inputs)
    spread = [0.0] * len(exact)
    generator = torch.Generator().manual_seed(0)
    for _ in range(runs):
        moved = _Rounded(program, generator).run_on(inputs)
        spread = [max(s, _distance(a, b)) for s, a, b in zip(spread, moved, exact, strict=True)]
    return spread


class _Rounded(fx.Interpreter):
    """Moves each result by up to 16 units of rounding of its largest element: what another order of sums may do."""

    def __init__(self, program: Program, generator: torch.Generator) -> None:
        super().__init__(program.graph_module)
        self.program, self.generator = program, generator

    def run_on(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        feed = iter(inputs)
        args = []
        for node in self.program.graph.find_nodes(op="placeholder"):
            value = self.program.constant_value(node)
            args.append(next(feed) if value is None else value)
        with torch.no_grad():
            result: tuple[Tensor, ...] = self.run(*args)
        return result

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.op != "call_function" or not isinstance(result, Tensor) or not result.is_floating_point():
            return result
        finite = result[result.isfinite()]
        if not finite.numel():
            return result
        unit = 16 * torch.finfo(result.dtype).eps * finite.abs().max()
        return result + unit * (2 * torch.rand(result.shape, generator=self.generator, dtype=result.dtype) - 1)


def _distance(a: Tensor, b: Tensor) -> float:
    """The largest difference; infinite where only one is NaN, or infinities differ."""
    a, b = a.double(), b.double()
    same = (a == b) | (a.isnan() & b.isnan())
    gap = torch.where(same, 0.0, (a - b).abs()).nan_to_num(nan=float("inf"))
    return float(gap.max()) if gap.numel() else 0.0
