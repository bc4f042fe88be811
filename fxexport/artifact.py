"""``Artifact``: a published file that can be called, loaded again, and describes itself."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from fxexport.capture.binding import named_leaves
from fxexport.capture.nesting import describe, flatten
from fxexport.capture.private_copy import preserved_process_state
from fxexport.errors import InputError
from fxexport.lowering import FORMATS, Format, format_of
from fxexport.report import Report
from fxexport.session import Session, open_session, read_metadata
from fxexport.signature import Signature, TensorSpec, show_path


class Artifact:
    """An exported model on disk.

    Call it like the model it came from, with torch tensors or numpy arrays (numpy in, numpy out); outputs come back in
    the structure the model returned (tuples as tuples, mappings and dataclasses as dicts, None where it gave None).
    Where the model takes or gives complex tensors, so does this, also where the file holds them as real pairs
    (``TensorSpec.pairs``); pairs are taken, too.

    Attributes:
        path: the main file.
        report: what the compilation did; None for an artifact that was loaded.
        metadata: what the file says of itself (signature, passes, notes, versions).
    """

    def __init__(self, path: Path, metadata: Mapping[str, Any], report: Report | None = None) -> None:
        self.path = path
        self.metadata = dict(metadata)
        self.report = report
        self.signature = Signature.from_json(self.metadata["signature"])

    @staticmethod
    def load(path: str | Path) -> Artifact:
        """The artifact in an existing file. Raises InputError when the file is missing, damaged or not ours."""
        file = Path(path)
        if not file.is_file():
            raise InputError(f"{file} does not exist or is not a file")
        if file.suffix.lower() not in FORMATS:
            raise InputError(f"{file} is none of {', '.join(FORMATS)}")
        return Artifact(file, read_metadata(file))

    @property
    def format(self) -> Format:
        """``"onnx"``, ``"torchscript"`` or ``"pt2"``."""
        return format_of(self.path)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Names, dtypes and axes of the flat inputs, in order."""
        return self.signature.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Names, dtypes and axes of the flat outputs, in order."""
        return self.signature.outputs

    @cached_property
    def _session(self) -> Session:
        return open_session(self.path)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Runs the file on the CPU. Arguments are those of ``forward``, or the flat inputs in order or by name; explicit
        state is given as ``state={buffer: value}``.

        Raises InputError when they do not match ``inputs``, or differ from a Python value the artifact has fixed.
        """
        given = self._flat(args, kwargs)
        has_arrays = any(isinstance(value, np.ndarray) for value in given)
        as_numpy = has_arrays and not any(isinstance(value, torch.Tensor) for value in given)
        tensors = [_to_tensor(value, spec) for value, spec in zip(given, self.inputs, strict=True)]
        self._check_sizes(tensors)
        results = self._session([spec.name for spec in self.inputs], tensors)
        values = map(_as_in_model, self.outputs, results)
        named = dict(zip((spec.name for spec in self.outputs), values, strict=True))
        return _rebuild(
            self.signature.structure, {k: v.numpy(force=True) for k, v in named.items()} if as_numpy else named
        )

    def _flat(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """A value for every input, in order: read as a call of ``forward``, or else as the flat inputs."""
        names = [spec.name for spec in self.inputs]
        parameters = {name for name, _ in self.signature.parameters}
        found = {key: value for key, value in kwargs.items() if key in names and key not in parameters}
        rest = {key: value for key, value in kwargs.items() if key not in found}
        if "state" in rest and "state" not in parameters:
            places = {spec.path: spec.name for spec in self.inputs}
            state = {places.get(show_path(("state", name))): value for name, value in rest.pop("state").items()}
            found |= {name: value for name, value in state.items() if name is not None}
        try:
            found |= self._read_call(args, rest)
        except InputError:
            by_name = {key: value for key, value in kwargs.items() if key in names}
            flat = all(isinstance(value, torch.Tensor | np.ndarray | np.generic) for value in args)
            if not flat or by_name != kwargs or len(args) + len(by_name) != len(names):
                raise
            found = dict(zip([name for name in names if name not in by_name], args, strict=True)) | by_name
        missing = [name for name in names if name not in found]
        if missing:
            raise InputError(f"missing inputs {missing}; the artifact takes {names}")
        return [found[name] for name in names]

    def _read_call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Input name -> value, for arguments as ``forward`` takes them."""
        kinds = ((name, getattr(inspect.Parameter, kind)) for name, kind in self.signature.parameters)
        signature = inspect.Signature([inspect.Parameter(name, kind) for name, kind in kinds])
        names = {spec.path: spec.name for spec in self.inputs}
        fixed = {baked.path: baked.value for baked in self.signature.baked}
        unread = {spec.path for spec in self.signature.unread}
        try:
            bound = signature.bind_partial(*args, **kwargs)
        except TypeError as error:
            raise InputError(f"{error}; the artifact takes {list(names.values())}") from None
        found = {}
        for leaf in named_leaves(signature, bound, flatten((bound.args, bound.kwargs))[0]):
            place = show_path(leaf.path)
            if place in names:
                found[names[place]] = leaf.value
            elif place in unread:
                continue
            elif place not in fixed:
                raise InputError(f"{place} is no input; the artifact takes {list(names.values())}")
            elif repr(leaf.value) != fixed[place]:
                raise InputError(f"{place} is fixed at {fixed[place]} in the artifact, got {describe(leaf.value)}")
        return found

    def _check_sizes(self, tensors: Sequence[torch.Tensor]) -> None:
        """Raises InputError for a fixed size that differs, and for one name with two sizes."""
        sizes: dict[str, int] = {}
        for spec, tensor in zip(self.inputs, tensors, strict=True):
            for axis, size in zip(spec.axes, tensor.shape, strict=True):
                wanted = axis if isinstance(axis, int) else sizes.setdefault(axis, size)
                if size != wanted:
                    raise InputError(
                        f"{spec.name!r} has axes {list(spec.axes)}, got shape {list(tensor.shape)}"
                        + (f", and {axis!r} is {wanted} in another input" if isinstance(axis, str) else "")
                    )

    def __repr__(self) -> str:
        return f"Artifact({str(self.path)!r})"

    def __str__(self) -> str:
        if self.report:
            return str(self.report)
        with preserved_process_state():  # rich draws random numbers
            from fxexport.report.text import render_metadata

            return render_metadata(self.path, self.metadata)


def _to_tensor(value: Any, spec: TensorSpec) -> torch.Tensor:
    if isinstance(value, np.ndarray):
        value = np.require(value, requirements="W")  # torch warns of arrays that it could write to and must not
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{spec.name!r} must be a tensor, an array or a number, got {describe(value)}") from error
    if spec.pairs and tensor.is_complex():
        return torch.view_as_real(_checked(tensor, value, spec.in_model).resolve_conj())
    return _checked(tensor, value, spec)


def _checked(tensor: torch.Tensor, value: Any, spec: TensorSpec) -> torch.Tensor:
    """``tensor``, made from ``value``, with dtype and rank of ``spec``; a number is cast to that dtype."""
    if tensor.dtype != spec.dtype:
        if isinstance(value, torch.Tensor | np.ndarray):
            raise InputError(f"{spec.name!r} is {spec.dtype}, got {tensor.dtype}")
        tensor = tensor.to(spec.dtype)
    if tensor.dim() != len(spec.axes):
        raise InputError(f"{spec.name!r} has axes {list(spec.axes)}, got shape {list(tensor.shape)}")
    return tensor


def _as_in_model(spec: TensorSpec, tensor: torch.Tensor) -> torch.Tensor:
    return torch.view_as_complex(tensor.contiguous()) if spec.pairs else tensor


def _rebuild(structure: Any, named: Mapping[str, Any]) -> Any:
    if structure is None:
        return None
    if isinstance(structure, str):
        return named[structure]
    if "tuple" in structure:
        return tuple(_rebuild(child, named) for child in structure["tuple"])
    return {key: _rebuild(child, named) for key, child in cast(dict[str, Any], structure["dict"]).items()}
