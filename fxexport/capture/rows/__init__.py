"""Python loops over a dynamic axis: the rows are proved independent and computed all at once."""

from fxexport.capture.rows.batching import ByRows
from fxexport.capture.rows.looping import Loops, export_rows

__all__ = ["ByRows", "Loops", "export_rows"]
