"""``FlatModel``: the user's model with flat tensors in and flat tensors out, in eager and in capture alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxexport.capture.binding import ExampleCall, as_pairs
from fxexport.capture.nesting import Leaf, describe, flatten
from fxexport.errors import CaptureError
from fxexport.signature import Structure, flat_name, show_path, unique_names


class FlatModel(nn.Module):
    """Takes the tensor leaves of an example call, returns the tensor leaves of the result.

    ``forward(*tensors) -> tuple of tensors``. Python values of the example are passed as they were given. None among
    the results is dropped (its place is kept in ``structure``), numbers become 0-d tensors, anything else is refused
    by name. Buffers of ``call.state`` are the last inputs, and their values after the call the last results. With
    ``call.pairs`` complex tensors come in and go out as real pairs.
    """

    def __init__(self, model: nn.Module, call: ExampleCall) -> None:
        super().__init__()
        self.model = model
        self._spec = call.spec
        self._fixed = [None if leaf.is_tensor else leaf.value for leaf in call.leaves]
        self._is_tensor = [leaf.is_tensor for leaf in call.leaves]
        self._state = call.state
        self._left_out = call.left_out
        self._pairs = call.pairs
        self.results: ResultLayout | None = None
        self.before: Callable[[], None] = lambda: None

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Calls the model; see the class."""
        self.before()
        if self._pairs:
            tensors = tuple(torch.view_as_complex(t) if i in self._pairs else t for i, t in enumerate(tensors))
        feed = iter(tensors)
        pairs = zip(self._is_tensor, self._fixed, strict=True)
        values = [next(feed) if is_tensor else fixed for is_tensor, fixed in pairs]
        count = len(values) - len(self._state)
        args, kwargs = pytree.tree_unflatten(values[:count], self._spec)
        state = tensors[len(tensors) - len(self._state) :]
        with lent_buffers(self.model, dict(zip(self._state, state, strict=True))) as buffers:
            result = self.model(*args, **kwargs)
            after = [buffers(name) for name in self._state]
        leaves, _ = flatten(result)
        leaves = [Leaf(leaf.path, None) if _show(leaf.path) in self._left_out else leaf for leaf in leaves]
        layout = ResultLayout.of(result, leaves).with_state(self._state)
        results = (*(_as_tensor(leaf) for leaf in leaves if leaf.value is not None), *after)
        if self._pairs is not None:
            found = (path for path, tensor in zip(layout.paths, results, strict=True) if tensor.is_complex())
            layout = dataclasses.replace(layout, pairs=frozenset(found))
            results = tuple(map(as_pairs, results))
        self.results = layout
        return results


@contextmanager
def lent_buffers(model: nn.Module, values: Mapping[str, torch.Tensor]) -> Iterator[Callable[[str], torch.Tensor]]:
    """While the block runs, the named buffers of ``model`` hold copies of ``values``; yields a reader of their present
    values."""
    places = {name: _buffer_place(model, name) for name in values}
    own = {name: table[key] for name, (table, key) in places.items()}

    def read(name: str) -> torch.Tensor:
        table, key = places[name]
        value = table[key]
        assert value is not None
        return value

    try:
        for name, (table, key) in places.items():
            table[key] = values[name].clone()
        yield read
    finally:
        for name, (table, key) in places.items():
            table[key] = own[name]


def _buffer_place(model: nn.Module, name: str) -> tuple[dict[str, torch.Tensor | None], str]:
    path, _, key = name.rpartition(".")
    return model.get_submodule(path)._buffers, key


@dataclasses.dataclass(frozen=True)
class ResultLayout:
    """How the flat results nest in what the model returned. ``leaves``: all paths, also of None; ``pairs``: those of
    complex results that go out as real pairs."""

    names: list[str]
    paths: list[str]
    structure: Structure
    dropped: tuple[str, ...]
    numbers: tuple[str, ...]
    leaves: tuple[str, ...]
    pairs: frozenset[str] = frozenset()

    def with_state(self, state: Sequence[str]) -> ResultLayout:
        """The layout of ``(result, {buffer: value})``; unchanged without explicit state."""
        if not state:
            return self
        names = unique_names([*self.names, *(flat_name(("output", name)) for name in state)])
        nested: Structure = {"dict": dict(zip(state, names[len(self.names) :], strict=True))}
        own = [show_path(("state", name)) for name in state]
        structure: Structure = {"tuple": [self.structure, nested]}
        leaves = (*self.leaves, *own)
        return dataclasses.replace(self, names=names, paths=[*self.paths, *own], structure=structure, leaves=leaves)

    @staticmethod
    def of(result: Any, leaves: list[Leaf]) -> ResultLayout:
        """The layout of one result. Raises CaptureError for leaves that no artifact can return."""
        for leaf in leaves:
            _refuse_unknown(leaf)
        kept = [leaf for leaf in leaves if leaf.value is not None]
        if not kept:
            raise CaptureError(f"forward returned {describe(result)}: there is no tensor to export")
        names = unique_names(_output_name(leaf.path) for leaf in kept)
        dropped = tuple(_show(leaf.path) for leaf in leaves if leaf.value is None)
        numbers = tuple(_show(leaf.path) for leaf in kept if not leaf.is_tensor)
        by_path = dict(zip((leaf.path for leaf in kept), names, strict=True))
        structure = _nest({leaf.path: by_path.get(leaf.path) for leaf in leaves})
        paths, every = [_show(leaf.path) for leaf in kept], tuple(_show(leaf.path) for leaf in leaves)
        return ResultLayout(names, paths, structure, dropped, numbers, every)


def _output_name(path: tuple[str | int, ...]) -> str:
    if not path:
        return "output"
    return flat_name(path) if isinstance(path[0], str) else flat_name(("output", *path))


def _show(path: tuple[str | int, ...]) -> str:
    return show_path(("output", *path))


def _refuse_unknown(leaf: Leaf) -> None:
    value = leaf.value
    if value is None or isinstance(
        value, torch.Tensor | bool | int | float | complex | torch.SymInt | torch.SymFloat | torch.SymBool
    ):
        return
    kind, place = type(value).__name__, _show(leaf.path)
    hint = "return tensors, numbers, None, or tuples, lists and dicts of them"
    if dataclasses.is_dataclass(value):
        hint = f"register it once with torch.export.register_dataclass({kind})"
    raise CaptureError(f"forward returns a {kind} at {place} ({describe(value)}), which no artifact can hold; {hint}")


def _as_tensor(leaf: Leaf) -> torch.Tensor:
    value = leaf.value
    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, torch.SymInt):
        return torch.scalar_tensor(value, dtype=torch.int64)  # type: ignore[arg-type]
    if isinstance(value, torch.SymFloat):
        return torch.scalar_tensor(value, dtype=torch.float32)  # type: ignore[arg-type]
    return torch.tensor(value)


def _nest(names: dict[tuple[str | int, ...], str | None]) -> Structure:
    """``{("a",): "a", ("b", 0): "b_0"}`` -> ``{"dict": {"a": "a", "b": {"tuple": ["b_0"]}}}``."""
    if list(names) == [()]:
        return names[()]
    groups: dict[str | int, dict[tuple[str | int, ...], str | None]] = {}
    for (head, *rest), name in names.items():
        groups.setdefault(head, {})[tuple(rest)] = name
    children = {key: _nest(group) for key, group in groups.items()}
    if all(isinstance(key, int) for key in children) and list(children) == list(range(len(children))):
        return {"tuple": list(children.values())}
    return {"dict": {str(key): child for key, child in children.items()}}
