"""Normalization of a model's input, of the kinds that ATOMMIC's ``normalization_type`` names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fxexport.errors import InputError

KINDS = ("minmax", "max", "mean_std", "mean_var", "grayscale", "fft", "none")
_NORMS = ("backward", "ortho", "forward", "none")


def check_kind(kind: str | None) -> str:
    """``kind`` as one of ``KINDS``; None means "none". Raises InputError for anything else."""
    name = "none" if kind is None else str(kind).lower()
    if name not in KINDS:
        raise InputError(f"normalization_type {kind!r} is unknown; give one of {', '.join(KINDS)}")
    return name


class InputNormalization(nn.Module):
    """Normalizes a tensor by numbers taken from the tensor itself.

    The formulas are those of ATOMMIC 1.0.1, ``Normalizer.forward`` in ``collections/common/parts/transforms.py`` (the same
    as ``normalize_inplace`` in ``utils.py``), over all elements of ``x``, with ``a = abs(x)``:

    ==============  ================================================
    ``max``         ``x / max(a)``
    ``minmax``      ``(x - min(a)) / (max(a) - min(a))``
    ``mean_std``    ``y / std(abs(y))`` for ``y = x - mean(a)``
    ``mean_var``    ``y / var(abs(y))`` for ``y = x - mean(a)``
    ``grayscale``   ``y / max(abs(y)) * 255`` for ``y = x - min(a)``
    ``fft, none``   ``x``
    ==============  ================================================

    std and var are the unbiased ones (divided by n - 1). As there, nothing is added to a divisor: a constant input gives
    inf or nan wherever the divisor is zero.

    Args:
        kind: one of the above; None is "none".
        complex_pairs: the last axis of ``x``, of size 2, is real and imaginary part. Then ``abs`` is the absolute value of
            the complex numbers and what is subtracted is subtracted from the real part, as ``Normalizer`` does.
        per: ``"batch"`` takes the numbers from the whole tensor; ``"sample"`` from each entry of its first axis.
        kspace: ``x`` is the Fourier transform of an image (complex, or pairs): it is normalized as the image,
            ``fft2(normalize(ifft2(x)))``, as ``Normalizer`` does with ``apply_backward_transform``.
        fft_centered: the zero frequency is in the middle: shifted before and after each transform.
        fft_normalization: ``norm`` of the transforms: "backward", "ortho", "forward", or "none".
        spatial_dims: the two axes of the image, of ``x`` as a complex tensor.

    ``forward(x)``: tensor of any shape -> the same shape and dtype; integers are first made floating-point numbers of
    the default dtype.

    Raises InputError for another kind or option; in ``forward`` for data that the options do not fit.
    """

    def __init__(
        self,
        kind: str | None,
        *,
        complex_pairs: bool = False,
        per: Literal["batch", "sample"] = "batch",
        kspace: bool = False,
        fft_centered: bool = False,
        fft_normalization: str = "backward",
        spatial_dims: Sequence[int] = (-2, -1),
    ) -> None:
        super().__init__()
        if per not in ("batch", "sample"):
            raise InputError(f"per must be 'batch' or 'sample', got {per!r}")
        if str(fft_normalization).lower() not in _NORMS:
            raise InputError(f"fft_normalization must be one of {', '.join(_NORMS)}, got {fft_normalization!r}")
        self.normalization_type = check_kind(kind)
        self.complex_pairs, self.per, self.kspace = complex_pairs, per, kspace
        self.fft_centered, self.fft_normalization = fft_centered, str(fft_normalization).lower()
        self.spatial_dims = tuple(spatial_dims)

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_floating_point() and not x.is_complex():
            x = x.to(torch.get_default_dtype())
        self._check(x)
        if self.normalization_type in ("none", "fft"):
            return x
        if not self.kspace:
            return self._normalized(x, self.complex_pairs)
        image = self._transformed(torch.view_as_complex(x) if self.complex_pairs else x, back=True)
        again = self._transformed(self._normalized(image, pairs=False), back=False)
        return torch.view_as_real(again) if self.complex_pairs else again

    def _check(self, x: Tensor) -> None:
        if self.complex_pairs and (x.is_complex() or x.shape[-1] != 2):
            raise InputError(
                f"complex_pairs=True, but the input is {x.dtype} {list(x.shape)}: its last axis is no pair"
            )
        if self.kspace and not self.complex_pairs and not x.is_complex():
            raise InputError(
                f"kspace=True needs complex data, or pairs with complex_pairs=True; the input is {x.dtype}"
            )
        if self.per == "sample" and x.dim() - int(self.complex_pairs) < 2:
            raise InputError(f"per='sample' needs axes besides the one of the samples; the input is {list(x.shape)}")

    def _normalized(self, x: Tensor, pairs: bool) -> Tensor:
        kind, size = self.normalization_type, _size(x, pairs)
        if kind == "max":
            return _divided(x, self._of("max", size), pairs)
        if kind == "minmax":
            least = self._of("min", size)
            return _divided(_minus(x, least, pairs), self._of("max", size) - least, pairs)
        if kind == "grayscale":
            y = _minus(x, self._of("min", size), pairs)
            return _divided(y, self._of("max", _size(y, pairs)), pairs) * 255
        y = _minus(x, self._of("mean", size), pairs)
        return _divided(y, self._of("std" if kind == "mean_std" else "var", _size(y, pairs)), pairs)

    def _of(self, number: str, size: Tensor) -> Tensor:
        """One number for the whole tensor, or one for each sample, in a shape to compute with."""
        if self.per == "batch":
            whole: Tensor = getattr(size, number)()
            return whole
        name = {"min": "amin", "max": "amax"}.get(number, number)
        each: Tensor = getattr(size, name)(tuple(range(1, size.dim())), keepdim=True)
        return each

    def _transformed(self, x: Tensor, *, back: bool) -> Tensor:
        transform: Any = torch.fft.ifft2 if back else torch.fft.fft2
        norm = None if self.fft_normalization == "none" else self.fft_normalization
        if not self.fft_centered:
            return transform(x, dim=self.spatial_dims, norm=norm)  # type: ignore[no-any-return]
        shifted: Tensor = transform(torch.fft.ifftshift(x, dim=self.spatial_dims), dim=self.spatial_dims, norm=norm)
        again: Tensor = torch.fft.fftshift(shifted, dim=self.spatial_dims)
        return again

    def extra_repr(self) -> str:
        words = [repr(self.normalization_type)]
        words += [f"{name}=True" for name in ("complex_pairs", "kspace", "fft_centered") if getattr(self, name)]
        words += ["per='sample'"] if self.per == "sample" else []
        words += [f"fft_normalization={self.fft_normalization!r}"] if self.kspace else []
        return ", ".join(words)


def _size(x: Tensor, pairs: bool) -> Tensor:
    return x.square().sum(-1).sqrt() if pairs else x.abs()


def _minus(x: Tensor, number: Tensor, pairs: bool) -> Tensor:
    if not pairs:
        return x - number
    return torch.stack((x[..., 0] - number, x[..., 1]), -1)


def _divided(x: Tensor, number: Tensor, pairs: bool) -> Tensor:
    return x / (number[..., None] if pairs and number.dim() else number)
