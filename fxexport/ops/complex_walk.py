"""A whole program, its branches and loops included, on pairs of real tensors."""

from __future__ import annotations

import operator

import torch
from torch import Tensor, fx

from fxexport.control_flow import control_flow
from fxexport.ops.complex_borders import make_border_real
from fxexport.ops.complex_call import Call, Result
from fxexport.ops.complex_pair import Pair, constant
from fxexport.ops.complex_table import rule_of
from fxexport.ops.real_calls import Real, Site
from fxexport.ops.unfolding import unfold
from fxexport.program import Program, module_path, source_line
from fxexport.rewrite.ledger import NearMiss, Rewrite

aten = torch.ops.aten
_READERS = (aten.view_as_real.default, aten.real.default, aten.imag.default)
# Where one of these is, a program can tell 0 from -0 or see a NaN: zeros that are known are computed all the same.
_TELLING = (
    *(aten.angle, aten.atan2, aten.arctan2, aten.signbit, aten.copysign),
    *(aten.isnan, aten.isinf, aten.isfinite, aten.nan_to_num),
)
_TELLING_OF_COMPLEX = (aten.log, aten.log2, aten.log10, aten.sqrt, aten.rsqrt, aten.pow)


def decompose_complex(program: Program, name: str) -> tuple[list[Rewrite], list[NearMiss]]:
    """Rewrites every call on complex numbers that has a form on pairs of real ones; returns the entries of the ledger.

    ``name``: the pass in whose name this is done. A call that has no such form stays, and reads complex numbers that are
    made of their pairs again.
    """
    exact = any(_tells(node) for _, _, graph in program.graphs() for node in graph.nodes)
    done: list[Rewrite] = []
    misses: list[NearMiss] = []
    for part in program.parts():
        module = next(part.graphs()).module
        for call in control_flow(part.graph):
            make_border_real(part, module, call)
        walk = _Walk(part, Site(part, exact=exact), name)
        for node in list(part.graph.nodes):
            walk.visit(node)
        live = _live(part.graph)  # a call that is read still is so by one that stays complex
        done += [rewrite for node, rewrite in walk.rewritten if node not in live]
        misses += walk.misses
    return done, misses


def _live(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that outputs and effects depend on."""
    live: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node.op == "output" or node.is_impure() or not live.isdisjoint(node.users):
            live.add(node)
    return live


class _Walk:
    """One graph, node by node."""

    def __init__(self, program: Program, site: Site, name: str) -> None:
        self.program, self.site, self.name = program, site, name
        self.results: dict[fx.Node, Pair | list[Pair]] = {}  # complex call -> what stands for it
        self.kept: dict[fx.Node, Pair] = {}  # complex call that stays, or input -> its parts
        self.whole: dict[Pair, fx.Node] = {}  # pair -> the complex number made of it again
        self.stacks: dict[fx.Node, Pair] = {}  # what view_as_real became -> its parts
        self.rewritten: list[tuple[fx.Node, Rewrite]] = []
        self.misses: list[NearMiss] = []

    def visit(self, node: fx.Node) -> None:
        """Rewrites one node, or leaves it with its complex arguments made of their pairs again."""
        self.site.before = node
        if node.op == "output":
            self._restore(node)
        elif node.op == "call_function" and any(map(_is_complex, (node, *node.all_input_nodes))):
            self._rewrite(node)
        elif node.target is aten.select.int and node.args[0] in self.stacks:
            self._part_of_stack(node, self.stacks[node.args[0]])  # type: ignore[index]

    def _rewrite(self, node: fx.Node) -> None:
        if node.target in _READERS and node.args[0] not in self.results and not self.program.is_constant(node.args[0]):
            return  # how the parts of what stays complex are read
        known, name = len(self.program.made), node.name
        result = self._result(node)
        if isinstance(result, str) and rule_of(node.target) is None and self._unfold(node):
            return
        if isinstance(result, str):
            self.misses.append(NearMiss(self.name, node.name, *_place(node), 1, 1, f"{node.target}: {result}"))
            self._restore(node)
            return
        self._put(node, result)
        made = tuple(new.name for new in self.program.made[known:] if not new._erased)
        self.rewritten.append((node, Rewrite(self.name, name, (str(node.target),), *_place(node), made)))

    def _result(self, node: fx.Node) -> Result:
        if node.target is operator.getitem:
            source, index = node.args
            several = self.results.get(source)  # type: ignore[arg-type]
            return several[index] if isinstance(several, list) else "what it is one of stays complex"  # type: ignore[index]
        rule = rule_of(node.target)
        if rule is None:
            return "it has no form on the parts of complex numbers"
        call = Call(node, self.site, self._pair)
        result = rule(call)
        if isinstance(result, Pair):
            return call.fitted(result, node.meta["val"])
        if isinstance(result, list):
            return [call.fitted(pair, value) for pair, value in zip(result, node.meta["val"], strict=True)]
        return result

    def _unfold(self, node: fx.Node) -> bool:
        """Whether simpler calls took the place of ``node``, and were rewritten in turn."""
        calls = unfold(self.program, node)
        for call in calls or ():
            if not call._erased:
                self.visit(call)
        return calls is not None

    def _put(self, node: fx.Node, result: Pair | Real | list[Pair] | None) -> None:
        if isinstance(result, Real):
            if node.target is aten.view_as_real.default:
                self.stacks[result.node] = self._pair(node.args[0])  # type: ignore[arg-type]
            self.program.replace(node, result.node)
        elif result is None:
            self.program.erase(node)
        else:
            self.results[node] = result
            if node.target is aten.complex.default and isinstance(result, Pair):
                self.whole[result] = node

    def _pair(self, node: fx.Node) -> Pair:
        """The parts of a complex value; those of a call that stays are read where they are first needed."""
        known = self.results.get(node) or self.kept.get(node)
        if isinstance(known, Pair):
            return known
        value = self.program.constant_value(node)
        if value is not None:
            return constant(self.site, self.program.constant_name(node), value)
        both = self.site.call(aten.view_as_real.default, node)
        self.kept[node] = Pair(*(both.call(aten.select.int, -1, index) for index in (0, 1)))
        return self.kept[node]

    def _restore(self, node: fx.Node) -> None:
        for source in node.all_input_nodes:
            pair = self.results.get(source)
            if isinstance(pair, Pair):
                if pair not in self.whole:
                    self.whole[pair] = self.site.call(aten.complex.default, *pair.whole()).node
                node.replace_input_with(source, self.whole[pair])

    def _part_of_stack(self, node: fx.Node, pair: Pair) -> None:
        """``view_as_real(z)[..., 0]`` is the real part."""
        _, dim, index = node.args
        if dim in (-1, node.meta["val"].dim()) and index in (0, 1, -1, -2):
            self.program.replace(node, pair.whole()[index].node)  # type: ignore[index]


def _is_complex(node: fx.Node) -> bool:
    value = node.meta.get("val")
    values = value if isinstance(value, tuple | list) else (value,)
    return any(isinstance(v, Tensor) and v.is_complex() for v in values)


def _tells(node: fx.Node) -> bool:
    packet = getattr(node.target, "overloadpacket", None)
    return packet in _TELLING or (packet in _TELLING_OF_COMPLEX and any(map(_is_complex, node.all_input_nodes)))


def _place(node: fx.Node) -> tuple[str, str]:
    return module_path(node), source_line(node)
