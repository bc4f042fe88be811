"""Fewer bits: float16 and bfloat16 as a rewrite of the program, int8 as a rewrite of the ONNX file."""

from fxexport.precision.applying import apply_precision
from fxexport.precision.half import LowerPrecision
from fxexport.precision.keeping import refuse_unknown_modules
from fxexport.precision.kinds import PRECISIONS, Precision, precision_of, requested_precision
from fxexport.precision.record import Kept, PrecisionRecord
from fxexport.precision.runtime_support import unsupported

__all__ = [
    "PRECISIONS",
    "Kept",
    "LowerPrecision",
    "Precision",
    "PrecisionRecord",
    "apply_precision",
    "precision_of",
    "refuse_unknown_modules",
    "requested_precision",
    "unsupported",
]
