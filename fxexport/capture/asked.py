"""Which calls of PyTorch give Python a truth value that depends on the content of a tensor, and where they stand."""

from __future__ import annotations

import linecache
import sys
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from fxexport.capture.exporting import is_user_file


def predicate(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The tensor of one element whose value ``func(*args, **kwargs)`` gives as a Python bool; None for other calls."""
    name = getattr(func, "__name__", "")
    if name in ("__bool__", "is_nonzero") or (name == "item" and args[0].dtype == torch.bool):
        value: Tensor = args[0].reshape(())
        return value if value.dtype == torch.bool else value.ne(0)
    if name == "__contains__":
        found: Tensor = (args[0] == args[1]).any()
        return found
    if name == "equal" and func in (torch.equal, Tensor.equal):
        if args[0].shape != args[1].shape:
            return None
        equal: Tensor = (args[0] == args[1]).all()
        return equal
    if name == "allclose":
        return torch.isclose(*args, **kwargs).all()
    return None


def number_kept(func: Any, args: tuple[Any, ...]) -> Tensor | None:
    """The tensor that stands for the Python float ``t.item()`` wherever that is compared or computed with."""
    is_real = getattr(func, "__name__", "") == "item" and args[0].is_floating_point()
    return args[0].reshape(()) if is_real else None


def site_of(frame: FrameType | None) -> tuple[str, str]:
    """``models/net.py:41`` and the line of code, for the innermost user code at or above ``frame``."""
    while frame is not None and not is_user_file(frame.f_code.co_filename):
        frame = frame.f_back
    if frame is None:
        return "an unknown line", ""
    file, line = frame.f_code.co_filename, frame.f_lineno
    return f"{'/'.join(file.split('/')[-2:])}:{line}", linecache.getline(file, line).strip()


def asking_frame() -> FrameType | None:
    """The frame that called the torch function mode whose method calls this one."""
    return sys._getframe(2)
