"""The capture itself: whether it succeeds, what became of each finding then, and operators without a translation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from torch._ops import OpOverload

from fxexport.doctor.finding import Finding
from fxexport.doctor.of_sizes import site_of
from fxexport.doctor.places import Site
from fxexport.doctor.runs import Runs
from fxexport.errors import PassError
from fxexport.lowering.custom_operators import is_custom
from fxexport.lowering.onnx import DEFAULT_OPSET
from fxexport.lowering.onnx_translation import missing_operators, untranslated
from fxexport.program import Program
from fxexport.rewrite import PassManager, resolve

_BY_DATA = ("branch", "value", "numpy")
_STOPS = (*_BY_DATA, "constant", "loop", "fixed-size")
_COMPUTED = "compute it with Python numbers and sizes instead of tensors: capture does not know its value"


def after_success(findings: Iterable[Finding], program: Program) -> Iterator[Finding]:
    """The findings, with what capture made of each: it succeeded."""
    decisions = {decision.site: decision for decision in program.decisions}
    for finding in findings:
        decision = decisions.get(finding.place)
        if decision is not None and finding.kind == "branch":
            settled = decision.form in ("select", "branch", "loop")
            told = str(decision).partition(": ")[2]
            yield replace(
                finding,
                severity="information" if settled else "changes",
                what=f"{finding.what}. {told}",
                way_out="" if settled else finding.way_out,
                handled=settled,
            )
        elif finding.severity == "blocks" and finding.kind in _BY_DATA:
            what = f"{finding.what}. The captured graph computes it from the inputs"
            yield replace(finding, severity="information", what=what, way_out="", handled=True)
        elif (
            finding.kind == "loop" and finding.severity == "blocks"
        ):  # capture refuses to fix what was declared dynamic
            yield replace(finding, severity="information", way_out="", handled=True)
        else:
            yield finding


def after_failure(findings: Sequence[Finding], error: BaseException) -> Iterator[Finding]:
    """The findings, the one at which capture stopped first; and the failure as one of its own if no other explains it."""
    stopped = stop_of(error)
    at_stop = [each for each in findings if each.kind in _STOPS and is_told(each, error)]
    if not at_stop and not any(each.kind in ("eager", "output-type") for each in findings):
        text = str(error).splitlines()
        way_out = " ".join(line.strip() for line in text[1:])
        yield Finding("capture", "blocks", text[0], way_out, stopped)
    for finding in at_stop:
        what, way_out = f"{finding.what}; capture stops here", finding.way_out or _COMPUTED
        yield replace(finding, severity="blocks", what=what, way_out=way_out, handled=False)
    yield from (each for each in findings if each not in at_stop)


def is_told(finding: Finding, error: BaseException) -> bool:
    """Whether ``error`` is about the line of ``finding``: it was raised there, or its message names it."""
    site = finding.site
    return site is not None and (site == stop_of(error) or f"{site.file}:{site.line}:" in str(error))


def stop_of(error: BaseException) -> Site | None:
    """The user's line at which capture stopped."""
    cause = error.__cause__
    return (site_of(cause) if cause is not None else None) or site_of(error)


def findings_on_functions(runs: Runs) -> Iterator[Finding]:
    """Classes derived from ``torch.autograd.Function``."""
    for seen in runs.example.functions:
        what = f"{seen.form} is a torch.autograd.Function: its forward is in the file, its backward is not"
        yield Finding("autograd-function", "information", what, "", seen.site, tuple(seen.modules), handled=True)


def findings_on_operators(runs: Runs, program: Program | None) -> Iterator[Finding]:
    """Operators that no ONNX file can hold, all at once: of the captured graph, or of the eager run where there is none."""
    met = {seen.form: seen for seen in runs.example.operators}
    if program is None:
        missing = {str(target): list[str]() for target in untranslated(_captured_as_they_are(met), DEFAULT_OPSET)}
    else:
        try:
            rewritten = PassManager(resolve("default")).run(program)[0]
        except PassError as error:
            yield Finding("operator", "blocks", f"the default passes fail: {error}", 'leave it out: passes="none"')
            rewritten = program
        missing = missing_operators(rewritten, DEFAULT_OPSET, None)
    for name, modules in missing.items():
        seen = met.get(name)
        custom = is_custom(_operator(name))
        rest = ", and .pt and .pt2 files hold no operators of other libraries" if custom else ""
        yield Finding(
            "operator",
            "blocks",
            f"{name} has no ONNX translation{rest}",
            f"give one, custom_translation_table={{torch.ops.{name}: function}}, or rewrite it with a pass",
            seen.site if seen else None,
            tuple(seen.modules) if seen else tuple(modules),
        )


def _captured_as_they_are(names: Iterable[str]) -> Iterator[OpOverload]:
    """Of operators that ran in eager: not those in place, nor those of aten that begin with _, kernels of its choice."""
    for name in names:
        target = _operator(name)
        if not (name.startswith(("aten._", "aten.lift_fresh", "prim")) or target._schema.is_mutable):
            yield target


def _operator(name: str) -> OpOverload:
    """``"aten.add.Tensor"`` -> the operator."""
    namespace, packet, overload = name.split(".")
    found = getattr(getattr(getattr(torch.ops, namespace), packet), overload)
    assert isinstance(found, OpOverload)
    return found
