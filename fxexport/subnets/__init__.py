"""Subnets: what a real run says about the parts of a model, how they are wired, and the proof of the whole chain."""

from fxexport.subnets.buffer_states import with_buffer_states
from fxexport.subnets.declared import unwired, with_declared_states
from fxexport.subnets.interface import PartInterface, contradictions
from fxexport.subnets.other_sizes import record_larger_batch, record_other_sizes
from fxexport.subnets.recording import Driver, Recording, record
from fxexport.subnets.replay import check_pipeline
from fxexport.subnets.wiring import Wiring, wire

__all__ = [
    "Driver",
    "PartInterface",
    "Recording",
    "Wiring",
    "check_pipeline",
    "contradictions",
    "record",
    "record_larger_batch",
    "record_other_sizes",
    "unwired",
    "wire",
    "with_buffer_states",
    "with_declared_states",
]
