"""Keeping declared axes open: a second capture at other sizes, and the line of code that fixes an axis.

``torch.export`` fixes an axis when some size of the model happens to be 0 or 1 on the example: ``x[1:]`` at
length 2. That is an accident of the example, so an axis that was declared dynamic and came out fixed is tried
again at another size. While that second capture runs, the guards that torch adds are listened to: they know
who fixes what.
"""

from __future__ import annotations

import inspect
import logging
import re
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import sympy
import torch
from torch._ops import OpOverload
from torch.export import ExportedProgram

from fxexport.capture import flat_model
from fxexport.capture.dynamic import AxisRequests
from fxexport.capture.exporting import is_user_frame
from fxexport.capture.guards import holds, only_sizes, recorded, user_place
from fxexport.capture.resize import resize_axis
from fxexport.errors import CaptureError

Place = tuple[int, int]
"""Position of an input, and one of its axes."""
Opened = tuple[ExportedProgram, list[str], list[torch.Tensor], dict[int, str]]
"""What :func:`export_open` returns."""
Exporting = Callable[[list[torch.Tensor]], tuple[ExportedProgram, list[str]]]
"""Captures a model on some inputs: the program, and notes."""
_Accepts = Callable[[list[torch.Tensor]], bool]

_GUARDS = logging.getLogger("torch.fx.experimental.symbolic_shapes")


def export_open(
    export: Exporting,
    examples: list[torch.Tensor],
    requests: AxisRequests,
    accepts: _Accepts,
    by_code: Exporting | None = None,
    by_rows: Callable[[list[Place]], Opened | None] | None = None,
) -> Opened:
    """``export(examples)`` with every declared axis open if that is possible.

    ``accepts`` says whether eager runs on some inputs. Axes that a toolbox's types claim to be dynamic, and for which
    eager accepts no other size, count as not declared in ``requests`` afterwards. ``by_code`` is another way to export,
    ``by_rows`` gives the program where a loop over what is fixed can be computed at once. Returns the program and notes of
    ``export``, the examples it was captured on, and for sizes that stay fixed the ``file:line: source`` that fixed them.
    """
    exported, notes = export(examples)
    fixed = fixed_axes(exported, requests)
    _give_way(fixed, examples, requests, accepts)
    fixed = fixed_axes(exported, requests)
    if not fixed:
        return _without_ones(export, (exported, notes, examples, {}), requests, accepts)
    if by_rows is not None and (batched := by_rows(fixed)) is not None:
        return batched
    other = next(filter(accepts, _other_sizes(examples, fixed, requests)), examples)
    with _listening() as heard:
        again, other_notes = export(other)
    for graph in (again, exported):
        heard |= {size: place for size, place in _only_sizes(graph, requests).values() if place}
    if not fixed_axes(again, requests):
        asked = _refuses(again, examples, requests)
        if asked is None:
            return again, other_notes, other, {}
        heard |= {other[i].shape[axis]: asked for i, axis in fixed}
    if by_code is not None and (read := _open_by_code(by_code, examples, requests)) is not None:
        return read
    sizes = {examples[i].shape[axis]: other[i].shape[axis] for i, axis in fixed}
    return exported, notes, examples, {size: heard.get(new) or heard.get(size, "") for size, new in sizes.items()}


def _open_by_code(by_code: Exporting, examples: list[torch.Tensor], requests: AxisRequests) -> Opened | None:
    """The capture that reads the code of forward, where that leaves every declared axis open: there ``int(size)`` is no
    number yet."""
    try:
        exported, notes = by_code(examples)
    except CaptureError:
        return None
    is_open = not fixed_axes(exported, requests) and _refuses(exported, examples, requests) is None
    return (exported, notes, examples, {}) if is_open else None


def _refuses(exported: ExportedProgram, examples: list[torch.Tensor], requests: AxisRequests) -> str | None:
    """Where the user's code asked what comes out otherwise for the sizes of ``examples``; None where all is as captured."""
    sizes = {
        size.node.expr: sympy.Integer(examples[i].shape[axis])
        for (i, axis), size in _sizes(exported, requests).items()
        if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol
    }
    for guard in recorded(exported):
        place = user_place(guard.sloc)  # what PyTorch's own operators ask is right for all sizes that eager takes
        if place and guard.expr.free_symbols <= sizes.keys() and not holds(guard.expr, sizes):
            return place
    return None


def _without_ones(export: Exporting, opened: Opened, requests: AxisRequests, accepts: _Accepts) -> Opened:
    """``opened``, or the capture at larger sizes where less is 0 or 1 by accident: the number of chunks, for instance.

    Torch takes a size that is 1 on the example for a broadcast one, and the graph has that 1 in it, whatever the input.
    """
    exported, _, examples, _ = opened
    ones = _ones(exported)
    places = [place for place, symbols in _symbols(exported, requests).items() if symbols & ones.keys()]
    if not places:
        return opened
    other = next(filter(accepts, _other_sizes(examples, places, requests)), None)
    if other is None:
        return opened
    try:
        again, notes = export(other)
    except CaptureError:
        return opened
    fewer = sum(_ones(again).values()) < sum(ones.values())
    is_open = not fixed_axes(again, requests) and _refuses(again, examples, requests) is None
    return (again, notes, other, {}) if fewer and is_open else opened


def _ones(exported: ExportedProgram) -> Counter[sympy.Symbol]:
    """How often capture decided that a formula over a symbolic size is 0 or 1."""
    found: Counter[sympy.Symbol] = Counter()
    for guard in recorded(exported):
        expression = guard.expr
        if isinstance(expression, sympy.Eq) and expression.rhs in (0, 1) and not expression.lhs.is_Symbol:
            found.update(expression.free_symbols)
    return found


def _symbols(exported: ExportedProgram, requests: AxisRequests) -> dict[Place, set[sympy.Symbol]]:
    """The symbols in the size of every requested axis."""
    sizes = _sizes(exported, requests)
    return {
        place: sympy.sympify(getattr(getattr(s, "node", None), "expr", s)).free_symbols for place, s in sizes.items()
    }


def _give_way(
    fixed: Sequence[Place],
    examples: list[torch.Tensor],
    requests: AxisRequests,
    accepts: _Accepts,
) -> None:
    """Claimed axes that the eager model itself has at one size only become axes that merely may be dynamic."""
    for i, axis in fixed:
        request = requests[i][axis]
        if request.claimed and not any(map(accepts, _other_sizes(examples, [(i, axis)], requests))):
            requests[i][axis] = replace(request, declared=False)


def fixed_axes(exported: ExportedProgram, requests: AxisRequests) -> list[Place]:
    """Declared axes that are plain numbers in the captured graph, or that its conditions leave one number for."""
    sizes, only = _sizes(exported, requests), _only_sizes(exported, requests)
    declared = [place for place in sizes if requests[place[0]][place[1]].declared]
    return [place for place in declared if place in only or _is_number(sizes[place])]


def _only_sizes(exported: ExportedProgram, requests: AxisRequests) -> dict[Place, tuple[int, str]]:
    """The axes for which the conditions that capture decided leave one number, with it and the line that asked."""
    sizes = _sizes(exported, requests)
    only = only_sizes(exported, sizes.values())
    places = {p: size.node.expr for p, size in sizes.items() if isinstance(size, torch.SymInt)}
    return {place: only[symbol] for place, symbol in places.items() if symbol in only}


def _sizes(exported: ExportedProgram, requests: AxisRequests) -> dict[Place, int | torch.SymInt]:
    """The size of every requested axis in the captured graph."""
    names = exported.graph_signature.user_inputs
    nodes = exported.graph.find_nodes(op="placeholder")
    shapes = {node.name: node.meta["val"].shape for node in nodes if node.name in names}
    return {
        (i, axis): shapes[str(name)][axis]
        for i, (name, axes) in enumerate(zip(names, requests, strict=True))
        for axis in axes
    }


def _is_number(size: int | torch.SymInt) -> bool:
    return isinstance(size, int) or bool(size.node.expr.is_number)


def _other_sizes(
    examples: list[torch.Tensor], fixed: Sequence[Place], requests: AxisRequests
) -> Iterator[list[torch.Tensor]]:
    """The examples with the fixed axes, and all axes of the same name, at larger sizes."""
    labels = {requests[i][axis].label for i, axis in fixed} - {None}
    places = set(fixed) | {
        (i, axis) for i, axes in enumerate(requests) for axis, request in axes.items() if request.label in labels
    }
    for factor, extra in ((2, 1), (2, 0)):
        result = list(examples)
        for i, axis in places:
            maximum = requests[i][axis].maximum
            size = factor * result[i].shape[axis] + extra
            result[i] = resize_axis(result[i], axis, size if maximum is None else min(size, maximum))
        yield result


@contextmanager
def _listening() -> Iterator[dict[int, str]]:
    """Size -> the user's line during which torch fixed a symbolic size to it; the first one counts."""
    found: dict[int, str] = {}
    listener = _Listener(found)
    level, propagate, disabled = _GUARDS.level, _GUARDS.propagate, _GUARDS.disabled
    _GUARDS.addHandler(listener)
    _GUARDS.setLevel(logging.INFO)
    _GUARDS.propagate, _GUARDS.disabled = False, False
    others = [h for h in _GUARDS.handlers if h is not listener]
    for handler in others:
        _GUARDS.removeHandler(handler)
    try:
        yield found
    finally:
        for handler in others:
            _GUARDS.addHandler(handler)
        _GUARDS.removeHandler(listener)
        _GUARDS.setLevel(level)
        _GUARDS.propagate, _GUARDS.disabled = propagate, disabled


class _Listener(logging.Handler):
    """Runs where the guard is added, so the stack below the flat model's call is the user's."""

    def __init__(self, found: dict[int, str]) -> None:
        super().__init__(logging.INFO)
        self._found = found

    def emit(self, record: logging.LogRecord) -> None:
        arguments: Any = record.args or ()
        if "[guard added]" not in str(record.msg) or len(arguments) < 2:
            return
        match, place = re.fullmatch(r"Eq\(\w+, (\d+)\)", str(arguments[1])), _place()
        if match and place:
            self._found.setdefault(int(match[1]), place)


def _place() -> str:
    """``file:line: source`` of the user's code that is running, and the operator it calls."""
    frames = traceback.extract_stack()
    starts = [i for i, frame in enumerate(frames) if frame.filename == flat_model.__file__]
    own = [frame for frame in frames[starts[-1] :] if is_user_frame(frame)] if starts else []
    own = [frame for frame in own if frame.filename != logging.__file__]
    operator = _operator()
    called = f" ({operator})" if operator else ""
    return f"{own[-1].filename}:{own[-1].lineno}: {own[-1].line}{called}" if own else ""


def _operator() -> str:
    """The ATen operator that PyTorch is running on values without content, or ''."""
    frame = inspect.currentframe()
    while frame is not None:
        func = frame.f_locals.get("func") if frame.f_code.co_name == "__torch_dispatch__" else None
        if isinstance(func, OpOverload):
            return str(func)
        frame = frame.f_back
    return ""
