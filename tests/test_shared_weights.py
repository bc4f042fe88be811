"""Weights that several files hold, stored once: same numbers, fewer bytes, nothing moved that is not equal."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from fxexport.destination import data_file_name
from fxexport.errors import InputError
from fxexport.lowering import shared_weights
from fxexport.lowering.onnx_file import write_onnx
from fxexport.lowering.onnx_reading import external_entries, read_onnx_skeleton, safe_external_locations
from fxexport.lowering.shared_weights import MINIMUM, SharedWeights, share_weights
from fxexport.publishing import joint_publication, publication

SIZE = MINIMUM // 4  # float32 of exactly the smallest size


def ramp(start: float, size: int = SIZE) -> np.ndarray:
    return np.arange(start, start + size, dtype=np.float32)


def value(name: str, array: np.ndarray | None = None) -> ir.Value:
    tensor = None if array is None else ir.tensor(array, name=name)
    kind = ir.DataType.FLOAT if tensor is None else tensor.dtype
    shape = ir.Shape([1] if array is None else array.shape)
    return ir.Value(name=name, type=ir.TensorType(kind), shape=shape, const_value=tensor)


def write(path: Path, weights: dict[str, np.ndarray], external: bool = False) -> list[Path]:
    """A model that gives the sum of every weight, each as an output of its name."""
    x, held = value("x"), [value(f"w_{name}", array) for name, array in weights.items()]
    nodes = []
    for each in held:
        cast = ir.node("Cast", [each], {"to": ir.DataType.FLOAT})
        total = ir.node("ReduceSum", [cast.outputs[0]], {"keepdims": 0})
        nodes += [cast, total, ir.node("Add", [total.outputs[0], x], outputs=[value(f"y_{each.name}")])]
    graph = ir.Graph(
        [x], [n.outputs[0] for n in nodes[2::3]], nodes=nodes, initializers=held, opset_imports={"": 20}, name="sums"
    )
    for number, node in enumerate(nodes):
        for output in node.outputs:
            output.name = output.name or f"v{number}"
    return write_onnx(ir.Model(graph, ir_version=10), path, external_data=external)


def run(path: Path) -> list[float]:
    onnx.checker.check_model(str(path), full_check=True)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [float(array[0]) for array in session.run(None, {"x": np.zeros(1, np.float32)})]


def locations(path: Path) -> dict[str, str]:
    records = read_onnx_skeleton(path).graph.initializer
    return {record.name: external_entries(record).get("location", "") for record in records}


@pytest.mark.parametrize("external", [(False, False), (True, False), (True, True)])
def test_equal_weights_are_stored_once_and_every_file_computes_the_same(
    tmp_path: Path, external: tuple[bool, bool]
) -> None:
    a, b, c = (tmp_path / f"{name}.onnx" for name in "abc")
    same, square = ramp(1), ramp(7).reshape(128, -1)
    write(a, {"same": same, "square": square, "own": ramp(3), "small": ramp(0, 300)}, external[0])
    write(b, {"named": square.copy(), "other": same.copy(), "own": ramp(4)}, external[1])
    write(c, {"alone": ramp(5)})
    before, untouched = [run(path) for path in (a, b, c)], c.read_bytes()
    size = sum(file.stat().st_size for file in tmp_path.iterdir())
    shared = share_weights([a, b, c], tmp_path / "pipeline.json")
    assert shared.file_name
    content = (tmp_path / shared.file_name).read_bytes()
    assert shared.file_name == data_file_name("pipeline.json", hashlib.sha256(content).hexdigest())
    assert content == same.tobytes() + square.tobytes(), "each once, in the order of the first file"
    assert shared.tensors == 2
    assert shared.bytes_saved == size - sum(file.stat().st_size for file in tmp_path.iterdir()) > 1.9 * MINIMUM
    assert [run(path) for path in (a, b, c)] == before
    assert c.read_bytes() == untouched
    own = [locations(path).pop("w_own") for path in (a, b)]
    assert [bool(name) for name in own] == list(external)
    assert set(locations(a).values()) == {shared.file_name, own[0], locations(a)["w_small"]}
    named = {path for each in (a, b) for path in safe_external_locations(each)}
    assert named | {a, b, c} == set(tmp_path.iterdir()), "nothing is left over"


def test_files_without_common_weights_stay_byte_for_byte(tmp_path: Path) -> None:
    a, b = tmp_path / "a.onnx", tmp_path / "b.onnx"
    near = ramp(1)
    near[-1] += 1
    write(a, {"w": ramp(1), "twice": ramp(2), "again": ramp(2), "small": ramp(0, SIZE - 1)})
    write(b, {"w": near, "small": ramp(0, SIZE - 1), "shape": ramp(2).reshape(2, -1), "kind": ramp(2).view(np.int32)})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert share_weights([a, b], tmp_path / "pipeline.json") == SharedWeights(0, 0, None)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_weight_used_twice_in_one_file_goes_with_the_other_files_one(tmp_path: Path) -> None:
    a, b = tmp_path / "a.onnx", tmp_path / "b.onnx"
    write(a, {"one": ramp(1), "two": ramp(1)}, external=True)
    write(b, {"w": ramp(1)}, external=True)
    shared = share_weights([a, b], tmp_path / "b.onnx")
    assert shared.tensors == 1
    assert set(locations(a).values()) == set(locations(b).values()) == {shared.file_name}
    assert run(a) == run(b) * 2
    assert {path.name for path in tmp_path.iterdir()} == {"a.onnx", "b.onnx", shared.file_name}, "old data is gone"


def test_equal_hashes_are_not_taken_for_equal_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = tmp_path / "a.onnx", tmp_path / "b.onnx"
    write(a, {"w": ramp(1), "v": ramp(2)})
    write(b, {"w": ramp(3), "v": ramp(2)})
    before = run(a), run(b)
    real = shared_weights._identity
    monkeypatch.setattr(shared_weights, "_identity", lambda record, path: real(record, path)[:2])  # type: ignore[index]
    shared = share_weights([a, b], tmp_path / "pipeline.json")
    assert shared.tensors == 3, "the file holds each different content"
    assert (run(a), run(b)) == before


def test_same_files_same_bytes(tmp_path: Path) -> None:
    runs = []
    for name in ("one", "other place"):
        folder = tmp_path / name
        folder.mkdir()
        paths = [folder / "a.onnx", folder / "b.onnx"]
        write(paths[0], {"w": ramp(1), "own": ramp(2)}, external=True)
        write(paths[1], {"v": ramp(1), "own": ramp(3)})
        share_weights(paths, folder / "pipeline.json")
        runs.append({path.name: path.read_bytes() for path in folder.iterdir()})
        again = share_weights(paths, folder / "pipeline.json")
        assert again.bytes_saved == 0
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == runs[-1], "doing it twice changes nothing"
    assert runs[0] == runs[1]


def test_a_rewritten_file_that_is_cut_short_is_noticed(tmp_path: Path) -> None:
    a, b = tmp_path / "a.onnx", tmp_path / "b.onnx"
    write(a, {"w": ramp(1), "own": ramp(2)})
    write(b, {"w": ramp(1)})
    share_weights([a, b], tmp_path / "pipeline.json")
    content = b.read_bytes()
    for end in range(len(content)):
        b.write_bytes(content[:end])
        with pytest.raises(InputError):
            read_onnx_skeleton(b)


def test_weights_of_subgraphs_are_shared_too(tmp_path: Path) -> None:
    a, b = tmp_path / "a.onnx", tmp_path / "b.onnx"
    inner = value("inner", ramp(1))
    branch = ir.node("Identity", [inner])
    branch.outputs[0].name = "chosen"
    body = ir.Graph([], branch.outputs, nodes=[branch], initializers=[inner], name="body")
    x = value("x")
    yes = ir.node("Constant", [], {"value": ir.tensor(True)})
    other = ir.node("Constant", [], {"value": ir.tensor(np.zeros(1, np.float32))})
    other.outputs[0].name = "zero"
    rest = ir.Graph([], other.outputs, nodes=[other], name="rest")
    chosen = ir.node("If", [yes.outputs[0]], {"then_branch": body, "else_branch": rest})
    total = ir.node("ReduceSum", chosen.outputs, {"keepdims": 0})
    nodes = [yes, chosen, total, ir.node("Add", [total.outputs[0], x], outputs=[value("y")])]
    graph = ir.Graph([x], nodes[-1].outputs, nodes=nodes, opset_imports={"": 20}, name="main")
    for number, node in enumerate(nodes):
        node.outputs[0].name = node.outputs[0].name or f"v{number}"
    write_onnx(ir.Model(graph, ir_version=10), a)
    write(b, {"w": ramp(1)})
    before = run(a), run(b)
    assert share_weights([a, b], tmp_path / "pipeline.json").tensors == 1
    assert a.stat().st_size < MINIMUM
    assert (run(a), run(b)) == before


def test_files_of_two_directories_are_refused(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    with pytest.raises(InputError, match="use one directory"):
        share_weights([tmp_path / "sub" / "a.onnx"], tmp_path / "pipeline.json")


def test_shared_weights_are_published_and_swept_with_their_files(tmp_path: Path) -> None:
    targets, main = [tmp_path / "a.onnx", tmp_path / "b.onnx"], tmp_path / "pipeline.json"

    def export(start: float) -> str | None:
        with joint_publication(targets, main) as staging:
            for target in targets:
                write(staging.path_of(target), {"w": ramp(start), "own": ramp(9)[: SIZE // 2]}, external=True)
            shared = share_weights([staging.path_of(target) for target in targets], staging.main)
            staging.main.write_text("{}")
            staging.publish()
        return shared.file_name

    first = export(1)
    second = export(2)
    assert first != second
    files = {path for target in targets for path in safe_external_locations(target)}
    assert second in {path.name for path in files}
    assert set(tmp_path.iterdir()) == {*targets, main, *files}
    expected = [float(ramp(2).sum()), float(ramp(9)[: SIZE // 2].sum())]
    assert run(targets[0]) == run(targets[1]) == pytest.approx(expected, rel=1e-4)
    with publication(targets[0]) as alone:
        write(alone.main, {"w": ramp(3)})
        alone.publish()
    assert run(targets[1]) == pytest.approx(expected, rel=1e-4)
