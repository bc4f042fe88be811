"""What callers give, as numpy arrays of exactly the declared dtype."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

import numpy as np

from fxexport.errors import InputError
from fxexport.pipeline.views import Array, dtype_of

# Kinds of dtypes (numpy's letters) -> those of the Python numbers that they can hold; "V" is bfloat16.
_HELD_BY = {"b": "b", "i": "biu", "u": "biu", "f": "biuf", "V": "biuf", "c": "biufc"}


def to_array(value: Any, dtype: str, what: str) -> Array:
    """``value`` as an array: an array or a torch tensor of that dtype, or numbers and nested lists that fit it.

    Raises InputError for another dtype, for numbers that the dtype cannot hold, and for what is no tensor.
    """
    wanted = dtype_of(dtype)
    if isinstance(value, bool | int | float | complex | list | tuple):
        return _from_numbers(value, wanted, what)
    if type(value).__module__.split(".")[0] == "torch" and hasattr(value, "detach"):
        value = _from_torch(value)
    if not hasattr(value, "__array__"):
        raise InputError(f"{what} must be an array, a tensor or numbers, got {type(value).__name__}")
    array = np.asarray(value)
    if array.dtype != wanted:
        raise InputError(f"{what} is {wanted.name}, got {array.dtype.name}")
    return array


def to_torch(array: Array) -> Any:
    """A torch tensor with the content of ``array`` in memory of its own, bfloat16 included; needs PyTorch."""
    import torch

    own = np.array(array, order="C")  # torch warns of arrays that it must not write to
    if own.dtype.name == "bfloat16":
        return torch.from_numpy(own.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(own)


def pairs_of(array: Array) -> Array:
    """``[...]`` complex -> ``[..., 2]`` real, real and imaginary part."""
    return np.stack([array.real, array.imag], -1)


def of_pairs(array: Array) -> Array:
    """The inverse of `pairs_of`."""
    kind = np.result_type(array.dtype, np.complex64)
    return np.ascontiguousarray(array).view(kind)[..., 0]


def unknown_name(name: str, known: Iterable[str]) -> str:
    """The rest of a message about a name that is not known: the one that was meant, or all of them."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=3)
    if close:
        return f"; did you mean {' or '.join(map(repr, close))}?"
    return f"; there are {', '.join(names)}" if names else "; there are none"


def _from_torch(tensor: Any) -> Any:
    plain = tensor.detach().cpu().resolve_conj().resolve_neg()
    if str(plain.dtype) == "torch.bfloat16":  # numpy() knows no such type, so take the bits
        import torch

        return plain.view(torch.int16).numpy().view(dtype_of("bfloat16"))
    return plain.numpy()


def _from_numbers(value: Any, wanted: np.dtype[Any], what: str) -> Array:
    """Python numbers take the declared dtype where it holds them: no fraction, sign or size may be lost."""
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise InputError(f"{what} must be numbers in lists of equal length: {error}") from error
    if array.dtype.kind not in "biufc":
        raise InputError(f"{what} must be numbers, got {value!r:.80}")
    lossy = array.dtype.kind not in _HELD_BY[wanted.kind]
    if wanted.kind in "iu" and not lossy and array.size:
        limits = np.iinfo(wanted)
        lossy = int(array.min()) < limits.min or int(array.max()) > limits.max
    if lossy and array.size:
        raise InputError(f"{what} is {wanted.name}, which cannot hold {value!r:.80}")
    return array.astype(wanted)
