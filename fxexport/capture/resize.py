"""Inputs of other sizes, drawn from an example so that they stay legal for the model."""

from __future__ import annotations

import torch


def resize_axis(tensor: torch.Tensor, axis: int, size: int) -> torch.Tensor:
    """``tensor`` with ``axis`` cut or cyclically repeated to ``size``: token ids, lengths and masks stay in range.

    An axis of size 0 is filled with zeros.
    """
    current = tensor.shape[axis]
    if current == size:
        return tensor
    if current == 0:
        shape = [size if i == axis else n for i, n in enumerate(tensor.shape)]
        return tensor.new_zeros(shape)
    return tensor.index_select(axis, torch.arange(size, device=tensor.device) % current)


def vary(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Fresh values like those of ``tensor``, so that repeated rows differ and a baked value cannot pass.

    Real-valued tensors are scaled elementwise by a factor in (0.9, 1]: signs, zeros, infinities and bounds such as
    [0, 1] are kept. Tensors that hold whole numbers (ids, lengths, masks) are left as they are: which other values are
    legal is known to the model alone.
    """
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.numel() == 0:
        return tensor
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    if bool((real == real.round()).all()):
        return tensor
    factor = 1 - 0.1 * torch.rand(tensor.shape, generator=generator)
    return (tensor * factor.to(tensor.device)).to(tensor.dtype)
