"""The report of a pipeline as a reader sees it: the subnets, what joins them, and whether they agree together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.text import Text

from fxexport.pipeline.spec import PipelineSpec, short_names
from fxexport.report.layout import Part, bullets, digits, heading, human_size, paragraph, table
from fxexport.report.pipeline_report import PipelineReport
from fxexport.report.report import Report
from fxexport.report.text import (
    functions_parts,
    notes_parts,
    passes_parts,
    plain,
    report_parts,
    signature_parts,
    tolerance_used,
    verdict,
)
from fxexport.validation import PointResult, ValidationReport


def render_pipeline(report: PipelineReport) -> str:
    """The whole report as plain text."""
    return plain(pipeline_parts(report))


def parts_of(report: Report | PipelineReport) -> list[Part]:
    """The page of a compilation, of one program or several."""
    return pipeline_parts(report) if isinstance(report, PipelineReport) else report_parts(report)


def pipeline_parts(report: PipelineReport) -> list[Part]:
    """Every subnet briefly, then the wiring, the end-to-end check, the files, and the notes of all."""
    parts: list[Part] = [_title(report), *_subnets(report)]
    for name, each in report.parts.items():
        parts.append(heading(f"Subnet {name}"))
        parts += signature_parts(each.signature) if each.signature else []
        parts += passes_parts(each.passes, each.nodes) + functions_parts(each.functions)
    parts += _wiring(report.spec) if report.spec else []
    if report.check:
        parts += [heading("Together, as recorded"), *_together(report.check)]
    rows = [(name, human_size(size)) for name, size in report.files.items()]
    parts += [heading("Files"), table(("file", ">size"), rows)] if rows else []
    if report.shared:
        parts.append(paragraph(f"weights of {human_size(report.shared)} that several subnets use are stored once"))
    return parts + notes_parts(list(_notes(report)))


def _title(report: PipelineReport) -> Text:
    if report.check is None:
        return Text(f"{report.path.name}: every subnet verified; nothing was recorded to prove them together on")
    style = "bold green" if report.check.passed else "bold red"
    return Text(f"{report.path.name}: together {verdict(report.check)}", style=style)


def _subnets(report: PipelineReport) -> list[Part]:
    rows = []
    for name, each in report.parts.items():
        seconds = sum(each.stages.values())
        result = verdict(each.validation) if each.validation else "not verified"
        rows.append((name, each.path.name, f"{each.nodes[0]} -> {each.nodes[1]}", f"{seconds:.1f}", result))
    return [heading("Subnets"), table(("subnet", "file", ">nodes", ">seconds", "~verdict"), rows)]


def _together(check: ValidationReport) -> list[Part]:
    """A row for each run and part, with the worst of its calls, and one for what the driver itself computed from them and
    returned; every call that failed is explained."""
    groups: dict[tuple[str, str], list[PointResult]] = {}
    for point in check.points:
        run, _, event = point.label.rpartition(", ")
        groups.setdefault((run, event.partition(" of ")[2]), []).append(point)
    rows = [(run, part or "(driver)", str(len(calls)), *_worst(calls)) for (run, part), calls in groups.items()]
    failed = [f"{point.label}: {point.reason}" for point in check.failures]
    columns = ("run", "subnet", ">calls", "worst output", ">max abs", ">of tol.", "result")
    return [table(columns, rows), *([bullets(failed)] if failed else [])]


def _worst(calls: Sequence[PointResult]) -> tuple[str, str, str, str]:
    result = "ok" if all(call.passed for call in calls) else "FAILED"
    outputs = [output for call in calls for output in call.outputs]
    if not outputs:
        return "", "", "", "skipped" if result == "ok" else result
    worst = max(outputs, key=lambda output: (not output.passed, tolerance_used(output)))
    return worst.name, digits(worst.max_abs), f"{digits(100 * tolerance_used(worst))}%", result


def _wiring(spec: PipelineSpec) -> list[Part]:
    inputs = [(one.name, ", ".join(map(str, one.feeds)), one.note) for one in spec.inputs]
    outputs = [f"{name}: {port}" for port, name in short_names(spec.outputs).items()]
    loop = [f"called again and again, once a step: {', '.join(spec.loop)}"] if spec.loop else []
    parts: list[Part] = [heading("Pipeline"), bullets([*map(str, spec.wires), *map(str, spec.states), *loop])]
    parts += [heading("Inputs of the pipeline"), table(("name", "feeds", "~note"), inputs)] if inputs else []
    return parts + ([heading("Outputs of the pipeline"), bullets(outputs)] if outputs else [])


def _notes(report: PipelineReport) -> Iterator[str]:
    """What is said of several parts in the same words is said once."""
    yield from report.notes
    told: dict[str, list[str]] = {}
    for name, each in report.parts.items():
        for note in dict.fromkeys(each.notes):
            told.setdefault(note, []).append(name)
    yield from (f"{', '.join(names)}: {note}" for note, names in told.items())
