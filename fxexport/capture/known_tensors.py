"""Which tensors of a running capture have values that are known, and what they are."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch._guards import detect_fake_mode

from fxexport.capture.known_running import for_real, same_memory
from fxexport.capture.known_sizes import Sizes

LARGEST = 2**16
"""Elements of a tensor up to which its value is followed."""


@dataclass(frozen=True)
class Known:
    """A tensor of the capture and its value. The tensor is held here, so that no other object gets its id.

    Attributes:
        memory: shares its memory with the views of ``tensor`` in the capture.
        value: a real tensor of the capture's own, or elements that depend on sizes. Views of one another in the capture
            are views of one another here.
        version: how often the tensor had been written to when this was noted.
        origins: the attributes of the model that the value comes from.
        lasting: a call of the model leaves those attributes as they are.
    """

    tensor: torch.Tensor
    memory: torch.Tensor
    value: torch.Tensor | Sizes
    version: int
    origins: frozenset[str] = frozenset()
    lasting: bool = True


@dataclass(frozen=True)
class State:
    """The tensors that a model holds, by path, and the paths of those that a call of it changes."""

    values: Mapping[str, torch.Tensor]
    changed: Collection[str]


class KnownTensors:
    """The known tensors of one run of ``model.forward`` under capture, starting with those that ``model`` holds.

    ``model`` holds other tensors now in the place of those that ``state`` has the values of.
    """

    def __init__(self, model: nn.Module, state: State) -> None:
        self._known: dict[int, Known] = {}
        self._twins: dict[int, torch.Tensor] = {}
        held = ((tensor, path) for path, tensor in held_tensors(model) if path in state.values)
        self._held = {id(tensor): (tensor, path, self.version_of(tensor)) for tensor, path in held}
        self._state = state
        self.written: set[str] = set()

    def find(self, tensor: torch.Tensor) -> Known | None:
        """What is known of ``tensor``, unless something wrote into it since."""
        known = self._known.get(id(tensor))
        if known is None:
            known = self._first_sight(tensor)
            if known is not None:
                self._known[id(tensor)] = known
        return known if known is not None and known.version == self.version_of(tensor) else None

    def memory_of(self, tensor: torch.Tensor) -> torch.Tensor:
        """``tensor``, or what the capture uses in the place of a real one."""
        if id(tensor) not in self._twins:
            if not is_real(tensor):
                return tensor
            mode = detect_fake_mode()
            assert mode is not None
            with for_real():
                self._twins[id(tensor)] = mode.fake_tensor_converter.from_real_tensor(mode, tensor)
        return self._twins[id(tensor)]

    def version_of(self, tensor: torch.Tensor) -> int | None:
        """How often something wrote into ``tensor`` or a view of it; None where PyTorch does not count."""
        versions = [version_of(tensor), version_of(self.memory_of(tensor))]
        return None if None in versions else sum(version for version in versions if version is not None)

    def note(self, tensor: torch.Tensor, value: torch.Tensor | Sizes, sources: Iterable[Known]) -> None:
        """``tensor`` has ``value``, which comes from ``sources``."""
        sources = list(sources)
        version = self.version_of(tensor)
        if version is None:
            self._known.pop(id(tensor), None)
            return
        origins = frozenset[str]().union(*(known.origins for known in sources))
        lasting = all(known.lasting for known in sources)
        self._known[id(tensor)] = Known(tensor, self.memory_of(tensor), value, version, origins, lasting)

    def wrote(self, tensor: torch.Tensor, followed: torch.Tensor | None, sources: Iterable[Known] = ()) -> None:
        """Something wrote into ``tensor``; where ``followed`` is given, the same was written into that real tensor."""
        sources = list(sources)
        memory = self.memory_of(tensor)
        self.written |= {path for held, path, _ in self._held.values() if same_memory(self.memory_of(held), memory)}
        for key, known in list(self._known.items()):
            if not same_memory(known.memory, memory):
                continue
            version = self.version_of(known.tensor)
            follows = (
                followed is not None and isinstance(known.value, torch.Tensor) and same_memory(known.value, followed)
            )
            if not follows or version is None:
                # The key stays: what the model held in it is known no more.
                self._known[key] = replace(known, version=-1)
                continue
            origins = known.origins.union(*(source.origins for source in sources))
            lasting = known.lasting and all(source.lasting for source in sources)
            self._known[key] = replace(known, version=version, origins=origins, lasting=lasting)

    def alone(self, tensor: torch.Tensor) -> bool:
        """Whether nothing else that was seen shares the memory of ``tensor``."""
        memory = self.memory_of(tensor)
        others = [known.memory for known in self._known.values() if known.tensor is not tensor]
        held = [self.memory_of(held) for held, *_ in self._held.values()]
        return not any(same_memory(other, memory) for other in (*others, *held))

    def _first_sight(self, tensor: torch.Tensor) -> Known | None:
        """A tensor that the model holds, or that is no tensor of the capture: a constant of the model's code."""
        _, path, version = self._held.get(id(tensor), (None, "", self.version_of(tensor)))
        if version is None:
            return None
        if path:
            lasting = path not in self._state.changed
            return Known(
                tensor, self.memory_of(tensor), _copy(self._state.values[path]), version, frozenset({path}), lasting
            )
        if not is_real(tensor) or tensor.numel() > LARGEST:
            return None
        name = f"a tensor of shape {list(tensor.shape)}"
        return Known(tensor, self.memory_of(tensor), _copy(tensor), version, frozenset({name}))


def held_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters, buffers and plain tensor attributes of the modules of ``model``, with their paths."""
    for path, module in model.named_modules():
        for name, value in (*module._parameters.items(), *module._buffers.items(), *vars(module).items()):
            if isinstance(value, torch.Tensor):
                yield f"{path}.{name}".lstrip("."), value


def state_of(model: nn.Module, others: Iterable[nn.Module]) -> State:
    """The tensors that ``model`` holds and that are small enough to be followed; ``others`` are it before and after one
    call."""
    small = {
        path: tensor
        for path, tensor in held_tensors(model)
        if is_real(tensor) and tensor.numel() <= LARGEST and version_of(tensor) is not None
    }
    beside = [dict(held_tensors(other)) for other in others]
    return State(small, {p for p, tensor in small.items() if not all(_same(tensor, held.get(p)) for held in beside)})


def is_real(tensor: torch.Tensor) -> bool:
    """Whether ``tensor`` holds its elements in memory, which no tensor of a capture does."""
    with torch._C.DisableTorchFunction():
        return (
            type(tensor) in (torch.Tensor, nn.Parameter)
            and tensor.layout is torch.strided
            and not tensor.is_meta
            and not tensor.is_quantized
            and not torch._is_functional_tensor(tensor)
            and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        )


def version_of(tensor: torch.Tensor) -> int | None:
    """How often something wrote into ``tensor`` or a view of it; None where PyTorch does not count."""
    with torch._C.DisableTorchFunction():
        return None if tensor.is_inference() else int(tensor._version)


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    with for_real():
        return tensor.detach().clone()


def _same(before: torch.Tensor, after: torch.Tensor | None) -> bool:
    if after is None or before.shape != after.shape or before.dtype != after.dtype:
        return False
    return torch.equal(before, after) or bool(((before == after) | ((before != before) & (after != after))).all())
