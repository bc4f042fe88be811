"""What Python learns of known values during a capture, and at which lines: the notes of it."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterable
from typing import Any

from fxexport.capture.exporting import is_user_frame

_ARRAY_ROOTS = tuple(f"{os.sep}{name}{os.sep}" for name in ("numpy", "scipy"))


class Learnt:
    """The attributes of the model whose values forward used as plain Python, by the line that did."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self._compared: dict[tuple[Any, str], dict[str, None]] = {}
        self._decided: dict[str, dict[str, None]] = {}
        self._computed: dict[str, dict[str, None]] = {}
        self._told: dict[str, None] = {}
        self.fixed: dict[str, str] = {}

    def compared(self, origins: Iterable[str], value: Any) -> None:
        """A size was compared with ``value`` of an attribute."""
        for name in sorted(origins):
            self._compared.setdefault((value, place()), {})[name] = None

    def decided(self, origins: Iterable[str]) -> None:
        """Python got a number of these attributes."""
        for name in sorted(origins):
            self._decided.setdefault(place(), {})[name] = None
            self.fixed.setdefault(name, place())

    def computed(self, origins: Iterable[str]) -> None:
        """numpy got the values of these attributes, or of plain constants."""
        self._computed.setdefault(place(), {}).update(dict.fromkeys(sorted(origins)))
        for name in origins:
            self.fixed.setdefault(name, place())

    def told(self) -> None:
        """Forward made text of a value that is not known."""
        self._told[place()] = None

    def notes(self) -> list[str]:
        """One note for each line and what it used."""
        compared = [
            f"{_several(names)} = {value} {_are(names)} now: sizes are compared with it{_at(where)}"
            for (value, where), names in self._compared.items()
        ]
        decided = [
            f"{_several(names)} {_are(names)} now: forward uses the value in Python{_at(where)}"
            for where, names in self._decided.items()
        ]
        computed = [
            f"what numpy computes{_at(where)} from {_several(names) if names else 'constants'} is a constant of the artifact"
            for where, names in self._computed.items()
        ]
        told = [f"text made of data{_at(where)}: no artifact writes it" for where in self._told]
        return [*compared, *decided, *computed, *told]


def _several(names: Iterable[str]) -> str:
    first = list(names)
    return ", ".join(first[:3]) + (f" and {len(first) - 3} more" if len(first) > 3 else "")


def _are(names: Iterable[str]) -> str:
    return "is fixed as it is" if len(list(names)) == 1 else "are fixed as they are"


def _at(where: str) -> str:
    return f" at {where}" if where else ""


def place() -> str:
    """``models/net.py:12`` for the user's line that is running, or ''."""
    own = user_frame()
    return f"{'/'.join(own.filename.split('/')[-2:])}:{own.lineno}" if own else ""


def user_frame() -> traceback.FrameSummary | None:
    """The innermost running frame that is neither PyTorch's, nor numpy's or scipy's, nor ours."""
    frames = [frame for frame in traceback.extract_stack() if is_user_frame(frame)]
    own = [frame for frame in frames if not any(root in frame.filename for root in _ARRAY_ROOTS)]
    return own[-1] if own else None
