"""Shows one wrong rewrite again. Copied as ``repro.py`` beside the programs before and after it, and run there:

    python repro.py

Exit status 1 while the program after the rewrite disagrees with the eager model beyond the tolerance, 0 once it
agrees. ``repro.json`` says what is at fault and how outputs are compared. Needs only torch, but for a program that is
right in eager and wrong as a file: that one is compiled again, by fxexport.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

custom_translation_table = None
"""Functions cannot be saved: where the export had a ``custom_translation_table``, put it here."""


def main(folder: Path) -> int:
    """Runs what is in ``folder``; returns the exit status."""
    case = json.loads((folder / "repro.json").read_text())
    print(case["culprit"])
    inputs = torch.load(folder / "inputs.pt")
    wrong = False
    for label in ("before", "after"):
        path = folder / f"{label}.pt2"
        if path.exists():  # there is nothing before the first rewrite of all
            right = _compile(path, inputs, case) if case["judge"] == "artifact" else _run(path, inputs, case)
            print(f"{label}: {'right' if right else 'WRONG'}")
            wrong = not right
    return int(wrong)


def _run(path: Path, inputs: dict[str, torch.Tensor], case: dict[str, Any]) -> bool:
    """The program in eager against the eager model."""
    expected = torch.load(path.parent / "expected.pt")
    with torch.no_grad():
        outputs = torch.export.load(path).module()(*inputs.values())
    rows = zip(case["outputs"], expected.values(), outputs, strict=True)
    return all([_agrees(output, want, torch.as_tensor(have)) for output, want, have in rows])  # a line for each


def _agrees(output: dict[str, Any], want: torch.Tensor, have: torch.Tensor) -> bool:
    name = output["name"]
    if (want.shape, want.dtype) != (have.shape, have.dtype):
        print(f"  {name}: expected {want.dtype}{tuple(want.shape)}, got {have.dtype}{tuple(have.shape)}")
        return False
    if output["random"]:
        print(f"  {name}: random, not compared")
        return True
    exact = not (want.is_floating_point() or want.is_complex())
    wide = torch.complex128 if want.is_complex() else torch.float64
    difference = (have.to(wide) - want.to(wide)).abs()
    largest = difference[difference.isfinite()].max().item() if difference.isfinite().any() else 0.0
    print(f"  {name}: largest difference {largest:.3e} (rtol {output['rtol']:.1e}, atol {output['atol']:.1e})")
    if exact:
        return torch.equal(have, want)
    return torch.allclose(have.to(wide), want.to(wide), output["rtol"], output["atol"], equal_nan=True)


def _compile(path: Path, inputs: dict[str, torch.Tensor], case: dict[str, Any]) -> bool:
    """The program as a file against the program in eager."""
    import fxexport

    options = {**case["options"], "custom_translation_table": custom_translation_table}
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / case["file"]
        try:
            fxexport.compile(torch.export.load(path), target, tuple(inputs.values()), passes="none", **options)
        except (fxexport.ValidationError, fxexport.LoweringError) as error:
            print(f"  {error}")
            return False
    return True


if __name__ == "__main__":
    sys.exit(main(Path(__file__).resolve().parent))
