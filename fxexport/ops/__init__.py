"""What operators are: which ones are pure, known or mere moves, and how they are spelled out in simpler ones."""

from fxexport.ops.complex_walk import decompose_complex
from fxexport.ops.constant_layers import Layer, Wanted, in_double, layer_behind, read_layer, rounded
from fxexport.ops.cuts import Cut, bound_size, cut_of, is_empty, joined_cut, surely_equal, uncut
from fxexport.ops.known_calls import KnownCalls, nbytes
from fxexport.ops.layouts import (
    PERMUTATIONS,
    RESHAPES,
    expression,
    fixed,
    is_reshape,
    order_of,
    plain_sizes,
    same_sizes,
)
from fxexport.ops.normalizations import Normalization, fixed_sizes, multiplied, read_normalization, widened
from fxexport.ops.purity import is_pure, looks_at_memory

__all__ = [
    "PERMUTATIONS",
    "RESHAPES",
    "Cut",
    "KnownCalls",
    "Layer",
    "Normalization",
    "Wanted",
    "bound_size",
    "cut_of",
    "decompose_complex",
    "expression",
    "fixed",
    "fixed_sizes",
    "in_double",
    "is_empty",
    "is_pure",
    "is_reshape",
    "joined_cut",
    "layer_behind",
    "looks_at_memory",
    "multiplied",
    "nbytes",
    "order_of",
    "plain_sizes",
    "read_layer",
    "read_normalization",
    "rounded",
    "same_sizes",
    "surely_equal",
    "uncut",
    "widened",
]
