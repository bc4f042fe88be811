"""``assume=`` read: which keys are inputs, what is said of them, and whether that makes sense."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fxexport.errors import InputError
from fxexport.input_assumption import SAYS, InputAssumption
from fxexport.signature import Signature, TensorSpec

_SITE = re.compile(r".+\.py:\d+$")
_FULL = re.compile(r"full:(?P<input>.+):(?P<axis>-?\d+)$")


def split(assume: Any) -> tuple[Any, dict[str, str]]:
    """What ``assume`` says of decisions (as capture reads it), and input -> what it says of that.

    Raises InputError for a value that is none of those for inputs.
    """
    if not isinstance(assume, Mapping):
        return assume, {}
    inputs = {key: value for key, value in assume.items() if isinstance(value, str) and not _SITE.match(str(key))}
    for key, value in inputs.items():
        if value not in SAYS and not _FULL.match(value):
            close = difflib.get_close_matches(value, SAYS, n=1)
            raise InputError(
                f"assume={{{key!r}: {value!r}}}: of an input you can say {', '.join(map(repr, SAYS))} or "
                f"'full:INPUT:AXIS'{f'; did you mean {close[0]!r}?' if close else ''}"
            )
    sides = {key: value for key, value in assume.items() if key not in inputs}
    return sides or None, inputs


def read(asked: Mapping[str, str], signature: Signature) -> list[InputAssumption]:
    """What is ``asked`` of inputs of ``signature``; the axis of full lengths only where it was named.

    Raises InputError for values that make no sense for the dtype, and for an axis that is none.
    """
    specs = {spec.name: spec for spec in signature.inputs}
    found = []
    for name, says in asked.items():
        spec = specs.get(name)
        if spec is None:
            continue  # of another subnet: see unknown_inputs
        _check_dtype(spec, says)
        if named := _FULL.match(says):
            found.append(InputAssumption(name, "full", _axis(named["input"], int(named["axis"]), name, specs)))
        else:
            found.append(InputAssumption(name, says))  # type: ignore[arg-type]
    return found


def _check_dtype(spec: TensorSpec, says: str) -> None:
    if spec.dtype.is_complex or spec.pairs:
        raise InputError(f"assume={{{spec.name!r}: {says!r}}}: {spec.name!r} holds complex numbers")
    if spec.dtype == torch.bool and says.startswith("full"):
        raise InputError(
            f"assume={{{spec.name!r}: {says!r}}}: 'full' is for lengths, and {spec.name!r} is a mask of booleans: 'ones' "
            "says that all of it is True, 'zeros' that none is"
        )


def _axis(name: str, axis: int, asker: str, specs: Mapping[str, TensorSpec]) -> tuple[str, int]:
    if name not in specs or name == asker or not -len(specs[name].axes) <= axis < len(specs[name].axes):
        shapes = {key: list(spec.axes) for key, spec in specs.items() if key != asker}
        raise InputError(f"assume={{{asker!r}: 'full:{name}:{axis}'}} names no axis of another input: {shapes}")
    return name, axis % len(specs[name].axes)


def check_names(asked: Mapping[str, str], signatures: Sequence[Signature]) -> None:
    """Raises InputError for a name that is an input of none of ``signatures``."""
    names = list(dict.fromkeys(spec.name for each in signatures for spec in (*each.inputs, *each.unread)))
    for name in asked:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise InputError(f"assume names {name!r}, which is no input; {hint}the inputs are {', '.join(names)}")
