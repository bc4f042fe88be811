"""``PipelineReport``: what the compilation of several subnets did; a report for each, and what joins them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fxexport.capture.private_copy import preserved_process_state
from fxexport.pipeline.spec import PipelineSpec
from fxexport.report.report import Report
from fxexport.validation import ValidationReport


@dataclass
class PipelineReport:
    """The record of one compilation of several subnets.

    Attributes:
        path: the file that describes the pipeline.
        parts: the report of each subnet.
        spec: the wiring.
        check: the files run together as recorded, against eager; None where nothing was recorded.
        shared: bytes of weights that are stored once though several files use them.
        notes: what was not taken literally.
        files: published files with their sizes in bytes.
    """

    path: Path
    parts: dict[str, Report]
    spec: PipelineSpec | None = None
    check: ValidationReport | None = None
    shared: int = 0
    notes: list[str] = field(default_factory=list)
    files: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """A JSON object with every field."""
        return {
            "path": str(self.path),
            "subnets": {name: report.to_json() for name, report in self.parts.items()},
            "pipeline": self.spec.to_json() if self.spec else None,
            "check": self.check.to_json() if self.check else None,
            "shared_weight_bytes": self.shared,
            "notes": self.notes,
            "files": self.files,
        }

    def __str__(self) -> str:
        with preserved_process_state():  # rich draws random numbers
            from fxexport.report.pipeline_text import render_pipeline

            return render_pipeline(self)
