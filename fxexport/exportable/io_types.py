"""The declared inputs and outputs of a part, from wherever its hooks say them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from fxexport.errors import InputError
from fxexport.exportable.reading import has_hook, is_default, name_of, read_hook, read_module, read_names
from fxexport.tensor_types import TypedMap, TypedTensor, read_types

Side = Literal["input", "output"]


@dataclass(frozen=True)
class Declared:
    """One side of a part.

    Attributes:
        names: every declared name in order, the disabled ones included; empty where nothing is declared.
        types: of the inputs, those of the names that are not disabled; of the outputs all, since a model may return what
            is disabled, and its place tells which one it is. None where nothing is declared.
        disabled: the names that the hook leaves out.
    """

    names: tuple[str, ...]
    types: TypedMap | None
    disabled: frozenset[str]


def read_declared(part: nn.Module, side: Side, notes: list[str]) -> Declared:
    """What ``part`` says of its inputs or outputs: types of the module that takes or gives them, less disabled names.

    Types come from ``input_types_for_export`` or ``input_types`` of ``input_module``, else of the part itself (output
    likewise). Where the part lists ``input_names`` of its own, these count, with the types that are known by name; a
    hook for types that fails then is a note.

    Raises InputError naming the hook that fails or gives something else.
    """
    disabled = frozenset(read_names(part, f"disabled_deployment_{side}_names"))
    hook = f"{side}_names"
    if not has_hook(part, hook) or is_default(part, hook) or not (names := read_names(part, hook)):
        modules = [read_module(part, f"{side}_module"), part]
        types = next((found for module in modules if (found := _types(module, side)) is not None), None)
        left_out = disabled if side == "input" else frozenset()
        kept = None if types is None else {name: each for name, each in types.items() if name not in left_out}
        return Declared(tuple(types or ()), kept, disabled)
    known: TypedMap = {}
    other = "output_module" if side == "input" else "input_module"
    for place in (other, "", f"{side}_module"):  # the last one counts most
        try:
            known |= _types(read_module(part, place) if place else part, side) or {}
        except InputError as error:
            notes.append(f"{error} (the names of {name_of(part, hook)} are used, without these types)")
    unknown = TypedTensor(axes=None, dtype=None, optional=False)
    return Declared(tuple(names), {n: known.get(n, unknown) for n in names if n not in disabled}, disabled)


def _types(module: nn.Module, side: Side) -> TypedMap | None:
    for hook in (f"{side}_types_for_export", f"{side}_types"):
        # A toolbox's default for the first reads the second, which not every model has.
        if not has_hook(module, hook) or (is_default(module, hook) and not has_hook(module, f"{side}_types")):
            continue
        found = read_types(read_hook(module, hook), hook=hook, owner=type(module).__name__)
        if found is not None:
            return found
    return None
