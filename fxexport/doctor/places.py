"""Where in the user's code something happens, and in which submodule: read off the running frames."""

from __future__ import annotations

import linecache
import os
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from types import FrameType

import numpy as np
import torch
from torch import nn

from fxexport.capture import flat_model

_STDLIB = sysconfig.get_paths()["stdlib"] + os.sep
_INSTALLED = os.sep + "site-packages" + os.sep
_LIBRARIES = tuple(os.path.dirname(str(each)) + os.sep for each in (torch.__file__, np.__file__))
_OWN = os.path.dirname(os.path.dirname(__file__)) + os.sep


@dataclass(frozen=True, order=True)
class Site:
    """One line of the user's code."""

    file: str
    line: int

    @property
    def source(self) -> str:
        """The text of the line, or '' where the file cannot be read."""
        return linecache.getline(self.file, self.line).strip()

    def __str__(self) -> str:
        folder, name = os.path.split(self.file)
        folder = os.path.basename(folder)
        return f"{folder}/{name}:{self.line}" if folder else f"{name}:{self.line}"


@cache
def is_users(filename: str) -> bool:
    """Whether a file is code of the user or of a model library: not PyTorch, NumPy, Python's own or fxexport."""
    if filename.startswith((*_LIBRARIES, _OWN, "<")):
        return False
    return not filename.startswith(_STDLIB) or _INSTALLED in filename


class Places:
    """Reads places off the stack while the private copy ``model`` runs in a ``FlatModel``."""

    def __init__(self, model: nn.Module) -> None:
        self._names = {id(module): name for name, module in model.named_modules()}

    def here(self) -> tuple[Site | None, str]:
        """The user's innermost line that is running, and the path of the innermost submodule that is."""
        site, module = None, ""
        for frame in _frames():
            if site is None and is_users(frame.f_code.co_filename):
                site = Site(frame.f_code.co_filename, frame.f_lineno)
            name = self._names.get(id(frame.f_locals.get("self")))
            if name is not None and not module:
                module = name
            if site is not None and module:
                break
        return site, module

    @staticmethod
    def chain() -> list[FrameType]:
        """The user's frames that are running, the outermost first. Do not keep them: they hold tensors."""
        return [frame for frame in _frames() if is_users(frame.f_code.co_filename)][::-1]


def _frames() -> Iterator[FrameType]:
    """The frames inside the call of the model, the innermost first; none where the model is not running."""
    frames: list[FrameType] = []
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_filename == flat_model.__file__:
            yield from frames
            return
        frames.append(frame)
        frame = frame.f_back
