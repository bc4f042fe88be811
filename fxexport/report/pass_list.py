"""The passes that are installed, as a reader chooses among them."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from rich.text import Text

from fxexport.report.layout import Part, paragraph, table
from fxexport.rewrite import Pass, available
from fxexport.rewrite.registry import GROUP


@dataclass(frozen=True)
class InstalledPass:
    """A pass: its command-line name, options with their defaults, the rewrite it draws, its distribution."""

    name: str
    default: bool
    options: dict[str, str]
    rewrite: str
    origin: str

    def to_json(self) -> dict[str, Any]:
        """A JSON object with the fields of this pass."""
        return dataclasses.asdict(self)


def installed_passes() -> list[InstalledPass]:
    """Every installed pass, the built-in ones first. Raises PassError where some cannot be loaded."""
    found = available()
    origins = dict(_origins())
    return [
        InstalledPass(name, cls.default, _options(cls), _first_paragraph(cls), origins[cls])
        for name, cls in found.items()
    ]


def _origins() -> Iterator[tuple[type[Pass], str]]:
    """The distribution that registers each pass, with its version."""
    for entry in entry_points(group=GROUP):
        value = entry.load()
        origin = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "unknown"
        for cls in [value] if isinstance(value, type) else value:
            yield cls, origin


def _options(cls: type[Pass]) -> dict[str, str]:
    """Option -> its default as text, ``"required"`` where there is none."""

    def default(field: dataclasses.Field[Any]) -> str:
        if field.default is not dataclasses.MISSING:
            return str(field.default)
        if field.default_factory is not dataclasses.MISSING:
            return str(field.default_factory())
        return "required"

    return {field.name: default(field) for field in dataclasses.fields(cls)}


def _first_paragraph(cls: type[Pass]) -> str:
    return " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split()).replace("``", "")


def pass_parts(passes: Sequence[InstalledPass]) -> list[Part]:
    """A table of ``passes``, and how to use them."""
    rows = [
        (
            each.name,
            "yes" if each.default else "no",
            ", ".join(f"{name}={value}" for name, value in each.options.items()),
            each.origin,
            each.rewrite,
        )
        for each in passes
    ]
    return [
        Text(f"{len(passes)} passes are installed", style="bold"),
        Text(),
        table(("pass", "default", "options", "from", "~rewrites"), rows),
        Text(),
        paragraph("--passes 'name{option=value},other' runs these in this order; 'default': the defaults."),
    ]
