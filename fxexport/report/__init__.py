"""What a compilation says about itself: text, JSON."""

from fxexport.report.report import Report

__all__ = ["Report"]
