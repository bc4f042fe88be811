"""Pipelines whose parts are TorchScript files or .pt2 archives."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sample_pipelines import write
from torch import nn

from fxexport.errors import InputError, ValidationError
from fxexport.pipeline import Pipeline
from fxexport.pipeline.files import sha256_of
from fxexport.pipeline.spec import Initial, Outside, PartFile, PipelineSpec, Port, State, TensorPort


class Cell(nn.Module):
    """Adds its input to the state; returns the untouched input, too."""

    def forward(self, x: torch.Tensor, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if x.dtype == torch.float64:
            raise ValueError("not reached")
        return x, memory + x


@pytest.mark.parametrize(("form", "name", "dtype"), [("torchscript", "m.pt", "float32"), ("pt2", "m.pt2", "bfloat16")])
def test_steps_in_torch(tmp_path: Path, form: str, name: str, dtype: str) -> None:
    example = (torch.ones(2, 3, dtype=getattr(torch, dtype)), torch.zeros(2, 3, dtype=getattr(torch, dtype)))
    if form == "torchscript":
        torch.jit.trace(Cell(), example).save(str(tmp_path / name))
    else:
        torch.export.save(torch.export.export(Cell(), example), tmp_path / name)
    x, memory = (TensorPort(port, dtype, (2, 3)) for port in ("x", "memory"))
    part = PartFile(
        "cell",
        name,
        sha256_of(tmp_path / name),
        (x, memory),
        (TensorPort("same", dtype, (2, 3)), TensorPort("total", dtype, (2, 3))),
    )
    spec = PipelineSpec(
        "m",
        form,
        (part,),
        ("cell",),
        (Outside("x", (Port("cell", "x"),), dtype, (2, 3)),),
        (),
        (State(Port("cell", "memory"), Port("cell", "total"), (), Initial((2, 3), dtype, fill=1)),),
        (Port("cell", "same"), Port("cell", "total")),
    )
    pipeline = Pipeline.load(write(tmp_path, spec))
    given = example[0]
    outputs, state = pipeline.step(None, x=given)
    outputs, state = pipeline.step(state, x=given)
    assert outputs["total"].astype(float).tolist() == [[3.0] * 3] * 2
    assert outputs["total"].dtype.name == dtype
    outputs["same"][:] = 9
    assert given.float().tolist() == [[1.0] * 3] * 2, "the result is the caller's own memory"
    with pytest.raises(InputError, match=f"the input 'x' is {dtype}, got float64"):
        pipeline.step(state, x=np.ones((2, 3)))
    with pytest.raises(InputError, match=f"a pipeline in {form} runs on the CPU"):
        Pipeline.load(tmp_path, providers=["CUDAExecutionProvider"])


def test_a_file_that_fails_or_gives_another_number_of_outputs_is_told(tmp_path: Path) -> None:
    module = torch.jit.script(nn.Linear(3, 2))
    module.save(str(tmp_path / "m.pt"))
    outputs = (TensorPort("y", "float32", ("n", 2)), TensorPort("z", "float32", ("n", 2)))
    part = PartFile("linear", "m.pt", sha256_of(tmp_path / "m.pt"), (TensorPort("x", "float32", ("n", "k")),), outputs)
    outside = Outside("x", (Port("linear", "x"),), "float32", ("n", "k"))
    spec = PipelineSpec("m", "torchscript", (part,), inputs=(outside,), outputs=(Port("linear", "y"),))
    pipeline = Pipeline.load(write(tmp_path, spec))
    with pytest.raises(ValidationError, match=r"part 'linear' failed on x float32\[1, 4\]"):
        pipeline(x=[[1.0] * 4])
    with pytest.raises(ValidationError, match="gave 1 outputs, the pipeline says"):
        pipeline(x=[[1.0] * 3])
