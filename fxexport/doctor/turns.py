"""How often each loop of the user's code goes round, counted by the operators that run in it."""

from __future__ import annotations

from collections.abc import Sequence
from types import FrameType
from typing import Any

from fxexport.capture.source_tree import Loop, loops_at
from fxexport.doctor.observed import Observed

_Context = tuple[Any, ...]


class Turns:
    """Counts turns: the different values of a loop's variables, each time the loop is reached.

    Two turns are different if an operator ran in each. A ``while`` loop has no variables: its turns are the operators
    that ran at the line of its body that ran the fewest.
    """

    def __init__(self) -> None:
        self._values: dict[tuple[Loop, int], set[Any]] = {}
        self._lines: dict[tuple[Loop, int], dict[int, int]] = {}

    def count(self, chain: Sequence[FrameType]) -> None:
        """One operator, which runs in the frames of ``chain``, the outermost first."""
        context: _Context = ()
        for frame in chain:
            file, line = frame.f_code.co_filename, frame.f_lineno
            for loop in loops_at(file, line):
                reached = (loop, hash(context))
                if not loop.targets:
                    lines = self._lines.setdefault(reached, {})
                    lines[line] = lines.get(line, 0) + 1
                    continue
                names = frame.f_locals
                if not any(name in names for name in loop.targets):
                    continue  # the iterable of a comprehension, which is read outside of it
                value = tuple(_identity(names.get(name)) for name in loop.targets)
                self._values.setdefault(reached, set()).add(value)
                context = (*context, loop.line, value)
            context = (*context, file, line)

    def into(self, seen: Observed) -> None:
        """Writes the largest number of turns of each loop into ``seen``."""
        for (loop, _), values in self._values.items():
            seen.turns[loop] = max(seen.turns[loop], len(values))
        for (loop, _), lines in self._lines.items():
            seen.turns[loop] = max(seen.turns[loop], min(lines.values()))


def _identity(value: Any) -> Any:
    return value if isinstance(value, int | float | str | bool) else id(value)
