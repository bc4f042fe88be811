"""``PipelineState``: what a pipeline carries from one step to the next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from fxexport.errors import InputError
from fxexport.pipeline.spec import Axis
from fxexport.pipeline.values import to_array, unknown_name
from fxexport.pipeline.views import Array

BATCH = "batch"


@dataclass(frozen=True)
class Slot:
    """A place in a state: dtype, axes, and whether steps change it (else it is fixed since the start)."""

    dtype: str
    axes: tuple[Axis, ...]
    carried: bool


@dataclass(frozen=True)
class PipelineState:
    """The values between two steps. Immutable: ``Pipeline.step`` and the methods return new states.

    Attributes:
        values: read-only arrays by name: what each state holds (``input_states_1``), every output of the parts that
            ran at the start (``outputs``; ``encoder.outputs`` where the short name is not clear), and inputs that
            were given at the start for the steps. A state whose size is not known yet is missing until its first step.
    """

    values: Mapping[str, Array]
    slots: Mapping[str, Slot] = field(repr=False)
    sizes: Mapping[str, Mapping[str, int]] = field(repr=False)

    def __getitem__(self, name: str) -> Array:
        """``values[name]``; InputError with the known names where there is none."""
        if name not in self.values:
            raise InputError(f"the state has no {name!r} (yet){unknown_name(name, self.values)}")
        return self.values[name]

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}: {value.dtype.name}{list(value.shape)}" for name, value in self.values.items())
        return f"PipelineState({shown})"

    def replace(self, given: Mapping[str, Any] | None = None, /, **values: Any) -> PipelineState:
        """The same state with other values, as keywords, or as a mapping for names with a dot.

        Raises InputError for an unknown name, and for another dtype or rank than that value has.
        """
        changed: dict[str, Array] = {}
        for name, value in {**(given or {}), **values}.items():
            if name not in self.slots:
                raise InputError(f"the state has no {name!r}{unknown_name(name, self.slots)}")
            slot = self.slots[name]
            array = to_array(value, slot.dtype, f"{name!r} of the state")
            if array.ndim != len(slot.axes):
                axes = ", ".join(map(str, slot.axes))
                raise InputError(f"{name!r} of the state has axes [{axes}], got shape {list(array.shape)}")
            changed[name] = array.copy()
        return self.with_values(changed)

    def keep(self, rows: Any, old: PipelineState) -> PipelineState:
        """This state, except that rows which are True have the values of ``old``: sequences that are finished.

        Args:
            rows: bool, one for each row of the axis named ``batch``.
            old: a state of the same pipeline and run, usually that of the step before.

        Values without an axis ``batch``, and those fixed since the start, stay as they are here. Raises InputError
        where ``rows`` has another dtype or size, or where a value's shape differs between the two states.
        """
        finished = to_array(rows, "bool", "rows")
        if finished.ndim != 1:
            raise InputError(f"rows must have one axis, got shape {list(finished.shape)}")
        kept: dict[str, Array] = {}
        for name, slot in self.slots.items():
            if not slot.carried or BATCH not in slot.axes or name not in self.values:
                continue
            new, before = self.values[name], old[name]
            axis = slot.axes.index(BATCH)
            if new.shape != before.shape or new.shape[axis] != finished.size:
                raise InputError(
                    f"cannot keep {finished.size} rows of {name!r}: its shape is {list(new.shape)}, in the old "
                    f"state {list(before.shape)}, and axis {axis} is the batch"
                )
            mask = finished.reshape([-1 if place == axis else 1 for place in range(new.ndim)])
            kept[name] = np.where(mask, before, new)
        return self.with_values(kept)

    def with_values(self, changed: Mapping[str, Array]) -> PipelineState:
        """The same state with arrays that nobody else will write to."""
        for array in changed.values():
            array.flags.writeable = False
        return PipelineState(MappingProxyType({**self.values, **changed}), self.slots, self.sizes)
