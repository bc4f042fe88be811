"""The command ``run``: an exported pipeline or file on inputs from an .npz."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fxexport.cli_options import common, print_result
from fxexport.errors import InputError

if TYPE_CHECKING:
    from fxexport.pipeline import Pipeline
    from fxexport.pipeline.views import Array
    from fxexport.report.layout import Part


@click.command("run")
@click.argument("file")
@click.option("--inputs", required=True, metavar="FILE.npz", help="The inputs by name; for one of a part: part.name.")
@click.option("--output", metavar="FILE.npz", help="Where to write the outputs by name.")
@click.option(
    "--steps",
    type=click.IntRange(1),
    help="Call the parts of the loop so many times, with the same inputs and the state carried on; outputs of the last.",
)
@click.option("--provider", "providers", multiple=True, metavar="NAME", help="Of onnxruntime [default: the CPU].")
@common
def run_command(
    file: str, inputs: str, output: str | None, steps: int | None, providers: tuple[str, ...], as_json: bool
) -> None:
    """Run FILE: a pipeline.json, its directory, or one exported file.

    Every part runs once, unless --steps is given.
    """
    from fxexport.destination import preflight

    target = preflight(output, (".npz",)) if output else None
    pipeline = open_file(Path(file), providers or ("CPUExecutionProvider",))
    found = run_pipeline(pipeline, read_arrays(Path(inputs)), steps)
    if target is not None:
        write_arrays(target, found)
    rows = [(name, str(array.dtype), list(array.shape), *numbers(array)) for name, array in found.items()]
    names = ("name", "dtype", "shape", "min", "max", "mean")
    data = {"path": str(pipeline.path), "outputs": [dict(zip(names, row, strict=True)) for row in rows]}
    print_result(data | ({"output": str(target)} if target else {}), [] if as_json else _page(names, rows), as_json)


def open_file(file: Path, providers: tuple[str, ...]) -> Pipeline:
    """The pipeline at ``file``; a single exported file is a pipeline of one part. Raises InputError where it is none."""
    from fxexport.pipeline import Pipeline
    from fxexport.pipeline.single import onnx_spec, single_spec
    from fxexport.pipeline.spec import TensorPort

    if file.is_dir() or file.suffix.lower() == ".json":
        return Pipeline.load(file, providers=providers)
    place = file.resolve()  # a link may lead anywhere: here the user has named the file, not a pipeline.json
    if file.suffix.lower() == ".onnx":
        return Pipeline(place, onnx_spec(place), providers)
    from fxexport.artifact import Artifact
    from fxexport.signature import dtype_name

    artifact = Artifact.load(place)
    inputs, outputs = (
        tuple(TensorPort(spec.name, dtype_name(spec.dtype), tuple(spec.axes)) for spec in specs)
        for specs in (artifact.inputs, artifact.outputs)
    )
    return Pipeline(place, single_spec(place, artifact.format, inputs, outputs), providers)


def run_pipeline(pipeline: Pipeline, arrays: Mapping[str, Array], steps: int | None) -> dict[str, Array]:
    """The outputs of one call, or of the last of ``steps``."""
    if steps is None:
        return pipeline(**arrays)
    outputs, state = pipeline.step(None, **arrays)
    looped = {name: arrays[name] for name in arrays if pipeline.feeds_loop(name)}
    for _ in range(steps - 1):
        outputs, state = pipeline.step(state, **looped)
    return outputs


def read_arrays(file: Path) -> dict[str, Array]:
    """The arrays in an .npz, by name. Raises InputError where it is missing, damaged, or holds Python objects."""
    import numpy as np

    from fxexport.pipeline.views import dtype_of

    try:
        content = np.load(file, allow_pickle=False)
        if not isinstance(content, np.lib.npyio.NpzFile):
            raise InputError(f"{file} holds one array without a name; write it with numpy.savez(file, name=array)")
        with content:
            arrays = {name: content[name] for name in content.files}
    except FileNotFoundError:
        raise InputError(f"{file} does not exist; write it with numpy.savez(file, name=array)") from None
    except InputError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{file} cannot be read as an .npz of arrays: {error}") from error
    # The format has no name for bfloat16 and calls it two bytes of anything.
    return {name: array.view(dtype_of("bfloat16")) if array.dtype == "V2" else array for name, array in arrays.items()}


def write_arrays(target: Path, arrays: Mapping[str, Array]) -> None:
    """Writes an .npz that is there whole, or not at all."""
    import numpy as np

    from fxexport.destination import temporary_sibling

    draft = temporary_sibling(target)
    try:
        with zipfile.ZipFile(draft, "w") as archive:  # numpy.savez has no room for an array named "file"
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, array, allow_pickle=False)
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)


def numbers(array: Array) -> tuple[Any, Any, Any]:
    """Least, greatest and mean value; text for inf and nan, which JSON lacks; None where there are none."""
    import numpy as np

    if not array.size or array.dtype.kind == "c":
        return None, None, None
    real = array if array.dtype.kind in "iu" else array.astype(np.float64)
    values = (real.min().item(), real.max().item(), real.mean(dtype=np.float64).item())
    least, greatest, mean = (value if np.isfinite(value) else str(value) for value in values)
    return least, greatest, mean


def _page(names: tuple[str, ...], rows: list[tuple[Any, ...]]) -> list[Part]:
    from fxexport.report.layout import table

    titles = tuple(f">{name}" if name in ("min", "max", "mean") else name for name in names)
    return [table(titles, [tuple(_text(value) for value in row) for row in rows])]


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
