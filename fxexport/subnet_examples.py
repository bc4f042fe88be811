"""Where the examples of subnets come from, in this order: the user, a recorded run, the subnet's own hook."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fxexport.capture.nesting import describe
from fxexport.compiling import Progress
from fxexport.errors import InputError
from fxexport.exportable.example import Call, fits
from fxexport.exportable.reading import get_hook, has_hook
from fxexport.subnet_request import SubnetRequest
from fxexport.subnets import Recording, record, record_larger_batch


@dataclass(frozen=True)
class Example:
    """One example of a subnet and where it is from."""

    value: Any
    kwargs: Mapping[str, Any] | None
    source: str


@dataclass(frozen=True)
class Recorded:
    """What flowed between the subnets in a real run.

    Attributes:
        recording: the run that the wiring is read from; None where there was none.
        explored: the same and a run with one row more, for subnets that declare nothing of what may change.
        notes: why nothing was recorded.
    """

    recording: Recording | None = None
    explored: Recording | None = None
    notes: tuple[str, ...] = ()

    def of(self, *, typed: bool) -> Recording | None:
        """What says which axes of a subnet vary."""
        return self.recording if typed or self.explored is None else self.explored


def record_subnets(whole: nn.Module, names: Sequence[str], request: SubnetRequest, say: Progress) -> Recorded:
    """The user's recording or driver, else the model on its example; with one subnet only where it is asked for."""
    if request.recording is not None:
        return Recorded(request.recording)
    if request.driver is not None:
        say("recording", "the driver")
        return _explored(whole, names, request, request.example, request.kwargs)
    if len(names) == 1:
        return Recorded()
    example, kwargs, source = request.example, request.kwargs, "the example inputs"
    if example is None and kwargs is None:
        if not has_hook(whole, "input_example"):
            return _nothing("the whole model has no example")
        source = "its input_example()"
    say("recording", type(whole).__name__)
    try:
        found = _explored(whole, names, request, example, kwargs)
    except Exception as error:  # noqa: BLE001 - the example may be the first subnet's; a run that fails is reported
        reason = (str(error).splitlines() or [""])[0]
        return _nothing(f"the whole model does not run on {source}: {type(error).__name__}: {reason}")
    assert found.recording is not None
    if not any(found.recording.calls(name) for name in names):
        return _nothing("a run of the whole model calls none of them")
    return found


def _explored(
    whole: nn.Module, names: Sequence[str], request: SubnetRequest, example: Any, kwargs: Mapping[str, Any] | None
) -> Recorded:
    recording = record(whole, request.driver, example, kwargs, subnets=names, config=request.config)
    larger = record_larger_batch(whole, request.driver, example, kwargs, subnets=names, config=request.config)
    if larger is None:
        return Recorded(recording)
    return Recorded(recording, Recording(recording.owner, recording.parts, [*recording.runs, *larger.runs]))


def _nothing(reason: str) -> Recorded:
    note = (
        f"what flows between the subnets was not recorded ({reason}): their examples are their own hooks', wires are not "
        "known; give driver= (a function that runs the model the way it is used)"
    )
    return Recorded(notes=(note,))


def example_of(name: str, names: Sequence[str], recording: Recording | None, request: SubnetRequest) -> Example | None:
    """In order: what the user gave, what was recorded; None: the subnet's hook."""
    if recording is not None and recording.calls(name):
        args, kwargs = recording.example(name)
        return Example(args, kwargs, "recorded")
    own = request.driver is None and request.recording is None and name == names[0]
    if own and (request.example is not None or request.kwargs is not None):
        return Example(request.example, request.kwargs, "given")
    return None


def read_given(part: nn.Module, value: Any, kwargs: Mapping[str, Any] | None, *, documented: bool) -> Call:
    """An example as the user gave it, as positional and keyword arguments of what is exported of ``part``.

    A dict, alone or last in a tuple, holds keyword arguments or is an argument itself, whichever ``forward`` can take.
    Where it can take both: keyword arguments if ``documented`` (that is what the toolboxes say of ``input_example``).

    Raises InputError for that case otherwise, and for a value that is no example.
    """
    if value is not None and not isinstance(value, torch.Tensor | Mapping | tuple | list):
        raise InputError(f"example_inputs must be a tensor, a tuple of arguments or a dict, got {type(value).__name__}")
    named = dict(kwargs or {})
    args = (value,) if isinstance(value, torch.Tensor | Mapping) else tuple(value or ())
    last = args[-1] if args else None
    if kwargs is not None or not isinstance(last, Mapping) or not all(isinstance(key, str) for key in last):
        return args, named
    forward = get_hook(part, "forward_for_export") if has_hook(part, "forward_for_export") else part.forward
    signature = inspect.signature(forward)
    as_argument, as_keywords = fits(signature, args), fits(signature, args[:-1], last)
    if as_argument and as_keywords and last and len(args) > 1 and not documented:
        raise InputError(
            f"the last example input, {describe(last)}, can be a positional argument or keyword arguments of "
            f"forward{signature}; say which: kwargs={{}} makes it positional, kwargs={{...}} gives keywords"
        )
    return (args, {}) if as_argument and not as_keywords else (args[:-1], dict(last))
