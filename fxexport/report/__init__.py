"""What a compilation says about itself: text, JSON; and what passes did to a program: text, JSON, SVG."""

from typing import TYPE_CHECKING, Any

from fxexport.report.report import Report

if TYPE_CHECKING:
    from fxexport.report.explanation import explain
    from fxexport.report.program_diff import ProgramDiff, diff

__all__ = ["ProgramDiff", "Report", "diff", "explain"]


def __getattr__(name: str) -> Any:
    """Pages are made by rich, which draws random numbers when it is imported: only where a page is asked for."""
    if name == "explain":
        from fxexport.report.explanation import explain

        return explain
    if name in ("ProgramDiff", "diff"):
        from fxexport.report import program_diff

        return getattr(program_diff, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
