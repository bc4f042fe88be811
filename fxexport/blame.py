"""Blame: an artifact is wrong; which rewrite made it so? Found by bisection over all rewrites, in eager where it shows."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch

from fxexport.capture.reference import Reference, Tensors
from fxexport.errors import ExportError, LoweringError, ValidationError
from fxexport.lowering import lower
from fxexport.program import Program
from fxexport.rewrite import Pass, PassManager, PassRecord, Rewrite
from fxexport.rewrite.bisect_rewrites import first_bad
from fxexport.rewrite.ledger import place
from fxexport.rewrite.manager import steps_of
from fxexport.validation import ArtifactProcess
from fxexport.validation.numbers import Scales, run_eager

MAX_REPRO_BYTES = 512 * 2**20
"""Constants of the programs that are saved for a repro; each of the two files holds all of them."""
_SCRIPT = Path(__file__).with_name("repro.py")


@dataclass(frozen=True)
class Blame:
    """The first of all rewrites after which the program is wrong.

    Attributes:
        pass_name: the pass, with its options; '' where the program is wrong before any pass.
        number: which rewrite of that pass, from 1; 0 for a pass that does not say what it rewrote: all of it.
        rewrite: its entry in the ledger, where there is one.
        step: how many rewrites, over all passes, the first wrong program has; 0: it is wrong without passes.
        runs: programs that were tried to find it, at most ``ceil(log2(rewrites + 1))``; the final one is not counted.
        judge: where it shows: in eager PyTorch, or only in the artifact.
        note: what makes the verdict uncertain.
        repro: the script that shows it again, beside the report; '' where none could be written.
    """

    pass_name: str
    number: int
    rewrite: Rewrite | None
    step: int
    runs: int
    judge: Literal["eager", "artifact"]
    note: str = ""
    repro: str = ""

    def __str__(self) -> str:
        if not self.pass_name:
            at_fault = "the capture" if self.judge == "eager" else "the lowering or the runtime"
            what = f"No rewrite is wrong: it is already wrong without passes, so {at_fault} is at fault"
        elif not self.number:
            what = f"The first wrong rewrite is pass {self.pass_name} as a whole"
        else:
            what = f"The first wrong rewrite is number {self.number} of pass {self.pass_name}"
            if self.rewrite is not None:
                what += f": {self.rewrite.node}{place(self.rewrite.module, self.rewrite.line)}"
        return "; ".join(filter(None, (what, self.note, self.repro and f"repro: {self.repro}")))

    def to_json(self) -> dict[str, Any]:
        """A JSON object with the fields, and the sentence."""
        return {**asdict(self), "text": str(self)}


@dataclass(frozen=True)
class History:
    """A captured program, and the passes that were run on it with what they did."""

    captured: Program
    passes: Sequence[Pass]
    records: Sequence[PassRecord]

    @cached_property
    def applied(self) -> list[tuple[Pass, PassRecord]]:
        """The passes that were kept."""
        both = zip(self.passes, self.records, strict=True)
        return [(pass_, record) for pass_, record in both if record.error is None]

    @property
    def steps(self) -> int:
        """How many rewrites can be told apart, over all passes."""
        return sum(steps_of(pass_, record) for pass_, record in self.applied)

    def program_at(self, step: int) -> Program:
        """The program after the first ``step`` rewrites. Raises PassError where it is invalid there."""
        manager = PassManager([pass_ for pass_, _ in self.applied], max_growth=math.inf)
        return manager.run(self.captured, limit=step)[0]

    def culprit(self, step: int) -> tuple[str, int, Rewrite | None]:
        """Of the rewrite number ``step`` (from 1): its pass, which one of that pass it is, its entry in the ledger."""
        for pass_, record in self.applied:
            steps = steps_of(pass_, record)
            if step <= steps:
                entry = record.rewrites[step - 1] if len(record.rewrites) == steps else None
                return record.name, step if entry or steps > 1 else 0, entry
            step -= steps
        return "", 0, None


@dataclass(frozen=True)
class Case:
    """Inputs at which an artifact is wrong, and what is needed to try other programs on them.

    Attributes:
        reference: the eager model, the judge.
        inputs: the flat inputs.
        scales: how outputs are compared.
        directory: where to put candidates for a moment, and the repro.
        file: name of the artifact; its extension is the format ``format``.
        timeout: seconds for each run of an artifact.
        options: arguments of :func:`fxexport.lowering.lower`.
    """

    reference: Reference
    inputs: Tensors
    scales: Scales
    directory: Path
    file: str
    format: str
    timeout: float
    options: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def expected(self) -> Tensors:
        """What the eager model gives."""
        return self.reference.run(self.inputs)

    def wrong_in_eager(self, program: Program) -> bool:
        """Whether ``program`` itself disagrees with the eager model."""
        try:
            got = run_eager(program, self.inputs)
        except Exception:  # noqa: BLE001 - the model runs on these inputs, so a program that raises is wrong
            return True
        return self._disagrees(program, got)

    def wrong_as_artifact(self, program: Program) -> bool:
        """Whether the file made of ``program`` disagrees, crashes or hangs. Raises LoweringError where there is none."""
        names = [spec.name for spec in program.signature.inputs]
        with (
            ArtifactProcess(self.format, timeout=self.timeout) as process,
            TemporaryDirectory(dir=self.directory) as folder,
        ):
            path = Path(folder) / self.file
            lower(program, path, **self.options)
            try:
                process.load(path)
                outputs = process.run(dict(zip(names, self.inputs, strict=True)))
            except ValidationError:  # it was refused, crashed or hung
                return True
        if self.format != "onnx":  # the others return their outputs in order, without names
            return self._disagrees(program, list(outputs.values()))
        wanted = [spec.name for spec in program.signature.outputs]
        return set(outputs) != set(wanted) or self._disagrees(program, [outputs[name] for name in wanted])

    def _disagrees(self, program: Program, got: Sequence[torch.Tensor]) -> bool:
        names = [spec.name for spec in program.signature.outputs]
        if len(got) != len(names):
            return True
        results = self.scales.compare(names, self.expected, got, lambda: self.reference.run(self.inputs, double=True))
        return not all(result.passed for result in results)


def explain_failure(history: History, final: Program, case: Case) -> Blame | str:
    """Which rewrite is at fault, with a repro in ``case.directory``; or why that could not be found.

    ``final`` is the program whose artifact is wrong. Nothing but an interruption is raised: the error that is being
    explained is what matters.
    """
    try:
        blame = find_blame(history, final, case)
    except Exception as error:  # noqa: BLE001 - reported, beside the failure itself
        return f"blame could not be found: {_reason(error)}"
    try:
        return write_repro(blame, history, case)
    except Exception as error:  # noqa: BLE001 - likewise
        reason = _reason(error)
        return replace(blame, note="; ".join(filter(None, (blame.note, f"no repro was written: {reason}"))))


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, ExportError) else f"{type(error).__name__}: {error}"


def find_blame(history: History, final: Program, case: Case) -> Blame:
    """The first wrong rewrite: by running programs in eager where ``final`` is wrong there already, else as artifacts.

    Raises ValidationError where nothing is wrong when it is tried again.
    """
    in_eager = case.wrong_in_eager(final)
    is_wrong = case.wrong_in_eager if in_eager else case.wrong_as_artifact
    runs, unwritable = 0, dict[int, str]()

    def is_bad(step: int) -> bool:
        nonlocal runs
        runs += 1
        try:
            return is_wrong(history.program_at(step))
        except LoweringError as error:  # some passes exist to make a program that can be written at all
            unwritable[step] = str(error).splitlines()[0]
            return False

    step = first_bad(history.steps, is_bad)
    if step == history.steps and not in_eager and not is_wrong(final):  # the search takes this for granted
        raise ValidationError("a second file of the same program is right: the failure does not repeat")
    name, number, rewrite = history.culprit(step) if step else ("", 0, None)
    why = unwritable.get(step - 1)
    note = f"the program before it cannot be a file ({why}), so the lowering may be at fault as well" if why else ""
    judge: Literal["eager", "artifact"] = "eager" if in_eager else "artifact"
    return Blame(name, number, rewrite, step, runs, judge, note)


def write_repro(blame: Blame, history: History, case: Case) -> Blame:
    """Writes the programs before and after the culprit, inputs, eager outputs and ``repro.py``; ``blame`` with its path.

    Raises ValidationError where the constants are too large to be kept twice.
    """
    size = history.captured.constants_bytes()
    if size > MAX_REPRO_BYTES:
        raise ValidationError(f"the constants have {size / 2**20:.0f} MiB, over {MAX_REPRO_BYTES // 2**20} MiB")
    after = history.program_at(blame.step)
    inputs, outputs = after.signature.inputs, after.signature.outputs
    if blame.step:
        lower(history.program_at(blame.step - 1), case.directory / "before.pt2")
    lower(after, case.directory / "after.pt2")
    torch.save(_named(inputs, case.inputs), case.directory / "inputs.pt")
    torch.save(_named(outputs, case.expected), case.directory / "expected.pt")
    weighed = case.scales.compare([spec.name for spec in outputs], case.expected, case.expected)
    case.directory.joinpath("repro.json").write_text(
        json.dumps(
            {
                "culprit": str(blame),
                "judge": blame.judge,
                "file": case.file,
                "options": {
                    **{key: case.options[key] for key in ("opset_version", "external_data") if key in case.options},
                    "rtol": case.scales.rtol,
                    "atol": case.scales.atol,
                    "allow_random": bool(case.scales.unstable),
                    "allow_nan": True,
                    "timeout": case.timeout,
                },
                "outputs": [
                    {"name": w.name, "rtol": w.rtol, "atol": w.atol_eff, "random": w.name in case.scales.unstable}
                    for w in weighed
                ],
            },
            indent=1,
        )
    )
    shutil.copyfile(_SCRIPT, case.directory / "repro.py")
    return replace(blame, repro="repro.py")


def _named(specs: Sequence[Any], tensors: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    return {spec.name: tensor.detach().cpu() for spec, tensor in zip(specs, tensors, strict=True)}
