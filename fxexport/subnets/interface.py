"""What is known of an exported part, and how its flat names meet the leaves of recorded calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from torch import Tensor

from fxexport.pipeline.ports import Port
from fxexport.signature import Signature, TensorSpec, dtype_name
from fxexport.subnets.recording import Recording
from fxexport.subnets.tape import Leaf, RecordedCall


@dataclass(frozen=True)
class PartInterface:
    """A part as it was exported: its flat inputs and outputs, each with its ``path`` in the part's own call.

    ``held``: flat inputs that are buffers of the part (explicit state), with their first values.
    """

    name: str
    signature: Signature
    held: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Alignment:
    """Flat name <-> path in recorded calls, for the inputs and outputs of one part. A name may have no path."""

    inputs: dict[str, str]
    outputs: dict[str, str]

    def output_at(self, path: str) -> str | None:
        """The flat name of the output at ``path``; None where the artifact has none."""
        return next((name for name, own in self.outputs.items() if own == path), None)


def align(interface: PartInterface, calls: Sequence[RecordedCall]) -> Alignment:
    """By path; where none of the paths is known (another ``forward`` was exported), by order if the counts agree."""
    inputs = list(dict.fromkeys(path for call in calls for path in call.inputs))
    outputs = list(dict.fromkeys(path for call in calls for path in call.outputs))
    signature = interface.signature
    return Alignment(_match(signature.inputs, inputs), _match(signature.outputs, outputs))


def _match(specs: Sequence[TensorSpec], paths: Sequence[str]) -> dict[str, str]:
    known = {spec.name: spec.path for spec in specs if spec.path in paths}
    if len(known) < len(specs) and len(specs) == len(paths):
        return {spec.name: path for spec, path in zip(specs, paths, strict=True)}
    return known


def contradictions(recording: Recording, interfaces: Sequence[PartInterface]) -> list[str]:
    """Where what was exported cannot have been what ran: inputs never given, dtypes, ranks, fixed axes, equal names."""
    found: list[str] = []
    for interface in interfaces:
        calls = recording.calls(interface.name)
        if not calls:
            continue
        alignment, signature = align(interface, calls), interface.signature
        for specs, paths, kind in (
            (signature.inputs, alignment.inputs, "input"),
            (signature.outputs, alignment.outputs, "output"),
        ):
            for spec in specs:
                if spec.path.startswith("state[") and interface.held:
                    continue  # no argument of the call
                sides = [call.inputs if kind == "input" else call.outputs for call in calls]
                leaves = [side.get(paths.get(spec.name, "")) for side in sides]
                told = f"{kind} {Port(interface.name, spec.name)}"
                found += [f"{told} {text}" for text in _differences(spec, leaves, calls)]
        found += _unequal_names(interface, alignment, calls)
    return list(dict.fromkeys(found))


def _differences(spec: TensorSpec, leaves: Sequence[Leaf | None], calls: Sequence[RecordedCall]) -> Iterator[str]:
    pairs = [(leaf.tensor, call) for leaf, call in zip(leaves, calls, strict=True) if leaf is not None]
    if not pairs:
        yield f"({spec.path}) is in no recorded call: the model runs without it, the artifact has it"
        return
    for tensor, call in [pair for pair in pairs if pair[0].dtype != spec.dtype][:1]:
        name, was = dtype_name(spec.dtype), dtype_name(tensor.dtype)
        yield f"is exported as {name}, but was {was} in {call.label} at {call.place}"
    for tensor, call in [pair for pair in pairs if pair[0].ndim != len(spec.axes)][:1]:
        yield f"is exported with axes {_axes(spec)}, but had shape {list(tensor.shape)} in {call.label}"
    shapes = [(tensor.shape, call) for tensor, call in pairs if tensor.ndim == len(spec.axes)]
    for place, axis in enumerate(spec.axes):
        wrong = [(shape, call) for shape, call in shapes if isinstance(axis, int) and shape[place] != axis]
        if wrong:
            sizes = sorted({shape[place] for shape, _ in wrong})
            yield (
                f"is exported with axes {_axes(spec)}, but axis {place} had size {', '.join(map(str, sizes))} in "
                f"{wrong[0][1].label} at {wrong[0][1].place}; declare that axis dynamic"
            )


def _unequal_names(interface: PartInterface, alignment: Alignment, calls: Sequence[RecordedCall]) -> Iterator[str]:
    told: set[str] = set()
    for call in calls:
        for axis, places in _named_sizes(interface, alignment, call).items():
            for (first, size), (second, other) in pairwise(places):
                if size != other and axis not in told:
                    told.add(axis)
                    yield (
                        f"{interface.name}: the axis {axis!r} is {size} in {first} and {other} in {second} in "
                        f"{call.label} at {call.place}: equal names mean equal sizes"
                    )


def _named_sizes(
    interface: PartInterface, alignment: Alignment, call: RecordedCall
) -> dict[str, list[tuple[str, int]]]:
    sizes: dict[str, list[tuple[str, int]]] = {}
    signature = interface.signature
    for specs, paths, leaves in (
        (signature.inputs, alignment.inputs, call.inputs),
        (signature.outputs, alignment.outputs, call.outputs),
    ):
        for spec in specs:
            leaf = leaves.get(paths.get(spec.name, ""))
            if leaf is not None and leaf.tensor.ndim == len(spec.axes):
                for place, axis in spec.dynamic_axes.items():
                    sizes.setdefault(axis, []).append((spec.name, leaf.tensor.shape[place]))
    return sizes


def _axes(spec: TensorSpec) -> str:
    return f"[{', '.join(map(str, spec.axes))}]"
