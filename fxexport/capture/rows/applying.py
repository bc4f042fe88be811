"""An operator that keeps rows apart, on all rows: as it is where a rule says how, else on each row by itself."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from fxexport.capture.rows.alone import many
from fxexport.capture.rows.building import Builder
from fxexport.capture.rows.rules import RowCall
from fxexport.capture.rows.shapes import SHAPE_RULES
from fxexport.capture.rows.tables import LISTS, rule_for
from fxexport.capture.rows.values import OF_ROWS, Lone, Mixed, Rows, divided, formula, leaves_of, shape_of
from fxexport.program import same_size


def rowwise(call: RowCall, turn: int | None, build: Builder) -> Any:
    """What ``call`` makes of rows: of all of them, or of row number ``turn``.

    Raises Mixed where a row may read another one.
    """
    target: Any = call.node.target
    plain = all(
        not isinstance(v, list | tuple) or target in LISTS or not _holds(v, OF_ROWS) for v in call.args.values()
    )
    if plain and (call.rows() or target in LISTS) and not _holds(call.args, Lone):
        try:
            return _native(call, turn, build)
        except Mixed:
            if turn is None:
                raise
    if turn is None:
        raise Mixed(f"{target} may read other rows")
    return _alone(call, turn, build)


def _native(call: RowCall, turn: int | None, build: Builder) -> Any:
    target: Any = call.node.target
    if target in SHAPE_RULES:
        axes = SHAPE_RULES[target](call, build)
    else:
        rule = rule_for(target)
        if rule is None:
            raise Mixed(f"nothing is known of the rows of {target}")
        axes = rule(call)
    new = build.call(target, *_arguments(call))
    return _outputs(call.node, new, build, lambda item, i: _checked_rows(item, axes, i, turn, call, build))


def _arguments(call: RowCall) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of ``call`` as they were given: by position, or by name."""
    target: Any = call.node.target
    names = [argument.name for argument in target._schema.arguments]
    changed = [name for name in names if name in call.args]
    positional = [names[i] for i in range(len(call.node.args))]
    args = tuple(call.args[name] for name in positional)
    keep = {name: call.args[name] for name in changed if name in call.node.kwargs}
    more = {n: call.args[n] for n in changed if n not in positional and n not in keep and n in call.given}
    return args, {**keep, **more}


def _outputs(node: fx.Node, new: fx.Node, build: Builder, checked: Any) -> Any:
    old = node.meta["val"]
    if isinstance(old, torch.Tensor):
        return checked(new, None)
    if not isinstance(old, tuple | list):
        raise Mixed(f"{node.target} takes a number out of the rows")
    return tuple(checked(build.call(operator.getitem, (new, i)), i) for i in range(len(old)))


def _checked_rows(new: fx.Node, axes: Any, i: int | None, turn: int | None, call: RowCall, build: Builder) -> Rows:
    """``new`` as rows, which has to have the shape of the old result but for their number."""
    node, axis = call.node, axes if isinstance(axes, int) else axes[i or 0]
    old = node.meta["val"] if i is None else node.meta["val"][i]
    each = divided(old.shape[axis], call.before * (call.count if turn is None else 1))
    value = new.meta["val"]
    others = [k for k in range(old.dim()) if k != axis]
    fits = value.dim() == old.dim() and value.dtype == old.dtype
    fits = fits and each is not None and formula(value.shape[axis]) == each * call.before * build.symbol
    if not fits or not all(same_size(value.shape[k], old.shape[k]) for k in others):
        raise Mixed(f"{node.target} has another shape at another number of rows")
    return Rows(new, axis, turn, call.before)


def _alone(call: RowCall, turn: int, build: Builder) -> Any:
    """The call on each row by itself."""
    args = {name: _lone(value, build) for name, value in call.args.items()}
    call = RowCall(call.node, args, call.count, call.given)
    together, old = many(call, build), call.node.meta["val"]
    if together is not None:
        given, named = _arguments(together)
        new = build.call(call.node.target, given, named)
        made = _outputs(call.node, new, build, lambda item, i: Lone(item, turn))
        pairs = zip(pytree.tree_leaves(made), pytree.tree_leaves(old), strict=True)
        if all(_is_row(lone.node, value, build) for lone, value in pairs):
            return made
    results = build.one_row(call.node.target, *_arguments(call))
    flat = [results] if isinstance(results, fx.Node) else list(results)
    olds = [old] if isinstance(results, fx.Node) else list(old)
    for new, value in zip(flat, olds, strict=True):
        if not _is_row(new, value, build):
            raise Mixed(f"{call.node.target} has another shape on all rows at once")
    return Lone(results, turn) if isinstance(results, fx.Node) else tuple(Lone(new, turn) for new in flat)


def _is_row(new: fx.Node, old: Any, build: Builder) -> bool:
    shape = shape_of(new)
    fits = len(shape) == old.dim() + 1 and new.meta["val"].dtype == old.dtype
    fits = fits and formula(shape[0]) == build.symbol
    return fits and all(same_size(a, b) for a, b in zip(shape[1:], old.shape, strict=True))


def _lone(value: Any, build: Builder) -> Any:
    if isinstance(value, Rows):
        return build.alone(value)
    return [_lone(each, build) for each in value] if isinstance(value, list | tuple) else value


def _holds(value: Any, kinds: Any) -> bool:
    return any(isinstance(leaf, kinds) for leaf in leaves_of(value))
