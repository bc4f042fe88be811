"""The ledger: what each pass rewrote, what it almost rewrote and why not, and what that cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import fx
from torch._ops import OpOverload

from fxexport.program import module_path, source_line


@dataclass(frozen=True)
class Rewrite:
    """One place that a pass rewrote.

    Attributes:
        rule: the pass, and which of its patterns where it has several: ``"fuse-gelu"``, ``"fuse-gelu/tanh"``.
        node: the call that was replaced, by its name before the pass.
        operators: the operators matched, in graph order: ``("aten.mul.Tensor", "aten.add.Tensor")``.
        module, line: path of the user's module and ``file:line`` of the user's code ('' where not recorded).
        made: names of the new calls and constants.
    """

    rule: str
    node: str
    operators: tuple[str, ...]
    module: str
    line: str
    made: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.rule}: {self.node}{place(self.module, self.line)}"


@dataclass(frozen=True)
class NearMiss:
    """One place that a pass left alone although it (almost) fits.

    Attributes:
        matched, total: operator calls that agreed with the pattern, and how many it has; equal where a check refused.
        reason: what was expected and what was found, or what the check said.
    """

    rule: str
    node: str
    module: str
    line: str
    matched: int
    total: int
    reason: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.node}{place(self.module, self.line)}: {self.matched} of {self.total}: {self.reason}"


@dataclass(frozen=True)
class PassRecord:
    """What one pass did in one run.

    Attributes:
        count: rewritten places; ``rewrites`` has each of them, but for passes that only count.
        nodes_before, nodes_after: operator calls of the program.
        seconds: wall time, verification included.
        notes: what the pass says it left alone, and why.
        error: the message of a pass that failed and was rolled back (``on_error="skip"``), else None.
        near_misses: the best ones; ``near_miss_count`` is how many there were.
        delta: largest absolute difference between the outputs before and after the pass on the examples; None where
            that was not measured.
    """

    name: str
    count: int
    nodes_before: int
    nodes_after: int
    seconds: float
    notes: tuple[str, ...] = ()
    error: str | None = None
    rewrites: tuple[Rewrite, ...] = ()
    near_misses: tuple[NearMiss, ...] = ()
    near_miss_count: int = 0
    delta: float | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON object with the fields of this record."""
        return {
            **asdict(self),
            "notes": list(self.notes),
            "rewrites": [asdict(rewrite) for rewrite in self.rewrites],
            "near_misses": [asdict(miss) for miss in self.near_misses],
        }

    def __str__(self) -> str:
        did = f"failed, rolled back: {self.error}" if self.error else f"{self.count} rewritten"
        missed = f", {self.near_miss_count} near misses" if self.near_miss_count else ""
        delta = "" if self.delta is None else f", outputs moved by {self.delta:.1e}"
        sizes = f"{self.nodes_before} -> {self.nodes_after} nodes"
        return f"{self.name}: {did}{missed}, {sizes}, {self.seconds * 1e3:.1f} ms{delta}"


def place(module: str, line: str) -> str:
    """`` in layer1.0 (model.py:12)``, as far as known."""
    return (f" in {module}" if module else "") + (f" ({line})" if line else "")


def whereabouts(node: fx.Node) -> tuple[str, str]:
    """Module path and source line of a node."""
    return module_path(node), source_line(node)


def operator_name(target: Any) -> str:
    """``aten.add.Tensor`` for an ATen operator, the qualified name of any other function."""
    return str(target) if isinstance(target, OpOverload) else str(getattr(target, "__name__", target))


def describe_call(node: fx.Node) -> str:
    """``relu_1 (aten.relu.default) made at model.py:12``."""
    line = source_line(node)
    return f"{node.name} ({operator_name(node.target)})" + (f" made at {line}" if line else "")
