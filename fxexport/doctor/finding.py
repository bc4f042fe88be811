"""What the doctor says: one ``Finding`` for each place, and the ``Diagnosis`` that holds them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from fxexport.doctor.places import Site

Severity = Literal["blocks", "changes", "information"]
Kind = Literal[
    "branch",
    "value",
    "numpy",
    "loop",
    "fixed-size",
    "data-shape",
    "input-write",
    "state",
    "training",
    "random",
    "uninitialised",
    "baked",
    "kwargs-order",
    "complex",
    "autograd-function",
    "operator",
    "wrapper",
    "output-type",
    "nan",
    "device",
    "uncopyable",
    "constant",
    "eager",
    "capture",
]
SEVERITIES: tuple[Severity, ...] = ("blocks", "changes", "information")


@dataclass(frozen=True)
class Finding:
    """One thing about a model that an export meets.

    Attributes:
        kind: what it is, one word.
        severity: ``"blocks"`` (no file as things are), ``"changes"`` (the file does something else than the model in some
            respect) or ``"information"``.
        what: a sentence with the numbers of this place.
        way_out: what to do about it, in one sentence; '' where there is nothing to do.
        site: the line of the user's code, where there is one.
        modules: paths of the submodules that were running, ``""`` is the model itself.
        tensor: the tensor involved: ``"float32[] = 0.31"``.
        handled: fxexport takes care of it by itself, and capture of this model succeeded.
    """

    kind: Kind
    severity: Severity
    what: str
    way_out: str = ""
    site: Site | None = None
    modules: tuple[str, ...] = ()
    tensor: str = ""
    handled: bool = False

    @property
    def place(self) -> str:
        """``"models/net.py:41"``, or '' where no line is known."""
        return str(self.site) if self.site else ""

    def in_words(self, *, source: bool = True) -> str:
        """The finding without its way out, in one line of text."""
        where = f"{self.place}: " if self.site else ""
        code = f"`{self.site.source}`: " if source and self.site and self.site.source else ""
        tensor = f" ({self.tensor})" if self.tensor else ""
        return f"{where}{code}{self.what}{tensor}{_within(self.modules)}"

    def to_json(self) -> dict[str, Any]:
        """Plain values; the file is given by its whole path."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "site"}
        site = {"file": None, "line": None, "source": None}
        if self.site:
            site = {"file": self.site.file, "line": self.site.line, "source": self.site.source}  # type: ignore[dict-item]
        return {**plain, "modules": list(self.modules), **site}


def _within(modules: tuple[str, ...]) -> str:
    named = [name for name in modules if name]
    if not named:
        return ""
    more = f" and {len(named) - 3} more" if len(named) > 3 else ""
    return f", in {', '.join(named[:3])}{more}"


@dataclass(frozen=True)
class Diagnosis:
    """All findings of one model; what blocks comes first. Prints as a page.

    Attributes:
        model: the class of the model.
        findings: in the order of their severity, then as they were met.
        failure: why capture stopped; '' where it succeeded, None where it was not tried.
        operators: how many operators the captured graph has.
    """

    model: str
    findings: tuple[Finding, ...]
    failure: str | None = None
    operators: int = 0

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    @property
    def blockers(self) -> tuple[Finding, ...]:
        """The findings with which there is no file."""
        return self.of("blocks")

    def of(self, severity: Severity) -> tuple[Finding, ...]:
        """The findings of one severity."""
        return tuple(each for each in self.findings if each.severity == severity)

    def to_json(self) -> dict[str, Any]:
        """``{"model", "captured", "failure", "operators", "findings"}``, plain values."""
        return {
            "model": self.model,
            "captured": self.failure == "",
            "failure": self.failure or None,
            "operators": self.operators,
            "findings": [each.to_json() for each in self.findings],
        }

    def __str__(self) -> str:
        from fxexport.doctor.page import diagnosis_parts  # rich is imported only where something is printed
        from fxexport.report.text import plain

        return plain(diagnosis_parts(self)).rstrip("\n")
