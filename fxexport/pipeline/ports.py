"""Ports of parts, and what joins them: views, wires, states. The first half of what ``pipeline.json`` says."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

from fxexport.errors import InputError
from fxexport.pipeline.reading import Record

Axis: TypeAlias = int | str  # a size, a name, or a formula of names such as "2*time"
Number: TypeAlias = float | int | bool
VIEW_ARITY: dict[str, tuple[int, int | None]] = {  # least and most arguments; None: any number
    "slice": (4, 4),
    "select": (2, 2),
    "permute": (0, None),
    "unsqueeze": (1, 1),
    "squeeze": (1, 1),
    "cast": (1, 1),
    "flip": (0, None),
}


@dataclass(frozen=True, order=True)
class Port:
    """An input or an output of a part; ``str`` gives ``encoder.outputs``."""

    part: str
    name: str

    def __str__(self) -> str:
        return f"{self.part}.{self.name}"

    def to_json(self) -> list[str]:
        return [self.part, self.name]

    @staticmethod
    def from_json(data: object) -> Port:
        part, name = Record.sequence(data, "a port", length=2)
        return Port(Record.text(part, "the part of a port"), Record.text(name, "the name of a port"))


@dataclass(frozen=True)
class View:
    """One step from the tensor a part gave to the one that another part takes, in torch's terms.

    ``slice`` (dim, start, end, step), ``select`` (dim, index), ``permute`` (dims...), ``unsqueeze`` (dim),
    ``squeeze`` (dim), ``cast`` (numpy name of a dtype), ``flip`` (dims...).
    """

    op: str
    arguments: tuple[int | str | None, ...] = ()

    def __post_init__(self) -> None:
        least, most = VIEW_ARITY.get(self.op, (0, -1))
        if most == -1:
            raise InputError(f"a pipeline knows no view {self.op!r}; it has {', '.join(VIEW_ARITY)}")
        if len(self.arguments) < least or (most is not None and len(self.arguments) > most):
            raise InputError(f"the view {self.op} takes {least} arguments, got {list(self.arguments)}")
        for value in self.arguments:
            fits = isinstance(value, str) if self.op == "cast" else type(value) is int
            if not fits and not (value is None and self.op == "slice"):
                raise InputError(f"the view {self.op} cannot take {value!r} in {list(self.arguments)}")

    def __str__(self) -> str:
        return f"{self.op}({', '.join(map(str, self.arguments))})"

    def to_json(self) -> list[Any]:
        return [self.op, *self.arguments]

    @staticmethod
    def from_json(data: object) -> View:
        op, *arguments = Record.sequence(data, "a view", least=1)
        return View(Record.text(op, "the name of a view"), tuple(arguments))


@dataclass(frozen=True)
class Wire:
    """An output of one part that is an input of another.

    ``chosen``: the numbers in ``through`` change from call to call (``enc[:, :, t:t+1]``), so whoever drives the loop
    makes that view, and ``target`` is an input of ``Pipeline.step``.
    """

    source: Port
    target: Port
    through: tuple[View, ...] = ()
    chosen: bool = False

    def __str__(self) -> str:
        views = ", ".join(map(str, self.through))
        if self.chosen:
            views = f"chosen by the caller, such as {views}" if views else "chosen by the caller"
        return f"{self.source} -> {self.target}" + (f" [{views}]" if views else "")

    def to_json(self) -> dict[str, Any]:
        return {
            "source": self.source.to_json(),
            "target": self.target.to_json(),
            "through": [view.to_json() for view in self.through],
            "chosen": self.chosen,
        }

    @staticmethod
    def from_json(data: object) -> Wire:
        record = Record(data, "a wire")
        return Wire(
            Port.from_json(record["source"]),
            Port.from_json(record["target"]),
            _views(record["through"]),
            record.flag("chosen"),
        )


@dataclass(frozen=True)
class Initial:
    """The value of a state before the first step: one of a constant, a small array, an output of another part.

    ``axes`` are those of the state's input; names get their sizes from the inputs of the run. ``values`` is a nested
    list that broadcasts to them.
    """

    axes: tuple[Axis, ...]
    dtype: str
    fill: Number | None = None
    values: Any = None
    source: Port | None = None
    through: tuple[View, ...] = ()

    def __post_init__(self) -> None:
        if sum(given is not None for given in (self.fill, self.values, self.source)) != 1:
            raise InputError("the initial value of a state needs exactly one of fill, values and source")

    def __str__(self) -> str:
        shape = f"[{', '.join(map(str, self.axes))}] {self.dtype}"
        if self.source is not None:
            return f"{self.source}" + (f" [{', '.join(map(str, self.through))}]" if self.through else "")
        return f"{self.fill} {shape}" if self.values is None else f"given values {shape}"

    def to_json(self) -> dict[str, Any]:
        data: dict[str, Any] = {"axes": list(self.axes), "dtype": self.dtype}
        if self.source is not None:
            return data | {"source": self.source.to_json(), "through": [view.to_json() for view in self.through]}
        return data | ({"fill": _plain(self.fill)} if self.values is None else {"values": _plain(self.values)})

    @staticmethod
    def from_json(data: object) -> Initial:
        record = Record(data, "the initial value of a state")
        source = record.get("source")
        return Initial(
            record.axes("axes"),
            record.word("dtype"),
            _number(record.get("fill")),
            _number(record.get("values")),
            None if source is None else Port.from_json(source),
            _views(record.get("through") or []),
        )


@dataclass(frozen=True)
class State:
    """A value carried from step to step: ``output`` of one step, through views, is ``input`` of the next."""

    input: Port
    output: Port
    through: tuple[View, ...]
    initial: Initial

    def __str__(self) -> str:
        views = f" [{', '.join(map(str, self.through))}]" if self.through else ""
        return f"{self.output} -> {self.input}{views}, at first {self.initial}"

    def to_json(self) -> dict[str, Any]:
        return {
            "input": self.input.to_json(),
            "output": self.output.to_json(),
            "through": [view.to_json() for view in self.through],
            "initial": self.initial.to_json(),
        }

    @staticmethod
    def from_json(data: object) -> State:
        record = Record(data, "a state")
        return State(
            Port.from_json(record["input"]),
            Port.from_json(record["output"]),
            _views(record["through"]),
            Initial.from_json(record["initial"]),
        )


def short_names(ports: Iterable[Port], taken: Iterable[str] = ()) -> dict[Port, str]:
    """A name for each port: ``outputs`` where that is clear, else ``encoder.outputs``."""
    unique = dict.fromkeys(ports)
    counts = Counter([*(port.name for port in unique), *taken])
    return {port: port.name if counts[port.name] == 1 else str(port) for port in unique}


def _views(data: object) -> tuple[View, ...]:
    return tuple(map(View.from_json, Record.sequence(data, "the views of a wire")))


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: Any) -> Any:
    if isinstance(value, list):
        return [_number(one) for one in value]
    if isinstance(value, str):
        if value not in ("inf", "-inf", "nan"):
            raise InputError(f"{value!r} is no number of a state's initial value")
        return float(value)
    if value is not None and not isinstance(value, int | float):
        raise InputError(f"{value!r} is no number of a state's initial value")
    return value
