"""fxexport: a graph-rewriting export compiler for PyTorch.

``fxexport.compile(model, "out.onnx", example)`` captures a model, rewrites it with passes, lowers it, proves
the file right against eager PyTorch, and only then puts it in place.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fxexport.artifact import Artifact
    from fxexport.capture import capture
    from fxexport.compiler import compile
    from fxexport.doctor import Diagnosis, Finding, doctor
    from fxexport.errors import (
        CaptureError,
        ExportError,
        InputError,
        LoweringError,
        PassError,
        PublishError,
        ValidationError,
        VerifyError,
    )
    from fxexport.exportable import Exportable, InputNormalization, register_replacement, replace_for_export
    from fxexport.lowering import lower
    from fxexport.pipeline import Pipeline, PipelineState
    from fxexport.program import Program
    from fxexport.rewrite import Constant, Match, NodePass, Pass, PassManager, PassResult, PatternPass, PatternSet
    from fxexport.subnets import Recording, record
    from fxexport.tensor_types import Tensor
    from fxexport.validation import validate

__version__ = "0.1.0"

__all__ = [
    "Artifact",
    "CaptureError",
    "Constant",
    "Diagnosis",
    "ExportError",
    "Exportable",
    "Finding",
    "InputError",
    "InputNormalization",
    "LoweringError",
    "Match",
    "NodePass",
    "Pass",
    "PassError",
    "PassManager",
    "PassResult",
    "PatternPass",
    "PatternSet",
    "Pipeline",
    "PipelineState",
    "Program",
    "PublishError",
    "Recording",
    "Tensor",
    "ValidationError",
    "VerifyError",
    "capture",
    "compile",
    "doctor",
    "lower",
    "record",
    "register_replacement",
    "replace_for_export",
    "validate",
]

# Where each public name lives. They are imported when first used: PyTorch takes seconds to import, and
# `fxexport --help` does not need it.
_HOMES = {
    "artifact": ("Artifact",),
    "capture": ("capture",),
    "compiler": ("compile",),
    "doctor": ("Diagnosis", "Finding", "doctor"),
    "errors": tuple(name for name in __all__ if name.endswith("Error")),
    "exportable": ("Exportable", "InputNormalization", "register_replacement", "replace_for_export"),
    "lowering": ("lower",),
    "pipeline": ("Pipeline", "PipelineState"),
    "program": ("Program",),
    "rewrite": ("Constant", "Match", "NodePass", "Pass", "PassManager", "PassResult", "PatternPass", "PatternSet"),
    "subnets": ("Recording", "record"),
    "tensor_types": ("Tensor",),
    "validation": ("validate",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


class _Door(ModuleType):
    """Keeps ``fxexport.capture`` the function, where Python would bind the package of that name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME_OF and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Door

if not TYPE_CHECKING:  # type checkers would take any name for granted

    def __getattr__(name: str) -> Any:
        """A public name, or a module of the package, on first use."""
        if name in _HOME_OF:
            value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
            globals()[name] = value
            return value
        module = f"{__name__}.{name}"
        try:
            if not name.startswith("_"):
                return import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
