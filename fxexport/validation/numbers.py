"""Numbers in eager: a rewritten program against the one before it, judged as an artifact is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

import torch

from fxexport.capture.private_copy import preserved_process_state, seed_everything
from fxexport.capture.reference import Reference, Tensors
from fxexport.errors import PassError, VerifyError
from fxexport.program import Program
from fxexport.rewrite.manager import Judge
from fxexport.validation.compare import OutputComparison, Tolerance, compare_outputs, tolerance_for


@dataclass(frozen=True)
class Scales:
    """How outputs are weighed: the tolerance (None: the default of the dtype), and outputs that are random.

    ``unstable``: names of outputs of which only shape and dtype are compared. ``usual``: the default tolerance of an
    artifact that computes with fewer bits than the model; a float64 run says nothing of it.
    """

    rtol: float | None = None
    atol: float | None = None
    unstable: Collection[str] = ()
    usual: Tolerance | None = None

    def compare(
        self,
        names: Sequence[str],
        expected: Sequence[torch.Tensor],
        got: Sequence[torch.Tensor],
        float64: Callable[[], Tensors] | None = None,
        undefined: Sequence[torch.Tensor] | None = None,
    ) -> list[OutputComparison]:
        """One comparison for each output. ``float64`` computes the outputs in float64; it is asked only where a default
        tolerance is exceeded, and a model that cannot run in float64 is judged without it. ``undefined``: for each output
        a bool tensor that is True where ``expected`` means nothing and is not compared.

        Raises ValidationError where the numbers of outputs differ, InputError for a dtype that has no tolerance.
        """
        want = [tensor.cpu() for tensor in expected]
        for i, (name, tensor, have) in enumerate(zip(names, want, got, strict=False)):  # compare_outputs counts them
            if (tensor.shape, tensor.dtype) != (have.shape, have.dtype):
                continue
            if name in self.unstable:
                want[i] = have
            elif undefined is not None and bool(undefined[i].any()):
                want[i] = torch.where(undefined[i].cpu(), have, tensor)
        results = compare_outputs(
            names, want, got, lambda dtype: tolerance_for(dtype, self.rtol, self.atol, self.usual)
        )
        default = self.rtol is None and self.atol is None and self.usual is None
        if default and float64 is not None and not all(result.passed for result in results):
            try:
                doubles = [tensor.cpu() for tensor in float64()]
                if undefined is not None:
                    doubles = [torch.where(u.cpu(), w, d) for u, w, d in zip(undefined, want, doubles, strict=True)]
            except Exception:  # noqa: BLE001 - fixed dtypes have no float64 form; the strict verdict stands
                doubles = None
            results = compare_outputs(names, want, got, tolerance_for, doubles)
        unknown = {n for n, u in zip(names, undefined or (), strict=False) if u.numel() and bool(u.all())}
        return [
            replace(r, judge="shape and dtype only") if r.name in {*self.unstable, *unknown} else r for r in results
        ]


def run_eager(program: Program, inputs: Sequence[torch.Tensor]) -> Tensors:
    """The flat outputs of ``program`` for copies of the flat ``inputs``, on the CPU; random state is given back."""
    with preserved_process_state():
        seed_everything(0)
        outputs = program.run(*(tensor.detach().clone() for tensor in inputs))
    return tuple(torch.as_tensor(value).detach().cpu() for value in outputs)


def judge_on(
    examples: Sequence[torch.Tensor], scales: Scales | None = None, *, reference: Reference | None = None
) -> Judge:
    """A judge for ``PassManager``: (before, after) -> largest absolute difference of their real outputs.

    It runs both programs in eager on the flat ``examples`` and raises VerifyError where they differ by more than the
    tolerance by which artifacts are judged (``scales``; default: by dtype): integers, bools, dtype, shape and the places
    of NaN exactly. With a ``reference`` its float64 run decides in doubt. A program that was run already, as the one
    before or the one after, is not run again by the next call.
    """
    return _Judge(tuple(examples), scales or Scales(), reference)


@dataclass
class _Judge:
    examples: Tensors
    scales: Scales
    reference: Reference | None
    _known: list[tuple[Program, Tensors]] = field(default_factory=list)

    def __call__(self, before: Program, after: Program) -> float:
        try:
            expected = self._outputs(before)
        except Exception as error:
            raise PassError(
                f"the program before it does not run in eager: {type(error).__name__}: {error}; numbers cannot be "
                'compared after each pass of this model: use check="final"'
            ) from error
        self._known = [(before, expected)]
        try:
            got = self._outputs(after)
        except Exception as error:
            raise VerifyError(f"what it leaves does not run in eager: {type(error).__name__}: {error}") from error
        self._known.append((after, got))
        names = [spec.name for spec in before.signature.outputs]
        results = self.scales.compare(names, expected, got, self._float64 if self.reference else None)
        failed = [f"output {result.name!r}: {result.reason}" for result in results if not result.passed]
        if failed:
            raise VerifyError(f"it changes the numbers on the examples: {'; '.join(failed)}")
        return max((r.max_abs for r in results if r.max_ulp is not None), default=0.0)

    def _outputs(self, program: Program) -> Tensors:
        known = next((outputs for other, outputs in self._known if other is program), None)
        return run_eager(program, self.examples) if known is None else known

    def _float64(self) -> Tensors:
        assert self.reference is not None
        return self.reference.run(self.examples, double=True)
