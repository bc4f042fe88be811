"""The hooks by which a model says how it is exported: the mix-in, and reading them on any model that has them."""

from __future__ import annotations

from fxexport.exportable.input_normalization import InputNormalization
from fxexport.exportable.mixin import Exportable
from fxexport.exportable.part import ExportRequest, Part, prepared_part
from fxexport.exportable.reading import HOOKS, has_hooks
from fxexport.exportable.replacement_registry import register_replacement
from fxexport.exportable.standard_replacements import replace_for_export
from fxexport.exportable.subnet_names import list_subnets, subnet_files
from fxexport.exportable.whole import prepared_whole

__all__ = [
    "HOOKS",
    "ExportRequest",
    "Exportable",
    "InputNormalization",
    "Part",
    "has_hooks",
    "list_subnets",
    "prepared_part",
    "prepared_whole",
    "register_replacement",
    "replace_for_export",
    "subnet_files",
]
