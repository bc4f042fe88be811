"""What fed one input of a part, in every call of every run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fxexport.pipeline.ports import Port
from fxexport.subnets.origins import Origin, choices, refs_in, trace
from fxexport.subnets.tape import Leaf, RecordedCall, Tape

Source = tuple[str, str]  # part and path of an output


@dataclass(frozen=True)
class Use:
    """One value that an input took: in ``call``, as ``leaf``, from ``origin``. ``first``: the first in its run."""

    tape: Tape
    call: RecordedCall
    leaf: Leaf
    origin: Origin
    first: bool

    @property
    def is_stale(self) -> bool:
        """Whether the part that made the value ran again before this call."""
        made = self.origin.call
        later = [] if made is None else self.tape.calls(made.part)
        return made is not None and any(made.step < call.step < self.call.step for call in later)


@dataclass(frozen=True)
class Flow:
    """All uses of one input, in order, and the choices that each later use was made from."""

    port: Port
    uses: list[Use]

    @property
    def later(self) -> list[Use]:
        """The uses that are not the first of their run."""
        return [use for use in self.uses if not use.first]

    @property
    def firsts(self) -> list[Use]:
        """The first use in each run."""
        return [use for use in self.uses if use.first]

    @property
    def direct(self) -> Source | None:
        """The one output that every use looks at through views alone, or None."""
        sources = {use.origin.source for use in self.uses}
        return sources.pop() if len(sources) == 1 else None

    def choices(self, use: Use) -> list[Origin]:
        """Where the value of ``use`` may have been chosen from; ``kept``: what this input had before."""
        earlier = {
            one.leaf.value: one.call.step for one in self.uses if one.tape is use.tape and one.call.step < use.call.step
        }
        return choices(use.tape, use.leaf.value, use.call.step, earlier)


def flows(tapes: list[Tape], part: str, inputs: dict[str, str]) -> Iterator[Flow]:
    """The flow of each input of ``part`` (flat name -> path) that some call was given."""
    for name, path in inputs.items():
        uses: list[Use] = []
        for tape in tapes:
            first = True
            for call in tape.calls(part):
                if path in call.inputs:
                    leaf = call.inputs[path]
                    uses.append(Use(tape, call, leaf, trace(tape, leaf.value, call.step), first))
                    first = False
        if uses:
            yield Flow(Port(part, name), uses)


def starts(tapes: list[Tape]) -> list[str]:
    """The parts that were called, in the order of their first calls."""
    return list(dict.fromkeys(call.part for tape in tapes for call in tape.calls()))


def order_of(tape: Tape) -> dict[str, int]:
    """Part -> step of its first call."""
    first: dict[str, int] = {}
    for call in tape.calls():
        first.setdefault(call.part, call.step)
    return first


def feedback(flow: Flow) -> Source | None:
    """The one output that is carried to this input from step to step, directly or filtered by the driver; else None.

    It comes from a call of the same part, or of one that runs later in a step; what else the input takes is what it had
    before, or had at first.
    """
    back: set[Source] = set()
    for use in flow.later:
        start = _first_origin(flow, use)
        order = order_of(use.tape)
        for origin in flow.choices(use):
            if origin.kept or origin.value == start.value or _is_constant(origin):
                continue
            source = origin.source
            if source is None or order[source[0]] < order[flow.port.part]:
                return None
            back.add(source)
    return back.pop() if len(back) == 1 else None


def _first_origin(flow: Flow, use: Use) -> Origin:
    return next(one.origin for one in flow.firsts if one.tape is use.tape)


def _is_constant(origin: Origin) -> bool:
    """Made of nothing: ``torch.zeros`` and the like, with which a driver resets rows."""
    operator = origin.operator
    return operator is not None and not operator.written and not refs_in((operator.args, operator.kwargs))
