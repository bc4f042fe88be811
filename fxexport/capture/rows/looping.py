"""When the rows are batched: where a capture fixes a declared axis, or stops at it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.export import ExportedProgram

from fxexport.capture.axes import is_loop
from fxexport.capture.exporting import is_data_dependent
from fxexport.capture.open_axes import Exporting, Opened, Place
from fxexport.capture.rows.batching import ByRows
from fxexport.capture.rows.values import NoLoop
from fxexport.errors import CaptureError


@dataclass
class Loops:
    """Tries the program by rows once. ``mixing``: why the rows of a loop are not independent, or ''."""

    by_rows: ByRows
    mixing: str = ""
    _tried: bool = False

    def instead(self, fixed: Sequence[Place]) -> Opened | None:
        """The program by rows, for a capture that fixes the axes ``fixed``; None where no loop goes over them, or its
        rows are not independent."""
        if self._tried:
            return None
        self._tried = True
        try:
            return _by_rows(self.by_rows, fixed)
        except NoLoop:
            return None
        except CaptureError as error:
            self.mixing = str(error).splitlines()[0]
            return None

    def or_else(self, export: Exporting) -> Exporting:
        """``export`` where no loop stands in the way, as one does however the code is read.

        The result raises CaptureError where one does.
        """

        def checked(inputs: list[torch.Tensor]) -> tuple[ExportedProgram, list[str]]:
            if self.mixing:
                raise CaptureError(self.mixing)
            return export(inputs)

        return checked


def export_rows(export: Callable[[], Opened], loops: Loops) -> Opened:
    """What ``export`` gives; where it fails for another reason than a decision on data, the program by rows, if a loop
    goes over them and they are independent. Where rows of a loop are not, the loop is the line that fixes their number.

    Raises CaptureError: that of ``export``, where nothing else works.
    """
    try:
        exported, notes, inputs, fixing = export()
        if loops.mixing:
            fixing = {size: place if is_loop(place) else loops.by_rows.loop or place for size, place in fixing.items()}
        return exported, notes, inputs, fixing
    except CaptureError as error:
        if is_data_dependent(error.__cause__) or is_data_dependent(error):
            raise
        for places in _groups(loops.by_rows):
            try:
                return _by_rows(loops.by_rows, places)
            except CaptureError:
                continue
        raise


def _groups(by_rows: ByRows) -> list[list[Place]]:
    """First axes that are declared, by name: one of them may be what stopped capture."""
    groups: dict[object, list[Place]] = {}
    for i, axes in enumerate(by_rows.requests):
        if 0 in axes and axes[0].declared:
            groups.setdefault(axes[0].label, []).append((i, 0))
    return list(groups.values())


def _by_rows(by_rows: ByRows, places: Sequence[Place]) -> Opened:
    exported, notes, inputs = by_rows.capture(places)
    proof = "each row was proved to be computed from itself alone, as all others, in the graphs at two numbers of rows"
    return exported, [*notes, f"the loop at {by_rows.loop} runs for all rows at once: {proof}"], inputs, {}
