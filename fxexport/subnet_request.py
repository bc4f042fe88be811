"""What ``fxexport.compile`` is asked of a model with hooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from fxexport.exportable.replacement_registry import Replacements
from fxexport.subnets import Driver, Recording


@dataclass(frozen=True)
class SubnetRequest:
    """The arguments of ``fxexport.compile`` that concern hooks and subnets; see there.

    ``documented``: the example came as ``input_example``, in which a last dict holds keyword arguments.
    """

    example: Any
    kwargs: Mapping[str, Any] | None
    further: Sequence[tuple[str, Any, None]]
    prepare: Mapping[str, Any]
    config: Mapping[str, Any]
    replacements: Replacements
    driver: Driver | Sequence[Driver] | None
    recording: Recording | None
    subnets: Sequence[str] | None = None
    pipeline_file: str = "pipeline.json"
    mkdir: bool = False
    documented: bool = False
    normalize: Mapping[str, str | nn.Module] = field(default_factory=dict)


ASKED_NOTHING: dict[str, Any] = {
    "verbose": False,
    "do_constant_folding": True,
    "check_trace": False,
    "dynamic_axes": None,
    "check_tolerance": None,
    "export_modules_as_functions": False,
    "keep_initializers_as_inputs": None,
    "use_dynamo": None,
}
"""What ``_prepare_for_export`` hooks get of an export that was asked nothing."""
