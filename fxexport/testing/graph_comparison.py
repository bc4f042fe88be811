"""Whether two captured graphs are the same computation, and the first place where they are not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import sympy
import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from fxexport.program import Program, source_line
from fxexport.rewrite import arguments

aten = torch.ops.aten
TOLERANCES = {
    torch.float64: (1e-9, 1e-9),
    torch.float32: (1e-4, 1e-5),
    torch.float16: (1e-2, 1e-2),
    torch.bfloat16: (5e-2, 5e-2),
}
"""dtype -> (rtol, atol) where a test states none; other dtypes must be equal."""

_COMMUTATIVE = frozenset(
    {
        *(aten.mul.Tensor, aten.maximum.default, aten.minimum.default, aten.eq.Tensor, aten.ne.Tensor),
        *(aten.logical_and.default, aten.logical_or.default, aten.logical_xor.default),
        *(aten.bitwise_and.Tensor, aten.bitwise_or.Tensor, aten.bitwise_xor.Tensor),
    }
)

Key = tuple[Hashable, ...]


def first_difference(
    found: Program, wanted: Program, *, rtol: float | None = None, atol: float | None = None
) -> str | None:
    """What first tells the graph ``found`` from the graph ``wanted``, or None where they compute the same.

    Same means: the same operators on the same values with the same literal arguments (defaults filled in, floats to
    ten digits), as often, returned in the same order. Not looked at: names, the order of independent calls and of the
    operands of commutative operators, dead code, from which tensor a size is read, and what capture asserts of casts.
    Symbolic sizes are the same when they are the same formula of the axes of the inputs; constants when shape and
    dtype are equal and their values close (``rtol``, ``atol``; default by dtype).
    """
    forms = ([(str(s.dtype), len(s.axes)) for s in p.signature.inputs] for p in (found, wanted))
    inputs, wanted_inputs = forms
    if inputs != wanted_inputs:
        return f"inputs differ: found {inputs}, wanted {wanted_inputs}"
    numbering = _Numbering(rtol, atol)
    left, right = _Side(found, numbering), _Side(wanted, numbering)
    return _lone_value(left, right) or _returned(left, right) or _repeated(left, right)


class _Numbering:
    """Numbers for values, shared by two graphs: what is computed alike has one number."""

    def __init__(self, rtol: float | None, atol: float | None) -> None:
        self.numbers: dict[Key, int] = {}
        self.constants: list[tuple[torch.Tensor, int]] = []
        self.rtol, self.atol = rtol, atol

    def of(self, key: Key) -> int:
        return self.numbers.setdefault(key, len(self.numbers))

    def of_constant(self, value: torch.Tensor) -> int:
        for other, number in self.constants:
            if self._close(value, other):
                return number
        self.constants.append((value, self.of(("constant", len(self.constants)))))
        return self.constants[-1][1]

    def _close(self, a: torch.Tensor, b: torch.Tensor) -> bool:
        if a.dtype != b.dtype or a.shape != b.shape or a.device != b.device:
            return False
        rtol, atol = TOLERANCES.get(a.dtype, (0.0, 0.0))
        rtol, atol = (rtol if self.rtol is None else self.rtol), (atol if self.atol is None else self.atol)
        exact = not (a.is_floating_point() or a.is_complex())
        return torch.equal(a, b) if exact else torch.allclose(a, b, rtol, atol, equal_nan=True)


class _Side:
    """One graph with a number for each of its live values."""

    def __init__(self, program: Program, numbering: _Numbering) -> None:
        self.program, self.numbering = program, numbering
        self.symbols = _symbols(program)
        self.number: dict[fx.Node, int] = {}
        inputs = {node: i for i, node in enumerate(program.input_nodes)}
        live = _live(program)
        for node in program.graph.nodes:
            if node in inputs:
                self.number[node] = numbering.of(("input", inputs[node]))
            elif node in live:
                self.number[node] = self._number(node)
        self.calls = [node for node in self.number if node.op == "call_function"]

    def _number(self, node: fx.Node) -> int:
        value = self.program.constant_value(node)
        if value is not None:
            return self.numbering.of_constant(value)
        if node.op == "get_attr":
            owner = self.program.graph_module.get_submodule(str(node.target))
            return self.numbering.of(("graph", str(getattr(owner, "code", owner))))
        return self.numbering.of(("call", node.target, *_in_order(node, self.argument)))

    def argument(self, value: Any) -> Hashable:
        """An argument as something to compare by: numbers for nodes, formulas for sizes, types beside literals."""
        if isinstance(value, fx.Node):
            size = _size(value)
            return self._formula(size) if size is not None else ("value", self.number[value])
        if isinstance(value, (list, tuple)):
            return ("list", *map(self.argument, value))
        if isinstance(value, Mapping):
            return ("dict", *((key, self.argument(item)) for key, item in value.items()))
        if isinstance(value, slice):
            return ("slice", *map(self.argument, (value.start, value.stop, value.step)))
        return (type(value).__name__, f"{value:.10g}" if isinstance(value, float) else str(value))

    def _formula(self, size: torch.SymInt) -> Hashable:
        expression = sympy.sympify(size.node.expr)
        if expression.is_Integer:
            return self.argument(int(expression))
        return ("size", str(expression.xreplace(self.symbols)))


def _symbols(program: Program) -> dict[Any, Any]:
    """Each symbolic size of a capture -> a symbol named after the first axis of an input that tells it."""
    names: dict[Any, Any] = {}
    sizes = [
        (f"axis {axis} of input {i}", sympy.sympify(size.node.expr))
        for i, node in enumerate(program.input_nodes)
        for axis, size in enumerate(node.meta["val"].shape)
        if isinstance(size, torch.SymInt)
    ]
    for place, expression in sorted(sizes, key=lambda item: not item[1].is_Symbol):  # plain sizes before formulas
        for symbol in sorted(expression.free_symbols, key=str):
            names.setdefault(symbol, sympy.Symbol(f"<{place}>", integer=True, positive=True))
    return names


def _size(node: fx.Node) -> torch.SymInt | None:
    """The size a node stands for, where a formula of the inputs tells it; sizes that depend on data are values."""
    value = node.meta.get("val")
    return value if isinstance(value, torch.SymInt) and not free_unbacked_symbols(value) else None


def _live(program: Program) -> set[fx.Node]:
    """What the outputs, and calls that have an effect, are computed from; not what only a size was read from."""
    output = program.graph.output_node()
    # Capture asserts the form of what is cast, which the graph says already; other assertions are the user's.
    kept = [
        n for n in program.graph.nodes if n.op == "call_function" and n.target != aten._assert_tensor_metadata.default
    ]
    pending = [output, *(n for n in kept if n.is_impure())]
    found: set[fx.Node] = set()
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            pending += [n for n in node.all_input_nodes if _size(n) is None]
    return found - {output}


def _in_order(node: fx.Node, key: Any) -> list[Hashable]:
    """The arguments of a call by name, defaults filled in; a fixed order for operands that may be swapped."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return [key(node.args), key(node.kwargs)]
    call = arguments(node)
    real = {a.name for a in node.target._schema.arguments if str(a.type) == "float"}
    keys = [key(float(v) if name in real and isinstance(v, int) else v) for name, v in call.items()]
    plain_sum = node.target == aten.add.Tensor and call["alpha"] == 1
    if plain_sum or node.target in _COMMUTATIVE:
        keys[:2] = sorted(keys[:2], key=str)
    return keys


# ---------------------------------------------------------------- differences


def _lone_value(found: _Side, wanted: _Side) -> str | None:
    """The first call of either graph whose value the other never computes: its operands are in both."""
    for own, other, says in ((found, wanted, "wanted"), (wanted, found, "found")):
        known = set(other.number.values())
        lone = next((node for node in own.calls if own.number[node] not in known), None)
        if lone is None:
            continue
        mine = set(own.number.values())
        lonely = [node for node in other.calls if other.number[node] not in mine]
        rivals = [node for node in lonely if node.target == lone.target] or lonely[:1]
        shown = "; ".join(describe(other.program, node) for node in rivals[:3]) or "nothing like it"
        side = "found" if says == "wanted" else "wanted"
        return f"{side} {describe(own.program, lone)}\n  {says} {shown}"
    return None


def _returned(found: _Side, wanted: _Side) -> str | None:
    pairs = (found.program.output_nodes, wanted.program.output_nodes)
    if len(pairs[0]) != len(pairs[1]):
        return f"found {len(pairs[0])} outputs, wanted {len(pairs[1])}"
    for i, (a, b) in enumerate(zip(*pairs, strict=True)):
        if found.argument(a) != wanted.argument(b):
            return f"output {i}: found {_returns(found, a)}, wanted {_returns(wanted, b)}"
    return None


def _returns(side: _Side, value: Any) -> str:
    return describe(side.program, value) if isinstance(value, fx.Node) else repr(value)


def _repeated(found: _Side, wanted: _Side) -> str | None:
    """A value computed twice in one graph and shared in the other; both have the same values by now."""
    ours, theirs = (Counter(side.number[node] for node in side.calls) for side in (found, wanted))
    for node in found.calls:
        number = found.number[node]
        if ours[number] != theirs[number]:
            return f"found {describe(found.program, node)} computed {ours[number]} times, wanted {theirs[number]} times"
    return None


def describe(program: Program, node: fx.Node) -> str:
    """``add_1 = aten.add.Tensor(x [2, 4], 1.0) (model.py:12)``; a constant with its first values."""
    value = program.constant_value(node)
    if value is not None:
        return f"constant {program.constant_name(node)} {_values(value)}"
    line = source_line(node)
    place = f" ({line})" if line else ""
    if node.op == "placeholder":
        return f"input {node.name}{place}"
    args = [_shown(program, arg) for arg in node.args]
    args += [f"{key}={_shown(program, arg)}" for key, arg in node.kwargs.items()]
    return f"{node.name} = {node.target}({', '.join(args)}){place}"


def _shown(program: Program, argument: Any) -> str:
    if isinstance(argument, (list, tuple)):
        return f"[{', '.join(_shown(program, item) for item in argument)}]"
    if not isinstance(argument, fx.Node):
        return repr(argument)
    constant = program.constant_value(argument)
    if constant is not None:
        return f"{argument.name} {_values(constant)}"
    value = argument.meta.get("val")
    return f"{argument.name} {_sizes(value.shape)}" if isinstance(value, torch.Tensor) else f"{argument.name} = {value}"


def _sizes(shape: Sequence[Any]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _values(value: torch.Tensor) -> str:
    first = value.detach().reshape(-1)[:4].tolist()
    more = ", ..." if value.numel() > 4 else ""
    return f"{_sizes(value.shape)} of {', '.join(f'{x:.6g}' for x in first)}{more}"
