"""The report as a reader sees it, in a terminal or a log: one list of parts, printed plain or in colour."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.text import Text

from fxexport.lowering.onnx_functions import FunctionRecord
from fxexport.precision import Kept, PrecisionRecord
from fxexport.report.explanation import merged_modules, sorted_out
from fxexport.report.layout import Part, bullets, digits, heading, human_size, paragraph, table
from fxexport.report.program_text import shown_place, shown_text
from fxexport.report.report import Report
from fxexport.rewrite import PassRecord
from fxexport.signature import Signature, TensorSpec, dtype_name
from fxexport.validation import OutputComparison, PointResult, ValidationReport
from fxexport.validation.working_range import describe

_WIDTH = 110
_EVERY_OUTPUT = 2  # up to this many outputs each has a row for every point; of more, only the worst
_NUMBERS = (">max abs", ">max rel", ">ULP", ">of tol.")
_MODULES = 3  # modules that are named for one pass
_REASONS = 5  # failing outputs that are explained for one point


def render(report: Report) -> str:
    """The whole report as plain text: about 110 columns, wider where a name needs it; nothing is cut off."""
    return plain(report_parts(report))


def render_metadata(path: Path, metadata: Mapping[str, Any]) -> str:
    """What a published file says of itself, as plain text."""
    return plain(metadata_parts(path, metadata))


def print_report(report: Report, console: Console) -> None:
    """The whole report on ``console``: in colour on a terminal, as :func:`render` anywhere else."""
    print_parts(report_parts(report), console)


def print_parts(parts: Sequence[Part], console: Console) -> None:
    """``parts`` on a terminal, or as :func:`plain` text where ``console`` is none."""
    if console.is_terminal:
        _print(parts, console)
    else:
        console.file.write(plain(parts))


def plain(parts: Sequence[Part]) -> str:
    """``parts`` as text without colours."""
    page = Console(file=io.StringIO(), width=_WIDTH, height=50, force_terminal=False, color_system=None)
    with page.capture() as capture:
        _print(parts, page)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def _print(parts: Sequence[Part], page: Console) -> None:
    """Each part as wide as the page, or wider where that would break a word: a name must stay whole."""
    width = page.width
    for part in parts:
        unlimited = page.options.update(width=10_000)
        page.width = max(width, Measurement.get(page, unlimited, part).minimum)
        page.print(part, highlight=False)
    page.width = width


# ---------------------------------------------------------------- whole pages


def report_parts(report: Report) -> list[Part]:
    """Everything one compilation did, assumed and measured."""
    opset = f", opset {report.opset}" if report.opset else ""
    parts: list[Part] = [
        _title(report.path.name, report.validation),
        paragraph(f"{report.format}{opset}, {report.path}"),
    ]
    if report.signature:
        parts += signature_parts(report.signature)
    parts += passes_parts(report.passes, report.nodes)
    parts += precision_parts(report.precision)
    if report.validation:
        parts += validation_parts(report.validation)
    parts += functions_parts(report.functions)
    parts += _files(report.files) + _seconds(report.stages) + _versions(report.versions)
    return parts + notes_parts(report.notes)


def metadata_parts(path: Path, metadata: Mapping[str, Any]) -> list[Part]:
    """What is written in a file that fxexport made."""
    opset = f", opset {metadata['opset']}" if metadata.get("opset") else ""
    maker = metadata.get("versions", {}).get("fxexport", "of an unknown version")
    kind = metadata.get("format", "artifact")
    parts: list[Part] = [
        Text(f"{path.name}: {kind}{opset}, made by fxexport {maker}", style="bold"),
        *signature_parts(Signature.from_json(metadata["signature"])),
    ]
    rows = [(entry["name"], str(entry["count"])) for entry in metadata.get("passes", ())]
    parts += [heading("Passes"), table(("pass", ">rewritten"), rows)] if rows else []
    if metadata.get("precision"):
        entry = dict(metadata["precision"])
        entry["kept"] = [Kept(each["module"], tuple(each["operators"]), each["reason"]) for each in entry["kept"]]
        parts += precision_parts(PrecisionRecord(**entry))
    return parts + _versions(metadata.get("versions", {})) + notes_parts(metadata.get("notes", ()))


def verification_parts(path: Path, validation: ValidationReport) -> list[Part]:
    """The verdict on an existing file, and how it was reached."""
    limits = notes_parts(validation.limits) if validation.limits else []
    return [_title(path.name, validation), *validation_parts(validation), *limits]


# ---------------------------------------------------------------- sections


def signature_parts(signature: Signature) -> list[Part]:
    """Inputs and outputs, and the dynamic dimensions where there are any."""

    def row(direction: str, spec: TensorSpec) -> tuple[str, ...]:
        axes = ", ".join(map(str, spec.axes))
        dtype = f"{dtype_name(spec.dtype)} pairs" if spec.pairs else dtype_name(spec.dtype)
        return direction, spec.name, dtype, f"[{axes}]", spec.path

    rows = [*(row("input", s) for s in signature.inputs), *(row("output", s) for s in signature.outputs)]
    columns = ("", "name", "dtype", "axes", "in forward")
    parts: list[Part] = [heading("Inputs and outputs"), table(columns, rows)]
    dimensions = [
        (d.name, d.range, str(d.example), "name" if d.declared else "dynamic=True") for d in signature.dimensions
    ]
    if dimensions:
        titles = ("dimension", ">sizes", ">in the example", "asked for by")
        parts += [heading("Dynamic dimensions"), table(titles, dimensions)]
    return parts


def notes_parts(notes: Sequence[str]) -> list[Part]:
    """Assumptions, fixed dimensions, baked values, dropped outputs, limits: each of them once."""
    return [heading("What was not taken literally"), bullets(list(dict.fromkeys(notes)) or ["nothing"])]


def passes_parts(found: Sequence[PassRecord], nodes: tuple[int, int]) -> list[Part]:
    """What each pass did, where, and what it left alone."""
    records = [sorted_out(record)[0] for record in found]
    rows = [
        (
            record.name,
            "FAILED" if record.error else str(record.count),
            str(record.near_miss_count or ""),
            f"{record.nodes_before} -> {record.nodes_after}",
            digits(record.seconds * 1e3),
            "" if record.delta is None else digits(record.delta),
            _where(record),
            "; ".join((*record.notes, *([f"rolled back: {record.error}"] if record.error else []))),
        )
        for record in records
    ]
    if not rows:
        return [heading("Passes"), paragraph(f"none; {nodes[0]} nodes")]
    total = (
        "all",
        str(sum(record.count for record in records)),
        str(sum(record.near_miss_count for record in records) or ""),
        f"{nodes[0]} -> {nodes[1]}",
        digits(sum(record.seconds for record in records) * 1e3),
        *("", "", ""),
    )
    left = _left_alone(records)
    return [heading("Passes"), table(_PASSES, [*rows, total]), *([bullets(left)] if left else [])]


def _left_alone(records: Sequence[PassRecord]) -> list[str]:
    """Places that a pass was asked to rewrite and did not, with its reason; places that only look alike do not count."""
    reasons = Counter(
        (record.name, shown_text(miss.reason), miss.module or shown_place(miss.line) or miss.node)
        for record in records
        for miss in record.near_misses
        if miss.matched == miss.total
    )
    texts = [f"{name} left {place} alone: {reason}" for name, reason, place in reasons]
    more = [f"{len(texts) - _LEFT} more: fxexport explain shows them"] if len(texts) > _LEFT else []
    return texts[:_LEFT] + more


_LEFT = 5
_PASSES = ("pass", ">rewritten", ">near misses", ">nodes", ">ms", ">moved outputs by", "~in modules", "~notes")


def _where(record: PassRecord) -> str:
    """The user's modules that were rewritten, briefly: ``blocks.{0..5}.norm, head and 3 more``."""
    places = merged_modules(rewrite.module for rewrite in record.rewrites)
    more = f" and {len(places) - _MODULES} more" if len(places) > _MODULES else ""
    return ", ".join(places[:_MODULES]) + more


def functions_parts(functions: Sequence[FunctionRecord]) -> list[Part]:
    """What became of the modules that were to be ONNX functions."""
    return [heading("ONNX functions"), bullets([str(each) for each in functions])] if functions else []


def precision_parts(precision: PrecisionRecord | None) -> list[Part]:
    """What computes with fewer bits, by which tolerance that was proved, and what stays in float32."""
    if precision is None:
        return []
    calls = (
        f"{precision.lowered} of {precision.total} operators" if precision.total else f"{precision.lowered} operators"
    )
    groups: dict[tuple[str, str], list[str]] = {}
    for kept in precision.kept:
        groups.setdefault((", ".join(kept.operators), kept.reason), []).append(kept.module)
    rows = [
        (reason, operators, ", ".join(merged_modules(modules)) or "(the model itself)")
        for (operators, reason), modules in groups.items()
    ]
    told = table(("stays in float32 since", "operators", "~in modules"), rows) if rows else None
    return [
        heading("Precision"),
        paragraph(f"{precision.name}: {calls}"),
        paragraph(f"tolerance: {precision.tolerance}"),
        *([told] if told is not None else []),
        *([bullets(precision.notes)] if precision.notes else []),
    ]


def _files(files: Mapping[str, int]) -> list[Part]:
    rows = [(name, human_size(size)) for name, size in files.items()]
    return [heading("Files"), table(("file", ">size"), rows)] if rows else []


def _seconds(stages: Mapping[str, float]) -> list[Part]:
    if not stages:
        return []
    columns = [*(f">{name}" for name in stages), ">total"]
    row = [*map(digits, stages.values()), digits(sum(stages.values()))]
    return [heading("Seconds"), table(columns, [row])]


def _versions(versions: Mapping[str, str]) -> list[Part]:
    text = ", ".join(f"{name} {version}" for name, version in versions.items())
    return [heading("Made with"), paragraph(text)] if text else []


# ---------------------------------------------------------------- validation


def _title(name: str, validation: ValidationReport | None) -> Text:
    if validation is None:
        return Text(f"{name}: not verified", style="bold yellow")
    style = "bold green" if validation.passed else "bold red"
    return Text(f"{name}: {verdict(validation)}", style=style)


def verdict(validation: ValidationReport) -> str:
    """One line: ``verified: 9 points, worst error within 3.1% of tolerance ('y' at batch=7)``."""
    compared = [point for point in validation.points if point.outputs]
    skipped = sum(bool(point.skipped) for point in validation.points)
    skips = f", {skipped} skipped" if skipped else ""
    if validation.failures:
        return f"WRONG: {len(validation.failures)} of {len(validation.points)} points failed{skips}"
    if not compared:
        return f"NOT PROVED: no point could be compared{skips}"
    points = f"verified: {len(compared)} point{'s' if len(compared) > 1 else ''}{skips}"
    shares = [(tolerance_used(o), o, p) for p in compared for o in p.outputs]
    share, output, point = max(shares, key=_first)
    if share == 0:
        return f"{points}, all values equal"
    appeals = sum(o.judge == "float64" for _, o, _ in shares)
    appeal = f", {appeals} judged by float64" if appeals else ""
    where = f"{output.name!r} at {point.label}"
    return f"{points}, worst error within {_percent(share)} of tolerance ({where}){appeal}"


def _first(entry: tuple[float, OutputComparison, PointResult]) -> float:
    return entry[0]


def _percent(share: float) -> str:
    return f"{digits(100 * share)}%"


def tolerance_used(output: OutputComparison) -> float:
    """Error over permitted error, 1.0 being the limit.

    Where the output is within the tolerance, a bound that no value exceeds (the largest difference against
    the absolute part alone); else the share at the worst value, infinite where nothing can be compared.
    """
    if output.passed and output.max_abs == 0:
        return 0.0
    if output.passed and output.judge == "eager":
        return min(1.0, output.max_abs / output.atol_eff) if output.atol_eff else 1.0
    if output.worst_index is None:
        return float("inf")
    shares = [0.0]
    for part in ("real", "imag"):  # a complex value is judged as two real ones
        expected, got = float(getattr(output.worst_expected, part)), float(getattr(output.worst_got, part))
        limit = output.atol_eff + output.rtol * abs(expected)
        if got != expected:
            share = abs(got - expected) / limit if limit else float("inf")
            shares.append(float("inf") if share != share else share)
    return max(shares)


def validation_parts(validation: ValidationReport) -> list[Part]:
    """A row for each point (each output where they are few), why points failed, and what ran the file."""
    columns = ("point", "sizes", "output", *_NUMBERS, "judged by", "result")
    rows = [row for point in validation.points for row in _point_rows(point)]
    parts: list[Part] = [heading("Validation against eager PyTorch"), table(columns, rows)]
    reasons = [reason for point in validation.points for reason in _reasons(point)]
    parts += [bullets(reasons)] if reasons else []
    runtime = [f"{name} {version}" for name, version in validation.runtime.items()]
    runtime += [f"on {', '.join(validation.providers)}"] if validation.providers else []
    parts += [paragraph(f"run by {', '.join(runtime)}")] if runtime else []
    ranges = [describe(each) for each in validation.ranges]
    return parts + ([heading("Working range"), bullets(ranges)] if ranges else [])


def _point_rows(point: PointResult) -> Iterator[tuple[str | Text, ...]]:
    sizes = ", ".join(f"{name}={size}" for name, size in point.sizes.items())
    if not point.outputs:
        yield point.label, sizes, *[""] * 6, _result("skipped" if point.skipped else "FAILED")
        return
    shown, suffix = list(point.outputs), ""
    if len(shown) > _EVERY_OUTPUT:
        shown = [max(shown, key=lambda o: (not o.passed, tolerance_used(o), o.max_abs))]
        suffix = f" (worst of {len(point.outputs)})"
    for number, output in enumerate(shown):
        yield (
            *((point.label, sizes) if number == 0 else ("", "")),
            output.name + suffix,
            *map(digits, (output.max_abs, output.max_rel, output.max_ulp)),
            _percent(tolerance_used(output)),
            output.judge,
            _result("ok" if output.passed else "FAILED"),
        )


def _result(word: str) -> Text:
    return Text(word, style={"ok": "green", "skipped": "yellow", "FAILED": "bold red"}[word])


def _reasons(point: PointResult) -> list[str]:
    """Why a point was skipped or failed, an output a line."""
    if point.skipped:
        return [f"{point.label}: skipped: {point.skipped}"]
    if point.error:
        return [f"{point.label}: FAILED: {point.error}"]
    failed = [f"{point.label}: FAILED: {o.name!r}: {o.reason}" for o in point.outputs if not o.passed]
    more = [f"{point.label}: {len(failed) - _REASONS} more outputs failed"] if len(failed) > _REASONS else []
    return failed[:_REASONS] + more + [f"{point.label}: {left_out}" for left_out in point.left_out]
