"""What an input holds, as far as its values tell, and other values that are likely to be legal for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from fxexport.signature import Signature

Kind = Literal["real", "mask", "lengths", "ids", "fixed"]
_SPARSE, _DENSE = 0.3, 0.7  # share of ones in a mask for an example that has none, or nothing else


@dataclass(frozen=True)
class Role:
    """What one input is taken for.

    ``real``: numbers; ``mask``: zeros and ones; ``ids``: integers of which only the observed range is known to be legal;
    ``fixed``: integers that are all alike, which may mean anything; ``lengths``: how much of ``axis``, (input, position),
    counts in each row. ``axis`` is None where the longest is shorter than any axis.
    """

    kind: Kind
    axis: tuple[int, int] | None = None


def roles_of(signature: Signature, examples: Sequence[torch.Tensor]) -> list[Role]:
    """One role for each input, read off the example."""
    return [_role(i, signature, examples) for i in range(len(examples))]


def _role(index: int, signature: Signature, examples: Sequence[torch.Tensor]) -> Role:
    tensor = examples[index]
    if tensor.dtype == torch.bool:
        return Role("mask")
    if tensor.numel() == 0:
        return Role("fixed")
    if tensor.is_complex() or signature.inputs[index].pairs:
        return Role("real")
    low, high = tensor.min().item(), tensor.max().item()
    has_both = (low, high) == (0, 1) and bool(((tensor == 0) | (tensor == 1)).all())
    if has_both or (low == high == 1 and tensor.dim() > 1 and not tensor.is_floating_point()):
        return Role("mask")
    if tensor.is_floating_point():
        return Role("real")
    if tensor.dim() == 1 and low >= 1 and high > 1:
        found = list(_reached(index, signature, examples, int(high)))
        if found:
            return Role("lengths", next((place for size, place in found if size == high), None))
    return Role("ids" if low < high else "fixed")


def _reached(
    index: int, signature: Signature, examples: Sequence[torch.Tensor], longest: int
) -> list[tuple[int, tuple[int, int]]]:
    """Size and place of the axes that are at least ``longest``, in inputs with the rows of input ``index``; dynamic ones
    first."""
    rows = signature.inputs[index].axes[0]
    places = [
        (isinstance(spec.axes[axis], int), tensor.shape[axis], (i, axis))
        for i, (spec, tensor) in enumerate(zip(signature.inputs, examples, strict=True))
        for axis in range(1, tensor.dim())
        if spec.axes[0] == rows and tensor.shape[axis] >= longest
    ]
    return [(size, place) for _, size, place in sorted(places)]


def ragged(lengths: torch.Tensor, longest: int, generator: torch.Generator) -> torch.Tensor:
    """``longest``, 1 and lengths between them, in the order of ``lengths`` where that is descending; one row alone is
    shorter than ``longest``."""
    rows = lengths.shape[0]
    drawn = torch.randint(1, max(longest, 2), (rows,), generator=generator)
    if rows > 1:
        drawn[0], drawn[-1] = longest, 1
    if not descending(lengths):
        drawn = drawn[torch.randperm(rows, generator=generator)]
    else:
        drawn = drawn.sort(descending=True).values
    return drawn.to(lengths)


def descending(lengths: torch.Tensor) -> bool:
    """Whether the rows are sorted, the longest first, as packing asks for; two equal ones show nothing."""
    return bool((lengths.diff() <= 0).all()) and bool((lengths.diff() < 0).any())


def other_ids(ids: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Other integers in the observed range. Along the last axis distinct ones stay distinct, and sorted ones sorted:
    ids may be places to write to, or boundaries."""
    low, high = int(ids.min()), int(ids.max())
    last = ids.reshape(-1, ids.shape[-1]) if ids.dim() else ids.reshape(1, 1)
    ordered = last.sort(-1).values
    if last.shape[-1] > 1 and bool((ordered.diff() != 0).all()):
        drawn = last[:, torch.randperm(last.shape[-1], generator=generator)]
    else:
        drawn = torch.randint(low, high + 1, last.shape, generator=generator).to(ids)
    if last.shape[-1] > 1 and bool((last.diff() >= 0).all()):
        drawn = drawn.sort(-1).values
    return drawn.reshape(ids.shape)


def other_mask(mask: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Another random mask of about the same density, neither full nor empty."""
    density = min(max(float(mask.double().mean()) if mask.numel() else 0.0, _SPARSE), _DENSE)
    drawn = torch.rand(mask.shape, generator=generator) < density
    if drawn.numel() > 1:  # one value of each, whatever the draw
        drawn.view(-1)[0], drawn.view(-1)[-1] = True, False
    return drawn.to(mask)


def other_side_of_zero(values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The negated values, rows of the first axis at different scales; a constant tensor becomes noise around it."""
    if values.numel() and bool((values == values.reshape(-1)[0]).all()):
        return values + torch.randn(values.shape, generator=generator).to(values)
    scale = 4.0 ** (torch.arange(values.shape[0] if values.dim() else 1) % 3 - 1)
    return -values * scale.reshape(-1, *[1] * (values.dim() - 1)).to(values) if values.dim() else -values


def constant(values: torch.Tensor, number: float, *, pairs: bool) -> torch.Tensor:
    """``number`` everywhere; in pairs of real and imaginary part, as the real part."""
    filled = torch.full_like(values, number)
    if pairs:
        filled[..., 1] = 0
    return filled
