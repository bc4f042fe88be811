"""``Report``: everything one compilation did, assumed and measured; plain data that prints and turns into JSON."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from fxexport.blame import Blame
from fxexport.capture.private_copy import preserved_process_state
from fxexport.lowering.onnx_functions import FunctionRecord
from fxexport.precision import PrecisionRecord
from fxexport.rewrite import PassRecord
from fxexport.signature import Signature
from fxexport.validation import ValidationReport


@dataclass
class Report:
    """The record of one compilation.

    Attributes:
        stages: wall seconds of each stage, in order.
        notes: assumptions, fixed dimensions, dropped outputs, state: whatever was not taken literally.
        functions: what became of the modules that were to be ONNX functions.
        files: published files with their sizes in bytes.
        nodes: operator calls captured, and operator calls after the passes.
        precision: what was done to compute with fewer bits, where that was asked for.
        blame: the first wrong rewrite, where the validation failed and it was found.
    """

    path: Path
    format: str
    signature: Signature | None = None
    opset: int | None = None
    passes: list[PassRecord] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    nodes: tuple[int, int] = (0, 0)
    validation: ValidationReport | None = None
    blame: Blame | None = None
    precision: PrecisionRecord | None = None
    stages: dict[str, float] = field(default_factory=dict)
    functions: list[FunctionRecord] = field(default_factory=list)
    files: dict[str, int] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times a block as the stage ``name``."""
        start = perf_counter()
        try:
            yield
        finally:
            self.stages[name] = self.stages.get(name, 0.0) + perf_counter() - start

    def to_json(self) -> dict[str, Any]:
        """A JSON object with every field."""
        return {
            "path": str(self.path),
            "format": self.format,
            "opset": self.opset,
            "signature": self.signature.to_json() if self.signature else None,
            "nodes": {"captured": self.nodes[0], "rewritten": self.nodes[1]},
            "passes": [record.to_json() for record in self.passes],
            "notes": list(dict.fromkeys(self.notes)),
            "validation": self.validation.to_json() if self.validation else None,
            "precision": self.precision.to_json() if self.precision else None,
            "blame": self.blame.to_json() if self.blame else None,
            "functions": [asdict(record) for record in self.functions],
            "seconds": self.stages,
            "files": self.files,
            "versions": self.versions,
        }

    def __str__(self) -> str:
        with preserved_process_state():  # rich draws random numbers
            from fxexport.report.text import render

            return render(self)
