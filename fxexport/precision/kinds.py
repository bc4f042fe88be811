"""The precisions that can be asked for, with the tolerance each is proved by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fxexport.errors import InputError


@dataclass(frozen=True)
class Precision:
    """One way to compute with fewer bits.

    Attributes:
        dtype: what weights and activations become; None for int8, which is a rewrite of the ONNX file.
        rtol, atol: the default tolerance of real outputs; ``atol`` counts in units of the eager output's root mean square.
        step: the relative rounding error of one number.
    """

    name: str
    dtype: torch.dtype | None
    rtol: float
    atol: float
    step: float


PRECISIONS = {
    each.name: each
    for each in (
        Precision("fp16", torch.float16, 1e-2, 1e-2, torch.finfo(torch.float16).eps),
        Precision("bf16", torch.bfloat16, 5e-2, 8e-2, torch.finfo(torch.bfloat16).eps),
        Precision("int8-dynamic", None, 1e-1, 2e-1, 1 / 255),
    )
}


def requested_precision(name: str | None, kind: str, **options: object) -> Precision | None:
    """The precision of that name. ``kind``: the format to write; ``options``: what int8 cannot be combined with.

    Raises InputError for an unknown name, and for int8 in another format than ONNX or with one of ``options``.
    """
    if name is None:
        return None
    if name not in PRECISIONS:
        raise InputError(f"precision {name!r} is not known; give one of {', '.join(PRECISIONS)}")
    found = PRECISIONS[name]
    if found.dtype is None and kind != "onnx":
        raise InputError(f"precision={name!r} is for .onnx files, not {kind}: export to .onnx, or use 'fp16' or 'bf16'")
    for option, value in options.items() if found.dtype is None else ():
        if value:
            raise InputError(f"precision={name!r} cannot be combined with {option}: leave one of them out")
    return found


def precision_of(metadata: Mapping[str, Any] | None) -> Precision | None:
    """The precision that a published file was made with, by its metadata."""
    entry = (metadata or {}).get("precision")
    return PRECISIONS[entry["name"]] if entry else None
