"""What the report, and the file itself, say of its precision."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Kept:
    """Operators of one module that stay in float32, and why. ``module`` is '' for the model's own ``forward``."""

    module: str
    operators: tuple[str, ...]
    reason: str


@dataclass
class PrecisionRecord:
    """What was done to compute with fewer bits.

    Attributes:
        rtol, atol: the tolerance it was proved by; None: the precision's default (``default_rtol``, ``default_atol``,
            the latter in units of the output's root mean square).
        lowered: operator calls in the lower precision. ``total``: those that compute with float32 numbers in the model.
        kept: what stays in float32, module by module.
        sensitive: modules whose results rounding moved most on the examples, the most sensitive first.
        notes: what else a user has to know.
    """

    name: str
    default_rtol: float
    default_atol: float
    rtol: float | None = None
    atol: float | None = None
    lowered: int = 0
    total: int = 0
    kept: list[Kept] = field(default_factory=list)
    sensitive: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def tolerance(self) -> str:
        """The tolerance in words."""
        rtol = f"rtol {self.default_rtol:g} (default)" if self.rtol is None else f"rtol {self.rtol:g}"
        if self.atol is None:
            return f"{rtol}, atol {self.default_atol:g} of the output's root mean square (default)"
        return f"{rtol}, atol {self.atol:g}"

    @property
    def ways_out(self) -> str:
        """What to do where the artifact is not within the tolerance."""
        modules = ", ".join(map(repr, self.sensitive))
        keep = f"keep_fp32=({modules},) for the modules that rounding moves most, or " if modules else ""
        return f"It computes in {self.name}, and was held to {self.tolerance}: give {keep}an rtol and atol that you accept."

    def to_json(self) -> dict[str, Any]:
        """A JSON object with every field."""
        return asdict(self)
