"""Parts by name and their files, replacements by class, and the mix-in's ``export``."""

from __future__ import annotations

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fxexport.errors import InputError
from fxexport.exportable import Exportable, ExportRequest, Part, entry, list_subnets, prepared_part, subnet_files
from fxexport.tensor_types import Tensor


def prepared(model: nn.Module, name: str = "self", example: Any = None, **request: Any) -> Part:
    with prepared_part(model, name, ExportRequest(Path("/tmp/model.onnx"), **request), example) as part:
        part.module(*part.args, **part.kwargs)
        return part


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.norm = nn.LayerNorm(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.linear(x))


class DecoderJoint(nn.Module, Exportable):
    def __init__(self, decoder: nn.Module, joint: nn.Module) -> None:
        super().__init__()
        self.decoder, self.joint = decoder, joint

    @property
    def input_types(self) -> Any:
        return {"encoder_outputs": Tensor("batch", "time", "dimension"), "targets": Tensor("batch", "dimension")}

    def input_example(self, max_batch: int | None = 1, max_dim: int | None = 1) -> Any:
        return torch.rand(1, 5, 3), torch.rand(1, 3)

    def forward(self, encoder_outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return self.joint(encoder_outputs + self.decoder(targets)[:, None])


class Transducer(nn.Module, Exportable):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(Block(), nn.ModuleDict({"a": Block()})["a"])
        self.decoder, self.joint = Block(), Block()
        self.decoder_type = "rnnt"
        self.encoder_twice = self.encoder

    def list_export_subnets(self) -> list[str]:
        return ["encoder", "decoder_joint"] if self.decoder_type == "rnnt" else ["self"]

    def set_export_config(self, args: Any) -> None:
        self.decoder_type = args["decoder_type"]
        super().set_export_config(args)

    @property
    def decoder_joint(self) -> nn.Module:
        return DecoderJoint(self.decoder, self.joint)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.encoder(x)


def test_s25_subnets_by_attribute_and_by_a_property_that_builds(untouched: Any) -> None:
    model = Transducer()
    with untouched(model):
        assert list_subnets(model) == ["encoder", "decoder_joint"]
        part = prepared(model, "decoder_joint")
        assert list_subnets(model, {"decoder_type": "ctc"}) == ["self"]
    assert part.owner == "DecoderJoint"
    assert list(part.input_types or ()) == ["encoder_outputs", "targets"]
    with pytest.raises(InputError, match="no example input for Sequential"):
        prepared(model, "encoder")
    assert prepared(model, "encoder", ((torch.ones(1, 3),), {})).name == "encoder"
    assert list_subnets(Block()) == ["self"]


@pytest.mark.parametrize("hook", [staticmethod(lambda: ["linear"]), property(lambda self: ["linear"])])
def test_s25_a_list_that_is_static_or_a_property(hook: Any) -> None:
    assert list_subnets(type("Model", (Block,), {"list_export_subnets": hook})()) == ["linear"]


def test_s25_get_export_subnet_is_asked() -> None:
    def get(self: Any, subnet: str | None = None) -> nn.Module:
        return {"first": self.linear}[str(subnet)]

    hooks = {"list_export_subnets": lambda self: ["first"], "get_export_subnet": get}
    model = type("Model", (Block,), hooks)()
    assert list_subnets(model) == ["first"]
    with pytest.raises(
        InputError, match=r"Model\.get_export_subnet\('second'\) raised KeyError|get_export_subnet raised"
    ):
        prepared(model, "second")


WRONG = ["a/b", "a\\b", ".hidden", "..", "", " ", "a\nb", "a\0b", "con:x"]


@pytest.mark.parametrize("name", WRONG)
def test_fault_49_subnet_names_that_cannot_be_in_a_file_name(name: str) -> None:
    model = type("Model", (Block,), {"list_export_subnets": lambda self: ["linear", name]})()
    with pytest.raises(InputError, match=r"Model\.list_export_subnets names the subnet"):
        list_subnets(model)


@pytest.mark.parametrize("names", [["linear", "linear"], ["linear", "Linear"], ["self", "self"]])
def test_fault_49_names_that_would_share_a_file(names: list[str]) -> None:
    model = type("Model", (Block,), {"list_export_subnets": lambda self: names})()
    with pytest.raises(InputError, match=r"Model\.list_export_subnets names .* one file"):
        list_subnets(model)


@pytest.mark.parametrize("names", ["linear", [], None, [3], {"linear", "norm"}])
def test_fault_49_lists_that_are_none(names: Any) -> None:
    model = type("Model", (Block,), {"list_export_subnets": lambda self: names})()
    with pytest.raises(InputError, match=r"Model\.list_export_subnets must return a list of names"):
        list_subnets(model)


def test_fault_49_names_that_lead_nowhere() -> None:
    model = type("Model", (Block,), {"list_export_subnets": lambda self: ["encoder"]})()
    with pytest.raises(InputError, match="no attribute 'encoder'; its modules are: linear, norm"):
        list_subnets(model)
    model = type("Model", (Block,), {"list_export_subnets": lambda self: ["eps"], "eps": 1e-5})()
    with pytest.raises(InputError, match=r"Model\.eps must be an nn\.Module"):
        list_subnets(model)


def test_s25_files() -> None:
    path = Path("out/model.onnx")
    files = subnet_files(path, ["self", "encoder", "décodeur joint"])
    assert files == {
        "self": path,
        "encoder": Path("out/encoder-model.onnx"),
        "décodeur joint": Path("out/décodeur joint-model.onnx"),
    }
    with pytest.raises(InputError, match="has 256 bytes"):
        subnet_files(Path("x" * 243 + ".onnx"), ["encoder"])
    assert subnet_files(Path("x" * 242 + ".onnx"), ["encoder"])
    with pytest.raises(InputError, match="one file"):
        subnet_files(path, ["a", "A"])


class Rms(nn.Module):
    def __init__(self, like: nn.LayerNorm) -> None:
        super().__init__()
        self.inner = like  # holds what it replaces: must not be replaced again

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * self.inner(x)


def test_s34_replacements_by_class_name(untouched: Any) -> None:
    model = Transducer().eval()
    example = ((torch.ones(1, 3),), {})
    with untouched(model):
        part = prepared(model, "self", example, replacements={"LayerNorm": Rms})
    assert [type(part.module.get_submodule(n)) for n in ("encoder.0.norm", "encoder.1.norm", "joint.norm")] == [Rms] * 3
    assert part.module.encoder_twice is part.module.encoder
    assert "4 LayerNorm replaced" in part.notes
    assert part.original is not None
    assert type(part.original.joint.norm) is nn.LayerNorm
    assert torch.equal(part.original(*example[0]), model(*example[0]))
    assert not torch.equal(part.module(*example[0]), model(*example[0]))


def test_s34_a_factory_may_leave_a_module_and_a_shared_one_stays_shared() -> None:
    shared = nn.ReLU()
    model = nn.Sequential(shared, nn.Sequential(shared, nn.Tanh()))
    example = ((torch.ones(1, 3),), {})
    part = prepared(model, "self", example, replacements={"torch.nn.modules.activation.ReLU": lambda m: nn.GELU()})
    assert part.module[0] is part.module[1][0]
    assert type(part.module[0]) is nn.GELU
    part = prepared(model, "self", example, replacements={"ReLU": lambda m: None})
    assert "0 ReLU replaced (1 left as they are: the factory returned None)" in part.notes


def test_s34_wrong_replacements() -> None:
    example = ((torch.ones(1, 3),), {})
    with pytest.raises(InputError, match=r"no module of Transducer is of class 'Layernorm2d'; close names: LayerNorm"):
        prepared(Transducer(), "self", example, replacements={"Layernorm2d": Rms})
    with pytest.raises(InputError, match=r"replacements\['Block'\] on encoder\.0 must return a module.*returned 3"):
        prepared(Transducer(), "self", example, replacements={"Block": lambda m: 3})  # type: ignore[dict-item, return-value]
    with pytest.raises(InputError, match=r"replacements\['Block'\] on encoder\.0 raised KeyError"):
        prepared(Transducer(), "self", example, replacements={"Block": lambda m: {}["x"]})
    # A class that only another part has is no misspelling.
    assert prepared(Transducer(), "decoder_joint", replacements={"Sequential": lambda m: None})


@pytest.fixture
def calls() -> Iterator[list[tuple[Any, dict[str, Any]]]]:
    """What ``export`` gives to a stand-in for ``compile``."""
    made: list[tuple[Any, dict[str, Any]]] = []
    spec = types.SimpleNamespace(
        parts=[types.SimpleNamespace(name=n, file=f"{n}-m.onnx") for n in ("decoder_joint", "encoder")]
    )

    def compile(model: Any, path: Any, *, input_example: Any, rtol: Any = None, **options: Any) -> Any:
        raise AssertionError("replaced below")

    def run(model: Any, path: Any, *, input_example: Any = None, **options: Any) -> Any:
        made.append((input_example, options))
        several = isinstance(model, Transducer)
        if several:
            return types.SimpleNamespace(path=Path(path).parent / "pipeline.json", spec=spec)
        return types.SimpleNamespace(path=Path(path))

    run.__signature__ = __import__("inspect").signature(compile)  # type: ignore[attr-defined]
    before = list(entry._entry)
    entry.register(run)
    yield made
    entry._entry[:] = before


def test_s2_export_returns_files_and_descriptions(calls: Any, untouched: Any) -> None:
    model = Transducer()
    with untouched(model):
        files, lines = model.export("out/m.onnx", check_trace=True, rtol=1e-3, normalization_type="minmax")
    assert files == [str(Path("out/encoder-m.onnx")), str(Path("out/decoder_joint-m.onnx"))]
    assert lines == [
        "torch.nn.modules.container.Sequential exported to ONNX",
        f"{__name__}.DecoderJoint exported to ONNX",
    ]
    given, options = calls[0]
    assert given is None
    assert options["prepare"] == {"normalization_type": "minmax"}
    assert options["rtol"] == 1e-3
    assert options["check_trace"] is True
    assert options["opset_version"] is None


def test_s6_export_hands_the_input_example_on_as_such(calls: Any) -> None:
    x = torch.ones(1)
    model = DecoderJoint(Block(), Block())
    files, lines = model.export("m.pt", (x, {"targets": x}))
    model.export("m.pt", {"targets": x})
    model.export("m.pt", x)
    assert [given for given, _ in calls] == [(x, {"targets": x}), {"targets": x}, x]
    assert files == ["m.pt"]
    assert lines == [f"{__name__}.DecoderJoint exported to TorchScript"]


def test_defaults_of_the_mix_in_give_way_to_attributes() -> None:
    class Model(nn.Module, Exportable):
        def __init__(self) -> None:
            super().__init__()
            self.input_types = {"x": Tensor("batch"), "y": Tensor("batch")}
            self.disabled_deployment_input_names = {"y"}
            self.input_module = nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.input_module(x)

    model = Model()
    assert Exportable.input_types is None
    part = prepared(model, example=((torch.ones(2),), {}))
    assert list(part.input_types or ()) == ["x"]
    assert Transducer().input_names == []
    assert DecoderJoint(Block(), Block()).input_names == ["encoder_outputs", "targets"]
