"""The ONNX writer against onnx's own reader, the checker on broken graphs, memory while writing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from fxexport.errors import InputError, LoweringError
from fxexport.lowering.onnx_file import check_onnx, write_onnx
from fxexport.lowering.onnx_reading import read_onnx_skeleton, safe_external_locations

FLOAT = ir.TensorType(ir.DataType.FLOAT)


def value(name: str, shape: list[int | str], tensor: ir.TensorProtocol | None = None) -> ir.Value:
    return ir.Value(name=name, type=FLOAT, shape=ir.Shape(shape), const_value=tensor)


def node(op: str, inputs: list[ir.Value], output: str, shape: list[int | str], **attributes: ir.Graph) -> ir.Node:
    made = ir.node(op, inputs, attributes, outputs=[value(output, shape)])
    return made


def add_model(weights: dict[str, ir.TensorProtocol], size: int) -> ir.Model:
    """y = x + sum of the weights, each float32[size]."""
    x = last = value("x", [size])
    initializers, nodes = [], []
    for index, (name, tensor) in enumerate(weights.items()):
        initializers.append(value(name, [size], tensor))
        nodes.append(node("Add", [last, initializers[-1]], f"y{index}", [size]))
        last = nodes[-1].outputs[0]
    graph = ir.Graph([x], [last], nodes=nodes, initializers=initializers, opset_imports={"": 20}, name="sum")
    return ir.Model(graph, ir_version=10, producer_name="fxexport", metadata_props={"b": "2", "a": "1"})


def holder(tensors: dict[str, ir.TensorProtocol]) -> ir.Model:
    """A model that has ``tensors`` as initializers of any type and does not use them."""
    x = value("x", [1])
    keep = [ir.Value(name=name, const_value=tensor) for name, tensor in tensors.items()]
    out = node("Identity", [x], "y", [1])
    graph = ir.Graph([x], out.outputs, nodes=[out], initializers=keep, opset_imports={"": 20}, name="holder")
    return ir.Model(graph, ir_version=10)


def branches(big: np.ndarray, same_name: bool = False) -> ir.Model:
    """y = c ? x + w : x - w, each branch with an initializer of its own."""
    x, condition = (
        value("x", [big.size]),
        ir.Value(name="c", type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([])),
    )
    made = {}
    for branch, op in (("then_branch", "Add"), ("else_branch", "Sub")):
        name = "w" if same_name else f"w_{branch}"
        weight = value(name, [big.size], ir.tensor(big, name=name))
        inner = node(op, [x, weight], f"y_{branch}", [big.size])
        made[branch] = ir.Graph([], inner.outputs, nodes=[inner], initializers=[weight], name=branch)
    out = node("If", [condition], "y", [big.size], **made)
    graph = ir.Graph([x, condition], out.outputs, nodes=[out], opset_imports={"": 20}, name="branches")
    return ir.Model(graph, ir_version=10)


def ramp(size: int, start: float = 0) -> np.ndarray:
    return np.arange(start, start + size, dtype=np.float32)


TENSORS: dict[str, ir.TensorProtocol] = {
    "float32": ir.tensor(ramp(1000)),
    "float64": ir.tensor(ramp(1000).astype(np.float64)),
    "bfloat16": ir.tensor(ramp(1000).astype(ml_dtypes.bfloat16)),
    "float8": ir.tensor(ramp(2000).astype(ml_dtypes.float8_e4m3fn)),
    "int4": ir.tensor((np.arange(4001) % 16 - 8).astype(ml_dtypes.int4)),
    "bool": ir.tensor(np.arange(2000) % 3 == 0),
    "int64": ir.tensor(np.arange(1000)),
    "complex64": ir.tensor(ramp(1000) * np.complex64(1 + 2j)),
    "scalar": ir.tensor(np.float32(3)),
    "empty": ir.tensor(np.zeros((0, 4), np.float32)),
    "transposed": ir.tensor(ramp(1200).reshape(30, 40).T),
    "strided": ir.tensor(ramp(4000)[::2]),
    "torch": ir.tensor(torch.arange(1000, dtype=torch.float32).reshape(20, 50).t()),
    "torch_bfloat16": ir.tensor(torch.arange(1000, dtype=torch.bfloat16)),
    "lazy": ir.LazyTensor(lambda: ir.tensor(ramp(1000)), dtype=ir.DataType.FLOAT, shape=ir.Shape([1000])),
    "string": ir.StringTensor([b"text" * 500, b"more"], shape=ir.Shape([2])),
    "proto": ir.serde.deserialize_tensor(
        onnx.helper.make_tensor("t", onnx.TensorProto.FLOAT, [1000], list(range(1000)))
    ),
}


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("kind", TENSORS)
def test_every_kind_of_tensor_reads_back_bit_for_bit(tmp_path: Path, kind: str, external: bool) -> None:
    model = holder({"w": TENSORS[kind]})
    write_onnx(model, tmp_path / "m.onnx", external_data=external)
    read = onnx.load(tmp_path / "m.onnx").graph.initializer[0]
    expected = np.array(TENSORS[kind].numpy(), order="C")
    found = onnx.numpy_helper.to_array(read)
    assert list(read.dims) == list(expected.shape)
    assert read.data_type == TENSORS[kind].dtype.value
    if kind == "string":
        assert list(read.string_data) == list(expected)
    else:
        assert found.astype(found.dtype.newbyteorder("<")).tobytes() == expected.astype(found.dtype).tobytes()


@pytest.mark.parametrize("external", [False, True])
def test_the_file_means_what_protobuf_would_have_written(tmp_path: Path, external: bool) -> None:
    model = add_model({"a": ir.tensor(ramp(1000)), "b": ir.tensor(ramp(1000, 7)), "c": ir.tensor(ramp(1000))}, 1000)
    plain = ir.to_proto(model)
    write_onnx(model, tmp_path / "m.onnx", external_data=external)
    read = onnx.load(tmp_path / "m.onnx")
    for record in read.graph.initializer:
        del record.external_data[:]
        record.ClearField("data_location")
    assert read == plain


def test_functions_metadata_and_opsets_survive(tmp_path: Path) -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 20, "local" : 1], producer_name: "p", metadata_props: ["k": "v"]>
    main (float[2] x) => (float[2] y) { y = local.twice (x) }
    <opset_import: ["" : 20], domain: "local"> twice (a) => (b) { b = Add (a, a) }"""
    proto = onnx.parser.parse_model(text)
    write_onnx(ir.from_proto(proto), tmp_path / "m.onnx")
    read = read_onnx_skeleton(tmp_path / "m.onnx")
    assert [(each.domain, each.version) for each in read.opset_import] == [("", 20), ("local", 1)]
    assert (read.functions[0].name, read.producer_name, read.metadata_props[0].value) == ("twice", "p", "v")
    check_onnx(ir.from_proto(proto))


@pytest.mark.parametrize("external", [False, True])
def test_same_bytes_each_run_and_in_every_directory(tmp_path: Path, external: bool) -> None:
    contents = []
    for directory in ("one", "two"):
        (tmp_path / directory).mkdir()
        model = add_model({"a": ir.tensor(ramp(1000)), "b": ir.tensor(ramp(1000, 5))}, 1000)
        files = write_onnx(model, tmp_path / directory / "m.onnx", external_data=external)
        contents.append({file.name: file.read_bytes() for file in files})
    assert contents[0] == contents[1]
    assert len(contents[0]) == (2 if external else 1)


def test_external_layout(tmp_path: Path) -> None:
    shared = ir.tensor(ramp(1000))
    model = add_model({"a": shared, "b": ir.tensor(ramp(1000, 5)), "again": shared}, 1000)
    main, data = write_onnx(model, tmp_path / "m.onnx", external_data=True)
    read = read_onnx_skeleton(main)
    places = [{entry.key: entry.value for entry in each.external_data} for each in read.graph.initializer]
    assert {place["location"] for place in places} == {data.name}
    assert [int(place["offset"]) for place in places] == [0, 4096, 0], "one object is stored once, page-aligned"
    assert data.stat().st_size == 4096 + 4000
    assert safe_external_locations(main) == [data]
    assert model.graph.initializers["a"].const_value is shared, "the model keeps its own tensors"


def test_different_content_gets_a_different_data_file(tmp_path: Path) -> None:
    _, one = write_onnx(add_model({"a": ir.tensor(ramp(1000))}, 1000), tmp_path / "m.onnx", external_data=True)
    _, two = write_onnx(add_model({"a": ir.tensor(ramp(1000, 1))}, 1000), tmp_path / "m.onnx", external_data=True)
    assert one != two
    assert one.read_bytes() == ramp(1000).tobytes()


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("same_name", [False, True])
def test_subgraph_initializers_run(tmp_path: Path, external: bool, same_name: bool) -> None:
    model = branches(ramp(20_000), same_name)
    check_onnx(model)
    files = write_onnx(model, tmp_path / "m.onnx", external_data=external)
    assert len(files) == (2 if external else 1)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    x = np.ones(20_000, np.float32)
    np.testing.assert_array_equal(session.run(None, {"x": x, "c": np.array(True)})[0], x + ramp(20_000))
    np.testing.assert_array_equal(session.run(None, {"x": x, "c": np.array(False)})[0], x - ramp(20_000))


def test_limit_decides_where_the_data_goes(tmp_path: Path) -> None:
    model = add_model({"a": ir.tensor(ramp(1000))}, 1000)
    assert len(write_onnx(model, tmp_path / "m.onnx")) == 1
    assert len(write_onnx(model, tmp_path / "m.onnx", inline_limit=2000)) == 2
    with pytest.raises(LoweringError, match="allow external data"):
        write_onnx(model, tmp_path / "m.onnx", external_data=False, inline_limit=2000)


def test_an_external_model_can_be_written_anew(tmp_path: Path) -> None:
    model = add_model({"a": ir.tensor(ramp(1000)), "small": ir.tensor(ramp(1000))}, 1000)
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    ir.save(model, tmp_path / "old" / "m.onnx", external_data="weights", size_threshold_bytes=0)
    loaded = ir.load(tmp_path / "old" / "m.onnx")
    assert write_onnx(loaded, tmp_path / "new" / "m.onnx") == [tmp_path / "new" / "m.onnx"]
    session = onnxruntime.InferenceSession(tmp_path / "new" / "m.onnx")
    np.testing.assert_array_equal(session.run(None, {"x": np.zeros(1000, np.float32)})[0], 2 * ramp(1000))


def test_wrong_tensors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LoweringError, match="'a' has no value"):
        write_onnx(add_model({"a": None}, 1000), tmp_path / "m.onnx")  # type: ignore[dict-item]
    lying = ir.LazyTensor(lambda: ir.tensor(ramp(10)), dtype=ir.DataType.FLOAT, shape=ir.Shape([1000]))
    with pytest.raises(LoweringError, match="40 bytes, not 4000"):
        write_onnx(add_model({"a": lying}, 1000), tmp_path / "m.onnx", external_data=True)
    assert list(tmp_path.iterdir()) == [], "a failed write leaves no partial data file"


MEMORY = """
import sys
import numpy as np
import onnx_ir as ir
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_onnx_file import add_model
from fxexport.lowering.onnx_file import check_onnx, write_onnx
def peak():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM")) // 1024
size = 8 << 20
model = add_model({{f"w{{i}}": ir.tensor(np.full(size, i, np.float32)) for i in range(8)}}, size)
before = peak()
check_onnx(model)
write_onnx(model, Path({path!r}), external_data={external})
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of resident memory from /proc")
@pytest.mark.parametrize("external", [False, True])
def test_writing_256_mib_takes_little_memory(tmp_path: Path, external: bool) -> None:
    tests = str(Path(__file__).parent)
    code = MEMORY.format(tests=tests, path=str(tmp_path / "m.onnx"), external=external)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 64, "MiB; protobuf alone would take 512 and more"
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) >= 2**28


def test_checker_accepts_a_model_beyond_two_gibibytes() -> None:
    size = 600_000_000
    check_onnx(add_model({"w": ir.tensor(np.zeros(size, np.float32))}, size))


def test_checker_finds_a_wrong_type_although_the_data_is_left_out() -> None:
    model = add_model({"w": ir.tensor(np.zeros(100_000, np.float64))}, 100_000)
    model.graph.initializers["w"].type = None
    with pytest.raises(LoweringError, match="checker says"):
        check_onnx(model)


def test_checker_reports_an_unknown_operator() -> None:
    model = add_model({"w": ir.tensor(ramp(4))}, 4)
    model.graph[0].op_type = "Aďd"
    with pytest.raises(LoweringError, match="checker says"):
        check_onnx(model)


@pytest.mark.parametrize(("first", "second"), [("x", "y0"), ("w", "y0"), ("y0", "y1")])
def test_one_name_for_two_values_is_refused(first: str, second: str) -> None:
    model = add_model({"w": ir.tensor(ramp(4)), "v": ir.tensor(ramp(4))}, 4)
    values = {each.name: each for node in model.graph for each in node.outputs}
    values[second].name = first
    with pytest.raises(LoweringError, match=f"two values are named '{first}'"):
        check_onnx(model)


def test_outputs_must_be_produced_and_distinct() -> None:
    model = add_model({"w": ir.tensor(ramp(4))}, 4)
    model.graph.outputs.append(model.graph.outputs[0])
    with pytest.raises(LoweringError, match="insert an Identity"):
        check_onnx(model)
    model.graph.outputs[1] = model.graph.inputs[0]
    with pytest.raises(LoweringError, match="'x' is also an input"):
        check_onnx(model)
    model.graph.outputs[1] = value("nowhere", [4])
    with pytest.raises(LoweringError, match="nothing in it produces the output 'nowhere'"):
        check_onnx(model)


def test_reading_says_where_and_how_large(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_onnx_skeleton(tmp_path / "none.onnx")
    write_onnx(holder({}), tmp_path / "m.onnx")
    assert read_onnx_skeleton(str(tmp_path / "m.onnx")).graph.name == "holder"
    assert safe_external_locations(tmp_path / "m.onnx") == []
