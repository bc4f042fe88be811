"""Flattening nested arguments and results to tensors with stable, meaningful paths."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fxexport.errors import CaptureError

Path = tuple[str | int, ...]
Number = bool | int | float


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One leaf of a nested value: where it sits, and what it is."""

    path: Path
    value: Any

    @property
    def is_tensor(self) -> bool:
        """Tensors travel; every other leaf is fixed in the artifact."""
        return isinstance(self.value, torch.Tensor)


def flatten(value: Any) -> tuple[list[Leaf], pytree.TreeSpec]:
    """All leaves of ``value`` with their paths, and the spec that ``pytree.tree_unflatten`` takes.

    Tuples, lists, dicts, named tuples, registered dataclasses and every type registered with ``torch.utils._pytree``
    (Hugging Face ``ModelOutput``, caches) are containers; anything else is a leaf.
    """
    values, spec = pytree.tree_flatten(value)
    if any(map(_register, {type(leaf) for leaf in values})):
        values, spec = pytree.tree_flatten(value)
    paths = list(_paths(value))
    if len(paths) != len(values):
        raise CaptureError(
            f"cannot name the leaves of a {type(value).__name__}: its pytree registration is inconsistent"
        )
    return [Leaf(path, leaf) for path, leaf in zip(paths, values, strict=True)], spec


def _paths(value: Any, prefix: Path = ()) -> Iterator[Path]:
    """The paths of the leaves, in the order in which pytree flattens them."""
    node = pytree._get_node_type(value)
    if node not in pytree.SUPPORTED_NODES:
        yield prefix
        return
    children, context = pytree.SUPPORTED_NODES[node].flatten_fn(value)
    with_keys = pytree.SUPPORTED_NODES[node].flatten_with_keys_fn
    keys = _keys(value, children, context) if with_keys is None else [_plain(key) for key, _ in with_keys(value)[0]]
    for key, child in zip(keys, children, strict=True):
        yield from _paths(child, (*prefix, key))


def _plain(key: Any) -> str | int:
    """The key of one child as pytree gives it: of a mapping, a sequence, or an object with attributes."""
    found = next((getattr(key, field) for field in ("key", "idx", "name") if hasattr(key, field)), key)
    return found if isinstance(found, int) else str(found)


# Containers whose library knows how to register them with pytree, and does so only when asked.
_REGISTRARS = {
    ("transformers.cache_utils", "DynamicCache"): (
        "transformers.integrations.executorch",
        "register_dynamic_cache_export_support",
    )
}


def _register(kind: type) -> bool:
    """Whether ``kind`` is one of those, and is registered now."""
    home = _REGISTRARS.get((kind.__module__, kind.__name__))
    if home is None:
        return False
    getattr(import_module(home[0]), home[1])()
    return True


def _keys(value: Any, children: list[Any], context: Any) -> list[str | int]:
    if isinstance(value, Mapping) and len(value) == len(children):
        return [key if isinstance(key, int) else str(key) for key in value]
    if hasattr(value, "_fields"):
        return list(value._fields)
    if dataclasses.is_dataclass(value):
        present = [f.name for f in dataclasses.fields(value) if any(getattr(value, f.name) is c for c in children)]
        if len(present) == len(children):
            return list(present)
    if isinstance(context, list | tuple) and len(context) == len(children) and all(isinstance(c, str) for c in context):
        return list(context)
    return list(range(len(children)))


def describe(value: Any) -> str:
    """A short description of an argument for messages: shapes and dtypes instead of numbers."""
    if isinstance(value, torch.Tensor):
        return f"Tensor{list(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k!r}: {describe(v)}" for k, v in value.items()) + "}"
    if isinstance(value, tuple | list):
        body = ", ".join(describe(v) for v in value)
        return f"({body})" if isinstance(value, tuple) else f"[{body}]"
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{type(value).__name__} {text[:50]}..."
