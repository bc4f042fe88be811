"""Normalization of a model's input, of the kinds that ATOMMIC's ``normalization_type`` names."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fxexport.errors import InputError

KINDS = ("minmax", "max", "mean_std", "mean_var", "grayscale", "none")


def check_kind(kind: str | None) -> str:
    """``kind`` as one of ``KINDS``; None means "none". Raises InputError for anything else."""
    name = "none" if kind is None else str(kind).lower()
    if name not in KINDS:
        raise InputError(f"normalization_type {kind!r} is unknown; give one of {', '.join(KINDS)}")
    return name


class InputNormalization(nn.Module):
    """Normalizes a tensor by numbers taken from the tensor itself.

    The formulas are those of ATOMMIC 1.0.1, ``normalize_inplace`` in ``collections/common/parts/utils.py`` (the same as
    ``Normalizer.forward`` in ``transforms.py``), over all elements of ``x``, with ``a = abs(x)``:

    ==============  ================================================
    ``max``         ``x / max(a)``
    ``minmax``      ``(x - min(a)) / (max(a) - min(a))``
    ``mean_std``    ``y / std(abs(y))`` for ``y = x - mean(a)``
    ``mean_var``    ``y / var(abs(y))`` for ``y = x - mean(a)``
    ``grayscale``   ``y / max(abs(y)) * 255`` for ``y = x - min(a)``
    ``none``        ``x``
    ==============  ================================================

    std and var are the unbiased ones (divided by n - 1). As there, nothing is added to a divisor: a constant input gives
    inf or nan wherever the divisor is zero.

    Args:
        kind: one of the above; None is "none".
        complex_pairs: the last axis of ``x``, of size 2, is real and imaginary part. Then ``abs`` is the absolute value of
            the complex numbers and what is subtracted is subtracted from the real part, as ``Normalizer`` does.

    ``forward(x)``: floating-point tensor of any shape -> the same shape and dtype.

    Raises InputError for another kind.
    """

    def __init__(self, kind: str | None, *, complex_pairs: bool = False) -> None:
        super().__init__()
        self.normalization_type = check_kind(kind)
        self.complex_pairs = complex_pairs

    def forward(self, x: Tensor) -> Tensor:
        kind = self.normalization_type
        if kind == "none":
            return x
        size = self._abs(x)
        if kind == "max":
            return x / size.max()
        if kind == "minmax":
            return self._minus(x, size.min()) / (size.max() - size.min())
        if kind == "grayscale":
            y = self._minus(x, size.min())
            return y / self._abs(y).max() * 255
        y = self._minus(x, size.mean())
        return y / (self._abs(y).std() if kind == "mean_std" else self._abs(y).var())

    def _abs(self, x: Tensor) -> Tensor:
        return x.square().sum(-1).sqrt() if self.complex_pairs else x.abs()

    def _minus(self, x: Tensor, number: Tensor) -> Tensor:
        if not self.complex_pairs:
            return x - number
        return torch.stack((x[..., 0] - number, x[..., 1]), -1)

    def extra_repr(self) -> str:
        return repr(self.normalization_type) + (", complex_pairs=True" if self.complex_pairs else "")
