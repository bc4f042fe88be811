"""Names, dtypes and axes of what goes in and comes out: one flat, ordered name space, checked."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from fxexport.errors import InputError

Axis = int | str
"""A fixed size, or the name (or formula, such as ``2*time``) of a dynamic dimension."""

Structure = None | str | dict[str, Any]
"""How flat outputs nest: None (dropped), an output name, ``{"tuple": [...]}`` or ``{"dict": {...}}``."""

COMPLEX_OF = {torch.float16: torch.complex32, torch.float32: torch.complex64, torch.float64: torch.complex128}
"""Real dtype -> the complex dtype whose real and imaginary parts have it."""


@dataclass(frozen=True)
class TensorSpec:
    """One flat input or output: its name in the artifact, dtype, axes, and where it sits in the model's own call.

    ``pairs``: the model's tensor is complex; the artifact's is real, and its last axis, of size 2, is real and
    imaginary part.
    """

    name: str
    dtype: torch.dtype
    axes: tuple[Axis, ...]
    path: str = ""
    pairs: bool = False

    @property
    def in_model(self) -> TensorSpec:
        """The same tensor as the model has it: complex, where the artifact has pairs."""
        return replace(self, dtype=COMPLEX_OF[self.dtype], axes=self.axes[:-1], pairs=False) if self.pairs else self

    @property
    def dynamic_axes(self) -> dict[int, str]:
        """Position -> label of every dimension that is not fixed."""
        return {i: axis for i, axis in enumerate(self.axes) if isinstance(axis, str)}

    def to_json(self) -> dict[str, Any]:
        """A JSON object with the fields of this spec; the dtype as ``"float32"``."""
        return {
            "name": self.name,
            "dtype": dtype_name(self.dtype),
            "axes": list(self.axes),
            "path": self.path,
            **({"pairs": True} if self.pairs else {}),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> TensorSpec:
        """The inverse of :meth:`to_json`."""
        dtype = getattr(torch, data["dtype"])
        return TensorSpec(data["name"], dtype, tuple(data["axes"]), data.get("path", ""), data.get("pairs", False))


@dataclass(frozen=True)
class Baked:
    """A Python value (not a tensor) given for an argument: fixed in the artifact."""

    path: str
    value: str


@dataclass(frozen=True)
class Dimension:
    """A dynamic dimension: its name, its size in the captured example, and the sizes the graph allows.

    ``declared``: the user asked for it by name; otherwise it was found by ``dynamic=True``.
    """

    name: str
    example: int
    minimum: int = 0
    maximum: int | None = None
    declared: bool = True

    @property
    def range(self) -> str:
        """``"2..512"``, or ``"1.."`` where there is no bound (size 0 is not tried)."""
        return f"{max(self.minimum, 1)}..{'' if self.maximum is None else self.maximum}"


@dataclass(frozen=True)
class Guard:
    """A condition on sizes that the model's code decided during capture (``batch % 2 == 0``), and where."""

    condition: str
    place: str


@dataclass(frozen=True)
class Signature:
    """The flat inputs and outputs of a program, and what was fixed or dropped to get there.

    ``parameters``: name and kind (as in ``inspect.Parameter``) of each parameter of the model's ``forward``, in order.
    ``unread``: inputs that the captured call has and nothing in the graph reads: they are not inputs of the artifact.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    structure: Structure = None
    dimensions: tuple[Dimension, ...] = ()
    guards: tuple[Guard, ...] = ()
    baked: tuple[Baked, ...] = ()
    dropped: tuple[str, ...] = field(default=())
    parameters: tuple[tuple[str, str], ...] = ()
    unread: tuple[TensorSpec, ...] = ()

    def whole_call(self, paths: Sequence[str]) -> Signature:
        """The signature with the ``unread`` inputs among the others again, in the order of ``paths``."""
        specs = {spec.path: spec for spec in (*self.inputs, *self.unread)}
        return replace(self, inputs=tuple(specs[path] for path in paths), unread=())

    @property
    def in_model(self) -> Signature:
        """The signature with every tensor as the model has it: complex ones complex."""
        inputs, outputs, unread = (
            tuple(spec.in_model for spec in specs) for specs in (self.inputs, self.outputs, self.unread)
        )
        return replace(self, inputs=inputs, outputs=outputs, unread=unread)

    def to_json(self) -> dict[str, Any]:
        """A JSON object that :meth:`from_json` reads back."""
        return {
            "inputs": [spec.to_json() for spec in self.inputs],
            "outputs": [spec.to_json() for spec in self.outputs],
            "structure": self.structure,
            "dimensions": [asdict(d) for d in self.dimensions],
            "guards": [asdict(g) for g in self.guards],
            "baked": [{"path": b.path, "value": b.value} for b in self.baked],
            "dropped": list(self.dropped),
            "parameters": [list(parameter) for parameter in self.parameters],
            "unread": [spec.to_json() for spec in self.unread],
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Signature:
        """The inverse of :meth:`to_json`."""
        return Signature(
            tuple(TensorSpec.from_json(item) for item in data["inputs"]),
            tuple(TensorSpec.from_json(item) for item in data["outputs"]),
            data["structure"],
            tuple(Dimension(**item) for item in data["dimensions"]),
            tuple(Guard(**item) for item in data.get("guards", ())),
            tuple(Baked(item["path"], item["value"]) for item in data["baked"]),
            tuple(data["dropped"]),
            tuple((name, kind) for name, kind in data.get("parameters", ())),
            tuple(TensorSpec.from_json(item) for item in data.get("unread", ())),
        )


def dtype_name(dtype: torch.dtype) -> str:
    """``torch.float32`` -> ``"float32"``."""
    return str(dtype).removeprefix("torch.")


def flat_name(path: Sequence[str | int]) -> str:
    """A stable identifier for a path into nested arguments: ``("states", 0)`` -> ``"states_0"``."""
    text = "_".join(str(part) for part in path)
    text = re.sub(r"\W", "_", text)
    if not text or text[0].isdigit():
        text = f"_{text}"
    return f"{text}_" if keyword.iskeyword(text) else text


def show_path(path: Sequence[str | int]) -> str:
    """The same path as a reader writes it: ``("batch", "image", 0)`` -> ``"batch['image'][0]"``."""
    head, *rest = path or ("",)
    return str(head) + "".join(f"[{part!r}]" for part in rest)


def unique_names(wanted: Iterable[str], taken: Iterable[str] = ()) -> list[str]:
    """``wanted`` with a numeric suffix where a name was already taken."""
    used = set(taken)
    result = []
    for name in wanted:
        candidate, count = name, 0
        while candidate in used:
            count += 1
            candidate = f"{name}_{count}"
        used.add(candidate)
        result.append(candidate)
    return result


def choose_names(kind: str, given: Sequence[str] | None, found: Sequence[str]) -> list[str]:
    """The names to use for the inputs or outputs: the ``given`` ones, else those ``found`` in the model.

    Raises InputError when the count differs, a name is repeated or is not a non-empty string.
    """
    if given is None:
        return list(found)
    given = given if isinstance(given, str) else list(given)
    if isinstance(given, str) or not all(isinstance(name, str) and name for name in given):
        raise InputError(f"{kind}_names must be a list of non-empty strings, got {given!r}")
    if len(given) != len(found):
        raise InputError(
            f"{kind}_names has {len(given)} names for {len(found)} tensors:\n"
            f"  given:  {given}\n  needed: one for each of {list(found)}"
        )
    repeated = sorted({name for name in given if given.count(name) > 1})
    if repeated:
        raise InputError(f"{kind}_names repeats {repeated}; every {kind} needs a name of its own")
    return given


def check_disjoint(inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Raises InputError when an input and an output share a name: an ONNX graph has one name space."""
    shared = sorted(set(inputs) & set(outputs))
    if shared:
        raise InputError(
            f"{shared} would name both an input and an output, which makes an invalid ONNX file; "
            "choose other input_names or output_names"
        )
