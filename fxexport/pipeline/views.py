"""The views of wires, on numpy arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fxexport.errors import InputError
from fxexport.pipeline.ports import View

Array: TypeAlias = npt.NDArray[Any]


def dtype_of(name: str) -> np.dtype[Any]:
    """The numpy dtype of that name, ``"bfloat16"`` included; InputError where there is none."""
    if name == "bfloat16":
        import ml_dtypes  # comes with onnx

        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    found: np.dtype[Any]
    try:
        found = np.dtype(name)
    except TypeError:
        found = np.dtype(object)
    if found.kind not in "biufc":
        raise InputError(f"{name!r} is no dtype of tensors")
    return found


def apply_views(array: Array, views: Sequence[View], what: str) -> Array:
    """``array`` seen through ``views``, with the meaning they have in torch; ``what`` names the wire in errors.

    Raises InputError where a view does not fit the shape.
    """
    for view in views:
        try:
            array = _VIEWS[view.op](array, *view.arguments)
        except (IndexError, ValueError) as error:
            raise InputError(f"{what}: {view} does not fit shape {list(array.shape)}: {error}") from error
    return array


def _along(array: Array, dim: int, index: Any) -> Array:
    places: list[Any] = [slice(None)] * array.ndim
    places[dim] = index
    picked: Array = array[tuple(places)]
    return picked


def _slice(array: Array, dim: int, start: int | None, end: int | None, step: int | None) -> Array:
    if step is not None and step < 1:
        raise ValueError("the step of a slice must be positive")
    return _along(array, dim, slice(start, end, step))


def _select(array: Array, dim: int, index: int) -> Array:
    return np.asarray(_along(array, dim, index))


def _squeeze(array: Array, dim: int) -> Array:
    return np.squeeze(array, dim) if array.shape[dim] == 1 else array  # torch leaves other sizes alone


_VIEWS: dict[str, Callable[..., Array]] = {
    "slice": _slice,
    "select": _select,
    "permute": lambda array, *dims: np.transpose(array, dims),
    "unsqueeze": np.expand_dims,
    "squeeze": _squeeze,
    "cast": lambda array, dtype: array.astype(dtype_of(dtype)),
    "flip": lambda array, *dims: np.flip(array, dims),
}
