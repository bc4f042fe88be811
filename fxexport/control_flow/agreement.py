"""What the sides of control flow return, made to agree: new tensors, laid out alike, with sizes that hold for both."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any, cast

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols, statically_known_true

from fxexport.errors import CaptureError

ORIGIN = ("nn_module_stack", "stack_trace", "custom")
aten = torch.ops.aten


def results(graph: fx.Graph) -> list[fx.Node]:
    """The nodes that a branch or loop body returns. Raises CaptureError where they are no tuple of nodes."""
    returned = graph.output_node().args[0]
    if not isinstance(returned, (tuple, list)) or not all(isinstance(result, fx.Node) for result in returned):
        raise CaptureError(f"a branch or loop body returns a tuple of tensors, this one {returned}")
    return cast(list[fx.Node], list(returned))


def pairs(ours: Sequence[fx.Node], theirs: Sequence[fx.Node]) -> list[tuple[fx.Node, fx.Node]]:
    """The results of both sides, one by one. Raises CaptureError where one side has more."""
    if len(ours) != len(theirs):
        raise CaptureError(f"the two sides of control flow have {len(ours)} and {len(theirs)} results")
    return list(zip(ours, theirs, strict=True))


def tensor_of(node: fx.Node) -> torch.Tensor:
    """The fake tensor of a node. Raises CaptureError where it has none."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        raise CaptureError(f"{node.name}, a result of control flow, is {type(value).__name__}, not a tensor")
    return value


def own_outputs(graph: fx.Graph) -> None:
    """Results that are operands, or one and the same node, become copies: every tensor returned is a new one."""
    seen: set[fx.Node] = set()

    def own(result: fx.Node) -> fx.Node:
        is_tensor = isinstance(result.meta.get("val"), torch.Tensor)
        if is_tensor and (result.op == "placeholder" or result in seen):
            return _append(graph, result, aten.clone.default, (result,))
        seen.add(result)
        return result

    output = graph.output_node()
    output.args = fx.map_arg(output.args, own)


def copied_outputs(graph: fx.Graph) -> None:
    """Every tensor returned becomes a copy: none is an operand, a view of one, or returned twice."""
    output = graph.output_node()
    output.args = fx.map_arg(
        output.args,
        lambda result: (
            _append(graph, result, aten.clone.default, (result,))
            if isinstance(result.meta.get("val"), torch.Tensor)
            else result
        ),
    )


def align(ours: fx.Graph, theirs: fx.Graph, position: int, a: torch.Tensor, b: torch.Tensor) -> None:
    """Lays out result ``position`` of the second graph as that of the first; both plainly where there is no such layout.

    Raises CaptureError where they differ in dtype or rank.
    """
    if a.dtype != b.dtype or a.dim() != b.dim() or a.device != b.device:
        raise CaptureError(f"result {position} of the two branches is {form(a)} and {form(b)}")
    if not _is_dense(a):
        set_output(ours, position, _contiguous(ours, results(ours)[position]))
        a = tensor_of(results(ours)[position])
    set_output(theirs, position, laid_out(theirs, results(theirs)[position], a))


def laid_out(graph: fx.Graph, node: fx.Node, like: torch.Tensor) -> fx.Node:
    """``node`` with its dimensions in memory in the order of those of ``like``; itself where they are."""
    value = tensor_of(node)
    wanted = _order(like) if _is_dense(like) else tuple(range(like.dim()))
    if _is_dense(value) and (_order(value) == wanted or value.dim() < 2):
        return node
    if wanted == tuple(range(like.dim())):
        return _contiguous(graph, node)
    back = [wanted.index(dim) for dim in range(like.dim())]
    permuted = _append(graph, node, aten.permute.default, (node, list(wanted)))
    return _append(graph, node, aten.permute.default, (_contiguous(graph, permuted), back))


def _contiguous(graph: fx.Graph, node: fx.Node) -> fx.Node:
    return _append(graph, node, aten.clone.default, (node,), {"memory_format": torch.contiguous_format})


def _order(value: torch.Tensor) -> tuple[int, ...]:
    """The dimensions by their strides, largest first."""
    known = [_guess(stride) for stride in value.stride()]
    return tuple(sorted(range(value.dim()), key=lambda dim: (-known[dim], dim)))


def _is_dense(value: torch.Tensor) -> bool:
    """Whether the elements fill memory, in some order of the dimensions, for all sizes that are not known to be 1."""
    expected: Any = 1
    for dim in reversed(_order(value)):
        if statically_known_true(value.shape[dim] == 1):
            continue
        if not statically_known_true(value.stride(dim) == expected):
            return False
        expected = expected * value.shape[dim]
    return True


def _guess(stride: int | torch.SymInt) -> float:
    """A stride to sort by: its value in the example, without assuming it; unknown ones count as large."""
    if isinstance(stride, int):
        return stride
    hint = stride.node.maybe_as_int() if stride.node.hint is None else stride.node.hint
    return math.inf if hint is None else float(hint)


def _append(
    graph: fx.Graph, like: fx.Node, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
) -> fx.Node:
    with graph.inserting_before(graph.output_node()):
        node = graph.call_function(target, args, kwargs or {})
    node.meta.update((key, like.meta[key]) for key in ORIGIN if key in like.meta)
    values, named = fx.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    with tensor_of(like).fake_mode, torch.no_grad():  # type: ignore[attr-defined]
        node.meta["val"] = target(*values, **named)
    return node


def set_output(graph: fx.Graph, position: int, node: fx.Node) -> None:
    """Makes ``node`` result ``position``."""
    returned = results(graph)
    returned[position] = node
    graph.output_node().args = (tuple(returned),)


def merged(a: torch.Tensor, b: torch.Tensor, known: Collection[Any]) -> torch.Tensor:
    """A new fake tensor for what either side returns: a size on which they do not agree is a new unknown.

    ``known``: the unknown sizes of the operands; others were found inside of one side and mean nothing outside.
    """
    agree = [_same(x, y) and free_unbacked_symbols(x) <= set(known) for x, y in zip(a.shape, b.shape, strict=True)]
    if all(agree):
        return new_like(a)
    mode = a.fake_mode  # type: ignore[attr-defined]
    with mode, torch.no_grad(), mode.shape_env.ignore_fresh_unbacked_symbols():
        sizes = [x if same else mode.shape_env.create_unbacked_symint() for x, same in zip(a.shape, agree, strict=True)]
        for size, same in zip(sizes, agree, strict=True):
            if not same:
                torch._check(size >= 0)  # type: ignore[no-untyped-call]
        order = _order(a)
        empty = torch.empty([sizes[dim] for dim in order], dtype=a.dtype, device=a.device)
        return empty.permute([order.index(dim) for dim in range(a.dim())]).detach()


def new_like(value: torch.Tensor) -> torch.Tensor:
    """A fake tensor of the same dtype, shape and strides with memory of its own."""
    with value.fake_mode, torch.no_grad():  # type: ignore[attr-defined]
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)


def same_shape(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are known to agree in dtype and shape."""
    return a.dtype == b.dtype and a.dim() == b.dim() and all(map(_same, a.shape, b.shape))


def _same(a: int | torch.SymInt, b: int | torch.SymInt) -> bool:
    return statically_known_true(a == b)


def form(value: torch.Tensor) -> str:
    """Dtype and shape in words."""
    return f"{value.dtype}{list(value.shape)}"
