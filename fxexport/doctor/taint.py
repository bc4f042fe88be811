"""What a tensor depends on: kept for each storage, so that views and writes through views agree."""

from __future__ import annotations

from enum import Flag, auto

import torch
from torch.multiprocessing.reductions import StorageWeakRef


class Taint(Flag):
    """Where the values of a tensor come from. Nothing set: from constants, sizes and weights alone."""

    NONE = 0
    DATA = auto()  # the values of the inputs
    BUFFER = auto()  # a buffer, which a call may change
    RANDOM = auto()
    OUTSIDE = auto()  # memory that no PyTorch operator wrote: NumPy's, or a library's


class Taints:
    """The taint of every tensor that was seen. Storages are referred to weakly, so no memory is held."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[StorageWeakRef, Taint]] = {}

    def of(self, tensor: torch.Tensor) -> Taint | None:
        """What ``tensor`` depends on; None for one that was never seen."""
        key = storage_key(tensor)
        if key is None:
            return Taint.DATA  # sparse and other tensors without a storage of their own: never taken for a constant
        known = self._known.get(key)
        return None if known is None else known[1]

    def add(self, tensor: torch.Tensor, taint: Taint) -> None:
        """``tensor`` depends on ``taint`` as well."""
        key = storage_key(tensor)
        if key is None:
            return
        if key in self._known:
            reference, before = self._known[key]
            self._known[key] = (reference, before | taint)
        else:
            # While the weak reference lives, no other storage gets this key.
            self._known[key] = (StorageWeakRef(tensor.untyped_storage()), taint)  # type: ignore[no-untyped-call]


def storage_key(tensor: torch.Tensor) -> int | None:
    """The same number for tensors that share memory; None where a tensor has no storage."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return None
