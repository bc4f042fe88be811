"""Several exported files run as one, in onnxruntime and numpy alone: nothing here imports PyTorch to run ONNX."""

from fxexport.pipeline.pipeline import Pipeline
from fxexport.pipeline.state import PipelineState

__all__ = ["Pipeline", "PipelineState"]
