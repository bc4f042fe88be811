"""Runs at two numbers of rows, compared: which lines run once for each row, which decisions depend on how many there are.

A decision depends on the number of rows, or on that of a row, where the numbers that it is taken on are others when there
is one row more: ``len(x)`` is, a counter that goes with the rows is, the number of a layer is not.
"""

from __future__ import annotations

import builtins
import sys
import sysconfig
from collections import ChainMap, Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from types import FrameType
from typing import Any

from fxexport.capture.exporting import is_user_file
from fxexport.capture.flat_model import FlatModel
from fxexport.capture.rows.asking import Question, questions_of
from fxexport.capture.rows.evaluating import length_of, numbers_of, value_of
from fxexport.capture.source_tree import iterates_at, loops_at

_STANDARD_LIBRARY = sysconfig.get_paths()["stdlib"]
_Asked = tuple[tuple[Any, ...], ...]


@dataclass
class Seen:
    """What ran: how often each line of the user's code did, and the numbers that each of its decisions was taken on."""

    turns: Counter[tuple[str, int]] = field(default_factory=Counter)
    asked: dict[Question, set[_Asked]] = field(default_factory=dict)
    _pending: dict[FrameType, list[Question]] = field(default_factory=dict)
    _inside: bool = False

    def trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        """Follows one call, as ``sys.settrace`` wants it."""
        file = frame.f_code.co_filename
        if frame.f_code is FlatModel.forward.__code__:  # what is around it copies the model
            self._inside = event != "return"
            return self.trace
        if not self._inside or not _counts(file):
            return None
        for question in self._pending.pop(frame, ()):
            self._ask(question, frame)
        if event == "line":
            self.turns[file, frame.f_lineno] += 1
            for question in questions_of(file).get(frame.f_lineno, ()):
                if _lacks(question, frame):  # a variable that the line itself sets
                    self._pending.setdefault(frame, []).append(question)
                else:
                    self._ask(question, frame)
        return self.trace

    def _ask(self, question: Question, frame: FrameType) -> None:
        names = ChainMap(frame.f_locals, frame.f_globals)
        self.asked.setdefault(question, set()).add(_numbers(question, names))


@contextmanager
def watching() -> Iterator[Seen]:
    """Watches what this thread runs inside the ``with``."""
    seen, before = Seen(), sys.gettrace()
    sys.settrace(seen.trace)
    try:
        yield seen
    finally:
        sys.settrace(before)
        seen._pending.clear()


def loop_over_rows(fewer: Seen, more: Seen) -> str:
    """``file:line: source`` of the first loop that goes round more often with more rows, or ''."""
    lines = [line for line, turns in fewer.turns.items() if turns < more.turns[line]]
    if not lines:
        return ""
    file, line = next((place for place in lines if iterates_at(*place)), lines[0])
    around = loops_at(file, line)
    return Question(file, around[-1].line if around and not iterates_at(file, line) else line, ()).place


def decision_on_rows(fewer: Seen, more: Seen) -> str:
    """``file:line: source`` of the first decision that depends on the number of rows, or ''."""
    for question in dict.fromkeys([*fewer.asked, *more.asked]):
        first, second = fewer.asked.get(question, set()), more.asked.get(question, set())
        if first != second and not _harmless(question, first, second):
            return question.place
    return ""


def _harmless(question: Question, first: set[_Asked], second: set[_Asked]) -> bool:
    every = first | second
    if question.kind == "same":  # two sizes that go together
        return all(left == right != () for left, right in every)
    if question.kind == "divided":  # without a remainder at two sizes next to each other: at none
        divisors = {right for _, right in every}
        return len(divisors) == 1 and all(_divides(left, right) for left, right in every)
    if question.kind == "zip":  # nothing of one length, at which it would end
        fixed = [{asked[i] for asked in first} == {asked[i] for asked in second} for i in range(len(question.parts))]
        return not any(same and any(asked[i] for asked in every) for i, same in enumerate(fixed))
    if question.kind == "slice":  # no place beyond the end of a list
        return all(not length or abs(bound) <= length[0] for length, *bounds in every for b in bounds for bound in b)
    return not any(part for asked in every for part in asked)


def _divides(left: tuple[Any, ...], right: tuple[Any, ...]) -> bool:
    whole = len(left) == len(right) == 1 and isinstance(left[0], int) and isinstance(right[0], int)
    return whole and right[0] != 0 and left[0] % right[0] == 0


@lru_cache(maxsize=4096)
def _counts(file: str) -> bool:
    """Whether ``file`` has code of the user's, or of a library's that the user took: not PyTorch, not Python's own."""
    return is_user_file(file) and (not file.startswith(_STANDARD_LIBRARY) or "site-packages" in file)


def _lacks(question: Question, frame: FrameType) -> bool:
    known = (frame.f_locals, frame.f_globals, vars(builtins))
    return not all(any(name in names for names in known) for name in question.names)


def _numbers(question: Question, names: Any) -> _Asked:
    if question.kind == "zip":
        lengths = [length_of(part, names) for part in question.parts]
        return tuple(() if length is None else (length,) for length in lengths)
    if question.kind == "slice":
        base, *bounds = question.parts
        value = value_of(base, names)
        length = (len(value),) if type(value) in (list, tuple) else ()
        return (length, *(numbers_of(bound, names) for bound in bounds))
    if question.kind == "truth" and type(value_of(question.parts[0], names)) in (list, tuple, dict, set):
        return ()  # empty or not: both are seen
    return tuple(numbers_of(part, names) for part in question.parts)
