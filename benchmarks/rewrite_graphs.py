"""Graphs for ``rewrite_engine.py``: seeded mixtures of sites that match, sites that almost do, and filler.

A graph is a ``fxexport.Program`` of one small model, grown to the size wanted: lanes of values (8, 16) on which sites
and fillers are planted in turn. A site is one of

- match: a rule's pattern as written;
- swapped: the same value with the operands of commutative operators exchanged;
- near: one operator, operand or number is another one;
- shared: the pattern, but a value inside it is read elsewhere too, so that it cannot be replaced for nothing.

A filler follows every site, so that no match touches another and the number of matches is known.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from rewrite_rules import EXAMPLES, FILLERS, NUMBERS, RULES, Function, Rule, parameters
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

import fxexport
from fxexport.program import Program

LANES = 8
SILU = next(rule for rule in RULES if rule.name == "silu")
VALUES = (0.5, 1.5, 2.5, 3.5)
MARKS = {"p": 1.6180339, "q": 2.7182818}
"""Numbers that no rule uses: where they stand in a traced pattern, the pattern binds a number."""


@dataclass(frozen=True)
class Planted:
    """A program and the sites planted in it: rule name -> kind -> count."""

    program: Program
    sites: dict[str, Counter[str]]

    def expected(self, rule: Rule) -> int:
        """How many places compute what the rule's pattern computes and can be replaced."""
        return self.sites[rule.name]["match"] + self.sites[rule.name]["swapped"]


@cache
def traced(function: Function, numbers: tuple[float, ...] = ()) -> fx.Graph:
    """``function`` as the graph of ATen operators that ``torch.export`` makes of it, traced on its example shapes.

    ``numbers`` are its number parameters, in order; its placeholders are its tensor parameters, by name.
    """
    given = iter(numbers)
    names = parameters(function)
    fixed = {name: next(given) for name in names if name in NUMBERS}
    tensors = [name for name in names if name not in NUMBERS]

    def call(*args: Tensor) -> Any:
        return function(**dict(zip(tensors, args, strict=True)), **fixed)

    with torch.no_grad():
        graph = make_fx(call, pre_dispatch=True)(*(torch.ones(EXAMPLES[name]) for name in tensors)).graph
    for node, name in zip(graph.find_nodes(op="placeholder"), tensors, strict=True):
        node.name = node.target = name
    return graph


def numbers_of(function: Function) -> tuple[float, ...]:
    """The marks for the number parameters of ``function``."""
    return tuple(MARKS[name] for name in parameters(function) if name in NUMBERS)


class _Seed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.w = nn.Parameter(torch.randn(EXAMPLES["w"]) / 4)
        self.b = nn.Parameter(torch.randn(EXAMPLES["b"]))
        self.g = nn.Parameter(torch.rand(EXAMPLES["g"]) + 0.5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        value = (x @ self.w + self.b) * self.g + y
        return torch.cat([value] * LANES)


@dataclass
class _Grower:
    """Plants traced functions in a program before its last call; equal calls share one ``meta["val"]``."""

    program: Program
    before: fx.Node
    known: dict[fx.Node, Any] = field(default_factory=dict)

    def plant(self, graph: fx.Graph, given: dict[str, fx.Node]) -> list[fx.Node]:
        """New calls for those of ``graph``, the last one being the value it returns (``x`` where it has no call)."""
        made: dict[fx.Node, fx.Node] = {n: given[n.name] for n in graph.find_nodes(op="placeholder")}
        calls = [node for node in graph.nodes if node.op == "call_function"]
        for node in calls:
            args, kwargs = fx.map_arg((node.args, node.kwargs), made.__getitem__)
            made[node] = self._call(node, args, kwargs)
        return [made[node] for node in calls]

    def _call(self, template: fx.Node, args: Any, kwargs: Any) -> fx.Node:
        assert callable(template.target)
        if template not in self.known:
            new = self.program.insert(template.target, args, kwargs, before=self.before)
            self.known[template] = new.meta
            return new
        with self.program.graph.inserting_before(self.before):
            new = self.program.graph.call_function(template.target, args, kwargs)
        new.meta = dict(self.known[template])
        return new


def build(size: int, seed: int = 0, *, dense: bool = False) -> Planted:
    """A program of about ``size`` operator calls (a little more), the same one for the same arguments.

    ``dense``: matches of ``silu`` whose value is read twice, as before a residual connection, and nothing else.
    """
    example = (torch.zeros(EXAMPLES["x"]), torch.zeros(EXAMPLES["y"]))
    program = fxexport.capture(_Seed(), example)
    last = program.output_nodes[0]
    old = [node for node in program.graph.nodes if node.op == "call_function" and node is not last]
    grower, chance = _Grower(program, last), random.Random(seed)
    inputs = program.input_nodes
    weights = {program.constant_name(n): n for n in program.graph.nodes if program.is_constant(n)}
    lanes = [_filled(grower, inputs[i % 2], i // 2) for i in range(LANES)]
    sites = {rule.name: Counter[str]() for rule in RULES}
    count = LANES
    while count < size:
        rule, (lane, other) = SILU if dense else chance.choice(RULES), chance.sample(range(LANES), 2)
        given = {"x": lanes[lane], "y": lanes[other], **weights}
        kind, calls = _site(grower, rule, given, chance, "match" if dense else None)
        sites[rule.name][kind] += 1
        value = calls[-1]
        if dense:
            (value,) = grower.plant(traced(_read_also), {"x": value, "y": _filled(grower, value, 0)})
            count += 2
        for _ in range(0 if dense else chance.randint(1, 3)):
            value = _filled(grower, value, chance.randrange(len(FILLERS)))
            count += 1
        lanes[lane] = value
        count += len(calls)
    last.args = (lanes, *last.args[1:])
    for node in reversed(old):
        program.graph.erase_node(node)
    program.verify()
    return Planted(program, sites)


def _filled(grower: _Grower, value: fx.Node, which: int) -> fx.Node:
    (call,) = grower.plant(_filler(which), {"x": value})
    return call


@cache
def _filler(which: int) -> fx.Graph:
    def call(x: Tensor) -> Tensor:
        result: Tensor = FILLERS[which](x)
        return result

    return traced(call)


def _read_also(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(x, y)


def _site(
    grower: _Grower, rule: Rule, given: dict[str, fx.Node], chance: random.Random, kind: str | None = None
) -> tuple[str, list[fx.Node]]:
    """Plants one site of ``rule``; its kind and its calls, the last one being its value."""
    kind = kind or chance.choices(("match", "swapped", "near", "shared"), (50, 10, 25, 15))[0]
    if kind == "swapped" and rule.swapped is None:
        kind = "match"
    function = {"near": rule.near, "swapped": rule.swapped}.get(kind) or rule.pattern
    numbers = tuple(chance.choice(VALUES) for name in parameters(function) if name in NUMBERS)
    calls = grower.plant(traced(function, numbers), given)
    if kind == "shared":
        inner = next((node for node in calls[:-1] if _is_activation(node)), None)
        if inner is None:
            return "match", calls
        calls += grower.plant(traced(_read_also), {"x": calls[-1], "y": inner})
    return kind, calls


def _is_activation(node: fx.Node) -> bool:
    value = node.meta["val"]
    return tuple(value.shape) == EXAMPLES["x"] and value.dtype == torch.float32
