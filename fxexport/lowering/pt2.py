"""``Program`` -> a torch.export archive (``.pt2``)."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import fx

from fxexport.errors import LoweringError
from fxexport.lowering.unlift import Key, storable, storage_key
from fxexport.program import Program

METADATA_FILE = "fxexport.json"


def lower_pt2(program: Program, path: Path, metadata: Mapping[str, Any]) -> list[Path]:
    """Writes ``program`` as a torch.export archive at ``path``, with ``metadata`` as the extra file ``fxexport.json``.

    Load it with ``torch.export.load(path).module()`` and call it with the flat inputs in order. Module paths are in
    the file; source lines, which torch would write with absolute paths, are not.
    """
    exported = program.to_exported()
    for module in exported.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)
    compact: dict[Key, torch.Tensor] = {}
    for table in (exported.state_dict, exported.constants):
        for name, value in table.items():
            if isinstance(value, torch.Tensor):
                table[name] = compact.setdefault(storage_key(value), storable(value))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a transposed weight is not contiguous, which is saved right
            torch.export.save(exported, path, extra_files={METADATA_FILE: json.dumps(metadata)})
    except (RuntimeError, ValueError, NotImplementedError, AssertionError) as error:
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from error
        raise LoweringError(f"torch.export.save failed: {error}") from error
    return [path]
