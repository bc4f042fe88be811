"""Thirty rewrite rules as plain torch functions, for ``rewrite_engine.py``: the same text for every engine.

The parameters of a function say what it is given: ``x`` and ``y`` are float32 values of shape (8, 16), ``w`` is a
weight (16, 16), ``b`` a bias (16,), ``g`` a gain (16,), and ``p`` and ``q`` are numbers that a pattern binds. No
pattern is part of another one, so that the number of places that match does not depend on the order of the rules.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Function = Callable[..., Any]
EXAMPLES: dict[str, tuple[int, ...]] = {"x": (8, 16), "y": (8, 16), "w": (16, 16), "b": (16,), "g": (16,)}
NUMBERS = ("p", "q")


@dataclass(frozen=True)
class Rule:
    """A rewrite, and spellings of it to plant: ``near`` must not match, ``swapped`` computes what ``pattern`` does."""

    name: str
    pattern: Function
    replacement: Function
    near: Function
    swapped: Function | None = None


def parameters(function: Function) -> tuple[str, ...]:
    """The names of the parameters of ``function``, in order."""
    return tuple(inspect.signature(function).parameters)


# ---------------------------------------------------------------- patterns that need more than an expression


def layer_norm(x: Tensor, g: Tensor, b: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + 1e-5) * g + b


def layer_norm_without_root(x: Tensor, g: Tensor, b: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5) * g + b


def rms_norm(x: Tensor, g: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * g


def rms_norm_swapped(x: Tensor, g: Tensor) -> Tensor:
    return g * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5))


def softmax(x: Tensor) -> Tensor:
    e = torch.exp(x - x.amax(-1, keepdim=True))
    return e / e.sum(-1, keepdim=True)


def softmax_by_mean(x: Tensor) -> Tensor:
    e = torch.exp(x - x.amax(-1, keepdim=True))
    return e / e.mean(-1, keepdim=True)


def tanh(x: Tensor) -> Tensor:
    up, down = torch.exp(x), torch.exp(-x)
    return (up - down) / (up + down)


def tanh_off(x: Tensor) -> Tensor:
    up, down = torch.exp(x), torch.exp(-x)
    return (up - down) / (down + 1.0)


def gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh(0.7978845608 * (x + 0.044715 * torch.pow(x, 3.0))))


def gelu_tanh_square(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh(0.7978845608 * (x + 0.044715 * torch.pow(x, 2.0))))


# Patterns bind a number where a parameter is annotated with its type.


def add_numbers(x: Tensor, p: float, q: float) -> Tensor:
    return (x + p) + q


def add_their_sum(x: Tensor, p: float, q: float) -> Tensor:
    return x + (p + q)


def multiply_numbers(x: Tensor, p: float, q: float) -> Tensor:
    return (x * p) * q


def multiply_their_product(x: Tensor, p: float, q: float) -> Tensor:
    return x * (p * q)


def divide_by_number(x: Tensor, p: float) -> Tensor:
    return x / p


def multiply_by_inverse(x: Tensor, p: float) -> Tensor:
    return x * (1.0 / p)


RULES: tuple[Rule, ...] = (
    Rule("silu", lambda x: x * torch.sigmoid(x), lambda x: F.silu(x), lambda x, y: x * torch.sigmoid(y),
         lambda x: torch.sigmoid(x) * x),
    Rule("relu-relu", lambda x: x.relu().relu(), lambda x: x.relu(), lambda x: x.neg().relu()),
    Rule("neg-neg", lambda x: x.neg().neg(), lambda x: x, lambda x: x.relu().neg()),
    Rule("add-numbers", add_numbers, add_their_sum, lambda x, y, p: (x + y) + p),
    Rule("multiply-numbers", multiply_numbers, multiply_their_product, lambda x, y, p: (x * y) * p),
    Rule("divide-by-number", divide_by_number, multiply_by_inverse, lambda x, y: x / y.cosh()),
    Rule("sub-neg", lambda x, y: x - (-y), lambda x, y: x + y, lambda x, y: x - y.relu()),
    Rule("add-neg", lambda x, y: x + (-y), lambda x, y: x - y, lambda x, y: x + y.relu(), lambda x, y: (-y) + x),
    Rule("transpose-twice", lambda x: x.t().t(), lambda x: x, lambda x: x.t().neg().t()),
    Rule("reshape-twice", lambda x: x.reshape(16, 8).reshape(8, 16), lambda x: x,
         lambda x: x.reshape(16, 8).neg().reshape(8, 16)),
    Rule("linear", lambda x, w, b: x @ w.t() + b, lambda x, w, b: F.linear(x, w, b), lambda x, w, b: x @ w.t() * b,
         lambda x, w, b: b + x @ w.t()),
    Rule("matmul-sub", lambda x, w, b: x @ w - b, lambda x, w, b: torch.addmm(b, x, w, beta=-1),
         lambda x, w, b: x @ w * b),
    Rule("dropout", lambda x: F.dropout(x, 0.25, training=False), lambda x: x,
         lambda x: F.dropout(x, 0.5, training=False)),
    Rule("layer-norm", layer_norm, lambda x, g, b: F.layer_norm(x, x.shape[-1:], g, b), layer_norm_without_root),
    Rule("rms-norm", rms_norm, lambda x, g: F.rms_norm(x, x.shape[-1:], g, 1e-5),
         lambda x, g: x * torch.sqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * g, rms_norm_swapped),
    Rule("gelu-erf", lambda x: 0.5 * x * (1.0 + torch.erf(x * 0.70710678)), lambda x: F.gelu(x),
         lambda x: 0.5 * x * (1.0 + torch.erf(x * 0.5)), lambda x: (1.0 + torch.erf(x * 0.70710678)) * (0.5 * x)),
    Rule("gelu-tanh", gelu_tanh, lambda x: F.gelu(x, approximate="tanh"), gelu_tanh_square),
    Rule("softmax", softmax, lambda x: torch.softmax(x, -1), softmax_by_mean),
    Rule("hardswish", lambda x: x * torch.clamp(x + 3.0, 0.0, 6.0) * (1 / 6), lambda x: F.hardswish(x),
         lambda x: x * torch.clamp(x + 3.0, 0.0, 5.0) * (1 / 6),
         lambda x: torch.clamp(x + 3.0, 0.0, 6.0) * x * (1 / 6)),
    Rule("multiply-by-one", lambda x: x * 1.0, lambda x: x, lambda x: x * 2.0),
    Rule("add-zero", lambda x: x + 0.0, lambda x: x, lambda x: x + 0.5),
    Rule("log-exp", lambda x: torch.log(torch.exp(x)), lambda x: x, lambda x: torch.log(torch.cosh(x))),
    Rule("softplus", lambda x: torch.log(torch.exp(x) + 1.0), lambda x: F.softplus(x),
         lambda x: torch.log(torch.exp(x) + 2.0)),
    Rule("abs-neg", lambda x: torch.abs(-x), lambda x: torch.abs(x), lambda x: torch.abs(x.relu())),
    Rule("tanh", tanh, lambda x: torch.tanh(x), tanh_off),
    Rule("sigmoid", lambda x: torch.reciprocal(torch.exp(-x) + 1.0), lambda x: torch.sigmoid(x),
         lambda x: torch.reciprocal(torch.exp(x) + 1.0)),
    Rule("leaky-relu", lambda x: torch.where(x > 0, x, x * 0.01), lambda x: F.leaky_relu(x, 0.01),
         lambda x: torch.where(x > 0, x, x * 0.02)),
    Rule("mish", lambda x: x * torch.tanh(F.softplus(x)), lambda x: F.mish(x),
         lambda x: x * torch.tanh(torch.sigmoid(x)), lambda x: torch.tanh(F.softplus(x)) * x),
    Rule("log-softmax", lambda x: torch.log(torch.softmax(x, -1)), lambda x: torch.log_softmax(x, -1),
         lambda x: torch.log(torch.sigmoid(x))),
    Rule("clamp-to-relu", lambda x: torch.clamp(x, min=0.0), lambda x: x.relu(), lambda x: torch.clamp(x, min=0.1)),
)  # fmt: skip

FILLERS: tuple[Function, ...] = (torch.sin, torch.cos, torch.atan, torch.asinh)
"""Operators of one value that no rule reads; they bound what the sites compute, so that long graphs stay finite."""
