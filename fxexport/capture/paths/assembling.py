"""The exported program of all runs: placeholders of the first, one graph, sizes that suit every run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import sympy
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils import _pytree as pytree

from fxexport.capture.guards import recorded
from fxexport.capture.paths.exploring import Line
from fxexport.capture.paths.joining import Joiner
from fxexport.capture.paths.numbering import Numbering, placeholder_sources
from fxexport.capture.paths.runs import Run
from fxexport.capture.paths.scopes import Scope, Target
from fxexport.control_flow import nested_graphs
from fxexport.decisions import Decision
from fxexport.errors import CaptureError
from fxexport.value_cache import ValueCache


def assemble(line: Line) -> tuple[ExportedProgram, list[Decision]]:
    """All runs below ``line`` as one program, and what became of each decision.

    Raises Unstructured where two sides joined too early, CaptureError where the runs want other sizes.
    """
    run = Run(line, None, Numbering())
    mode = _mode(run.exported)
    values = ValueCache(mode)
    target = Target(values)
    border = _Border(run, target)
    joiner = Joiner(border.of, lambda outer: Target(values, outer))
    for other in _others(run):
        _same_sizes(run.exported, other)
    results = joiner.write(run, 0, run.stop(), Scope(target))
    target.graph.output(tuple(results))
    target.graph.eliminate_dead_code()
    return border.program(results), joiner.decisions


def _others(run: Run) -> Iterator[Run]:
    for side in run.sides.values():
        yield side
        yield from _others(side)


def _mode(exported: ExportedProgram) -> FakeTensorMode:
    for node in exported.graph.nodes:
        mode = getattr(node.meta.get("val"), "fake_mode", None)
        if isinstance(mode, FakeTensorMode):
            return mode
    return FakeTensorMode()


class _Border:
    """The placeholders of the one graph, and the signature around it."""

    def __init__(self, run: Run, target: Target) -> None:
        self._exported, self._target = run.exported, target
        self._specs = {spec.arg.name: spec for spec in run.exported.graph_signature.input_specs}
        self._constants: dict[str, Any] = {}
        self._nodes: dict[Any, fx.Node] = {}
        self._sources: dict[int, dict[fx.Node, tuple[str, Any]]] = {}
        for node, source in self._of(run.exported).items():
            copied = target.placeholder(node.name, node.meta["val"])
            copied.meta.update(node.meta)
            assert copied.name == node.name
            self._nodes[source] = copied

    def _of(self, exported: ExportedProgram) -> dict[fx.Node, tuple[str, Any]]:
        if id(exported) not in self._sources:
            self._sources[id(exported)] = placeholder_sources(exported)
        return self._sources[id(exported)]

    def of(self, exported: ExportedProgram, node: fx.Node) -> fx.Node:
        """What a placeholder of some run is here; constants that only that run has are added."""
        source = self._of(exported)[node]
        if source not in self._nodes:
            self._nodes[source] = self._add(exported, node)
        return self._nodes[source]

    def _add(self, exported: ExportedProgram, node: fx.Node) -> fx.Node:
        spec = next(s for s in exported.graph_signature.input_specs if s.arg.name == node.name)
        value = exported.constants.get(str(spec.target), exported.state_dict.get(str(spec.target)))
        assert isinstance(value, torch.Tensor), f"{node.name} is no constant of the model"
        target = f"lifted_of_side_{len(self._constants)}"
        before = next(n for n in self._target.graph.nodes if self._is_input(n))
        with self._target.graph.inserting_before(before):
            new = self._target.graph.placeholder(f"c_{target}")
        new.meta["val"] = _mode(self._exported).from_tensor(value.detach(), static_shapes=True)
        self._specs[new.name] = InputSpec(InputKind.CONSTANT_TENSOR, TensorArgument(new.name), target)
        self._constants[target] = value
        return new

    def _is_input(self, node: fx.Node) -> bool:
        return node.op != "placeholder" or self._specs[node.name].kind == InputKind.USER_INPUT

    def program(self, results: list[fx.Node]) -> ExportedProgram:
        """The exported program of the finished graph."""
        own, graph = self._exported, self._target.graph
        places = graph.find_nodes(op="placeholder")
        arguments = [TensorArgument(node.name) for node in results]
        whole, *_ = own.module_call_graph
        assert whole.signature is not None
        out_spec = pytree.tree_structure(tuple(arguments))
        call = replace(whole.signature, outputs=list(arguments), out_spec=out_spec)
        return ExportedProgram(
            root=fx.GraphModule(self._target.holder, graph),
            graph=graph,
            graph_signature=ExportGraphSignature(
                input_specs=[self._specs[node.name] for node in places],
                output_specs=[OutputSpec(OutputKind.USER_OUTPUT, argument, None) for argument in arguments],
            ),
            state_dict=own.state_dict,
            range_constraints={**own.range_constraints, **_unknown_sizes(self._target.holder, _mode(own))},
            module_call_graph=[replace(whole, signature=call)],
            constants={**own.constants, **self._constants},
            verifiers=own.verifiers,
        )


def _unknown_sizes(module: fx.GraphModule, mode: FakeTensorMode) -> dict[Any, Any]:
    """The ranges of the sizes in a graph, and in its branches, that the data decides."""
    values = [node.meta.get("val") for _, _, graph in nested_graphs(module, module.graph) for node in graph.nodes]
    ranges = mode.shape_env.var_to_range if mode.shape_env is not None else {}
    return {symbol: ranges[symbol] for symbol in free_unbacked_symbols(values) if symbol in ranges}


def _same_sizes(own: ExportedProgram, other: Run) -> None:
    """Adds the conditions on sizes that another run's code decided to those of ``own``; both then hold."""
    environment = _mode(own).shape_env
    if environment is None or other.exported is own:
        return
    names: dict[sympy.Symbol, Any] = {}
    for mine, theirs in zip(_inputs(own), _inputs(other.exported), strict=True):
        for a, b in zip(mine.shape, theirs.shape, strict=True):
            a, b = _expression(a), _expression(b)
            if b.is_Symbol and b not in names:
                names[b] = a
            elif sympy.simplify(b.xreplace(names) - a) != 0:
                place = other.line.trace.events[other.line.start - 1].site
                raise CaptureError(
                    f"the sides of the decision at {place} want a dimension to be {a} and {b.xreplace(names)}"
                )
    for guard in recorded(other.exported):
        if guard.expr.free_symbols and guard.expr.free_symbols <= names.keys():
            expr = guard.expr.xreplace(names)
            if all(known.expr != expr for known in environment.guards) and expr not in (sympy.true, True):
                environment.guards.append(
                    guard._replace(expr=expr) if hasattr(guard, "_replace") else replace(guard, expr=expr)
                )
    for symbol, bounds in other.exported.range_constraints.items():
        mapped = names.get(symbol)
        if mapped in own.range_constraints:
            own.range_constraints[mapped] &= bounds


def _inputs(exported: ExportedProgram) -> list[torch.Tensor]:
    names = set(exported.graph_signature.user_inputs)
    return [node.meta["val"] for node in exported.graph.find_nodes(op="placeholder") if node.name in names]


def _expression(size: Any) -> Any:
    return size.node.expr if isinstance(size, torch.SymInt) else sympy.Integer(size)
