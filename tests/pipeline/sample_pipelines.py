"""Small pipelines of ONNX files written node by node, for the tests."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from fxexport.pipeline.files import pipeline_text, sha256_of
from fxexport.pipeline.spec import (
    Initial,
    Outside,
    PartFile,
    PipelineSpec,
    Port,
    State,
    TensorPort,
    View,
    Wire,
)

ONE_FRAME = (View("slice", (2, 0, 1, 1)),)


def save(path: Path, nodes: list[Any], part: PartFile, constants: dict[str, Any] | None = None) -> PartFile:
    """Writes the model and returns the part with the hash of its file."""
    sides = [
        [
            helper.make_tensor_value_info(
                port.name,
                TensorProto.BFLOAT16
                if port.dtype == "bfloat16"
                else helper.np_dtype_to_tensor_dtype(np.dtype(port.dtype)),
                list(port.axes),
            )
            for port in ports
        ]
        for ports in (part.inputs, part.outputs)
    ]
    weights = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()]
    graph = helper.make_graph(nodes, part.name, *sides, initializer=weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, str(path / part.file))
    return replace(part, sha256=sha256_of(path / part.file))


def encoder(path: Path) -> PartFile:
    """outputs = 2 * audio; encoded_lengths is the very input."""
    part = PartFile(
        "encoder",
        "encoder-m.onnx",
        "",
        (
            TensorPort("audio", "float32", ("batch", 4, "time")),
            TensorPort("length", "int64", ("batch",)),
        ),
        (
            TensorPort("outputs", "float32", ("batch", 4, "time")),
            TensorPort("encoded_lengths", "int64", ("batch",)),
        ),
    )
    nodes = [
        helper.make_node("Mul", ["audio", "two"], ["outputs"]),
        helper.make_node("Identity", ["length"], ["encoded_lengths"]),
    ]
    return save(path, nodes, part, {"two": np.float32(2)})


def decoder(path: Path) -> PartFile:
    """logits = frame + label + sum of the state over its last axis; the state grows by one plus the label."""
    part = PartFile(
        "decoder_joint",
        "decoder_joint-m.onnx",
        "",
        (
            TensorPort("encoder_outputs", "float32", ("batch", 4, "frames")),
            TensorPort("targets", "int32", ("batch", "labels")),
            TensorPort("input_states_1", "float32", (1, "batch", 3)),
        ),
        (
            TensorPort("logits", "float32", ("batch", 4)),
            TensorPort("output_states_1", "float32", (1, "batch", 3)),
        ),
    )
    nodes = [
        helper.make_node("Squeeze", ["encoder_outputs", "last"], ["frame"]),
        helper.make_node("Cast", ["targets"], ["label"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["input_states_1", "ends"], ["memory"], keepdims=0),
        helper.make_node("Unsqueeze", ["memory", "one"], ["column"]),
        helper.make_node("Add", ["frame", "label"], ["sum"]),
        helper.make_node("Add", ["sum", "column"], ["logits"]),
        helper.make_node("Add", ["label", "unit"], ["more"]),
        helper.make_node("Add", ["input_states_1", "more"], ["output_states_1"]),
    ]
    constants = {"last": [2], "ends": [0, 2], "one": [1], "unit": np.float32(1)}
    return save(path, nodes, part, constants)


def transducer_spec(path: Path) -> PipelineSpec:
    parts = (encoder(path), decoder(path))
    return PipelineSpec(
        "transducer",
        "onnx",
        parts,
        loop=("decoder_joint",),
        inputs=(
            Outside("audio", (Port("encoder", "audio"),), "float32", ("batch", 4, "time")),
            Outside("length", (Port("encoder", "length"),), "int64", ("batch",)),
            Outside(
                "targets",
                (Port("decoder_joint", "targets"),),
                "int32",
                ("batch", "labels"),
                "computed by driver.py:12 from decoder_joint.logits",
            ),
        ),
        wires=(Wire(Port("encoder", "outputs"), Port("decoder_joint", "encoder_outputs"), ONE_FRAME, chosen=True),),
        states=(
            State(
                Port("decoder_joint", "input_states_1"),
                Port("decoder_joint", "output_states_1"),
                (),
                Initial((1, "batch", 3), "float32", fill=0.0),
            ),
        ),
        outputs=(Port("encoder", "encoded_lengths"), Port("decoder_joint", "logits")),
        notes=("made by a test",),
        versions={"fxexport": "0.1.0"},
    )


def write(path: Path, spec: PipelineSpec) -> Path:
    file = path / "pipeline.json"
    file.write_text(pipeline_text(spec), encoding="utf-8")
    return file


def rewrite(file: Path, **changes: Any) -> None:
    """Other entries in an existing pipeline.json, whatever they are."""
    data = json.loads(file.read_text())
    file.write_text(json.dumps(data | changes))


def transducer(path: Path) -> Path:
    return write(path, transducer_spec(path))
