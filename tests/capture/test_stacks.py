"""What Python holds where a decision is taken: variables that are still read, values in no variable."""

import sys
from types import FrameType
from typing import Any

from fxexport.capture.paths.liveness import live_locals
from fxexport.capture.paths.stacks import OPAQUE, hidden

SEEN: dict[str, tuple[frozenset[str], tuple[str, ...]]] = {}


def look(value: Any = None) -> Any:
    """Notes the state of the caller; gives the value back."""
    frame: FrameType = sys._getframe(1)
    SEEN["caller"] = live_locals(frame), hidden(frame)
    return value


def test_variables_that_are_read_later_live() -> None:
    def function(a: int, b: int, c: int) -> int:
        look()
        a = 1
        return a + c

    function(1, 2, 3)
    assert SEEN["caller"] == (frozenset({"c"}), ())


def test_variables_live_around_a_loop() -> None:
    def function(n: int, step: int) -> int:
        total = 0
        while total < n:
            total += step
            last = total
            look()
            del last
        return total

    function(2, 1)
    assert SEEN["caller"][0] >= {"total", "n", "step"}


def test_values_in_no_variable_are_opaque() -> None:
    def function(x: int, y: int) -> int:
        return (x if y else x * 2) + look(y)

    function(1, 2)
    assert OPAQUE in SEEN["caller"][1]


def test_a_variable_on_the_stack_is_known_by_name() -> None:
    def function(x: int) -> int:
        return x + look(2)

    function(1)
    assert SEEN["caller"][1] == ("x",)


def test_iterators_and_contexts_hide_nothing() -> None:
    import contextlib

    def function(values: list[int]) -> None:
        for value in values:
            with contextlib.nullcontext():
                look(value)

    function([1])
    assert OPAQUE not in SEEN["caller"][1]


def test_a_decision_at_the_end_of_a_statement_hides_nothing() -> None:
    class Asked:
        def __bool__(self) -> bool:
            frame = sys._getframe(1)
            SEEN["caller"] = live_locals(frame), hidden(frame)
            return True

    def function(x: int, asked: Asked) -> int:
        if asked:
            x = 2
        return x

    function(1, Asked())
    assert SEEN["caller"] == (frozenset({"x"}), ())
