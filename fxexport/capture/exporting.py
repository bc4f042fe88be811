"""``torch.export`` on the private copy, and its refusals in plain words."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.export import Dim, ExportedProgram

from fxexport.capture.dynamic import AxisRequests
from fxexport.capture.flat_model import FlatModel
from fxexport.capture.gradient_switches import unrecorded_gradient_switches
from fxexport.capture.packed_sequences import dense_packed_sequences
from fxexport.capture.size_functions import SizeFunctions
from fxexport.errors import CaptureError, ExportError
from fxexport.shape_rules import shape_rules

_TORCH_ROOT = os.path.dirname(torch.__file__) + os.sep
_OWN_ROOT = os.path.dirname(os.path.dirname(__file__)) + os.sep


def export_flat(
    model: FlatModel, inputs: Sequence[torch.Tensor], requests: AxisRequests, *, read_code: bool = False
) -> ExportedProgram:
    """The ATen graph of ``model`` on ``inputs``; requested axes are left open (``Dim.AUTO``) and judged afterwards.

    ``read_code``: the bytecode of forward is read instead of run. Then ``int(lengths.max())`` stays a size that depends
    on the data, where Python itself would insist on a number; it is slower and understands less Python.

    Raises CaptureError naming the line of the user's code where capture stopped.
    """
    shapes = tuple(
        {axis: _hint(request.minimum, request.maximum) for axis, request in axes.items()} for axes in requests
    )
    try:
        packed = contextlib.nullcontext() if read_code else dense_packed_sequences(model)
        sizes = contextlib.nullcontext() if read_code else SizeFunctions()
        switches = contextlib.nullcontext() if read_code else unrecorded_gradient_switches(model)
        with _quiet(), shape_rules(), packed, switches, sizes, _plain_attention(), torch.no_grad():
            # Copies: one tensor given for two inputs would be captured as one input.
            return torch.export.export(
                model,
                tuple(tensor.detach().clone() for tensor in inputs),
                dynamic_shapes=(shapes,) if inputs else None,
                strict=read_code,
            )
    except ExportError:
        raise
    except Exception as error:
        raise CaptureError(explain(error)) from error


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Attention modules run as their operators: read inside of ``torch.cond``, they are one that nothing can write."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def _hint(minimum: int | None, maximum: int | None) -> object:
    bounds = {k: v for k, v in (("min", minimum), ("max", maximum)) if isinstance(v, int)}
    return Dim.AUTO(**bounds) if bounds else Dim.AUTO


@contextmanager
def _quiet() -> Iterator[None]:
    """torch.export warns and logs about what is checked or reported here in other words."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        # On stderr it prints the graph so far whenever it fails.
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


_WAYS_OUT = (
    "torch.where for a choice between values, torch.cond for a choice between computations, or export the parts before "
    "and after the decision separately."
)


def explain(error: BaseException) -> str:
    """What stopped capture, at which line of the user's code, and the ways out."""
    place = user_line(error)
    where = f" at {place}" if place else ""
    text = str(error).strip() or type(error).__name__
    first = text.splitlines()[0]
    kind = type(error).__name__
    if is_data_dependent(error):
        return (
            f"the model takes a Python decision{where} that depends on the values of a tensor: {first}\n"
            "  A graph holds one path; baking the branch the example took would be wrong for other inputs. Ways out: "
            + (" ".join(dict.fromkeys(getattr(error, "__notes__", ()))) or _WAYS_OUT)
        )
    if ".numpy()" in first:
        return (
            f"capture stopped{where}: the model computes with numpy, whose values would be fixed in the artifact.\n"
            "  Use torch operators there."
        )
    if "fake tensor in the exported program constant" in first:
        return (
            f"capture stopped{where}: the model writes values of this run into a tensor that is neither a parameter nor "
            "a buffer, so that it would be a constant of the artifact.\n"
            "  Way out: register_buffer for a tensor that forward changes."
        )
    return f"capture stopped{where}: {kind}: {first}"


def is_data_dependent(error: BaseException | None) -> bool:
    """Whether capture stopped at a Python decision on the values of a tensor."""
    return "DataDependent" in type(error).__name__ or "data-dependent" in str(error)


def user_line(error: BaseException) -> str:
    """``file:line: source`` of the innermost frame that is neither PyTorch's nor ours, or ''."""
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if is_user_frame(frame)]
    return f"{own[-1].filename}:{own[-1].lineno}: {own[-1].line}" if own else ""


def is_user_frame(frame: traceback.FrameSummary) -> bool:
    """Whether a frame is code of the user or of a model library: neither PyTorch's, nor ours, nor generated."""
    return is_user_file(frame.filename)


def is_user_file(name: str) -> bool:
    """Whether a file of code is neither PyTorch's nor ours nor generated."""
    return not name.startswith((_TORCH_ROOT, _OWN_ROOT, "<"))
