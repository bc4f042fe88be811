"""Finding the first of many rewrites after which something is wrong."""

from __future__ import annotations

from collections.abc import Callable


def first_bad(count: int, is_bad: Callable[[int], bool]) -> int:
    """The smallest ``k`` in 0..``count`` for which ``is_bad(k)``, given that ``is_bad(count)`` and that it stays bad.

    ``is_bad(k)`` judges the program after the first ``k`` rewrites; it is called at most ceil(log2(count + 1)) times, so
    0 means: wrong before any rewrite.
    """
    good, bad = -1, count
    while bad - good > 1:
        middle = (good + bad) // 2
        if is_bad(middle):
            bad = middle
        else:
            good = middle
    return bad
