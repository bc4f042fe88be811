"""What a traced function does, as calls with their arguments: the form that patterns and programs are compared in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from fxexport.errors import PassError
from fxexport.rewrite.calls import argument_name, call_arguments, is_transparent, normal_target
from fxexport.rewrite.pattern_arguments import Argument
from fxexport.rewrite.tracing import Traced, constant_of, is_traced


@dataclass(frozen=True)
class Wild:
    """A tensor argument of the pattern: ``element`` counts in an argument that is a list.

    A literal that is bound to a symbolic size is an input of the traced function as well, and no ``tensor``.
    """

    name: str
    element: int | None = None
    constant: bool = False
    tensor: bool = True


@dataclass(frozen=True)
class Fixed:
    """A tensor that the pattern makes of Python numbers: matches a constant with the same values."""

    value: torch.Tensor


class Hole:
    """A literal that depends on the shapes or on a wildcard: compared when both are bound."""

    def __repr__(self) -> str:
        return "_"


HOLE = Hole()
ANY = Hole()
"""A literal that says how to compute, not what: whether cuDNN may be used."""
_HOW = {"cudnn_enable", "cudnn_enabled"}


@dataclass(eq=False)
class Call:
    """One call of the pattern: its operator and its arguments in the order of the schema."""

    index: int
    target: Any
    arguments: list[Any]

    def operands(self) -> Iterator[Any]:
        """The calls, wildcards and fixed tensors among the arguments."""
        for argument in self.arguments:
            for item in argument if isinstance(argument, list) else [argument]:
                if isinstance(item, Call | Wild | Fixed):
                    yield item


@dataclass
class Outline:
    """The calls of one tracing."""

    calls: list[Call] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    nodes: list[fx.Node] = field(default_factory=list)


def outline_of(traced: Traced, arguments: Sequence[Argument], values: Sequence[Any], *, whole: bool = False) -> Outline:
    """The calls of a function traced on ``values``; sizes, and numbers computed from sizes, are literals, not calls.

    Calls that change nothing are left out, unless ``whole``.
    """
    outline = Outline()
    leaves = [leaf for argument, value in zip(arguments, values, strict=True) for leaf in leaves_of(argument, value)]
    inputs = zip(traced.inputs, leaves, strict=True)
    known: dict[fx.Node, Any] = {node: leaf for node, leaf in inputs if leaf.tensor}
    for node in traced.graph.nodes:
        if node.op == "get_attr":
            value = constant_of(traced.tensors[str(node.target)])
            if value is None:
                raise PassError("the pattern makes tensors of its own (random weights?); make them arguments")
            known[node] = Fixed(value)
        elif node.op == "call_function" and not whole and is_transparent(node):
            known[node] = known[node.args[0]]
        elif node.op == "call_function" and not isinstance(node.meta["val"], _SCALARS):
            target = normal_target(node.target)
            values = [_translate(value, known) for value in call_arguments(node)]
            values = [ANY if argument_name(target, i) in _HOW else value for i, value in enumerate(values)]
            known[node] = call = Call(len(outline.calls), target, values)
            outline.calls.append(call)
            outline.nodes.append(node)
    outline.outputs = [known[node] for node in traced.outputs]
    return outline


_SCALARS = (int, float, bool, torch.SymInt, torch.SymFloat, torch.SymBool)


def leaves_of(argument: Argument, value: Any) -> Iterator[Wild]:
    """What the inputs of a traced function stand for, of one argument that had ``value``."""
    constant = argument.kind == "constant"
    if argument.variadic:
        yield from (Wild(argument.name, element, constant) for element in range(len(value)))
    elif is_traced(value):
        yield Wild(argument.name, None, constant, isinstance(value, torch.Tensor))


def _translate(value: Any, known: dict[fx.Node, Any]) -> Any:
    if isinstance(value, fx.Node):
        return known[value] if value in known else value.meta["val"]
    if isinstance(value, list | tuple):
        return [_translate(item, known) for item in value]
    return value


def same_form(a: Outline, b: Outline) -> bool:
    """Whether two outlines have the same operators and wiring, whatever their literals."""
    if len(a.calls) != len(b.calls) or len(a.outputs) != len(b.outputs):
        return False
    pairs = zip(a.calls, b.calls, strict=True)
    return all(x.target == y.target and _same_wiring(x.arguments, y.arguments) for x, y in pairs) and _same_wiring(
        a.outputs, b.outputs
    )


def _same_wiring(a: Any, b: Any) -> bool:
    if isinstance(a, Call):
        return isinstance(b, Call) and a.index == b.index
    if isinstance(a, list) and isinstance(b, list) and _holds_tensors(a):
        return len(a) == len(b) and all(map(_same_wiring, a, b))
    if isinstance(a, Wild):
        return bool(a == b)
    return isinstance(a, Fixed) == isinstance(b, Fixed) and not isinstance(b, Call | Wild)


def _holds_tensors(values: list[Any]) -> bool:
    return any(isinstance(v, Call | Wild | Fixed) or (isinstance(v, list) and _holds_tensors(v)) for v in values)


def is_literal(value: Any) -> bool:
    return not isinstance(value, Call | Wild | Fixed) and not (isinstance(value, list) and _holds_tensors(value))
