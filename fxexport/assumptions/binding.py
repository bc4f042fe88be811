"""Which axis full lengths are as long as, and what an example says to that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch.fx.experimental.symbolic_shapes import guard_bool

from fxexport.assumptions.asking import read
from fxexport.assumptions.disabling import disable
from fxexport.errors import InputError
from fxexport.input_assumption import InputAssumption
from fxexport.program import Program

_SHOWN = 8


def bind(program: Program, asked: Mapping[str, str], examples: Sequence[torch.Tensor]) -> tuple[InputAssumption, ...]:
    """What ``asked`` says of the inputs that ``program`` has, with the axis of full lengths.

    The axis is the one that was named; else that of another input with the same rows which the example's lengths fill;
    where several do or none does, the one under which most masks are proved trivial, a dynamic one before a fixed one.

    Raises InputError where no axis can be told, and for values that make no sense.
    """
    found = read(asked, program.signature)
    for each in found:
        _share_sizes(program, each.input)
    known = [each for each in found if each.says != "full" or each.axis is not None]
    for each in found:
        if each not in known:
            known.append(replace(each, axis=_axis_of(program, each, known, examples)))
    return tuple(sorted(known, key=lambda each: list(asked).index(each.input)))


def _share_sizes(program: Program, name: str) -> None:
    """Axes of an input get the symbols of the axes of other inputs that have their names: one name is one size.

    What is computed from the shape of a mask can be computed from another input then.
    """
    named: dict[str, torch.SymInt] = {}
    own = None
    for spec, node in zip(program.signature.inputs, program.input_nodes, strict=True):
        if spec.name == name:
            own = spec, node
            continue
        for axis, size in zip(spec.axes, node.meta["val"].shape, strict=True):
            if isinstance(axis, str) and isinstance(size, torch.SymInt):
                named.setdefault(axis, size)
    for axis, size in zip(own[0].axes, own[1].meta["val"].shape, strict=True) if own else ():
        if isinstance(size, torch.SymInt) and axis in named:
            guard_bool(size == named[str(axis)])


def _axis_of(
    program: Program, lengths: InputAssumption, known: list[InputAssumption], examples: Sequence[torch.Tensor]
) -> tuple[str, int]:
    specs = program.signature.inputs
    index = [spec.name for spec in specs].index(lengths.input)
    rows = specs[index].axes[0] if specs[index].axes else None
    places = [
        (i, axis)
        for i, spec in enumerate(specs)
        for axis in range(len(spec.axes))
        if i != index and (rows is None or (axis > 0 and spec.axes[0] == rows))
    ]
    if not places:
        raise InputError(
            f"assume={{{lengths.input!r}: 'full'}}: no other input has an axis besides its rows that lengths could be of"
        )
    filled = [(i, axis) for i, axis in places if bool((examples[index] == examples[i].shape[axis]).all())]
    best = [(specs[i].name, axis) for i, axis in _best(program, lengths, known, filled or places)]
    sizes = {(specs[i].name, axis): specs[i].axes[axis] for i, axis in places}
    if len(best) > 1 and len({sizes[each] for each in best}) == 1:
        best = best[:1]  # one size under several names
    if len(best) != 1:
        shown = ", ".join(f"'full:{name}:{axis}'" for name, axis in best[:_SHOWN])
        raise InputError(
            f"assume={{{lengths.input!r}: 'full'}}: which axis {lengths.input!r} counts cannot be told; say which: {shown}"
        )
    return best[0]


def _best(
    program: Program, lengths: InputAssumption, known: list[InputAssumption], places: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """The places under which most becomes trivial."""
    if len(places) == 1:
        return list(places)
    scores = {}
    for i, axis in places:
        trial = program.clone()
        spec = program.signature.inputs[i]
        trial.assumptions = (*known, replace(lengths, axis=(spec.name, axis)))
        done = disable(trial, "trial")
        scores[i, axis] = (-trial.node_count(), len(done.rewrites), isinstance(spec.axes[axis], str))
    highest = max(scores.values())
    return [place for place, score in scores.items() if score == highest]
