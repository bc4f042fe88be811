"""Numbers that expressions of the user's code have at a line, as far as reading them runs none of that code."""

from __future__ import annotations

import ast
import inspect
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

UNKNOWN: Any = object()
"""What an expression is that cannot be read without running it."""
_ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_SIZED = {"shape", "size", "numel", "len", "ndim", "dim"}
_LENGTHS = (list, tuple, dict, set, str, range)


def value_of(expression: ast.expr, names: Mapping[str, Any]) -> Any:
    """The value of ``expression`` where ``names`` are the variables; UNKNOWN where that takes a call of user code."""
    reader = _READERS.get(type(expression))
    return reader(expression, names) if reader is not None else UNKNOWN


def numbers_of(expression: ast.expr, names: Mapping[str, Any]) -> tuple[Any, ...]:
    """The numbers that ``expression`` depends on: its own value, or those of its parts where it cannot be read.

    Empty for what is no number: None, a flag, a tensor. Where a size of something unread is asked, the sizes of all
    tensors in it.
    """
    value = value_of(expression, names)
    if value is not UNKNOWN:
        return _numbers(value)
    sized = any({getattr(n, "attr", ""), getattr(n, "id", "")} & _SIZED for n in ast.walk(expression))
    return tuple(number for part in ast.iter_child_nodes(expression) for number in _parts(part, names, sized))


def _parts(node: ast.AST, names: Mapping[str, Any], sized: bool) -> Iterator[Any]:
    known = value_of(node, names) if isinstance(node, ast.expr) else UNKNOWN
    if known is UNKNOWN:
        for part in ast.iter_child_nodes(node):
            yield from _parts(part, names, sized)
    elif sized and isinstance(known, torch.Tensor):
        yield tuple(known.shape)
    else:
        yield from _numbers(known)


def length_of(expression: ast.expr, names: Mapping[str, Any]) -> Any:
    """How many elements ``expression`` has, the sizes in it where it cannot be read, or None."""
    value = value_of(expression, names)
    if value is UNKNOWN:
        shapes = [value_of(part, names) for part in ast.walk(expression) if isinstance(part, ast.Name)]
        return tuple(tuple(each.shape) for each in shapes if isinstance(each, torch.Tensor)) or None
    length = _length(value)
    return None if length is UNKNOWN else length


def _numbers(value: Any) -> tuple[Any, ...]:
    if isinstance(value, bool):
        return ()
    if isinstance(value, int | float):
        return (value,)
    if isinstance(value, tuple):
        return tuple(number for each in value for number in _numbers(each))
    return (len(value),) if type(value) in (list, dict, set) else ()


def _length(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.shape[0] if value.dim() else UNKNOWN
    if isinstance(value, nn.ModuleList | nn.Sequential | nn.ModuleDict):
        return len(value._modules)
    return len(value) if type(value) in _LENGTHS or isinstance(value, torch.Size) else UNKNOWN


def _name(expression: Any, names: Mapping[str, Any]) -> Any:
    return names.get(expression.id, UNKNOWN)


def _attribute(expression: Any, names: Mapping[str, Any]) -> Any:
    base, name = value_of(expression.value, names), expression.attr
    if base is UNKNOWN:
        return UNKNOWN
    if isinstance(base, torch.Tensor):
        return getattr(base, name) if name in ("shape", "ndim") else UNKNOWN
    if isinstance(base, nn.Module):
        for own in (base._modules, base._parameters, base._buffers):
            if name in own:
                return own[name]
    found = inspect.getattr_static(base, name, UNKNOWN)
    return UNKNOWN if hasattr(type(found), "__get__") else found


def _subscript(expression: Any, names: Mapping[str, Any]) -> Any:
    base = value_of(expression.value, names)
    place = expression.slice
    if isinstance(place, ast.Slice):
        bounds = [None if b is None else value_of(b, names) for b in (place.lower, place.upper, place.step)]
        known = all(b is None or isinstance(b, int) for b in bounds)
        return base[slice(*bounds)] if known and isinstance(base, tuple) else UNKNOWN
    index = value_of(place, names)
    if isinstance(base, tuple | list) and isinstance(index, int):
        return base[index] if -len(base) <= index < len(base) else UNKNOWN
    return base.get(index, UNKNOWN) if type(base) is dict and isinstance(index, int | str) else UNKNOWN


def _binary(expression: Any, names: Mapping[str, Any]) -> Any:
    sides = value_of(expression.left, names), value_of(expression.right, names)
    compute = _ARITHMETIC.get(type(expression.op))
    if compute is None or not all(isinstance(side, int | float) for side in sides):
        return UNKNOWN
    return UNKNOWN if not sides[1] and compute not in (operator.add, operator.sub, operator.mul) else compute(*sides)


def _unary(expression: Any, names: Mapping[str, Any]) -> Any:
    value = value_of(expression.operand, names)
    if isinstance(expression.op, ast.Not):
        return UNKNOWN
    return -value if isinstance(expression.op, ast.USub) and isinstance(value, int | float) else UNKNOWN


def _call(expression: Any, names: Mapping[str, Any]) -> Any:
    function, args = expression.func, [value_of(arg, names) for arg in expression.args]
    if any(arg is UNKNOWN for arg in args) or expression.keywords:
        return UNKNOWN
    if isinstance(function, ast.Attribute):
        return _size(value_of(function.value, names), function.attr, args)
    if not isinstance(function, ast.Name) or function.id in names:
        return UNKNOWN
    if function.id == "range" and all(type(arg) is int for arg in args) and 0 not in args[2:]:
        return range(*args)
    if len(args) != 1:
        return UNKNOWN
    if function.id == "len":
        return _length(args[0])
    if function.id == "int":
        return int(args[0]) if type(args[0]) is int else UNKNOWN
    return args[0] if function.id in ("tuple", "list", "enumerate", "reversed", "iter") else UNKNOWN


def _size(base: Any, name: str, args: list[Any]) -> Any:
    if not isinstance(base, torch.Tensor):
        return UNKNOWN
    if name == "size" and args and type(args[0]) is int and -base.dim() <= args[0] < base.dim():
        return base.shape[args[0]]
    if args:
        return UNKNOWN
    return {"size": base.shape, "dim": base.dim(), "ndimension": base.dim(), "numel": base.numel()}.get(name, UNKNOWN)


def _listed(expression: Any, names: Mapping[str, Any]) -> Any:
    values = tuple(value_of(each, names) for each in expression.elts)
    return UNKNOWN if any(value is UNKNOWN for value in values) else values


_READERS: dict[type, Callable[[Any, Mapping[str, Any]], Any]] = {
    ast.Constant: lambda expression, names: expression.value,
    ast.Name: _name,
    ast.Attribute: _attribute,
    ast.Subscript: _subscript,
    ast.BinOp: _binary,
    ast.UnaryOp: _unary,
    ast.Call: _call,
    ast.NamedExpr: lambda expression, names: value_of(expression.value, names),
    ast.Tuple: _listed,
    ast.List: _listed,
}
