"""A small directed graph in layers, data flowing downward; an edge over several layers gets a lane of its own."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import networkx as nx

_ACROSS, _DOWN, _LANE = 18.0, 26.0, 6.0
_SWEEPS = 6


@dataclass(frozen=True)
class Layout:
    """Boxes as (left, top, width, height), edges as the points they go through, and the size of it all."""

    boxes: dict[Any, tuple[float, float, float, float]]
    routes: list[list[tuple[float, float]]]
    width: float
    height: float


def lay_out(sizes: Mapping[Any, tuple[float, float]], edges: Iterable[tuple[Any, Any]]) -> Layout:
    """Places boxes of these (width, height), so that every edge of the acyclic graph leads downward."""
    graph: nx.DiGraph[Hashable] = nx.DiGraph()
    graph.add_nodes_from(sizes)
    graph.add_edges_from(edges)
    layer = _layers(graph)
    lanes = {edge: _lane(edge, layer) for edge in graph.edges}
    rows: list[list[Hashable]] = [[] for _ in range(max(layer.values(), default=-1) + 1)]
    for node in graph:
        rows[layer[node]].append(node)
    split: nx.DiGraph[Hashable] = nx.DiGraph()
    split.add_nodes_from(graph)
    for chain in lanes.values():
        nx.add_path(split, chain)
        for stop in chain[1:-1]:
            rows[stop[2]].append(stop)
    widths = {node: sizes[node][0] if node in sizes else _LANE for node in split}
    middle = _positions(split, rows, widths)
    return _assemble(sizes, rows, lanes, widths, middle)


def _layers(graph: nx.DiGraph[Hashable]) -> dict[Hashable, int]:
    """The longest way from a source; sources move down to the layer above their first reader."""
    layer = {node: depth for depth, nodes in enumerate(nx.topological_generations(graph)) for node in nodes}
    for node in graph:
        if not graph.in_degree(node) and graph.out_degree(node):
            layer[node] = min(layer[reader] for reader in graph.successors(node)) - 1
    return layer


def _lane(edge: tuple[Any, Any], layer: Mapping[Any, int]) -> list[Any]:
    """The edge with a stop in every layer between its ends."""
    start, end = edge
    return [start, *((start, end, depth) for depth in range(layer[start] + 1, layer[end])), end]


def _positions(
    graph: nx.DiGraph[Hashable], rows: list[list[Hashable]], widths: Mapping[Any, float]
) -> dict[Hashable, float]:
    """The middle of each box: near the mean of what it is connected to, in turn seen from above and from below."""
    middle = {node: 0.0 for row in rows for node in row}
    for row in rows:
        _spread(row, {node: float(i) for i, node in enumerate(row)}, widths, middle)
    for sweep in range(_SWEEPS):
        downward = sweep % 2 == 0
        for row in rows if downward else rows[::-1]:
            wanted = {}
            for node in row:
                near = list(graph.predecessors(node) if downward else graph.successors(node))
                wanted[node] = sum(middle[other] for other in near) / len(near) if near else middle[node]
            row.sort(key=lambda node: wanted[node])
            _spread(row, wanted, widths, middle)
    return middle


def _spread(
    row: list[Hashable], wanted: Mapping[Any, float], widths: Mapping[Any, float], middle: dict[Hashable, float]
) -> None:
    """Sets ``middle`` of a row in its order: no box over another, and the row as a whole where it wants to be."""
    edge, places = float("-inf"), []
    for node in row:
        place = max(wanted[node], edge + _ACROSS + widths[node] / 2)
        places.append(place)
        edge = place + widths[node] / 2
    shift = sum(wanted[node] - place for node, place in zip(row, places, strict=True)) / max(len(row), 1)
    middle.update({node: place + shift for node, place in zip(row, places, strict=True)})


def _assemble(
    sizes: Mapping[Any, tuple[float, float]],
    rows: list[list[Hashable]],
    lanes: Mapping[Any, list[Any]],
    widths: Mapping[Any, float],
    middle: Mapping[Any, float],
) -> Layout:
    left = min((middle[node] - widths[node] / 2 for row in rows for node in row), default=0.0)
    right = max((middle[node] + widths[node] / 2 for row in rows for node in row), default=0.0)
    boxes: dict[Any, tuple[float, float, float, float]] = {}
    tops, y = [], 0.0
    for row in rows:
        tall = max(sizes[node][1] for node in row if node in sizes)
        for node in row:
            if node in sizes:
                boxes[node] = (middle[node] - widths[node] / 2 - left, y, *sizes[node])
        tops.append((y, tall))
        y += tall + _DOWN
    routes = []
    for (start, end), chain in lanes.items():
        route = [(middle[start] - left, boxes[start][1] + sizes[start][1])]
        for stop in chain[1:-1]:
            top, tall = tops[stop[2]]
            route += [(middle[stop] - left, top), (middle[stop] - left, top + tall)]
        routes.append([*route, (middle[end] - left, boxes[end][1])])
    return Layout(boxes, routes, right - left, max(y - _DOWN, 0.0))
