"""``prepared_whole``: a whole model with all its parts prepared, to see how it runs the way it will be exported."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from fxexport.capture.private_copy import preserved_process_state, unwrap
from fxexport.exportable.class_changes import kept_to_copies
from fxexport.exportable.copying import configured_copy
from fxexport.exportable.part import ExportRequest
from fxexport.exportable.preparing import prepare_inner, prepare_part, torn_down
from fxexport.exportable.subnet_names import subnet_of
from fxexport.exportable.typecheck import typecheck_off


@contextmanager
def prepared_whole(model: nn.Module, names: Sequence[str], request: ExportRequest) -> Iterator[nn.Module]:
    """A private copy of ``model`` on which the preparing hooks of the parts ``names`` ran, each once; torn down at the end.

    Raises InputError naming the hook that fails.
    """
    with preserved_process_state():
        model, notes = unwrap(model)
        copies: list[nn.Module] = []
        with kept_to_copies(model, copies, notes):
            root, _ = configured_copy(model, request.config)
            parts = [subnet_of(root, name) for name in names]
            copies += [root, *parts]
        root.eval()
        with typecheck_off(root, *parts), torn_down() as entered:
            with torch.no_grad(), kept_to_copies(model, copies, notes):
                options = {**request.prepare, "output": str(request.path), "input_example": None}
                for part in parts:
                    prepare_inner(part, request.prepare, entered, notes)
                    prepare_part(part, options, entered, notes)
            root.eval()
            yield root
