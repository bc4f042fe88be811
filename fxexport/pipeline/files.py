"""``pipeline.json`` and the files beside it: written as text, found, and checked to belong together."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path, PureWindowsPath

from fxexport.errors import InputError
from fxexport.pipeline.checking import check_spec
from fxexport.pipeline.spec import PartFile, PipelineSpec

PIPELINE_FILE = "pipeline.json"
SUFFIXES = {"onnx": (".onnx",), "torchscript": (".pt", ".ts"), "pt2": (".pt2",)}


def pipeline_text(spec: PipelineSpec) -> str:
    """The content of ``pipeline.json``; InputError where the pipeline could not work (see ``check_spec``)."""
    check_spec(spec)
    return json.dumps(spec.to_json(), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_pipeline(path: str | Path) -> tuple[Path, PipelineSpec]:
    """The ``pipeline.json`` at ``path``, or in the directory ``path``, with every file it names checked.

    Raises:
        InputError: no such file, damaged, of a newer fxexport, a pipeline that cannot work; a part's file is missing,
            lies outside the directory, or is not the one that the pipeline was made with.
    """
    file = Path(path)
    if file.is_dir():
        file = file / PIPELINE_FILE
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{file} does not exist; a pipeline is a {PIPELINE_FILE} or its directory") from None
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is damaged, it is no JSON text ({error}); export again") from error
    try:
        spec = PipelineSpec.from_json(data)
        if spec.format not in SUFFIXES:
            raise InputError(f"its format {spec.format!r} is none of {', '.join(SUFFIXES)}")
        check_spec(spec)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    for part in spec.parts:
        _check_file(file, part, spec.format)
    return file, spec


def part_path(pipeline: Path, part: PartFile) -> Path:
    """Where the file of a part lies. Raises InputError where the name leads out of the pipeline's directory."""
    name, directory = part.file, pipeline.parent.resolve()
    windows = PureWindowsPath(name)
    outside = f"{pipeline}: the file {name!r} of part {part.name!r} lies outside {directory}: refused"
    if not name or "\0" in name or "\\" in name or windows.is_absolute() or windows.drive or ".." in windows.parts:
        raise InputError(outside)
    found = directory / name
    if not found.resolve().is_relative_to(directory):  # also through links
        raise InputError(outside)
    return found


def _check_file(pipeline: Path, part: PartFile, form: str) -> None:
    file = part_path(pipeline, part)
    if file.suffix.lower() not in SUFFIXES[form]:
        raise InputError(f"{pipeline}: {part.file!r} is no file of a pipeline in {form}")
    if not file.is_file():
        raise InputError(f"{file} is missing, the file of part {part.name!r}; copy all files, or export again")
    if (found := sha256_of(file)) != part.sha256.lower():
        raise InputError(
            f"{file} and {pipeline.name} do not belong together (sha256 {found[:12]}..., expected "
            f"{part.sha256[:12]}...): files of two exports are mixed, or one is damaged; export again"
        )
