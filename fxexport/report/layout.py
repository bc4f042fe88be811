"""What pages are made of: headings, tables, bullets, and numbers as a reader wants them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.box import Box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

Part = RenderableType

# A line below the header and nothing else; ASCII, since a report may be printed where nothing more is known.
_UNDERLINE = Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)


def heading(text: str) -> Text:
    """The title of a section, with an empty line before it."""
    return Text(f"\n{text}", style="bold")


def paragraph(text: str) -> Text:
    """Running text, exactly as given: brackets are no markup."""
    return Text(text, overflow="fold")


def bullets(items: Sequence[str]) -> Table:
    """A list with hanging indents."""
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(vertical="top")
    grid.add_column(overflow="fold")
    for item in items:
        grid.add_row(Text("-"), Text(item, overflow="fold"))
    return grid


def table(columns: Sequence[str], rows: Sequence[Sequence[str | Text]]) -> Table:
    """A table under its headers: ``">size"`` is aligned right, ``"~notes"`` may be broken into lines.

    Columns with nothing in them are left out.
    """
    result = Table(box=_UNDERLINE, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="dim")
    kept = [i for i in range(len(columns)) if any(str(row[i]) for row in rows)]
    for i in kept:
        mark, name = columns[i][:1], columns[i].lstrip(">~")
        widest = max(_cell(content).cell_len for content in (name, *(row[i] for row in rows)))
        result.add_column(
            Text(name),
            justify="right" if mark == ">" else "left",
            no_wrap=mark != "~",
            min_width=None if mark == "~" else widest,
        )
    for row in rows:
        result.add_row(*(_cell(row[i]) for i in kept))
    return result


def _cell(content: str | Text) -> Text:
    return content if isinstance(content, Text) else Text(content)


def digits(value: float | None) -> str:
    """``value`` with three significant digits, without a fraction from 100 on; ``"-"`` for None and NaN."""
    if value is None or math.isnan(value):
        return "-"
    if value == 0 or math.isinf(value):
        return f"{value:g}"
    if not 1e-3 <= abs(value) < 1e5:
        return f"{value:.2e}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def human_size(count: int) -> str:
    """Bytes as ``"512 B"``, ``"1.2 kB"``, ``"44.7 MB"`` (powers of 1000)."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{digits(size)} {unit}"
        size /= 1000
    return f"{digits(size)} TB"
