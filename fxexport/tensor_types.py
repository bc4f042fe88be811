"""Declared types of inputs and outputs: our own ``Tensor`` and the toolboxes' NeuralType, read into one form.

NeuralTypes are read by their attributes; no toolbox is imported.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

import torch

from fxexport.errors import InputError

Dynamic = Literal["declared", "allowed", "fixed"]

_FIXED = {"channel", "dimension", "feature", "singleton"}
_FIXED_WORDS = {word: word for word in _FIXED} | {f"{word}s": word for word in _FIXED}
_TOOLBOX_DYNAMIC = {"batch", "time", "width", "height", "sequence", "duration"}
_TOOLBOX_WORDS = {
    **{"b": "batch", "n": "batch", "t": "time", "d": "dimension", "c": "channel", "w": "width", "h": "height"},
    **{"s": "singleton", "seq": "sequence", "flowgroup": "flowgroup", "any": "any"},
    **_FIXED_WORDS,
    **{word: word for word in _TOOLBOX_DYNAMIC},
}


@dataclass(frozen=True, init=False, repr=False)
class Tensor:
    """The type of one input or output, for ``input_types`` and ``output_types``: ``Tensor("batch", 80, "time")``.

    An int is a fixed size. ``"channel"``, ``"dimension"``, ``"feature"`` and ``"singleton"`` (or their plurals) are
    axes that keep the size of the example. ``"any"`` is dynamic where the model allows it. Every other name is a
    dynamic dimension; it becomes the dimension's name in the artifact, and equal names are equal sizes.

    Attributes:
        axes: names and sizes, in order; none at all for a scalar.
        dtype: None where any dtype will do.
        optional: the tensor may be absent.
    """

    axes: tuple[str | int, ...]
    dtype: torch.dtype | None
    optional: bool

    def __init__(self, *axes: str | int, dtype: torch.dtype | None = None, optional: bool = False) -> None:
        """Raises InputError for an axis that is neither an identifier nor a size >= 0, or a dtype that is none."""
        for axis in axes:
            named = isinstance(axis, str) and re.fullmatch(r"[A-Za-z_]\w*", axis, re.ASCII)
            sized = isinstance(axis, int) and not isinstance(axis, bool) and axis >= 0
            taken = keyword.iskeyword(str(axis))  # formulas such as 2*time are read as Python expressions
            if (not named and not sized) or taken:
                raise InputError(
                    f"Tensor: the axis {axis!r} must be an identifier such as 'time' (no word of Python), or a size >= 0"
                )
        if dtype is not None and not isinstance(dtype, torch.dtype):
            raise InputError(f"Tensor: dtype={dtype!r} is no torch.dtype; write torch.float32 for instance")
        object.__setattr__(self, "axes", axes)
        object.__setattr__(self, "dtype", dtype)
        object.__setattr__(self, "optional", bool(optional))

    def __repr__(self) -> str:
        parts = [repr(axis) for axis in self.axes]
        parts += [f"dtype={self.dtype}"] * (self.dtype is not None) + ["optional=True"] * self.optional
        return f"Tensor({', '.join(parts)})"


@dataclass(frozen=True)
class TypedAxis:
    """One axis as declared.

    ``kind``: ``"batch"``, ``"time"``, ``"channel"``, ``"any"``...; a name of the user's own is kept as written.
    ``size``: the size where the type says one. ``shared``: axes of this kind have the same size in every tensor.
    """

    kind: str
    size: int | None = None
    dynamic: Dynamic = "fixed"
    shared: bool = False


@dataclass(frozen=True)
class TypedTensor:
    """One tensor as declared. ``axes`` is None where rank and axes are unknown, ``dtype`` None where any will do."""

    axes: tuple[TypedAxis, ...] | None
    dtype: torch.dtype | None = None
    optional: bool = False

    def __str__(self) -> str:
        axes = "..." if self.axes is None else ", ".join(str(a.kind if a.size is None else a.size) for a in self.axes)
        return f"{'any dtype' if self.dtype is None else str(self.dtype).removeprefix('torch.')}[{axes}]"

    def contradiction(self, value: object) -> str | None:
        """What in a tensor (or number, or None: never a contradiction) is not as declared; None where all of it is."""
        if value is None:
            return None
        if not isinstance(value, torch.Tensor):  # becomes a tensor without axes
            return f"it has {len(self.axes)} axes too few" if self.axes else None
        if self.dtype is not None and value.dtype != self.dtype:
            return f"the dtype is {str(value.dtype).removeprefix('torch.')}"
        if self.axes is None:
            return None
        if len(self.axes) != value.dim():
            return f"{len(self.axes)} axes are declared, the tensor has {value.dim()}"
        for position, (axis, size) in enumerate(zip(self.axes, value.shape, strict=True)):
            if axis.size not in (None, size):
                return f"axis {position} has size {size}"
        return None


Declared = TypedTensor | tuple[TypedTensor, ...]
"""What one name stands for; a tuple: nested states."""

TypedMap = dict[str, Declared]


def read_types(given: object, *, hook: str, owner: str) -> TypedMap | None:
    """The types that ``owner.hook`` gave: None, or a mapping from name to ``Tensor``, NeuralType, or a tuple or list of
    these.

    Raises InputError, naming the hook, for anything else.
    """
    where = f"{owner}.{hook}"
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise InputError(
            f"{where} gave {_describe(given)}; it must give None or a dict such as "
            '{"audio": Tensor("batch", "time")}' + (" (is it a method? call it)" if callable(given) else "")
        )
    types: TypedMap = {}
    for name, value in given.items():
        if not isinstance(name, str) or not name:
            raise InputError(f"{where} has the name {name!r}; the names of tensors must be non-empty strings")
        if not name.isprintable():
            raise InputError(
                f"{where} has the name {name!r}; the names of tensors hold no line breaks or control characters"
            )
        types[name] = _read_entry(value, f"{where}[{name!r}]")
    return types


def _read_entry(value: object, where: str) -> Declared:
    if not isinstance(value, tuple | list):
        return _read_one(value, where)
    found = tuple(_read_one(item, where) for item in _flat(value))
    if not found:
        raise InputError(f"{where} is empty; give the type of each tensor of the state, or of one of them in a list")
    return found


def _flat(value: Iterable[object]) -> Iterator[object]:
    for item in value:
        if isinstance(item, tuple | list):
            yield from _flat(item)
        else:
            yield item


def _read_one(value: Any, where: str) -> TypedTensor:
    if isinstance(value, Tensor):
        return TypedTensor(tuple(map(_own_axis, value.axes)), value.dtype, value.optional)
    if isinstance(value, type) or not hasattr(value, "axes"):
        raise InputError(
            f"{where} is {_describe(value)}, which is no type of a tensor; write "
            'Tensor("batch", "time", dtype=torch.float32), a NeuralType, or a tuple of these'
        )
    axes, optional = value.axes, bool(getattr(value, "optional", False))
    if axes is None:
        return TypedTensor(None, optional=optional)
    if isinstance(axes, str):  # ('T') is a str: the one axis "T", as "BT" is the two axes "B" and "T"
        axes = (axes,) if _toolbox_word(axes) else tuple(axes)
    if not isinstance(axes, tuple | list):
        raise InputError(f"{where}.axes is {_describe(axes)}; it must be a tuple of axes such as ('B', 'T'), or None")
    # An axis that is a Python list is none of the tensors in that list.
    tensor_axes = (axis for axis in axes if not getattr(axis, "is_list", False))
    return TypedTensor(tuple(_toolbox_axis(axis, where) for axis in tensor_axes), optional=optional)


def _own_axis(axis: str | int) -> TypedAxis:
    if isinstance(axis, int):
        return TypedAxis(str(axis), axis)
    word = axis.lower()
    if word in _FIXED_WORDS:
        return TypedAxis(_FIXED_WORDS[word])
    if word == "any":
        return TypedAxis("any", dynamic="allowed")
    return TypedAxis(word if word in _TOOLBOX_DYNAMIC else axis, dynamic="declared", shared=True)


def _toolbox_word(label: str) -> str | None:
    """The kind that a toolbox's short label stands for: ``"B"``, ``"T_text"``, ``"channel"``; None for others."""
    word = label.lower().strip()
    return "time" if re.fullmatch("t_.+", word) else _TOOLBOX_WORDS.get(word)


def _toolbox_axis(axis: Any, where: str) -> TypedAxis:
    kind, size = getattr(axis, "kind", axis), getattr(axis, "size", None)
    if isinstance(kind, Enum):
        kind = kind.name
    elif not isinstance(kind, str) or (kind is axis and not _toolbox_word(kind)):
        known = sorted(_TOOLBOX_WORDS)
        raise InputError(f"{where} has the axis {_describe(axis)}, which is no known kind; the kinds are {known}")
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 0):
        raise InputError(f"{where} has an axis {kind!r} of size {size!r}; a size is a number >= 0, or None")
    word = _toolbox_word(kind) or kind.lower()
    if size is not None:
        return TypedAxis(word, size)
    if word == "any":
        return TypedAxis(word, dynamic="allowed")
    return TypedAxis(word, dynamic="declared" if word in _TOOLBOX_DYNAMIC else "fixed", shared=word == "batch")


def _describe(value: object) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__} itself"
    text = repr(value)
    return f"{text if len(text) <= 80 else text[:77] + '...'} ({type(value).__name__})"
