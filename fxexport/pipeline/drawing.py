"""A pipeline for readers: as a graph, and as a page of text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from fxexport.pipeline.checking import OUTSIDE
from fxexport.pipeline.spec import PipelineSpec, TensorPort, short_names


def graph_of(spec: PipelineSpec) -> Any:
    """A ``networkx.DiGraph`` of the parts and ``"inputs"``; each edge has ``wires``, a list of texts."""
    import networkx

    graph = networkx.DiGraph(name=spec.name)
    graph.add_node(OUTSIDE)
    for part in spec.parts:
        graph.add_node(part.name, file=part.file, loop=part.name in spec.loop)
    for source, target, text in _edges(spec):
        if not graph.has_edge(source, target):
            graph.add_edge(source, target, wires=[])
        graph.edges[source, target]["wires"].append(text)
    return graph


def pipeline_page(spec: PipelineSpec) -> str:
    """Parts and files, inputs, wires, states with their initial values, outputs and notes, as plain text."""
    outputs = [(name, str(port)) for port, name in short_names(spec.outputs).items()]
    parts = [(part.name, part.file, "every step" if part.name in spec.loop else "once") for part in spec.parts]
    shapes = [
        (f"{part.name}.{port.name}", f"{_shape(port)}", kind)
        for part in spec.parts
        for kind, ports in (("input", part.inputs), ("output", part.outputs))
        for port in ports
    ]
    inputs = [
        (one.name, f"{one.dtype}[{', '.join(map(str, one.axes))}]", f"-> {', '.join(map(str, one.feeds))}", one.note)
        for one in spec.inputs
    ]
    sections: list[tuple[str, Sequence[Sequence[str]]]] = [
        ("Parts", parts),
        ("Tensors", shapes),
        ("Inputs", inputs),
        ("Wires", [(str(wire),) for wire in spec.wires]),
        ("States", [(str(state),) for state in spec.states]),
        ("Outputs", outputs),
        ("Notes", [(note,) for note in spec.notes]),
        ("Versions", sorted(spec.versions.items())),
    ]
    lines = [f"{spec.name}: {len(spec.parts)} part{'s' * (len(spec.parts) != 1)} in {spec.format}"]
    for title, rows in sections:
        lines += ["", title, *_columns(rows)] if rows else []
    return "\n".join(lines) + "\n"


def _edges(spec: PipelineSpec) -> Iterator[tuple[str, str, str]]:
    for outside in spec.inputs:
        yield from ((OUTSIDE, port.part, f"{outside.name} -> {port}") for port in outside.feeds)
    for wire in spec.wires:
        yield wire.source.part, wire.target.part, str(wire)
    for state in spec.states:
        yield state.output.part, state.input.part, f"{state.output} -> {state.input} (state)"
        if (source := state.initial.source) is not None:
            yield source.part, state.input.part, f"{source} -> {state.input} (initial state)"


def _shape(port: TensorPort) -> str:
    return f"{port.dtype}[{', '.join(map(str, port.axes))}]"


def _columns(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield ("  " + "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True))).rstrip()
