"""The passes that are installed, as a reader chooses among them."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.text import Text

from fxexport.report.layout import Part, paragraph, table
from fxexport.rewrite import Pass
from fxexport.rewrite.pipeline_text import spell
from fxexport.rewrite.registry import registered


@dataclass(frozen=True)
class InstalledPass:
    """A pass: its command-line name, options with their defaults, the rewrite it draws, its distribution.

    ``after`` and ``before`` are the names of the passes it must not precede or follow.
    """

    name: str
    default: bool
    options: dict[str, str]
    rewrite: str
    origin: str
    after: tuple[str, ...]
    before: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """A JSON object with the fields of this pass."""
        return dataclasses.asdict(self)


def installed_passes() -> list[InstalledPass]:
    """Every installed pass, the built-in ones first. Raises PassError where some cannot be loaded."""
    return [
        InstalledPass(
            name=each.cls.name,
            default=each.cls.default,
            options=_options(each.cls),
            rewrite=_first_paragraph(each.cls),
            origin=each.origin,
            after=each.cls.after,
            before=each.cls.before,
        )
        for each in registered()
    ]


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
    """A table of ``passes``, and how to use them."""
    rows = [
        (
            each.name,
            "yes" if each.default else "no",
            ", ".join(f"{name}={value}" for name, value in each.options.items()),
            _order(each),
            each.origin,
            each.rewrite,
        )
        for each in passes
    ]
    return [
        Text(f"{len(passes)} passes are installed", style="bold"),
        Text(),
        table(("pass", "default", "options", "~order", "from", "~rewrites"), rows),
        Text(),
        paragraph(
            "--passes 'name{option=value},other' runs these in this order, but for what 'order' demands; "
            "'default': the defaults; module:Class: a class of yours. Several values are written 1|2|3."
        ),
    ]


def _order(each: InstalledPass) -> str:
    sides = (("after", each.after), ("before", each.before))
    return "; ".join(f"{side} {', '.join(names)}" for side, names in sides if names)
