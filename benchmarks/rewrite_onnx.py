"""The ONNX form of the graphs and rules of ``rewrite_engine.py``: one table from ATen operators to ONNX operators.

The same table makes the model, the patterns and the replacements, so that a pattern finds in the ONNX form what its
torch text finds in the ATen form.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnxscript.rewriter.pattern import RewriteRule, RewriteRuleSet
from rewrite_graphs import numbers_of, traced
from rewrite_rules import NUMBERS, Rule, parameters
from torch import fx

from fxexport.program import Program

OPSET = 24
Emit = Callable[..., Any]
aten = torch.ops.aten

_SAME = {
    aten.sigmoid.default: "Sigmoid", aten.relu.default: "Relu", aten.neg.default: "Neg", aten.exp.default: "Exp",
    aten.log.default: "Log", aten.tanh.default: "Tanh", aten.erf.default: "Erf", aten.sqrt.default: "Sqrt",
    aten.sin.default: "Sin", aten.cos.default: "Cos", aten.atan.default: "Atan", aten.asinh.default: "Asinh",
    aten.abs.default: "Abs", aten.cosh.default: "Cosh", aten.reciprocal.default: "Reciprocal",
    aten.mul.Tensor: "Mul", aten.add.Tensor: "Add", aten.sub.Tensor: "Sub", aten.div.Tensor: "Div",
    aten.pow.Tensor_Scalar: "Pow", aten.gt.Scalar: "Greater", aten.matmul.default: "MatMul", aten.where.self: "Where",
    aten.maximum.default: "Max", aten.silu.default: "Swish", aten.hardswish.default: "HardSwish",
    aten.mish.default: "Mish", aten.softplus.default: "Softplus", aten.clamp.default: "Clip",
}  # fmt: skip
"""Operators whose arguments are the inputs of the ONNX operator, numbers as float constants."""

_REDUCE = {aten.mean.dim: "ReduceMean", aten.amax.default: "ReduceMax", aten.sum.dim_IntList: "ReduceSum"}

_OTHER: dict[Any, Callable[..., Any]] = {
    aten.rsqrt.default: lambda op, c, x: op.Reciprocal(op.Sqrt(x)),
    aten.t.default: lambda op, c, x: op.Transpose(x, perm=[1, 0]),
    aten.reshape.default: lambda op, c, x, shape: op.Reshape(x, c(shape)),
    aten.dropout.default: lambda op, c, x, p, train: op.Dropout(x, c(p)),
    aten.linear.default: lambda op, c, x, w, b: op.Gemm(x, w, b, transB=1),
    aten.addmm.default: lambda op, c, b, x, w, beta=1: op.Gemm(x, w, b, beta=float(beta)),
    aten.layer_norm.default: lambda op, c, x, n, g, b: op.LayerNormalization(x, g, b, axis=-1, epsilon=1e-5),
    aten.rms_norm.default: lambda op, c, x, n, g, eps: op.RMSNormalization(x, g, axis=-1, epsilon=eps),
    aten.gelu.default: lambda op, c, x, approximate="none": op.Gelu(x, approximate=approximate),
    aten.softmax.int: lambda op, c, x, axis: op.Softmax(x, axis=axis),
    aten.log_softmax.int: lambda op, c, x, axis: op.LogSoftmax(x, axis=axis),
    aten.leaky_relu.default: lambda op, c, x, slope=0.01: op.LeakyRelu(x, alpha=slope),
    aten.cat.default: lambda op, c, values, axis=0: op.Concat(*values, axis=axis),
}


def emit(graph: fx.Graph, op: Any, given: Mapping[str, Any], constant: Callable[[Any], Any]) -> Any:
    """The value that ``graph`` returns, built by ``op``; ``constant`` makes a value of a number or a list of sizes.

    Raises KeyError for an operator that the table lacks.
    """
    made: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            made[node] = given[node.name]
        elif node.op == "call_function":
            args, kwargs = fx.map_arg((node.args, node.kwargs), made.__getitem__)
            made[node] = _call(node.target, op, constant, args, kwargs)
    (result,) = fx.map_arg((graph.output_node().args[0],), made.__getitem__)
    return result[0] if isinstance(result, (tuple, list)) else result


def _call(target: Any, op: Any, constant: Callable[[Any], Any], args: Any, kwargs: Any) -> Any:
    if target in _SAME:
        values = [constant(float(arg)) if isinstance(arg, (int, float)) else arg for arg in args]
        return getattr(op, _SAME[target])(*values, **kwargs)
    if target in _REDUCE:
        value, axes, keep = args
        return getattr(op, _REDUCE[target])(value, constant(axes), keepdims=int(keep))
    return _OTHER[target](op, constant, *args, **kwargs)


def _tensor(value: Any) -> ir.TensorProtocol:
    kind = np.float32 if isinstance(value, float) else np.int64
    return ir.tensor(np.array(value, dtype=kind))


# ---------------------------------------------------------------- models


class _Builder:
    """Makes nodes in the manner of onnxscript's builders, and constants as initializers, one for each value."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []
        self.initializers: dict[Any, ir.Value] = {}

    def __getattr__(self, operator: str) -> Emit:
        def make(*inputs: ir.Value, **attributes: Any) -> ir.Value:
            self.nodes.append(ir.node(operator, inputs, attributes=attributes))
            return self.nodes[-1].outputs[0]

        return make

    def constant(self, value: Any) -> ir.Value:
        key = tuple(value) if isinstance(value, list) else value
        if key not in self.initializers:
            self.initializers[key] = self.initializer(f"constant_{len(self.initializers)}", _tensor(value))
        return self.initializers[key]

    @staticmethod
    def initializer(name: str, tensor: ir.TensorProtocol) -> ir.Value:
        shape = ir.Shape(tensor.numpy().shape)
        return ir.Value(name=name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)


def to_model(program: Program) -> ir.Model:
    """``program`` as an ONNX model, operator by operator."""
    builder, given, inputs, weights = _Builder(), {}, [], []
    for node in program.graph.find_nodes(op="placeholder"):
        tensor = program.constant_value(node)
        if tensor is None:
            shape = ir.Shape(tuple(node.meta["val"].shape))
            value = ir.Value(name=node.name, shape=shape, type=ir.TensorType(ir.DataType.FLOAT))
            inputs.append(value)
        else:
            value = builder.initializer(node.name, ir.tensor(tensor.numpy()))
            weights.append(value)
        given[node.name] = value
    result = emit(program.graph, builder, given, builder.constant)
    result.type, result.shape = (
        ir.TensorType(ir.DataType.FLOAT),
        ir.Shape(tuple(program.output_nodes[0].meta["val"].shape)),
    )
    graph = ir.Graph(
        inputs,
        [result],
        nodes=builder.nodes,
        initializers=[*weights, *builder.initializers.values()],
        opset_imports={"": OPSET},
        name="rewrite",
    )
    return ir.Model(graph, ir_version=10)


# ---------------------------------------------------------------- rules


def to_rules(rules: tuple[Rule, ...], counts: dict[str, int]) -> RewriteRuleSet:
    """The rules for onnxscript; those with a swapped spelling in all orders of their operands.

    Each rewrite adds one to ``counts`` under the name of its rule.
    """
    made: list[RewriteRule] = []
    for rule in rules:
        whole = RewriteRule(_target(rule), _replacement(rule, counts), _numbers_known(rule), name=rule.name)
        made += whole.commute() if rule.swapped else [whole]
    return RewriteRuleSet(made)


def _target(rule: Rule) -> Emit:
    names = parameters(rule.pattern)
    marks = dict(zip(numbers_of(rule.pattern), [n for n in names if n in NUMBERS], strict=True))
    graph = traced(rule.pattern, numbers_of(rule.pattern))

    def target(op: Any, *values: Any) -> Any:
        given = dict(zip(names, values, strict=True))
        return emit(graph, op, given, lambda value: given[marks[value]] if _is_mark(value, marks) else value)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    target.__signature__ = inspect.Signature([inspect.Parameter(n, kind) for n in ("op", *names)])  # type: ignore[attr-defined]
    return target


def _is_mark(value: Any, marks: Mapping[float, str]) -> bool:
    return isinstance(value, float) and value in marks


def _replacement(rule: Rule, counts: dict[str, int]) -> Emit:
    numbers = [name for name in parameters(rule.pattern) if name in NUMBERS]

    def replacement(op: Any, **given: Any) -> Any:
        counts[rule.name] = counts.get(rule.name, 0) + 1
        graph = traced(rule.replacement, tuple(float(given[n].const_value.numpy()) for n in numbers))
        result = emit(graph, op, given, lambda value: op.Constant(value=_tensor(value)))
        return op.Identity(result) if result is given["x"] else result

    return replacement


def _numbers_known(rule: Rule) -> Emit:
    numbers = [name for name in parameters(rule.pattern) if name in NUMBERS]

    def known(context: Any, **given: Any) -> bool:
        values = [given[name].const_value for name in numbers]
        return all(value is not None and value.size == 1 for value in values)

    return known
