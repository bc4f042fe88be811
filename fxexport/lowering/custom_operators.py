"""Operators that exist only where the user's own library is loaded."""

from __future__ import annotations

from torch._ops import OpOverload

from fxexport.errors import LoweringError
from fxexport.exportable.scripted import CALL
from fxexport.program import Program, module_path

# Registered by PyTorch itself: a file that calls these loads wherever PyTorch does.
_PYTORCH = {"aten", "prim", "prims", "quantized", "_quantized", "quantized_decomposed", "mkldnn", "higher_order"}


def is_custom(target: OpOverload) -> bool:
    """Whether an operator is of another library than PyTorch."""
    return target.namespace not in _PYTORCH


def refuse_custom_operators(program: Program, kind: str) -> None:
    """Raises LoweringError listing operators of other libraries: a ``kind`` file calls them by name, so it would load
    only beside that library, and could not be checked in a process of its own.
    """
    found: dict[str, list[str]] = {}
    for node in (node for _, _, graph in program.graphs() for node in graph.nodes):
        if isinstance(node.target, OpOverload) and is_custom(node.target) and node.target is not CALL:
            places = found.setdefault(str(node.target), [])
            place = module_path(node) or "the model itself"
            if place not in places:
                places.append(place)
    if found:
        rows = [f"  {name}  used in {', '.join(places)}" for name, places in found.items()]
        raise LoweringError(
            f"a {kind} file cannot hold operators of other libraries:\n" + "\n".join(rows) + "\n"
            "Rewrite them with a pass into operators of PyTorch, or register them as composite (CompositeImplicitAutograd) "
            "so that capture sees what they consist of."
        )
