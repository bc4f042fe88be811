"""Where a value comes from: back along the tape, through views, to a part, to the outside, or to what computed it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch.utils import _pytree as pytree

from fxexport.subnets.chains import Hop, looks_at
from fxexport.subnets.tape import Operator, Outsider, RecordedCall, Ref, Tape


@dataclass(frozen=True)
class Origin:
    """The end of a chain of views, at ``value``: an output (``path``) of ``call``, something from ``outside``, or the
    result of ``operator``. ``kept``: a value that this same input had before."""

    value: int
    through: tuple[Hop, ...] = ()
    call: RecordedCall | None = None
    path: str = ""
    outside: Outsider | None = None
    operator: Operator | None = None
    kept: bool = False

    @property
    def source(self) -> tuple[str, str] | None:
        """Part and path of the output that this is, None where it is none."""
        return None if self.call is None else (self.call.part, self.path)


def trace(tape: Tape, value: int, before: int) -> Origin:
    """The origin of what ``value`` held just before step ``before``."""
    through: tuple[Hop, ...] = ()
    while True:
        write = tape.last_write(value, before)
        if write is not None:
            return Origin(value, through, operator=write)
        maker = tape.makers.get(value)
        if maker is None:
            return Origin(value, through, outside=tape.outside[value])
        if isinstance(maker, RecordedCall):
            path = next(leaf.path for leaf in maker.outputs.values() if leaf.value == value)
            return Origin(value, through, call=maker, path=path)
        found = looks_at(tape, maker, value)
        if found is None:
            return Origin(value, through, operator=maker)
        value, hops = found
        before, through = maker.step, (*hops, *through)


# Operators that choose among values, or put them in other places, and compute nothing: position of each argument whose
# values they hand on. What these make of a state is still that state, filtered by the driver.
_HANDS_ON: dict[str, tuple[int, ...]] = {
    "where": (1, 2), "index": (0,), "index_select": (0,), "gather": (0,), "take_along_dim": (0,), "cat": (0,),
    "stack": (0,), "masked_fill": (0, 2), "masked_fill_": (0, 2), "index_put": (0, 2), "index_put_": (0, 2),
    "_index_put_impl_": (0, 2), "index_copy": (0, 3), "index_copy_": (0, 3), "index_fill": (0,), "index_fill_": (0,),
    "scatter": (0, 3), "scatter_": (0, 3), "masked_scatter": (0, 2), "masked_scatter_": (0, 2), "copy_": (0, 1),
    "copy": (1,), "slice_scatter": (0, 1), "select_scatter": (0, 1), "roll": (0,), "repeat": (0,), "expand": (0,),
    "view": (0,), "_unsafe_view": (0,), "reshape": (0,), "fill_": (1,), "zero_": (), "constant_pad_nd": (0,),
}  # fmt: skip


def choices(tape: Tape, value: int, before: int, earlier: Mapping[int, int] | None = None) -> list[Origin]:
    """All origins that ``value`` may have been chosen from, through views and operators that hand values on.

    ``earlier``: values that the input had in calls before this one, and the step of the latest such call; they are kept
    as they were, and the search stops there.
    """
    earlier = earlier or {}
    found: dict[tuple[int, int], Origin] = {}
    todo, seen = [(value, before)], set()
    while todo:
        value, before = todo.pop()
        if (value, before) in seen:
            continue
        seen.add((value, before))
        write = tape.last_write(value, before)
        if value in earlier and (write is None or write.step < earlier[value]):
            found[value, -2] = Origin(value, kept=True)
            continue
        origin = trace(tape, value, before)
        given = None if origin.operator is None else _handed_on(origin.operator)
        if given is None or origin.operator is None:
            found[origin.value, tape.made_at(origin.value)] = origin
            continue
        step = origin.operator.step
        todo += [(one, step) for one in given]
        if origin.operator.written:
            todo.append((origin.value, step))
    return list(found.values())


def _handed_on(operator: Operator) -> list[int] | None:
    name = operator.func._schema.name.removeprefix("aten::")
    if name not in _HANDS_ON:
        return None
    given = [operator.args[i] for i in _HANDS_ON[name] if i < len(operator.args)]
    return [ref for ref in refs_in(given) if ref not in operator.written]


def refs_in(tree: Any) -> list[int]:
    """The values that recorded arguments refer to."""
    return [leaf.value for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Ref)]


def ancestors(tape: Tape, origin: Origin) -> Iterator[tuple[str, str]]:
    """Part and path of each output that went into ``origin``, each once, the latest first."""
    operator = origin.operator
    todo = [] if operator is None else [(one, operator.step) for one in refs_in((operator.args, operator.kwargs))]
    seen: set[int] = set()
    told: set[tuple[str, str]] = set()
    while todo:
        value, before = todo.pop(0)
        if value in seen:
            continue
        seen.add(value)
        maker = tape.last_write(value, before) or tape.makers.get(value)
        if isinstance(maker, Operator):
            todo += [(one, maker.step) for one in refs_in((maker.args, maker.kwargs))]
        elif maker is not None:
            source = (maker.part, next(leaf.path for leaf in maker.outputs.values() if leaf.value == value))
            if source not in told:
                told.add(source)
                yield source
