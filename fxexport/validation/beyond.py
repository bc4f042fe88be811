"""What an assumption about an input costs where it does not hold: eager against the artifact on such inputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fxexport.errors import ValidationError
from fxexport.input_assumption import InputAssumption
from fxexport.validation.judge import Judge
from fxexport.validation.sweep import Point, draw, example_sizes
from fxexport.validation.values import ragged

_SEED = 300


def beyond(judge: Judge, assumptions: Sequence[InputAssumption]) -> list[str]:
    """One sentence: by how much the artifact differs from eager on ragged lengths and on masks with padding.

    Not a judgement: it is what was assumed away. Two rows where the example has one and may have more.
    """
    if not assumptions:
        return []
    names = [spec.name for spec in judge.signature.inputs]
    generator = torch.Generator().manual_seed(_SEED)
    drawn = draw(judge.signature, judge.examples, _sizes(judge), _SEED)
    given = dict(zip(names, judge.meeting(Point("", {}, drawn)).inputs, strict=True))
    broken = {each.input: _broken(each, given[each.input], generator) for each in assumptions}
    told = " and ".join(f"{_KINDS[each.says]} in {each.input!r}" for each in assumptions)
    point = Point(f"beyond: {told}", {}, tuple(broken.get(name, given[name]) for name in names))
    try:
        expected = judge.reference.run(point.inputs)
    except Exception as error:  # noqa: BLE001 - eager may refuse such inputs; that is told
        return [f"eager refuses {told}: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"]
    try:
        got = judge.run(point)
    except ValidationError as error:
        return [f"on {told} the file does not run: {(str(error).splitlines() or [''])[0]}"]
    differing = [_difference(s.name, e, g) for s, e, g in zip(judge.signature.outputs, expected, got, strict=True)]
    differing = [text for text in differing if text]
    if not differing:
        return [f"on {told} the file gives what eager gives, to within rounding"]
    return [f"on {told} the file differs from eager by up to {', '.join(differing)}: that is what was assumed"]


_KINDS = {"full": "ragged lengths", "ones": "zeros", "zeros": "ones"}


def _sizes(judge: Judge) -> dict[str, int]:
    sizes = example_sizes(judge.signature, judge.examples)
    rows = {str(spec.axes[0]) for spec in judge.signature.inputs if spec.axes}
    for dimension in judge.signature.dimensions:
        grows = dimension.maximum is None or dimension.maximum > 1
        if dimension.name in rows and sizes[dimension.name] == 1 and grows:
            sizes[dimension.name] = 2
    return sizes


def _broken(assumption: InputAssumption, met: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Lengths down to 1, or a mask whose rows end at different places along the last axis."""
    if met.numel() == 0:
        return met
    if assumption.says == "full":
        longest = int(met.max())
        return ragged(met.reshape(-1), longest, generator).reshape(met.shape)
    size = met.shape[-1] if met.dim() else 1
    ends = torch.randint(size // 2, max(size, 1), met.shape[:-1] or (1,), generator=generator)
    keep = torch.arange(size) < ends[..., None] + (size == 1)
    keep = keep.reshape(met.shape)
    return (keep if assumption.says == "ones" else ~keep).to(met)


def _difference(name: str, expected: torch.Tensor, got: torch.Tensor) -> str:
    """``'0.12 in 'logits' (values up to 3.4)'``; '' where the two agree to within rounding."""
    want, have = expected.cpu(), got.cpu()
    if want.shape != have.shape:
        return f"the shape of {name!r} ({list(have.shape)}, eager {list(want.shape)})"
    want, have = (torch.view_as_real(t) if t.is_complex() else t for t in (want, have))
    both = want.double().isfinite() & have.double().isfinite()
    if not bool(both.any()):
        return ""
    largest = float((want.double() - have.double())[both].abs().max())
    scale = float(want.double()[both].abs().max())
    return f"{largest:.2g} in {name!r} (values up to {scale:.2g})" if largest > 1e-5 * max(scale, 1e-5) else ""
