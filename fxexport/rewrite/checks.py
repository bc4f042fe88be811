"""What must hold after a pass: changed calls compute what ``meta["val"]`` says, outputs keep their form."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch._ops import HigherOrderOperator
from torch.fx.experimental.symbolic_shapes import ShapeEnv, free_unbacked_symbols
from torch.utils import _pytree as pytree

from fxexport.control_flow import COND, WHILE_LOOP, SubGraph, inside, operands_of
from fxexport.errors import VerifyError
from fxexport.program import Program, check_same_value, same_size, source_line

aten = torch.ops.aten
_VIEWS = (aten.view.default, aten._unsafe_view.default)
_SEE_MEMORY = (aten.as_strided.default, aten.sym_stride.int, aten.sym_storage_offset.default)


def changed_calls(before: Program, after: Program) -> list[fx.Node]:
    """Calls of ``after`` that are new, or have another operator or arguments than under that name before; those in
    branches and loop bodies among them."""
    old: dict[str, dict[str, fx.Node]] = {
        place: {n.name: n for n in graph.nodes} for place, _, graph in before.graphs()
    }
    found: list[fx.Node] = []
    for path, _, graph in after.graphs():
        known = old.get(path, {})
        found += [n for n in graph.nodes if n.op == "call_function" and not _same_call(n, known.get(n.name))]
    return found


def untouched(before: Program, after: Program) -> bool:
    """Whether a copy is still what ``before`` is: call for call in the same order, with the same ``meta`` and notes."""
    if after.made or after.notes != before.notes or after.signature != before.signature:
        return False
    for (path, _, graph), (other_path, _, other) in zip(before.graphs(), after.graphs(), strict=False):
        if path != other_path or len(graph.nodes) != len(other.nodes):
            return False
        if not all(map(_same_node, other.nodes, graph.nodes)):
            return False
    return True


def _same_node(new: fx.Node, old: fx.Node) -> bool:
    same_meta = len(new.meta) == len(old.meta) and all(new.meta.get(key) is value for key, value in old.meta.items())
    return same_meta and new.name == old.name and new.op == old.op and _same_call(new, old)


def check_change(before: Program, after: Program, changed: Sequence[fx.Node]) -> None:
    """Checks the ``changed`` calls of ``after``, its new constants and its outputs against what they claim to
    be.

    Strides that a rewrite changed are brought up to date in ``meta["val"]``, also of later calls. Raises
    VerifyError naming the first call whose shape or dtype is not what its ``meta["val"]`` says.
    """
    _check_constants(before, after)
    with _no_new_symbols(after):
        values = {path: {n.name: n.meta.get("val") for n in graph.nodes} for path, _, graph in before.graphs()}
        _check_values(after, next(after.graphs()), values, set(changed), set())
    if before.signature == after.signature:
        for old, new in zip(before.output_nodes, after.output_nodes, strict=True):
            if isinstance(old, fx.Node) and isinstance(new, fx.Node):
                check_same_value(old, new)


def fixed_dimensions(program: Program) -> set[str]:
    """The dynamic dimensions known to equal something else by now, as ``"s0 = 4"``."""
    env = program.fake_mode.shape_env
    return {f"{symbol} = {value}" for symbol, value in env.replacements.items()} if env else set()


def _check_constants(before: Program, after: Program) -> None:
    known = {node.name for node in before.graph.find_nodes(op="placeholder")}
    for node in after.graph.find_nodes(op="placeholder"):
        value = None if node.name in known else after.constant_value(node)
        if value is not None and not _same_value(node.meta.get("val"), value):
            raise VerifyError(f'new constant {node.name} is {_form(value)}, its meta["val"] says otherwise')


def _check_values(
    after: Program, at: SubGraph, before: Mapping[str, Mapping[str, Any]], changed: set[fx.Node], moved: set[fx.Node]
) -> None:
    """Recomputes the changed calls of a graph, and the calls that read a value whose strides or form are new.

    ``before``: the values that the program had before, by graph and name. ``moved``: placeholders with new strides.
    """
    old = before.get(at.path, {})
    for node in at.graph.nodes:
        if node.target in (COND, WHILE_LOOP) and _check_inside(after, at, node, before, changed, moved):
            moved.add(node)
        if node.op != "call_function" or isinstance(node.target, HigherOrderOperator):
            continue
        if node not in changed and moved.isdisjoint(node.all_input_nodes):
            continue
        if node.target in _SEE_MEMORY and not moved.isdisjoint(node.all_input_nodes):
            raise VerifyError(
                f"{node.name} ({node.target}) looks at the memory of a value that now lies there in another order; "
                f"made at {source_line(node) or 'an unknown line'}"
            )
        claimed = node.meta["val"]
        actual = _recompute(after, node)
        if claimed is actual and node.name not in old:
            continue
        if claimed is not actual and not _same_value(claimed, actual):
            raise VerifyError(
                f'{node.name} ({node.target}) is {_form(actual)}, its meta["val"] says {_form(claimed)}; '
                f"made at {source_line(node) or 'an unknown line'}"
            )
        if node.meta.get("unbacked_bindings"):  # its size is a new symbol each time; the readers know the one it has
            continue
        if claimed is not actual and not _same_strides(claimed, actual):
            node.meta["val"] = actual
        if node.name in old and node.meta["val"] is not old[node.name]:
            moved.add(node)


def _check_inside(
    after: Program,
    at: SubGraph,
    call: fx.Node,
    before: Mapping[str, Mapping[str, Any]],
    changed: set[fx.Node],
    moved: set[fx.Node],
) -> bool:
    """Checks the graphs of a branch or loop; whether its own results have new strides by that."""
    touched = False
    for each in inside(at, call):
        places: set[fx.Node] = set()
        for place, operand in zip(each.graph.find_nodes(op="placeholder"), operands_of(call), strict=True):
            if operand in moved:
                place.meta["val"] = operand.meta["val"]
                places.add(place)
        touched = touched or bool(places) or not changed.isdisjoint(each.graph.nodes)
        _check_values(after, each, before, changed, places)
    results: Any = each.graph.output_node().args[0]  # of the second branch, or of the body
    values = [n.meta["val"] if isinstance(n, fx.Node) else n for n in results]
    if not touched or free_unbacked_symbols(values) or all(map(_same_strides, call.meta["val"], values)):
        return False
    call.meta["val"] = tuple(values)
    return True


def _recompute(program: Program, node: fx.Node) -> Any:
    try:
        return program.propagate(node)
    except Exception as error:
        if node.target in _VIEWS:  # its source has other strides now; the same values without that condition
            node.target = aten.reshape.default
            return _recompute(program, node)
        raise VerifyError(
            f"{node.name} ({node.target}) does not accept its arguments any more: {error}; "
            f"made at {source_line(node) or 'an unknown line'}"
        ) from error


def _no_new_symbols(program: Program) -> contextlib.AbstractContextManager[Any]:
    """Recomputing ``nonzero`` or ``item`` makes a new unknown size, which nothing in the program reads."""
    env = program.fake_mode.shape_env
    return env.ignore_fresh_unbacked_symbols() if isinstance(env, ShapeEnv) else contextlib.nullcontext()


def _same_call(new: fx.Node, old: fx.Node | None) -> bool:
    return (
        old is not None
        and new.target == old.target
        and _same_argument(new.args, old.args)
        and _same_argument(new.kwargs, old.kwargs)
    )


def _same_argument(new: Any, old: Any) -> bool:
    """Nodes of two graphs are the same when their names are."""
    if new is old:
        return True
    if isinstance(new, fx.Node):
        return isinstance(old, fx.Node) and new.name == old.name
    if isinstance(new, (tuple, list)):
        alike = isinstance(old, (tuple, list)) and len(new) == len(old)
        return alike and all(map(_same_argument, new, old))
    if isinstance(new, Mapping):
        alike = isinstance(old, Mapping) and new.keys() == old.keys()
        return alike and all(_same_argument(new[key], old[key]) for key in new)
    if isinstance(new, slice):
        return isinstance(old, slice) and _same_argument(
            (new.start, new.stop, new.step), (old.start, old.stop, old.step)
        )
    if isinstance(new, float) and isinstance(old, float):
        return new.hex() == old.hex()  # nan is nan, and -0.0 is not 0.0
    return type(new) is type(old) and bool(new == old)


def _same_value(a: Any, b: Any) -> bool:
    """Whether two values (tensors, sizes, or nests of them) agree in structure, dtype and shape."""
    if isinstance(a, torch.Tensor):
        return _same_leaf(a, b)
    left, form = pytree.tree_flatten(a)
    right, other = pytree.tree_flatten(b)
    return form == other and all(map(_same_leaf, left, right))


def _same_leaf(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and a.dim() == b.dim() and all(map(_same_size, a.shape, b.shape))
    whole = (int, torch.SymInt)
    if isinstance(a, whole) and isinstance(b, whole):
        return _same_size(a, b)
    return type(a) is type(b)


def _same_size(a: int | torch.SymInt, b: int | torch.SymInt) -> bool:
    # Data-dependent sizes are new symbols each time they are computed, so nothing can be said about them.
    return same_size(a, b) or bool(free_unbacked_symbols([a, b]))


def _same_strides(a: Any, b: Any) -> bool:
    return all(map(same_size, _strides(a), _strides(b)))


def _strides(value: Any) -> list[int | torch.SymInt]:
    if isinstance(value, torch.Tensor):
        return list(value.stride())
    return [s for t in pytree.tree_leaves(value) if isinstance(t, torch.Tensor) for s in t.stride()]


def _form(value: Any) -> str:
    leaves = pytree.tree_leaves(value)
    shown = [f"{t.dtype}{tuple(t.shape)}" if isinstance(t, torch.Tensor) else type(t).__name__ for t in leaves]
    return ", ".join(shown)
