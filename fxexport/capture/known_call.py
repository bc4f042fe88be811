"""One operation of a running capture, and what is known of its tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fxexport.capture.known_arguments import BY_FORM, stand_in
from fxexport.capture.known_sizes import (
    NotFollowed,
    Sizes,
    depends_on_data,
    is_symbolic,
    leaves_of,
    numbers_in,
    truth,
)
from fxexport.capture.known_tensors import Known, KnownTensors

_TENSOR_VALUED = {"T", "mT", "H", "mH", "data", "real", "imag"}


class Call:
    """One operation, and what is known of its tensors."""

    def __init__(self, name: str, func: Callable[..., Any], args: Any, kwargs: Any, tensors: KnownTensors) -> None:
        self.name, self.func, self.args, self.kwargs = name, func, args, kwargs
        leaves = leaves_of((args, kwargs))
        self.tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        self._found: dict[int, Any] = {}
        for place, tensor in enumerate(self.tensors):
            known = tensors.find(tensor)
            if known is None and name in BY_FORM and (place > 0) == BY_FORM[name]:
                self._found[id(tensor)] = stand_in(tensor, name)
            else:
                self._found[id(tensor)] = known
        self.known = [known for known in self._found.values() if isinstance(known, Known)]
        self.all_known = None not in self._found.values()
        symbols = any(is_symbolic(leaf) for leaf in leaves)
        self.symbolic = symbols or any(isinstance(known.value, Sizes) for known in self.known)

    def on_values(self) -> tuple[Any, Any]:
        """Its arguments with values in the place of tensors."""

        def value(tensor: torch.Tensor) -> Any:
            found = self._found[id(tensor)]
            return found.value if isinstance(found, Known) else found

        args, kwargs = pytree.tree_map_only(torch.Tensor, value, (self.args, self.kwargs))
        return args, kwargs


def read_sizes(call: Call) -> Any:
    """The answer to Python's question for a value of a tensor that holds sizes; NotImplemented where it is not known."""
    value = call.known[0].value
    if not isinstance(value, Sizes) or call.name not in ("__bool__", "item", "tolist", "is_nonzero"):
        return NotImplemented
    if call.name in ("__bool__", "is_nonzero"):
        if len(value.elements) != 1 or depends_on_data(value.elements[0]):
            return NotImplemented
        return bool(truth(value.elements[0]))
    try:
        numbers = numbers_in(value)
    except NotFollowed:
        return NotImplemented
    if len(value.shape) == 1 and call.name == "tolist":
        return numbers
    return numbers[0] if len(numbers) == 1 and (call.name == "item" or not value.shape) else NotImplemented


def name_of(func: Any) -> str | None:
    """What ``func`` is called; None for what says nothing about values."""
    name = getattr(func, "__name__", "")
    if name == "__get__":
        attribute = getattr(getattr(func, "__self__", None), "__name__", "")
        return attribute if attribute in _TENSOR_VALUED else None
    return None if name in ("size", "dim", "stride", "numel", "storage_offset", "__len__") else name
