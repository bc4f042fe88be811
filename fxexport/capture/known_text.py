"""Text that forward makes of values that are not known during capture: messages and logs, which no artifact writes.

    print(f"mean {x.mean():.3f}")   ->  print("mean <a torch.float32 that each run computes>"), and a note

Such a text is good for reading alone: a number cannot be made of it, and where forward compares it, capture stops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from fxexport.capture.known_decisions import user_frame
from fxexport.errors import CaptureError


class UnknownText(str):
    """The text of a value that is not known. Raises CaptureError where it is compared or searched."""

    __slots__ = ()
    __hash__ = str.__hash__


def _refusing(name: str) -> Callable[..., Any]:
    def refuse(self: UnknownText, *args: Any) -> Any:
        frame = user_frame()
        where = f" at {frame.filename}:{frame.lineno}: {frame.line}" if frame else ""
        raise CaptureError(
            f"forward decides on text that is made of the values of a tensor{where}\n"
            "  An artifact computes no text. Compare the tensor itself: x.mean() < 0, torch.where, torch.cond."
        )

    refuse.__name__ = name
    return refuse


for _name in ("eq", "ne", "lt", "le", "gt", "ge", "contains"):
    setattr(UnknownText, f"__{_name}__", _refusing(f"__{_name}__"))
for _name in ("startswith", "endswith", "find", "index", "count", "isdigit", "isnumeric", "split", "partition"):
    setattr(UnknownText, _name, _refusing(_name))


def unknown_text(kind: object) -> UnknownText:
    """What stands for a value of ``kind``, a dtype or a word, in a text."""
    return UnknownText(f"<a {kind} that each run computes>")


@contextmanager
def numbers_as_text(noted: Callable[[], None]) -> Iterator[None]:
    """While the block runs, ``f"{x.mean().item():.3f}"`` gives such a text, too; ``noted`` is called each time.

    PyTorch's symbolic numbers refuse every format, which eager knows.
    """

    def formatted(self: Any, how: str) -> str:
        if not how:
            return str(self)
        noted()
        return unknown_text("number")

    kinds: tuple[Any, ...] = (torch.SymInt, torch.SymFloat)
    before = [kind.__dict__.get("__format__") for kind in kinds]
    for kind in kinds:
        kind.__format__ = formatted
    try:
        yield
    finally:
        for kind, own in zip(kinds, before, strict=True):
            if own is None:
                del kind.__format__
            else:
                kind.__format__ = own
