"""The report as text: what a reader must find in it, and what must not happen to it."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from fxexport.report import Report
from fxexport.report.layout import digits, human_size
from fxexport.report.text import print_report, render, render_metadata, tolerance_used, verdict
from fxexport.rewrite import PassRecord
from fxexport.signature import Dimension, Signature, TensorSpec
from fxexport.validation import OutputComparison, PointResult, ValidationReport, compare_output, tolerance_for

SIGNATURE = Signature(
    inputs=(TensorSpec("x", torch.float32, ("batch", 80, "time"), "batch['audio'][0]"),),
    outputs=(TensorSpec("logits", torch.float32, ("batch", "2*time"), "output"),),
    structure="logits",
    dimensions=(Dimension("batch", 4), Dimension("time", 100, 2, 512, declared=False)),
)


def comparison(name: str = "logits", error: float = 0.0) -> OutputComparison:
    expected = torch.tensor([1.0, -1.0, 2.0])
    return compare_output(name, expected, expected + torch.tensor([0.0, 0.0, error]), None)


def report(points: list[PointResult] | None = None, notes: list[str] | None = None) -> Report:
    if points is None:
        points = [PointResult("example", {"batch": 4}, (comparison(),))]
    return Report(
        path=Path("/models/net.onnx"),
        format="onnx",
        signature=SIGNATURE,
        opset=20,
        passes=[PassRecord("fold-batchnorm", 3, 40, 37, 0.01234, ("bn4 stays: read twice",))],
        notes=notes or [],
        nodes=(40, 37),
        validation=ValidationReport(points, {"onnxruntime": "1.32"}, ("CPUExecutionProvider",)),
        stages={"capture": 1.5, "lowering": 0.25},
        files={"net.onnx": 44_700_000, "net.onnx.0123456789ab.data": 512},
        versions={"fxexport": "0.1.0"},
    )


def row(text: str, start: str) -> list[str]:
    """The cells of the first line that begins with ``start``."""
    line = next(line for line in text.splitlines() if line.startswith(start))
    return re.split(r"  +", line)


def test_every_section_holds_its_facts() -> None:
    text = render(report())
    assert text.splitlines()[0] == "net.onnx: verified: 1 point, all values equal"
    assert row(text, "input") == ["input", "x", "float32", "[batch, 80, time]", "batch['audio'][0]"]
    assert row(text, "output") == ["output", "logits", "float32", "[batch, 2*time]", "output"]
    assert row(text, "time") == ["time", "2..512", "100", "dynamic=True"]
    assert row(text, "fold-batchnorm") == ["fold-batchnorm", "3", "40 -> 37", "12.3", "bn4 stays: read twice"]
    assert row(text, "example") == ["example", "batch=4", "logits", "0", "0", "0", "0%", "eager", "ok"]
    assert row(text, "net.onnx ")[1] == "44.7 MB"
    assert row(text, "    1.5")[1:] == ["1.5", "0.25", "1.75"]
    assert "run by onnxruntime 1.32, on CPUExecutionProvider" in text
    assert text.endswith("What was not taken literally\n- nothing\n")


def test_text_is_plain_ascii_without_trailing_blanks() -> None:
    text = render(report())
    assert text.isascii()
    assert "\x1b" not in text
    assert [line for line in text.splitlines() if line != line.rstrip()] == []
    assert max(map(len, text.splitlines())) <= 110


def test_every_note_is_listed_once_and_brackets_are_no_markup() -> None:
    notes = ["output[bold][0] is None", "x[/red] is fixed :smile:", "output[bold][0] is None"]
    text = render(report(notes=notes))
    assert text.count("- output[bold][0] is None") == 1
    assert "- x[/red] is fixed :smile:" in text


def test_long_names_stay_whole() -> None:
    name = "decoder_layers_" * 20
    many = tuple(comparison(f"{name}{i}", 1e-7) for i in range(5))
    text = render(report([PointResult("example", {"batch": 4}, many)]))
    assert f"{name}0 (worst of 5)" in text
    stream = io.StringIO()
    terminal = Console(file=stream, force_terminal=True, width=40, color_system=None)
    print_report(report([PointResult("example", {}, many)]), terminal)
    assert f"{name}0 (worst of 5)" in stream.getvalue()


def test_colours_on_a_terminal_and_plain_text_elsewhere() -> None:
    coloured, piped = io.StringIO(), io.StringIO()
    print_report(report(), Console(file=coloured, force_terminal=True, color_system="standard", width=200))
    print_report(report(), Console(file=piped, width=40))
    assert "\x1b[1;32mnet.onnx: verified" in coloured.getvalue()
    assert piped.getvalue() == render(report())


def test_two_outputs_have_a_row_each_more_show_the_worst() -> None:
    two = PointResult("example", {}, (comparison("a", 1e-6), comparison("b", 0.0)))
    assert [row(render(report([two])), start)[1] for start in ("example", "         b")] == ["a", "b"]
    many = tuple(comparison(f"out{i}", error) for i, error in enumerate([0.0, 3e-6, 1e-6]))
    text = render(report([PointResult("example", {}, many)]))
    assert row(text, "example")[1] == "out1 (worst of 3)"
    assert "out0" not in text


def test_failed_and_skipped_points_say_why() -> None:
    failing = tuple(comparison(f"out{i}", 1.0) for i in range(7))
    points = [
        PointResult("example", {"batch": 4}, (comparison(),)),
        PointResult("batch=1", {"batch": 1}, skipped="eager refuses it"),
        PointResult("batch=7", {"batch": 7}, failing),
        PointResult("batch=9", {"batch": 9}, error="died with SIGSEGV"),
    ]
    text = render(report(points))
    assert text.splitlines()[0] == "net.onnx: WRONG: 2 of 4 points failed, 1 skipped"
    assert row(text, "batch=1")[-1] == "skipped"
    assert row(text, "batch=7")[-1] == "FAILED"
    assert row(text, "batch=9")[-1] == "FAILED"
    assert "- batch=1: skipped: eager refuses it" in text
    assert "- batch=7: FAILED: 'out4': 1 of 3 values differ" in text
    assert "- batch=7: 2 more outputs failed" in text
    assert "- batch=9: FAILED: died with SIGSEGV" in text


def test_verdict_names_the_worst_output_and_counts_appeals() -> None:
    small, large = comparison("a"), comparison("b", 1e-5)
    points = [PointResult("example", {}, (small,)), PointResult("batch=7", {}, (large,))]
    used = digits(100 * tolerance_used(large))
    line = f"verified: 2 points, worst error within {used}% of tolerance ('b' at batch=7)"
    assert verdict(ValidationReport(points)) == line
    points.append(PointResult("batch=8", {}, (replace(small, judge="float64"),)))
    assert verdict(ValidationReport(points)) == line.replace("2 points", "3 points") + ", 1 judged by float64"


def test_a_small_error_beside_an_equal_value_is_not_called_equal() -> None:
    """The value nearest to its limit may be an equal one whose limit is tight, while another one differs."""
    result = comparison(error=1e-6)
    assert result.worst_expected == result.worst_got
    assert "all values equal" not in verdict(ValidationReport([PointResult("example", {}, (result,))]))
    assert 0 < result.max_abs / (result.atol_eff + 2 * result.rtol) <= tolerance_used(result) < 1


def test_nothing_compared_is_not_called_verified() -> None:
    assert "NOT PROVED" in verdict(ValidationReport([PointResult("example", {}, skipped="no")]))
    assert "NOT PROVED" in verdict(ValidationReport())
    unproved = report()
    unproved.validation = None
    assert render(unproved).startswith("net.onnx: not verified\n")


def test_failed_pass_is_shown_as_rolled_back() -> None:
    failed = report()
    failed.passes = [PassRecord("fuse", 0, 40, 40, 0.001, error="KeyError: 'w'")]
    assert row(render(failed), "fuse") == ["fuse", "FAILED", "40 -> 40", "1", "rolled back: KeyError: 'w'"]


@pytest.mark.parametrize(
    ("expected", "got", "share"),
    [
        (torch.tensor([2.0]), torch.tensor([2.0]), 0.0),
        (torch.tensor([2]), torch.tensor([2]), 0.0),
        (torch.tensor([2]), torch.tensor([3]), float("inf")),
        (torch.tensor([2.0]), torch.tensor([float("nan")]), float("inf")),
        (torch.tensor([2.0]), torch.tensor([[2.0]]), float("inf")),
        (torch.tensor([2.0]), torch.tensor([2.125]), 0.125 / 0.25),
        (torch.tensor([2.0]), torch.tensor([2.5]), 1.0),
        (torch.tensor([2.0]), torch.tensor([4.5]), 2.5 / (0.25 + 0.5 * 2.0)),
        (torch.tensor([2 + 1j]), torch.tensor([2 + 2j]), 1.0 / (0.25 + 0.5)),
    ],
)
def test_tolerance_used(expected: torch.Tensor, got: torch.Tensor, share: float) -> None:
    result = compare_output("y", expected, got, tolerance_for(expected.dtype, 0.5, 0.25))
    assert tolerance_used(result) == pytest.approx(share)


def test_numbers_have_three_digits() -> None:
    values = (
        None,
        float("nan"),
        0.0,
        1.23456e-7,
        0.0123456,
        1.23456,
        123.456,
        54321.0,
        1.23456e6,
        float("inf"),
    )
    shown = ["-", "-", "0", "1.23e-07", "0.0123", "1.23", "123", "54321", "1.23e+06", "inf"]
    assert list(map(digits, values)) == shown
    assert [human_size(n) for n in (0, 999, 1000, 12_345, 44_700_000, 2 * 10**9, 10**15)] == [
        "0 B", "999 B", "1 kB", "12.3 kB", "44.7 MB", "2 GB", "1000 TB",
    ]  # fmt: skip


def test_metadata_of_a_loaded_file() -> None:
    metadata = {
        "format": "onnx",
        "opset": 20,
        "signature": SIGNATURE.to_json(),
        "passes": [{"name": "fold-batchnorm", "count": 3}],
        "notes": ["mode = 'full' is fixed in the artifact"],
        "versions": {"fxexport": "0.1.0", "torch": "2.13"},
    }
    text = render_metadata(Path("a/net.onnx"), metadata)
    assert text.startswith("net.onnx: onnx, opset 20, made by fxexport 0.1.0\n")
    assert row(text, "input")[1] == "x"
    assert row(text, "fold-batchnorm") == ["fold-batchnorm", "3"]
    assert "- mode = 'full' is fixed in the artifact" in text
    assert "net.onnx: artifact" in render_metadata(Path("net.onnx"), {"signature": SIGNATURE.to_json()})
