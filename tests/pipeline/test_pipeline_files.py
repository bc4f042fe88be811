"""What is refused when a pipeline is loaded, and what it says of itself."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from sample_pipelines import rewrite, save, transducer, transducer_spec, write

from fxexport.errors import InputError
from fxexport.pipeline import Pipeline
from fxexport.pipeline.checking import check_spec
from fxexport.pipeline.files import sha256_of
from fxexport.pipeline.spec import Initial, PartFile, PipelineSpec, Port, TensorPort, View


def test_json_gives_the_same_pipeline_back(tmp_path: Path) -> None:
    spec = transducer_spec(tmp_path)
    states = (
        replace(
            spec.states[0], initial=Initial((1, "batch", 3), "float32", values=[[[1.0, float("nan"), float("-inf")]]])
        ),
        replace(
            spec.states[0],
            initial=Initial((1,), "float32", source=Port("encoder", "x"), through=(View("squeeze", (0,)),)),
        ),
    )
    for each in (spec, replace(spec, states=states), replace(spec, states=())):
        text = json.dumps(each.to_json(), allow_nan=False)
        assert repr(PipelineSpec.from_json(json.loads(text))) == repr(each)


def test_a_directory_and_its_file_are_the_same_pipeline(tmp_path: Path) -> None:
    file = transducer(tmp_path)
    assert Pipeline.load(tmp_path).path == Pipeline.load(file).path == Pipeline.load(str(file)).path
    with pytest.raises(InputError, match=r"pipeline\.json does not exist"):
        Pipeline.load(tmp_path / "nowhere" / "pipeline.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="does not exist"):
        Pipeline.load(tmp_path / "empty")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "damaged, it is no JSON text"),
        ("[" * 200_000, "damaged"),
        ("[1]", "no pipeline of fxexport"),
        ('{"parts": []}', "no pipeline of fxexport"),
        ('{"fxexport_pipeline": 2}', "format version 2, this fxexport reads up to 1"),
        ('{"fxexport_pipeline": 1}', "lacks 'name'"),
    ],
)
def test_what_is_no_pipeline_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "pipeline.json").write_text(text)
    with pytest.raises(InputError, match=message):
        Pipeline.load(tmp_path)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "pipeline.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="damaged"):
        Pipeline.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parts": {}}, "'parts' of the pipeline must be a list"),
        ({"parts": []}, "need names of their own"),
        ({"format": "exe"}, "none of onnx, torchscript, pt2"),
        ({"loop": [1]}, "must be text, found 1"),
        ({"loop": ["joint"]}, "the loop calls"),
        ({"wires": [{"source": ["encoder", "outputs"]}]}, "a wire lacks 'target'"),
        ({"wires": []}, "nothing feeds decoder_joint.encoder_outputs"),
        ({"states": [{"input": ["a"]}]}, "a port must be a list"),
        ({"inputs": [], "wires": [], "states": []}, "nothing feeds encoder.audio"),
        ({"outputs": [["encoder", "nothing"]]}, "encoder.nothing is no output of a part"),
    ],
)
def test_a_damaged_description_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    rewrite(transducer(tmp_path), **changes)
    with pytest.raises(InputError, match=message):
        Pipeline.load(tmp_path)


Change = Callable[[PipelineSpec], PipelineSpec]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: replace(s, wires=s.wires * 2), "encoder_outputs is fed twice"),
        (lambda s: replace(s, parts=s.parts[::-1]), "'encoder' must run before 'decoder_joint'"),
        (lambda s: replace(s, loop=()), "only parts that are called each step"),
        (
            lambda s: replace(s, loop=(), wires=(replace(s.wires[0], chosen=False),)),
            "parts that are not called each step",
        ),
        (lambda s: replace(s, inputs=(replace(s.inputs[0], dtype="int64"), *s.inputs[1:])), "is declared int64"),
        (lambda s: replace(s, inputs=(replace(s.inputs[0], feeds=()), *s.inputs[1:])), "feed no part"),
        (lambda s: replace(s, inputs=(s.inputs[0], *s.inputs)), "two inputs of the pipeline have one name"),
        (lambda s: replace(s, parts=(replace(s.parts[0], name="inputs"), s.parts[1])), "none of them 'inputs'"),
        (
            lambda s: replace(s, states=(replace(s.states[0], initial=Initial((), "float32", values=["a"])),)),
            "cannot start as",
        ),
    ],
)
def test_a_pipeline_that_cannot_work_is_refused(tmp_path: Path, change: Change, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_spec(change(transducer_spec(tmp_path)))


def test_views_and_initial_values_are_checked_when_made() -> None:
    with pytest.raises(InputError, match="no view 'roll'"):
        View("roll", (1,))
    with pytest.raises(InputError, match="takes 4 arguments"):
        View("slice", (1, 2))
    with pytest.raises(InputError, match="cannot take 'x'"):
        View("permute", (0, "x"))
    with pytest.raises(InputError, match="exactly one of fill, values and source"):
        Initial((1,), "float32")


# ---------------------------------------------------------------- files of parts


def test_files_of_two_exports_are_told_apart(tmp_path: Path) -> None:
    transducer(tmp_path)
    file = tmp_path / "encoder-m.onnx"
    file.write_bytes(file.read_bytes() + b"\x00")
    with pytest.raises(InputError, match=r"encoder-m\.onnx and pipeline\.json do not belong together.*export again"):
        Pipeline.load(tmp_path)
    file.unlink()
    with pytest.raises(InputError, match=r"encoder-m\.onnx is missing, the file of part 'encoder'"):
        Pipeline.load(tmp_path)


_OUTSIDE = [
    "../secret.onnx",
    "sub/../../secret.onnx",
    "{root}/secret.onnx",
    "..\\secret.onnx",
    "C:\\secret.onnx",
    "C:secret.onnx",
    "",
    "link.onnx",
    "links/secret.onnx",
    "a\0.onnx",
]


@pytest.mark.parametrize("name", _OUTSIDE)
def test_fault_37_files_outside_the_directory_are_refused(tmp_path: Path, name: str) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    part = save(tmp_path, [helper.make_node("Neg", ["a"], ["b"])], PartFile("secret", "secret.onnx", "",
                (TensorPort("a", "float32", ("n",)),), (TensorPort("b", "float32", ("n",)),)))  # fmt: skip
    (inside / "sub").mkdir()
    os.symlink(tmp_path / "secret.onnx", inside / "link.onnx")
    os.symlink(tmp_path, inside / "links")
    file = transducer(inside)
    data = json.loads(file.read_text())
    data["parts"][0] |= {"file": name.format(root=tmp_path), "sha256": part.sha256}
    rewrite(file, parts=data["parts"])
    with pytest.raises(InputError, match=r"lies outside .*: refused"):
        Pipeline.load(inside)


def test_a_link_to_the_directory_itself_is_fine(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    transducer(tmp_path / "real")
    os.symlink(tmp_path / "real", tmp_path / "link")
    pipeline = Pipeline.load(tmp_path / "link")
    assert pipeline.run("encoder", audio=np.ones((1, 4, 1), np.float32), length=[1])["outputs"].sum() == 8


def _external(folder: Path, location: str) -> Path:
    """A transducer whose encoder keeps its weight in another file, at ``location``."""
    spec = transducer_spec(folder)
    file = folder / spec.parts[0].file
    model = onnx.load(str(file))
    tensor = onnx.numpy_helper.from_array(np.zeros((1, 4, 1), np.float32), "two")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": "0", "length": "16"}.items():
        tensor.external_data.add(key=key, value=value)
    model.graph.initializer[0].CopyFrom(tensor)
    file.write_bytes(model.SerializeToString())
    part = replace(spec.parts[0], sha256=sha256_of(file))
    return write(folder, replace(spec, parts=(part, spec.parts[1])))


def test_external_data_beside_the_model_works(tmp_path: Path) -> None:
    (tmp_path / "w.data").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    found = Pipeline.load(_external(tmp_path, "w.data")).run("encoder", audio=np.ones((1, 4, 1), "f"), length=[1])
    assert found["outputs"].ravel().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("location", ["../w.data", "{root}/w.data", "link.data"])
def test_external_data_outside_the_directory_is_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "w.data").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    inside = tmp_path / "inside"
    inside.mkdir()
    os.symlink(tmp_path / "w.data", inside / "link.data")
    pipeline = Pipeline.load(_external(inside, location.format(root=tmp_path)))
    with pytest.raises(InputError, match="cannot load"):
        pipeline.run("encoder", audio=np.ones((1, 4, 1), "f"), length=[1])


def test_a_file_whose_inputs_are_others_is_refused(tmp_path: Path) -> None:
    file = transducer(tmp_path)
    data = json.loads(file.read_text())
    data["parts"][0]["outputs"].append({"name": "third", "dtype": "float32", "axes": []})
    rewrite(file, parts=data["parts"])
    with pytest.raises(InputError, match=r"has the outputs .*the pipeline says .*'third'"):
        Pipeline.load(file).run("encoder", audio=np.ones((1, 4, 1), "f"), length=[1])


def test_fault_39_a_provider_that_is_missing_is_an_error(tmp_path: Path) -> None:
    file = transducer(tmp_path)
    with pytest.raises(InputError, match="provider NoSuchExecutionProvider is missing"):
        Pipeline.load(file, providers=["NoSuchExecutionProvider", "CPUExecutionProvider"])
    for wrong in ("CPUExecutionProvider", [], None):
        with pytest.raises(InputError, match="must be a list of names"):
            Pipeline.load(file, providers=wrong)  # type: ignore[arg-type]


# ---------------------------------------------------------------- looks, and life without PyTorch


def test_the_graph_has_the_wires_on_its_edges(tmp_path: Path) -> None:
    graph = Pipeline.load(transducer(tmp_path)).graph
    assert set(graph) == {"inputs", "encoder", "decoder_joint"}
    assert graph.edges["inputs", "encoder"]["wires"] == ["audio -> encoder.audio", "length -> encoder.length"]
    (wire,) = graph.edges["encoder", "decoder_joint"]["wires"]
    assert wire.startswith("encoder.outputs -> decoder_joint.encoder_outputs [chosen by the caller, such as slice(2")
    assert graph.edges["decoder_joint", "decoder_joint"]["wires"] == [
        "decoder_joint.output_states_1 -> decoder_joint.input_states_1 (state)"
    ]


def test_the_text_tells_everything(tmp_path: Path) -> None:
    pipeline = Pipeline.load(transducer(tmp_path))
    page = str(pipeline)
    for line in (
        "transducer: 2 parts in onnx",
        "  encoder        encoder-m.onnx        once",
        "  decoder_joint  decoder_joint-m.onnx  every step",
        "at first 0.0 [1, batch, 3] float32",
        "computed by driver.py:12",
        "made by a test",
        "  logits           decoder_joint.logits",
    ):
        assert line in page
    assert repr(pipeline) == f"Pipeline({str(tmp_path / 'pipeline.json')!r})"


_WITHOUT = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "rich", "onnxscript", "click", "transformers"):
            raise ModuleNotFoundError(f"{name} is not here", name=name)
sys.meta_path.insert(0, Refuse())
import numpy as np
import fxexport
from fxexport.pipeline import Pipeline
pipeline = Pipeline.load(sys.argv[1])
state = pipeline.start(audio=np.ones((1, 4, 2), "f"), length=[2])
outputs, state = pipeline.step(state, encoder_outputs=state["outputs"][:, :, :1], targets=[[3]])
assert outputs["logits"].tolist() == [[5, 5, 5, 5]], outputs
assert "encoder" in pipeline.graph and str(pipeline)
try:
    fxexport.errors
    pipeline.start(audio=1.0)
except fxexport.InputError as error:
    print(error)
assert "torch" not in sys.modules
"""


def test_onnx_runs_where_pytorch_cannot_be_imported(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", _WITHOUT, str(transducer(tmp_path))], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert "has 3 axes [batch, 4, time], got shape []" in result.stdout
