"""From a model and an example to a ``Program``: on a private copy, with every choice said in its notes."""

from __future__ import annotations

from fxexport.capture.binding import ExampleCall, bind_example
from fxexport.capture.pipeline import Captured, capture, capture_model
from fxexport.capture.reference import Reference

__all__ = ["Captured", "ExampleCall", "Reference", "bind_example", "capture", "capture_model"]
