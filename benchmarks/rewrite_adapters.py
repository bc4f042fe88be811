"""The engines of ``rewrite_engine.py`` behind one interface: prepare a graph, rewrite it, run it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from functools import partial
from typing import Any, ClassVar, cast

import torch
from rewrite_graphs import MARKS, numbers_of, traced
from rewrite_rules import EXAMPLES, NUMBERS, Rule, parameters
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from fxexport.program import Program

Found = dict[str, int]
"""Rule name -> places rewritten."""


class Engine(ABC):
    """One way to apply rules. ``only`` names the rules it can do (None: all)."""

    name: ClassVar[str]
    only: ClassVar[tuple[str, ...] | None] = None

    def __init__(self, rules: tuple[Rule, ...]) -> None:
        self.rules = rules

    @abstractmethod
    def prepare(self, program: Program) -> Any:
        """The engine's own form of a copy of ``program``: what :meth:`rewrite` takes."""

    @abstractmethod
    def rewrite(self, graph: Any) -> tuple[Any, Found]:
        """The rewritten graph and what was found in it. This is what is timed."""

    @abstractmethod
    def run(self, graph: Any, *inputs: Tensor) -> Tensor:
        """What ``graph`` computes."""


class FxEngine(Engine):
    """An engine that takes a plain GraphModule of the same ATen graph; constants are its first placeholders."""

    constants: tuple[Tensor, ...] = ()

    def prepare(self, program: Program) -> fx.GraphModule:
        self.constants = tuple(program.constants().values())
        module: fx.GraphModule = program.graph_module
        return module

    def run(self, graph: fx.GraphModule, *inputs: Tensor) -> Tensor:
        with torch.no_grad():
            result: Tensor = fx.Interpreter(graph).run(*self.constants, *inputs)[0]
        return result


class Ours(Engine):
    """``PatternSet`` through ``PassManager``: matched, rewritten, verified, in a transaction."""

    name = "fxexport"

    def __init__(self, rules: tuple[Rule, ...]) -> None:
        from fxexport.rewrite import PatternPass, PatternSet

        super().__init__(rules)
        passes = [PatternPass.of(r.name, r.pattern, r.replacement, self._examples(r)) for r in rules]
        self.set = PatternSet(tuple(passes))

    @staticmethod
    def _examples(rule: Rule) -> tuple[Any, ...]:
        names = parameters(rule.pattern)
        return tuple(MARKS[n] if n in NUMBERS else torch.ones(EXAMPLES[n]) for n in names)

    def prepare(self, program: Program) -> Program:
        return program.clone()

    def run(self, graph: Program, *inputs: Tensor) -> Tensor:
        result: Tensor = graph.run(*inputs)[0]
        return result

    def rewrite(self, graph: Program) -> tuple[Program, Found]:
        from fxexport.rewrite import PassManager

        after, (record,) = PassManager([self.set]).run(graph)
        return after, self._found(record.rewrites)

    @staticmethod
    def _found(rewrites: Any) -> Found:
        return Counter(rewrite.rule.rpartition("/")[2] for rewrite in rewrites)


class OursBare(Ours):
    """``PatternSet.run`` alone, in place: no copy, no verification."""

    name = "fxexport bare"

    def rewrite(self, graph: Program) -> tuple[Program, Found]:
        return graph, self._found(self.set.run(graph).rewrites)


class ReplacePattern(FxEngine):
    """``torch.fx.replace_pattern_with_filters`` once a rule, the patterns as ATen graphs."""

    name = "replace_pattern"

    def rewrite(self, graph: fx.GraphModule) -> tuple[fx.GraphModule, Found]:
        from torch.fx.subgraph_rewriter import replace_pattern_with_filters

        found: Found = {}
        for rule in self.rules:
            made = replace_pattern_with_filters(
                graph,
                _pattern_graph(rule),
                match_filters=[lambda match, *_, rule=rule: _binds_numbers(match, rule)],
                replacement_callback=lambda match, *_, rule=rule: _replacement_graph(match, rule),
            )
            found[rule.name] = len(made)
        return graph, found


def _pattern_graph(rule: Rule) -> fx.Graph:
    """The pattern with a placeholder where it binds a number."""
    graph = fx.Graph()
    made = {name: graph.placeholder(name) for name in parameters(rule.pattern)}
    marks = {MARKS[name]: made[name] for name in made if name in NUMBERS}
    template = traced(rule.pattern, numbers_of(rule.pattern))
    values: dict[fx.Node, Any] = {node: made[node.name] for node in template.find_nodes(op="placeholder")}
    result = graph.graph_copy(template, values)
    for node in graph.nodes:
        node.args = tuple(marks.get(arg, arg) if isinstance(arg, float) else arg for arg in node.args)
    graph.output(result)
    return graph


def _numbers(match: Any, rule: Rule) -> tuple[Any, ...]:
    """What a match bound to the number parameters of ``rule``."""
    bound = zip(parameters(rule.pattern), match.placeholder_nodes, strict=True)
    return tuple(value for name, value in bound if name in NUMBERS)


def _binds_numbers(match: Any, rule: Rule) -> bool:
    return not any(isinstance(value, fx.Node) for value in _numbers(match, rule))


def _replacement_graph(match: Any, rule: Rule) -> fx.Graph:
    """The replacement for the numbers of a match, with a placeholder for each parameter of the pattern."""
    graph = fx.Graph()
    made = {name: graph.placeholder(name) for name in parameters(rule.pattern)}
    template = traced(rule.replacement, _numbers(match, rule))
    values: dict[fx.Node, Any] = {node: made[node.name] for node in template.find_nodes(op="placeholder")}
    graph.output(graph.graph_copy(template, values))
    return graph


class Inductor(FxEngine):
    """``PatternMatcherPass`` with ``register_replacement`` for every rule, one pass; then lint and recompile.

    Patterns and replacements are traced to the ATen level of the graph (Inductor's own tracer decomposes further),
    again for each match, as ``register_replacement`` does.
    """

    name = "inductor"

    def __init__(self, rules: tuple[Rule, ...]) -> None:
        from torch._inductor.pattern_matcher import PatternMatcherPass, register_replacement

        super().__init__(rules)
        self.found: Found = Counter()
        self.matcher = PatternMatcherPass("benchmark")
        for rule in rules:
            names = parameters(rule.pattern)
            register_replacement(
                rule.pattern,
                rule.replacement,
                [torch.ones(EXAMPLES[name]) for name in names if name not in NUMBERS],
                cast(Any, self._trace),
                self.matcher,
                extra_check=partial(self._accept, rule),
                scalar_workaround={name: MARKS[name] for name in names if name in NUMBERS},
            )

    @torch.no_grad()
    def _trace(self, function: Any, args: Any, **_: Any) -> fx.GraphModule:
        return make_fx(function, pre_dispatch=True)(*args)

    def _accept(self, rule: Rule, match: Any) -> bool:
        if any(isinstance(match.kwargs[n], fx.Node) for n in parameters(rule.pattern) if n in NUMBERS):
            return False
        self.found[rule.name] += 1
        return True

    def rewrite(self, graph: fx.GraphModule) -> tuple[fx.GraphModule, Found]:
        from torch._inductor.pattern_matcher import stable_topological_sort

        self.found.clear()
        self.matcher.apply(graph)
        stable_topological_sort(graph.graph)
        graph.graph.lint()
        graph.recompile()
        return graph, dict(self.found)


class InductorTracedOnce(Inductor):
    """The same, but a function is traced once for each shape and number: what Inductor could do at best."""

    name = "inductor cached"

    def __init__(self, rules: tuple[Rule, ...]) -> None:
        self.known: dict[Any, fx.GraphModule] = {}
        super().__init__(rules)

    def _trace(self, function: Any, args: Any, **rest: Any) -> fx.GraphModule:
        key = (function, *(tuple(a.shape) if isinstance(a, Tensor) else a for a in args))
        if key not in self.known:
            self.known[key] = super()._trace(function, args, **rest)
        return self.known[key]


class OnnxScript(Engine):
    """onnxscript's ``RewriteRuleSet`` on the ONNX form of the graph."""

    name = "onnxscript"

    def __init__(self, rules: tuple[Rule, ...]) -> None:
        from rewrite_onnx import to_rules

        super().__init__(rules)
        self.found: Found = {}
        self.set = to_rules(rules, self.found)

    def prepare(self, program: Program) -> Any:
        from rewrite_onnx import to_model

        return to_model(program)

    def rewrite(self, graph: Any) -> tuple[Any, Found]:
        self.found.clear()
        self.set.apply_to_model(graph)
        return graph, dict(self.found)

    def run(self, graph: Any, *inputs: Tensor) -> Tensor:
        import onnx_ir as ir
        from onnx.reference import ReferenceEvaluator

        names = [value.name for value in graph.graph.inputs]
        feed = dict(zip(names, (tensor.numpy() for tensor in inputs), strict=True))
        (result,) = ReferenceEvaluator(ir.to_proto(graph)).run(None, feed)
        return torch.from_numpy(result)


class ByHand(FxEngine):
    """One rule as a loop over the graph: ``x * sigmoid(x)``, either way round, becomes ``silu(x)``."""

    name = "by hand"
    only = ("silu",)

    def rewrite(self, graph: fx.GraphModule) -> tuple[fx.GraphModule, Found]:
        aten, found = torch.ops.aten, 0
        for node in list(graph.graph.nodes):
            if node.op != "call_function" or node.target != aten.mul.Tensor:
                continue
            for x, gate in (node.args, node.args[::-1]):
                if isinstance(gate, fx.Node) and gate.target == aten.sigmoid.default and gate.args == (x,):
                    break
            else:
                continue
            if len(gate.users) > 1:
                continue
            with graph.graph.inserting_before(node):
                new = graph.graph.call_function(aten.silu.default, (x,))
            new.meta = dict(node.meta)
            node.replace_all_uses_with(new)
            graph.graph.erase_node(node)
            graph.graph.erase_node(gate)
            found += 1
        graph.graph.lint()
        graph.recompile()
        return graph, {"silu": found}


ENGINES: dict[str, type[Engine]] = {
    engine.name: engine for engine in (Ours, OursBare, ReplacePattern, Inductor, InductorTracedOnce, OnnxScript, ByHand)
}
