"""What a program says of the Python decisions on tensor values that its model takes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Form = Literal["select", "branch", "loop", "assumed", "raises"]
_TOLD = {
    "select": "both sides are computed and one is chosen",
    "branch": "both sides are in the artifact, one is run",
    "loop": "the loop is in the artifact",
}


@dataclass(frozen=True)
class Decision:
    """One ``if`` or ``while`` on the values of a tensor, and what became of it.

    Attributes:
        site: ``"models/net.py:41"``.
        source: that line of code.
        form: ``select`` and ``branch`` have both sides, ``loop`` repeats its body, ``assumed`` has the side that the user
            named, ``raises`` has the side on which forward raises no error.
        value: the only side there is, where there is one.
        note: what is raised on the other side, or who assumed it.
    """

    site: str
    source: str
    form: Form
    value: bool | None = None
    note: str = ""

    def __str__(self) -> str:
        head = f"{self.source!r} at {self.site} depends on the data"
        if self.form == "assumed":
            side = "" if self.value is None else f" to be {self.value}"
            return f"{head}: assumed{side} {self.note}"
        if self.form == "raises":
            return f"{head}: where it is {not self.value}, forward raises {self.note}; the artifact does not check it"
        return f"{head}: {_TOLD[self.form]}{f' ({self.note})' if self.note else ''}"

    def to_json(self) -> dict[str, Any]:
        """A JSON object with the fields of this decision."""
        return asdict(self)
