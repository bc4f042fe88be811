"""The passes that are installed, as a reader chooses among them."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.padding import Padding
from rich.text import Text

from fxexport.report.layout import Part, heading, paragraph
from fxexport.rewrite import Pass, resolve
from fxexport.rewrite.pipeline_text import spell
from fxexport.rewrite.registry import BUILTIN, registered


@dataclass(frozen=True)
class InstalledPass:
    """A pass: its command-line name, options with their defaults, the rewrite it draws, its distribution.

    Attributes:
        default: whether it is one of the default pipeline, and ``place`` the number (from 1) at which it runs there.
        rewrite: the first paragraph of its docstring, on one line; ``doc`` is all of it.
        builtin: whether it is one of fxexport's own.
        after, before: names of the passes it must not precede or follow.
        formats: the only formats it is for; none means all.
        repeats: whether it runs again at the end, where other passes changed something after it.
    """

    name: str
    default: bool
    place: int | None
    options: dict[str, str]
    rewrite: str
    doc: str
    origin: str
    builtin: bool
    after: tuple[str, ...]
    before: tuple[str, ...]
    formats: tuple[str, ...]
    repeats: bool

    def to_json(self) -> dict[str, Any]:
        """A JSON object with the fields of this pass."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        """The name with all options at their defaults, as a pipeline spells it."""
        options = ",".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.name}{{{options}}}" if options else self.name


def installed_passes() -> list[InstalledPass]:
    """Every installed pass: those of the default pipeline as it runs, then ours, then those of other packages.

    Raises PassError where some cannot be loaded.
    """
    places = {type(each): place for place, each in enumerate(resolve("default"), start=1)}
    found = [
        InstalledPass(
            name=each.cls.name,
            default=each.cls in places,
            place=places.get(each.cls),
            options=_options(each.cls),
            rewrite=_first_paragraph(each.cls),
            doc=inspect.getdoc(each.cls) or "",
            origin=each.origin,
            builtin=each.entry.module == BUILTIN,
            after=each.cls.after,
            before=each.cls.before,
            formats=each.cls.formats,
            repeats=each.cls.repeats,
        )
        for each in registered()
    ]
    return sorted(found, key=lambda each: (each.place or len(places) + 1, not each.builtin))


def _options(cls: type[Pass]) -> dict[str, str]:
    """Option -> its default as text, ``"required"`` where there is none."""

    def default(field: dataclasses.Field[Any]) -> str:
        if field.default is not dataclasses.MISSING:
            return spell(field.default)
        if field.default_factory is not dataclasses.MISSING:
            return spell(field.default_factory())
        return "required"

    return {field.name: default(field) for field in dataclasses.fields(cls)}


def _first_paragraph(cls: type[Pass]) -> str:
    return " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split()).replace("``", "")


def pass_parts(passes: Sequence[InstalledPass]) -> list[Part]:
    """``passes`` in two groups, each with its options, its rewrite and where it may run; and how to use them."""
    groups = {
        "In the default pipeline, as they run": [each for each in passes if each.default],
        "Where they are named": [each for each in passes if not each.default],
    }
    parts: list[Part] = [Text(f"{len(passes)} passes are installed", style="bold")]
    for title, members in groups.items():
        if members:
            parts.append(heading(title))
        for each in members:
            parts += _entry(each)
    use = (
        "--passes 'name{option=value},other' runs these in this order, but for what 'after' and 'before' demand; "
        "'default': the defaults; module:Class: a class of yours. Several values are written 1|2|3."
    )
    return [*parts, Text(), paragraph(use)]


def _entry(each: InstalledPass) -> list[Part]:
    head = Text.assemble(f"{each.place:2}  " if each.place else " -  ", (str(each), "bold"))
    if not each.builtin:
        head.append(f"  from {each.origin}", style="dim")
    below = [paragraph(each.rewrite)] + [Text(limits, style="dim") for limits in [limits_of(each)] if limits]
    return [head, *(Padding(part, (0, 0, 0, 4), expand=False) for part in below)]


def limits_of(each: InstalledPass) -> str:
    """The other passes and the formats that bind it: ``"after remove-noops; onnx only"``."""
    sides = [f"{side} {', '.join(names)}" for side, names in (("after", each.after), ("before", each.before)) if names]
    return "; ".join([*sides, *([f"{', '.join(each.formats)} only"] if each.formats else [])])
