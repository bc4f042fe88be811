"""Rewriting programs: what a pass is, the manager that runs passes safely, the registry that finds them."""

from fxexport.rewrite.base import Pass, PassResult, arguments
from fxexport.rewrite.manager import PassManager, PassRecord
from fxexport.rewrite.registry import PassSpec, available, resolve

__all__ = [
    "Pass",
    "PassManager",
    "PassRecord",
    "PassResult",
    "PassSpec",
    "arguments",
    "available",
    "resolve",
]
