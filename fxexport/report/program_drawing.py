"""The places that a pass changed, drawn: before on the left, after on the right, data flowing downward.

Lengths are points (1/72 inch). matplotlib is optional: the extra ``fxexport[draw]``.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import fx

from fxexport.destination import preflight
from fxexport.errors import InputError
from fxexport.program import Program
from fxexport.publishing import publication
from fxexport.report.layered_layout import Layout, lay_out
from fxexport.report.program_diff import Place, ProgramDiff, operator_of
from fxexport.report.program_text import ProgramText, shown_place

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FONT, _SMALL = 9.0, 7.0
_PITCH = 0.62  # width of a character of DejaVu Sans Mono, which comes with matplotlib, by its size; rounded up
_WIDEST = 44  # characters in a line of a box
_MARGIN, _TITLE, _GAP = 18.0, 34.0, 30.0
_MOST_CALLS, _MOST_NEIGHBOURS = 24, 8
_PAINT = {  # face, edge, text
    "removed": ("#fde3e1", "#c62828", "#7f1d1d"),
    "made": ("#e0f2e3", "#2e7d32", "#14532d"),
    "stayed": ("#f2f2f2", "#9e9e9e", "#555555"),
}


@dataclass(frozen=True)
class _Panel:
    """One side of one place: what is drawn, how each box reads, and where it lies."""

    styles: dict[fx.Node, str]
    labels: dict[fx.Node, list[str]]
    layout: Layout
    left_out: int


def save_svg(difference: ProgramDiff, path: str | Path, *, limit: int = 4) -> Path:
    """Draws ``difference`` to ``path``, which is replaced at once or not at all; returns the absolute path.

    Raises InputError where ``path`` cannot be written or is no ``.svg``, or matplotlib is not installed; PublishError
    where the disk refuses.
    """
    target = check_drawable(path)
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": "fxexport"}), publication(target) as staging:  # the same bytes on every run
        draw(difference, limit=limit).savefig(staging.main, format="svg", metadata={"Date": None})
        staging.publish()
    return target


def check_drawable(path: str | Path) -> Path:
    """The absolute path of a drawing that can be made. Raises InputError where it cannot."""
    target = preflight(path, (".svg",))
    try:
        import matplotlib  # noqa: F401 - only whether it is there
    except ImportError as error:
        raise InputError(
            f"drawing {target.name} needs matplotlib, which cannot be imported ({error}); pip install 'fxexport[draw]'"
        ) from error
    return target


def draw(difference: ProgramDiff, *, limit: int = 4) -> Figure:
    """A figure with the first place of each form, ``limit`` of them at most; what is left out is said in it."""
    from matplotlib.figure import Figure

    forms = Counter(place.form for place in difference.places)
    first = {place.form: place for place in reversed(difference.places)}
    shown = [first[form] for form in forms][:limit]
    rows = [(place, _panel(difference, place, 0), _panel(difference, place, 1)) for place in shown]
    titles = [_title(place, forms[place.form]) for place in shown]
    middle = max((old.layout.width for _, old, _ in rows), default=0.0) + _MARGIN + _GAP
    width = max([middle + new.layout.width for _, _, new in rows] + [_text_width(t, _FONT) for t in titles] + [400.0])
    head = textwrap.wrap(difference.head[0], int(width / (_FONT * _PITCH)))
    heights = [max(old.layout.height, new.layout.height) + _TITLE + _GAP for _, old, new in rows]
    top = _MARGIN + 14 * len(head) + _GAP
    width, height = width + 2 * _MARGIN, top + sum(heights) + (14 if len(forms) > limit else 0)
    figure = Figure(figsize=(width / 72, height / 72), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    for number, line in enumerate(head):
        _write(axes, _MARGIN, _MARGIN + 10 + 14 * number, line, _FONT)
    for (_, old, new), title, tall in zip(rows, titles, heights, strict=True):
        _write(axes, _MARGIN, top, title, _FONT, weight="bold")
        for panel, left, word in ((old, _MARGIN, "before"), (new, middle, "after")):
            more = f", {panel.left_out} more calls not drawn" if panel.left_out else ""
            _write(axes, left, top + 16, word + more, _SMALL, color="#777777")
            _draw_panel(axes, panel, left, top + _TITLE - 8)
        top += tall
    if len(forms) > limit:
        _write(axes, _MARGIN, height - _MARGIN, f"kinds of change that are not drawn: {len(forms) - limit}", _FONT)
    return figure


def _title(place: Place, count: int) -> str:
    form = " -> ".join(_abridged(side.split(" + ")) for side in place.form.split(" -> "))
    where = " ".join(filter(None, [place.module, shown_place(place.line)]))
    alike = f", and {count - 1} more like it" if count > 1 else ""
    return f"{form}   at {where or 'a place without a source line'}{alike}"


def _abridged(names: list[str]) -> str:
    few = len(names) <= 4
    return " + ".join(names) if few else f"{names[0]} + {names[1]} + ... + {names[-1]} ({len(names)} calls)"


# ---------------------------------------------------------------- what is in a panel


def _panel(difference: ProgramDiff, place: Place, side: int) -> _Panel:
    program, text = (difference.before, difference.after)[side], difference.texts[side]
    changed = (place.removed, place.made)[side]
    core = changed[:_MOST_CALLS]
    styles = dict.fromkeys(core, ("removed", "made")[side])
    around = _neighbours(difference, place, program, side)
    styles |= dict.fromkeys(around[:_MOST_NEIGHBOURS], "stayed")
    left_out = len(changed) - len(core) + max(len(around) - _MOST_NEIGHBOURS, 0)
    ordered = [node for node in program.graph.nodes if node in styles]
    labels = {node: _label(node, program, text, styles[node] != "stayed") for node in ordered}
    sizes = {node: _box(lines) for node, lines in labels.items()}
    edges = [(used, node) for node in ordered for used in node.all_input_nodes if used in styles]
    return _Panel(styles, labels, lay_out(sizes, edges), left_out)


def _neighbours(difference: ProgramDiff, place: Place, program: Program, side: int) -> list[fx.Node]:
    """What the changed calls read and what reads them; where one side is empty, what the other side's have there."""
    core = (place.removed, place.made)[side][:_MOST_CALLS]
    around = [node for call in core for node in (*call.all_input_nodes, *call.users)]
    other = (place.made, place.removed)[side][:_MOST_CALLS]
    nodes = {node.name: node for node in program.graph.nodes}
    outside = [node.name for call in other for node in (*call.all_input_nodes, *call.users)]
    around += [nodes[name] for name in outside if name in nodes]
    everything = {*(place.removed, place.made)[side]}
    return list(dict.fromkeys(n for n in around if n not in everything and not program.is_constant(n)))


def _label(node: fx.Node, program: Program, text: ProgramText, in_full: bool) -> list[str]:
    """The operator; then name and value; of a changed call, its constants too, those of one module together."""
    if node.op == "output":
        return ["output"]
    lines = [operator_of(node), *_wrapped(f"{node.name}: {text.value(node)}")]
    owners: dict[str, list[str]] = {}
    for used in node.all_input_nodes if in_full else ():
        if program.is_constant(used):
            owner, _, name = text.name(used).rpartition(".")
            owners.setdefault(owner, []).append(name)
    for owner, names in owners.items():
        lines += _wrapped(f"{owner}: {', '.join(names)}" if owner else ", ".join(names))
    return lines


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDEST, subsequent_indent="  ", max_lines=3, placeholder=" ...")


def _text_width(text: str, size: float) -> float:
    return len(text) * size * _PITCH


def _box(lines: list[str]) -> tuple[float, float]:
    """Width and height of a box around these lines, the first one in the larger font."""
    widths = [_text_width(lines[0], _FONT), *(_text_width(line, _SMALL) for line in lines[1:])]
    return max(widths) + 16, 14 + 10 * (len(lines) - 1) + 8


# ---------------------------------------------------------------- ink


def _draw_panel(axes: Axes, panel: _Panel, left: float, top: float) -> None:
    from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
    from matplotlib.path import Path as Curve

    for route in panel.layout.routes:
        points = [(left + x, top + y) for x, y in route]
        vertices, codes = [points[0]], [Curve.MOVETO]
        for (x0, y0), (x1, y1) in pairwise(points):
            bend = (y0 + y1) / 2
            vertices += [(x0, bend), (x1, bend), (x1, y1)]
            codes += [Curve.CURVE4] * 3
        arrow = FancyArrowPatch(
            path=Curve(vertices, codes), arrowstyle="-|>", mutation_scale=8, lw=0.9, color="#888888"
        )
        axes.add_patch(arrow)
    for node, (x, y, wide, tall) in panel.layout.boxes.items():
        face, edge, ink = _PAINT[panel.styles[node]]
        frame = FancyBboxPatch(
            (left + x, top + y), wide, tall, boxstyle="round,pad=0,rounding_size=4", fc=face, ec=edge
        )
        axes.add_patch(frame)
        for number, line in enumerate(panel.labels[node]):
            size, weight = (_SMALL, "normal") if number else (_FONT, "bold")
            _write(axes, left + x + 8, top + y + 14 + 10 * number, line, size, color=ink, weight=weight)


def _write(axes: Axes, x: float, y: float, text: str, size: float, **style: Any) -> None:
    """One line, its baseline at ``y``; ``$`` is no formula."""
    axes.text(x, y, text, fontsize=size, family="DejaVu Sans Mono", parse_math=False, **style)
