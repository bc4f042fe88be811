"""The parts of a model by name, and recognising them when they are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from fxexport.errors import InputError
from fxexport.exportable.subnet_names import list_subnets, subnet_of


def part_names(model: nn.Module, subnets: Sequence[str] | None, config: Mapping[str, Any] | None) -> list[str]:
    """The parts asked for, or those that the model's ``list_export_subnets`` names.

    Raises InputError where a name comes twice or is no text, or where the hook is wrong.
    """
    if subnets is None:
        return list_subnets(model, config)
    if isinstance(subnets, str) or not all(isinstance(name, str) and name for name in subnets) or not subnets:
        raise InputError(f"subnets must be a list of names of parts, got {subnets!r}")
    if len(set(subnets)) != len(subnets):
        raise InputError(f"the subnets {list(subnets)} name one part twice")
    return list(subnets)


def find_part(model: nn.Module, name: str) -> nn.Module:
    """The part of that name: by the model's hooks, or the submodule at a path with dots (``model.encoder``).

    Raises InputError where there is none, or where it is no module.
    """
    if "." not in name:
        return subnet_of(model, name)
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise InputError(f"{type(model).__name__} has no submodule {name!r}: {error}") from error


class Parts:
    """The parts of one copy of the model. ``modules``: name -> module."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self.modules = {name: find_part(model, name) for name in names}
        self._by_id = {id(module): name for name, module in self.modules.items()}
        self._by_content = {key: n for n, m in self.modules.items() if (key := _content(m)) is not None}
        self._own = {id(m) for m in model.modules()}
        self._weights = {id(p) for p in model.parameters()}

    def name_of(self, module: nn.Module) -> str | None:
        """The part that ``module`` is: the same object, or built anew, of the same type around the same children."""
        found = self._by_id.get(id(module))
        if found is None and id(module) not in self._own and (key := _content(module)) is not None:
            found = self._by_content.get(key)
        return found

    def belongs(self, value: Any) -> bool:
        """Whether ``value`` is a module or a parameter of the model: what is built around it may be a part."""
        return id(value) in self._own or id(value) in self._weights


def _content(module: nn.Module) -> tuple[Any, ...] | None:
    """Type and identity of the direct children and parameters; None for a module that has neither."""
    children = tuple((name, id(child)) for name, child in module._modules.items() if child is not None)
    weights = tuple((name, id(weight)) for name, weight in module._parameters.items() if weight is not None)
    return (type(module), children, weights) if children or weights else None
