"""Running the example in eager before anything else: what it returns, whether it repeats, whether it is finite."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from fxexport.capture.birth import nan_birth
from fxexport.capture.exporting import user_line
from fxexport.capture.filled_memory import ZEROS, Filled
from fxexport.capture.flat_model import ResultLayout
from fxexport.capture.reference import Reference, Tensors
from fxexport.errors import CaptureError, ExportError


def judge_example(
    reference: Reference, notes: list[str], allow_random: bool
) -> tuple[Tensors, ResultLayout, list[int]]:
    """Runs the example in eager twice: its outputs, and the outputs that are not the same each time.

    Memory that the model takes and does not write holds zeros; ``reference`` is told of outputs that show it. Raises
    CaptureError where they are random, or show nothing else.
    """
    memory = Filled(ZEROS)
    with as_the_models_own():
        first, second, layout = reference.run_twice(reference.call.tensors, memory)
    if memory.used:
        notes += _find_unwritten(reference, first, layout)
    nothing = [path for path in layout.dropped if path not in reference.call.left_out]
    notes += [f"{path} is None: it is left out of the artifact's outputs" for path in nothing]
    notes += [f"{path} is a Python number: it becomes a 0-d tensor" for path in layout.numbers]
    paired = [reference.call.paths[i] for i in sorted(reference.call.pairs or ())]
    paired += [path for path in layout.paths if path in layout.pairs]
    notes += [f"{path} is complex: real in the file, with a last axis of real and imaginary part" for path in paired]
    changed = [i for i, pair in enumerate(zip(first, second, strict=True)) if not _identical(*pair)]
    if not changed:
        return first, layout, []
    again = reference.run(reference.call.tensors, seed=1)
    unstable = [i for i in changed if not _identical(first[i], again[i])]
    stateful = [layout.paths[i] for i in changed if i not in unstable]
    if stateful:
        kept = ", ".join(reference.updated_buffers()) or "in Python attributes"
        notes.append(
            f"{', '.join(stateful)} depends on earlier calls (the model keeps state: {kept}): the artifact computes the "
            'first call from the model\'s present state; state="explicit" makes buffers inputs and outputs'
        )
    if unstable and not allow_random:
        raise CaptureError(
            f"{', '.join(layout.paths[i] for i in unstable)} differs from run to run in eager: the model draws random "
            "numbers, so no artifact can be proved right. Remove the randomness, or accept with allow_random=True that "
            "only shape and dtype of these outputs are checked"
        )
    if unstable:
        notes.append(f"{', '.join(layout.paths[i] for i in unstable)} is random: values not compared (allow_random)")
    return first, layout, unstable


def _find_unwritten(reference: Reference, outputs: Tensors, layout: ResultLayout) -> list[str]:
    """Tells ``reference`` which outputs show memory that the model does not write, and returns notes on them."""
    masks = reference.unwritten(reference.call.tensors, outputs)
    shares = {i: (int(mask.sum()), mask.numel()) for i, mask in enumerate(masks) if bool(mask.any())}
    if shares and all(count == total for count, total in shares.values()) and len(shares) == len(outputs):
        raise CaptureError(
            f"every value of {', '.join(layout.paths)} depends on memory that the model takes and does not write "
            "(torch.empty and the like): it is different on every run, so no artifact can be proved right. Use torch.zeros "
            "in the model, or write all of it before it is read"
        )
    reference.unwritten_outputs = frozenset(shares)
    return [
        f"{layout.paths[i]} holds memory that the model takes and does not write (torch.empty), "
        f"{'all' if count == total else f'{count}'} of {total} values in the example: zeros in the artifact, not compared"
        for i, (count, total) in shares.items()
    ]


@contextmanager
def as_the_models_own() -> Iterator[None]:
    """The user's own exception from the block is re-raised as it is, with where and why added."""
    try:
        yield
    except ExportError:
        raise
    except Exception as error:
        place = user_line(error)
        error.add_note(
            "fxexport: this is the model's own error on the example inputs, in eager PyTorch before any capture"
            + (f" ({place})" if place else "")
        )
        raise


def _identical(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return bool(torch.equal(a, b) or torch.allclose(a, b, rtol=1e-5, atol=1e-7, equal_nan=True))


def check_finite(reference: Reference, expected: Tensors, names: Sequence[str], allow_nan: bool) -> list[str]:
    """Notes on outputs that hold Inf. Raises CaptureError for NaN, saying where it is born."""
    inexact = [(n, t) for n, t in zip(names, expected, strict=True) if t.is_floating_point() or t.is_complex()]
    bad = [name for name, tensor in inexact if bool(tensor.isnan().any())]
    if bad and not allow_nan:
        raise CaptureError(
            f"eager itself returns NaN in {bad} for the example inputs, which proves nothing; {nan_birth(reference)}.\n"
            "  Give other example inputs, or compare NaN positions too with allow_nan=True"
        )
    infinite = [name for name, tensor in inexact if bool(tensor.isinf().any())]
    return [f"Inf in {infinite} for the example inputs: positions and signs are compared"] if infinite else []
