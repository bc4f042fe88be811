"""The diagnosis as a page: a verdict, then the findings by severity, each with its line and a way out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from fxexport.doctor.finding import SEVERITIES, Diagnosis, Finding
from fxexport.report.layout import Part, heading, paragraph

_TITLES = {
    "blocks": "Blocks: no file as things are",
    "changes": "Changes: the file does something else here",
    "information": "For information",
}
_STYLES = {"blocks": "bold red", "changes": "bold yellow", "information": "dim"}


def diagnosis_parts(diagnosis: Diagnosis) -> list[Part]:
    """The verdict first, then a section for each severity that there is."""
    counts = Counter(each.severity for each in diagnosis)
    told = {
        "blocks": "nothing blocks" if not counts["blocks"] else f"{counts['blocks']} block",
        "changes": f"{counts['changes']} change{'s' * (counts['changes'] == 1)} something",
        "information": f"{counts['information']} for information",
    }
    verdict = f"{diagnosis.model}: {', '.join(told[each] for each in SEVERITIES)}"
    style = "bold red" if counts["blocks"] else "bold green"
    parts: list[Part] = [Text(verdict, style=style), paragraph(_captured(diagnosis))]
    for severity in SEVERITIES:
        if found := diagnosis.of(severity):
            parts += [heading(_TITLES[severity]), _listed(found, _STYLES[severity])]
    return parts


def _captured(diagnosis: Diagnosis) -> str:
    if diagnosis.failure is None:
        return "capture was not tried"
    if diagnosis.failure:
        return f"capture failed: {diagnosis.failure.splitlines()[0]}"
    return f"capture succeeded: {diagnosis.operators} operators"


def _listed(findings: Sequence[Finding], style: str) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for finding in findings:
        mark = " (handled)" if finding.handled else ""
        grid.add_row(Text(finding.kind, style=style), Text(finding.in_words(source=False) + mark, overflow="fold"))
        if finding.site and finding.site.source:
            grid.add_row("", Text(f"  {finding.site.source}", overflow="fold"))
        if finding.way_out:
            grid.add_row("", Text(f"  -> {finding.way_out}", overflow="fold"))
    return grid
