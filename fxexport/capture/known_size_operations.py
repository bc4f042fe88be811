"""What operations make of small tensors that hold sizes."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch

from fxexport.capture.known_running import for_real, run_for_real, words
from fxexport.capture.known_sizes import (
    NotFollowed,
    Sizes,
    checked,
    is_short,
    is_symbolic,
    leaves_of,
    listed,
    number,
    positions,
    precision,
    sizes_of,
    truth,
    whole,
)

_IRRELEVANT = ("device", "requires_grad", "pin_memory")


def follow(name: str, args: Sequence[Any], kwargs: dict[str, Any], like: torch.Tensor | tuple[Any, ...]) -> Any:
    """The elements of the result, a tensor like ``like`` or a tuple of such, of the operation ``name``.

    Tensors among ``args`` are Sizes or real tensors. Raises NotFollowed.
    """
    kwargs = {key: value for key, value in kwargs.items() if key not in _IRRELEVANT}
    if name in _MOVES:
        return _moved(name, args, kwargs, like)
    if not isinstance(like, torch.Tensor):
        raise NotFollowed
    dtype, shape = like.dtype, tuple(like.shape)
    kwargs.pop("dtype", None)
    if name in _MADE:
        data = args[1] if name == "new_tensor" else args[0]
        return checked(_flat(data), shape, dtype)
    if name in _SAME:
        return checked(sizes_of(args[0]).elements, shape, dtype)
    if name in _UNARY and len(args) == 1 and not kwargs:
        return checked([_UNARY[name](element) for element in sizes_of(args[0]).elements], shape, dtype)
    if name in _BINARY and len(args) == 2:
        return _elementwise(name, args, kwargs, shape, dtype)
    if name in _REDUCTIONS:
        return _reduced(name, args, kwargs, shape, dtype)
    raise NotFollowed


def put(into: Sizes | torch.Tensor, index: Any, value: Any) -> Sizes:
    """``into`` after ``into[index] = value``. Raises NotFollowed."""
    old, new = sizes_of(into), sizes_of(value)
    places = positions(old)
    with for_real():
        chosen = places[index]
    pairs = zip(listed(chosen.clone), listed(positions(new).expand, tuple(chosen.shape)), strict=True)
    written = {place: new.elements[source] for place, source in pairs}
    elements = [written.get(place, element) for place, element in enumerate(old.elements)]
    return checked(elements, old.shape, old.dtype)


def _flat(data: Any) -> list[Any]:
    if isinstance(data, list | tuple):
        return [element for part in data for element in _flat(part)]
    return list(sizes_of(data).elements)


def _exact(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` of numbers that are held as they are: rounding once more would be one time too many."""

    def apply(*values: Any) -> Any:
        values = tuple(number(value) for value in values)
        if not all(precision(value) == 2 for value in values):
            raise NotFollowed
        return function(*values)

    return apply


def _compared(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def apply(left: Any, right: Any) -> Any:
        left, right = number(left), number(right)
        if precision(left) + precision(right) < 3 or not all(map(_is_plain_float, (left, right))):
            raise NotFollowed
        return function(left, right)

    return apply


def _is_plain_float(value: Any) -> bool:
    """A quotient may be next to any number; so far only those that are short are known to be far enough."""
    return not isinstance(value, float) or is_short(value) or value.is_integer()


def _of_integers(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def apply(left: Any, right: Any) -> Any:
        left, right = number(left), number(right)
        if not all(isinstance(value, int | torch.SymInt) for value in (left, right)):
            raise NotFollowed
        return function(left, right)

    return apply


def _both(left: Any, right: Any) -> Any:
    return operator.and_(truth(left), truth(right))


def _either(left: Any, right: Any) -> Any:
    return operator.or_(truth(left), truth(right))


def _reflected(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda left, right: function(right, left)


def _of_bools(function: Callable[..., Any]) -> Callable[..., Any]:
    """The bitwise operator where it is the logical one."""

    def apply(*values: Any) -> Any:
        if not all(isinstance(value, bool | torch.SymBool) for value in values):
            raise NotFollowed
        return function(*values)

    return apply


_add, _mul, _div = _exact(operator.add), _exact(operator.mul), _exact(operator.truediv)
_sub, _floordiv, _mod = _exact(operator.sub), _of_integers(operator.floordiv), _of_integers(operator.mod)
_larger, _smaller = _compared(torch.sym_max), _compared(torch.sym_min)
_and, _or = _of_bools(_both), _of_bools(_either)
_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    **{name: _compared(getattr(operator, name)) for name in ("eq", "ne", "lt", "le", "gt", "ge")},
    **{"add": _add, "mul": _mul, "multiply": _mul, "sub": _sub, "subtract": _sub, "rsub": _reflected(_sub)},
    **{"div": _div, "divide": _div, "true_divide": _div, "rdiv": _reflected(_div)},
    **{"floordiv": _floordiv, "floor_divide": _floordiv, "rfloordiv": _reflected(_floordiv)},
    **{"remainder": _mod, "mod": _mod, "rmod": _reflected(_mod)},
    **{"maximum": _larger, "max": _larger, "minimum": _smaller, "min": _smaller},
    **{"logical_and": _both, "logical_or": _either, "and": _and, "or": _or, "bitwise_and": _and, "bitwise_or": _or},
}
_UNARY: dict[str, Callable[[Any], Any]] = {
    **{"neg": lambda v: -number(v), "abs": lambda v: abs(number(v)), "square": _exact(lambda v: v * v)},
    **{"negative": lambda v: -number(v), "absolute": lambda v: abs(number(v)), "trunc": whole, "fix": whole},
    **{"ceil": lambda v: math.ceil(number(v)), "floor": lambda v: math.floor(number(v))},
    "logical_not": lambda v: torch.sym_not(truth(v)),  # type: ignore[no-untyped-call]
    "invert": _of_bools(torch.sym_not),
    "bitwise_not": _of_bools(torch.sym_not),
}
_REDUCTIONS: dict[str, Callable[[Any, Any], Any]] = {
    **{"sum": _add, "mean": _add, "prod": _mul, "max": _larger, "amax": _larger, "min": _smaller, "amin": _smaller},
    **{"any": _either, "all": _both},
}
_MADE = words("tensor as_tensor new_tensor scalar_tensor")
_SAME = words("float double long int bool to type_as clone detach contiguous cpu data lift_fresh_copy.default")
_MOVES = words(
    "getitem view reshape flatten squeeze unsqueeze stack cat concat flip expand permute transpose T unbind split chunk "
    "select repeat tile roll index_select"
)


def _elementwise(
    name: str, args: Sequence[Any], kwargs: dict[str, Any], shape: tuple[int, ...], dtype: torch.dtype
) -> Sizes:
    mode = kwargs.pop("rounding_mode", None)
    if kwargs:
        raise NotFollowed
    operation = _BINARY[name] if mode is None else {"floor": _floordiv}.get(mode)
    if operation is None:
        raise NotFollowed
    sides = [sizes_of(arg) for arg in args]
    pairs = zip(*(listed(positions(side).expand, shape) for side in sides), strict=True)
    return checked([operation(sides[0].elements[a], sides[1].elements[b]) for a, b in pairs], shape, dtype)


def _reduced(
    name: str, args: Sequence[Any], kwargs: dict[str, Any], shape: tuple[int, ...], dtype: torch.dtype
) -> Sizes:
    """Over all elements, or along one dimension."""
    of = sizes_of(args[0])
    kwargs.pop("keepdim", None)
    dim = kwargs.pop("dim", args[1] if len(args) > 1 else None)
    if kwargs or (dim is not None and (not isinstance(dim, int) or not of.shape)):
        raise NotFollowed
    places = positions(of)
    order = listed(places.movedim, dim, -1) if dim is not None else listed(places.clone)
    width = len(order) if dim is None else of.shape[dim]
    if not width:
        raise NotFollowed
    results = []
    for start in range(0, len(order), width):
        row = [of.elements[place] for place in order[start : start + width]]
        total = functools.reduce(_REDUCTIONS[name], row)
        results.append(_div(total, width) if name == "mean" else total)
    return checked(results, shape, dtype)


def _moved(name: str, args: Sequence[Any], kwargs: dict[str, Any], like: Any) -> Any:
    """What only moves elements moves their positions."""
    if any(is_symbolic(leaf) for leaf in leaves_of((args[1:], kwargs))):
        raise NotFollowed
    elements: list[Any] = []

    def numbered(value: Any) -> Any:
        if isinstance(value, Sizes | torch.Tensor):
            sizes = sizes_of(value)
            elements.extend(sizes.elements)
            return positions(sizes, len(elements) - len(sizes.elements))
        return [numbered(part) for part in value] if isinstance(value, list | tuple) else value

    moves = {"getitem": operator.getitem, "T": lambda t: t.T}
    given = [numbered(args[0]), *args[1:]]
    move = moves.get(name) or getattr(torch.Tensor if isinstance(given[0], torch.Tensor) else torch, name)
    moved = run_for_real(move, given, kwargs)
    single = isinstance(like, torch.Tensor)
    found = [
        checked([elements[place] for place in listed(part.clone)], tuple(part.shape), tensor.dtype)
        for part, tensor in zip([moved] if single else moved, [like] if single else like, strict=True)
    ]
    return found[0] if single else tuple(found)
