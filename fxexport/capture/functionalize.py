"""In-place operators -> their functional forms, so that passes never meet a write.

``torch.export`` keeps ``relu_``, ``add_`` and writes into slices as the model made them. They are rewritten where they
stand, as long as no view that was taken before the write is read after it:

    y = relu_(x)                       ->  y = relu(x),                            later uses of x become y
    v = select(x, 1, 0); fill_(v, 1)   ->  w = fill(v, 1); y = select_scatter(x, w, 1, 0), later uses of x become y

Branches and loop bodies are rewritten in the same way. Anything else goes through torch's own functionalisation, which
re-traces the whole program.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from fxexport.capture.inline_blocks import inline_blocks
from fxexport.capture.sub_graphs import lift_sub_graphs, locate_sub_graphs
from fxexport.control_flow import control_flow, nested_graphs
from fxexport.errors import CaptureError
from fxexport.program import source_line
from fxexport.shape_rules import shape_rules

aten = torch.ops.aten
_DROPOUTS = (aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default)
# These may return their argument itself, which their schemas do not say.
_RETURNS_ITS_INPUT = {*_DROPOUTS, aten.pad.default}
_HIDDEN = (aten.detach.default, aten.alias.default)
# A view, and the operator that gives its base with the viewed part exchanged; same arguments after the first.
_SCATTER = {
    aten.slice.Tensor: aten.slice_scatter.default,
    aten.select.int: aten.select_scatter.default,
    aten.diagonal.default: aten.diagonal_scatter.default,
}


def functionalize(exported: ExportedProgram, names: Sequence[str] = ()) -> tuple[ExportedProgram, list[str]]:
    """A program without writes, and notes on what the model writes into (buffers, its inputs, by their ``names``).

    ``exported`` may be edited in place. Buffer updates are dropped: the artifact computes one call from the state the
    model was in, and the notes say so.
    """
    inputs = dict(zip(exported.graph_signature.user_inputs, names, strict=False))
    graph = exported.graph_module.graph
    others = inline_blocks(exported.graph_module)
    locate_sub_graphs(exported.graph_module, graph)
    lift_sub_graphs(exported)
    if any(map(_is_write, graph.nodes)):
        _plain_aliases(graph)
    written = [node for node in graph.nodes if _is_write(node)]
    if others or not _sub_graphs_functional(exported) or not all(_is_simple(node) for node in written):
        exported = _retraced(exported)
        return exported, _drop_mutation_outputs(exported, inputs)
    kinds = {spec.arg.name: spec for spec in exported.graph_signature.input_specs}
    notes: dict[str, None] = {}
    for node in written:
        base = _base_and_views(node.args[0])[0]
        if base.op == "placeholder":
            spec = kinds[base.name]
            notes[_note(spec.kind, str(spec.target or inputs.get(base.name, base.name)))] = None
        _make_functional(graph, node)
    exported.graph_module.recompile()
    return exported, list(notes)


def _sub_graphs_functional(exported: ExportedProgram) -> bool:
    """Rewrites the writes inside of branches and loop bodies where they stand; whether that was possible."""
    _, *inner = nested_graphs(exported.graph_module, exported.graph)
    for sub_graph in inner:
        written = [_base_and_views(node.args[0])[0] for node in sub_graph.graph.nodes if _is_write(node)]
        if any(base.op == "placeholder" for base in written):
            return False  # an operand, which shows outside
        try:
            make_writes_functional(sub_graph.graph)
        except CaptureError:  # re-traced as a whole, which raises where it is not possible either
            return False
        sub_graph.module.recompile()  # type: ignore[operator]
    return True


def _retraced(exported: ExportedProgram) -> ExportedProgram:
    """The program without writes as torch finds it, by running it again on symbolic sizes."""
    try:
        with shape_rules():
            retraced: ExportedProgram = exported.run_decompositions(_undeclared_views(exported.graph))
            return retraced
    except Exception as error:
        if not control_flow(exported.graph):
            raise
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise CaptureError(
            f"a branch of torch.cond or the body of torch.while_loop at {source_line(control_flow(exported.graph)[0])}, or "
            "what is around it, writes into a tensor that is read elsewhere, which cannot be followed: write into a clone "
            f"there ({lines[0] if lines else type(error).__name__})"
        ) from error


def make_writes_functional(graph: fx.Graph) -> None:
    """Rewrites every write of a graph where it stands.

    Raises CaptureError for a write that needs more than that: one into a view that is read afterwards.
    """
    if any(map(_is_write, graph.nodes)):
        _plain_aliases(graph)
    for node in list(graph.nodes):
        if _is_write(node):
            base = _base_and_views(node.args[0])[0]
            if (
                not _is_simple(node) or base.op == "get_attr" or base.target in _HIDDEN
            ):  # what is written through `.data` is not seen in the tensor itself
                raise CaptureError(f"{node.name} ({node.target}) writes into a tensor that other views of it show")
            known = set(graph.nodes)
            _make_functional(graph, node)
            for new in [node, *(other for other in graph.nodes if other not in known)]:
                new.meta["val"] = _unshared(new.meta["val"])  # what it wrote into is another tensor from here on


def _unshared(value: torch.Tensor) -> torch.Tensor:
    with value.fake_mode:  # type: ignore[attr-defined]
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)


def _undeclared_views(graph: fx.Graph) -> dict[Any, Any]:
    """Decompositions of ``meshgrid`` and its like: views by nature, copies by schema, which functionalisation believes."""
    views = {n.target for n in graph.nodes if _is_alias(n) and isinstance(n.target, OpOverload)}
    table = torch.export.default_decompositions() if views else {}
    return {t: table[t] for t in views if t in table and all(r.alias_info is None for r in t._schema.returns)}


def _plain_aliases(graph: fx.Graph) -> None:
    """Spells out what writes go through: dropout in eval mode is its input, as is ``detach_`` (of ``torch.tensor(...)``)
    where no gradients are, and ``unbind(x)[i]`` is ``select(x, i)``."""
    for node in graph.find_nodes(op="call_function", target=aten.detach_.default):
        node.replace_all_uses_with(node.args[0])
        graph.erase_node(node)
    for node in [node for target in _DROPOUTS for node in graph.find_nodes(op="call_function", target=target)]:
        if node.args[2] is False:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    _single_views(graph)


def _single_views(graph: fx.Graph) -> None:
    """``unbind(x)[i]`` -> ``select(x, i)``: torch's own functionalisation fixes sizes where the former is written to."""
    for node in graph.find_nodes(op="call_function", target=aten.unbind.int):
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        for item in list(node.users):
            if item.target is operator.getitem:
                with graph.inserting_before(item):
                    view = graph.call_function(aten.select.int, (node.args[0], dim, item.args[1]))
                view.meta = dict(item.meta)
                item.replace_all_uses_with(view)
                graph.erase_node(item)
        if not node.users:
            graph.erase_node(node)


def _is_write(node: fx.Node) -> bool:
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


def _functional_form(node: fx.Node) -> OpOverload | None:
    """``aten.relu_.default`` -> ``aten.relu.default``, where that has the same arguments."""
    target = node.target
    assert isinstance(target, OpOverload)
    packet = target.overloadpacket.__name__
    if not packet.endswith("_") or target.namespace != "aten" or not hasattr(aten, packet[:-1]):
        return None
    functional = getattr(aten, packet[:-1])
    # Overloads of one name need not correspond: ``pow_.Scalar`` is ``pow.Tensor_Scalar``, not ``pow.Scalar``.
    for name in sorted(functional.overloads(), key=lambda name: name != target._overloadname):
        form: OpOverload = getattr(functional, name)
        if not form._schema.is_mutable and _parameters(form) == _parameters(target):
            return form
    return None


def _parameters(target: OpOverload) -> list[tuple[str, str]]:
    """Names and types of the arguments; the first may be called ``self`` in one form and ``input`` in the other."""
    return [(a.name if i else "self", str(a.type)) for i, a in enumerate(target._schema.arguments)]


def _is_simple(node: fx.Node) -> bool:
    """Whether ``node`` writes only its first argument (a tensor of its own, or slices of one), and no view of the same
    storage that was taken before is read afterwards."""
    form, target = _functional_form(node), node.args[0]
    assert isinstance(node.target, OpOverload)
    writes = [a.name for a in node.target._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    if form is None or len(writes) != 1 or not isinstance(target, fx.Node) or not _keeps_dtype(form, node):
        return False
    base, views = _base_and_views(target)
    if _is_alias(base) or (views and node.users):
        return False
    return not any(alias < node and node < user for alias in _aliases(base) for user in alias.users if user is not node)


def _base_and_views(target: Any) -> tuple[fx.Node, list[fx.Node]]:
    """The tensor whose storage ``target`` shows, and the chain of slices that leads from it to ``target``."""
    views: list[fx.Node] = []
    while target.target in _SCATTER:
        views.insert(0, target)
        target = target.args[0]
    return target, views


def _keeps_dtype(form: OpOverload, node: fx.Node) -> bool:
    """An in-place operator keeps dtype and shape of what it writes into; the functional one may promote."""
    value = node.meta["val"]
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    with value.fake_mode, enable_python_dispatcher():
        result = form(*args, **kwargs)
    return bool(result.dtype == value.dtype and result.dim() == value.dim())


def _aliases(node: fx.Node) -> list[fx.Node]:
    """All nodes that may share storage with ``node`` because they are (transitive) views of it."""
    found: list[fx.Node] = []
    todo = [user for user in node.users if _is_alias(user) or _is_write(user)]
    while todo:
        alias = todo.pop()
        if alias in found:
            continue
        if not _is_write(alias):
            found.append(alias)
        todo += [user for user in alias.users if _is_alias(user) or _is_write(user)]
    return found


def _is_alias(node: fx.Node) -> bool:
    """Whether the result of ``node`` may be (a view of) one of its arguments."""
    target = node.target
    if target is operator.getitem:
        return isinstance(node.args[0], fx.Node) and _is_alias(node.args[0])
    if not isinstance(target, OpOverload) or target._schema.is_mutable:
        return False
    if target in _RETURNS_ITS_INPUT or any(r.alias_info is not None for r in target._schema.returns):
        return True
    given = [t for n in node.all_input_nodes for t in _tensors(n)]  # meshgrid, type_as: the schema does not say
    shares = torch._C._is_alias_of  # type: ignore[attr-defined]
    return any(shares(result, tensor) for result in _tensors(node) for tensor in given)


def _tensors(node: fx.Node) -> list[torch.Tensor]:
    return [value for value in pytree.tree_leaves(node.meta.get("val")) if isinstance(value, torch.Tensor)]


def _make_functional(graph: fx.Graph, node: fx.Node) -> None:
    """The write as a pure operator; later reads of the written tensor read its result."""
    form = _functional_form(node)
    assert form is not None
    base, views = _base_and_views(node.args[0])
    node.target = form
    result = node
    for view in reversed(views):
        with graph.inserting_after(result):
            scatter = graph.call_function(_SCATTER[view.target], (view.args[0], result, *view.args[1:]), view.kwargs)  # type: ignore[index]
        scatter.meta = dict(node.meta)
        scatter.meta["val"] = view.args[0].meta["val"]  # type: ignore[union-attr]
        result = scatter
    base.replace_all_uses_with(result, delete_user_cb=lambda user: result < user, propagate_meta=False)


def _drop_mutation_outputs(exported: ExportedProgram, inputs: Mapping[Any, str]) -> list[str]:
    """Removes the outputs that carry updated buffers and inputs, and says which they were."""
    signature: Any = exported.graph_signature
    kinds = {OutputKind.BUFFER_MUTATION: InputKind.BUFFER, OutputKind.USER_INPUT_MUTATION: InputKind.USER_INPUT}
    specs = list(signature.output_specs)
    notes = [_note(kinds[s.kind], str(inputs.get(s.target, s.target))) for s in specs if s.kind in kinds]
    keep = [i for i, spec in enumerate(specs) if spec.kind not in kinds]
    output = exported.graph_module.graph.output_node()
    results: Any = output.args[0]
    output.args = (tuple(results[i] for i in keep),)
    signature.output_specs = [specs[i] for i in keep]
    exported.graph_module.graph.eliminate_dead_code()
    exported.graph_module.recompile()
    return notes


def _note(kind: InputKind, name: str) -> str:
    if kind == InputKind.USER_INPUT:
        return f"input {name!r} is written to by forward: the artifact leaves its inputs as they are"
    return (
        f"state {name.removeprefix('model.')!r} is updated by forward: the artifact starts every call from the state the "
        "model has now and does not keep the update"
    )
