"""Rows S16-S29 of the seed: the hooks on the model."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from conftest import Untouched
from seed_models import Listener, Recognizer, assert_close, exported, onnx_io, operators, run_onnx
from torch import nn

import fxexport
from fxexport import Exportable, InputError, Pass, PassResult, Pipeline, Tensor, ValidationError


class Scores(nn.Module):
    """[batch, time, 8] -> [batch, time, 4], and hooks given as attributes of the class."""

    input_types: ClassVar[Any] = {"audio": Tensor("batch", "time", 8)}
    output_types: ClassVar[Any] = {"scores": Tensor("batch", "time", "channel")}

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.linear = nn.Linear(8, 4)

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        return self.linear(audio)


X = torch.randn(3, 5, 8)


# ---------------------------------------------------------------- S16


class Method(Scores):
    def input_example(self, **kwargs: Any) -> Any:
        return (torch.randn(2, 6, 8),)


class SizedMethod(Scores):
    def input_example(self, max_batch: int = 1, max_dim: int = 256) -> Any:
        return torch.randn(max_batch, max_dim, 8)  # batch 1, which torch.export would fix


class RequiredSizes(Scores):
    def input_example(self, max_batch: int, max_dim: int) -> Any:
        return torch.randn(max_batch, max_dim // 64, 8)


class Property(Scores):
    @property
    def input_example(self) -> Any:
        return {"audio": torch.randn(2, 6, 8)}


@pytest.mark.parametrize("kind", [Method, SizedMethod, RequiredSizes, Property])
def test_s16_input_example_as_method_or_property(kind: type[Scores], out: Path) -> None:
    model = kind().eval()
    exported(model, out)
    assert onnx_io(out)[0] == {"audio": ["batch", "time", 8]}
    assert_close(run_onnx(out, audio=X), model(X))


def test_s16_an_example_that_was_given_comes_before_the_hook(out: Path) -> None:
    class Never(Scores):
        def input_example(self) -> Any:
            raise AssertionError("the hook was asked")

    exported(Never(), out, X)
    assert onnx_io(out)[0] == {"audio": ["batch", "time", 8]}


# ---------------------------------------------------------------- S17


class Axis(Enum):
    """A stand-in of a toolbox's axis kinds."""

    Batch = 0
    Time = 1
    Dimension = 2


def neural(*kinds: Axis, optional: bool = False) -> Any:
    """What a toolbox's NeuralType looks like from outside."""
    axes = tuple(SimpleNamespace(kind=kind, size=None, is_list=False) for kind in kinds)
    return SimpleNamespace(axes=axes, elements_type=SimpleNamespace(), optional=optional)


class Renamed(nn.Module):
    """The names of the types are not those of the parameters; they belong to them in order."""

    def __init__(self, types: Any) -> None:
        super().__init__()
        self.types = types

    @property
    def input_types(self) -> Any:
        return self.types

    @property
    def output_types(self) -> Any:
        return {"sum": next(iter(self.types.values()))}

    def forward(self, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor | None = None) -> torch.Tensor:
        return a + b[:, None, None] if c is None else a + b[:, None, None] + c


@pytest.mark.parametrize(
    "types",
    [
        {
            "audio": Tensor("batch", "time", "dimension"),
            "gain": Tensor("batch"),
            "noise": Tensor("batch", "time", "dimension", optional=True),
        },
        {
            "audio": neural(Axis.Batch, Axis.Time, Axis.Dimension),
            "gain": neural(Axis.Batch),
            "noise": neural(Axis.Batch, Axis.Time, Axis.Dimension, optional=True),
        },
    ],
    ids=["own-form", "neural-types"],
)
def test_s17_types_give_names_axes_and_what_is_optional(types: Any, out: Path) -> None:
    example = (X, torch.randn(3))
    exported(Renamed(types), out, example)
    assert onnx_io(out) == ({"audio": ["batch", "time", 8], "gain": ["batch"]}, {"sum": ["batch", "time", 8]})
    exported(Renamed(types), out, (*example, torch.randn(3, 5, 8)))
    assert list(onnx_io(out)[0]) == ["audio", "gain", "noise"]
    audio, gain, noise = torch.randn(1, 9, 8), torch.randn(1), torch.randn(1, 9, 8)
    assert_close(run_onnx(out, audio=audio, gain=gain, noise=noise), audio + gain[:, None, None] + noise)


def test_s17_types_that_contradict_the_example_are_refused(out: Path) -> None:
    for types, message in (
        ({"audio": Tensor("batch", "time")}, r"Scores.input_types declares 'audio'.*2 axes are declared.*has 3"),
        ({"audio": Tensor("batch", "time", 7)}, r"Scores.input_types declares 'audio'.*axis 2 has size 8"),
        ({"audio": Tensor("batch", "time", 8, dtype=torch.float64)}, r"'audio' as float64.*the dtype is float32"),
    ):
        model = Scores()
        model.input_types = types
        with pytest.raises(InputError, match=message):
            exported(model, out, X)
    assert not list(out.parent.iterdir())


# ---------------------------------------------------------------- S18, S19, S20


class ForExport(Scores):
    """The override fixes the time axis and gives other names."""

    @property
    def input_types_for_export(self) -> Any:
        return {"signal": Tensor("rows", 5, 8)}

    @property
    def output_types_for_export(self) -> Any:
        return {"logits": Tensor("rows", 5, 4)}


def test_s18_types_for_export_come_before_types(out: Path) -> None:
    exported(ForExport(), out, X)
    assert onnx_io(out) == ({"signal": ["rows", 5, 8]}, {"logits": ["rows", 5, 4]})


class Head(nn.Module):
    output_types: ClassVar[Any] = {"probabilities": Tensor("batch", "time", "channel")}

    def forward(self, scores: torch.Tensor) -> torch.Tensor:
        return torch.softmax(scores, -1)


class Wrapper(nn.Module, Exportable):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = Method(), Head()

    @property
    def input_module(self) -> nn.Module:
        return self.encoder

    @property
    def output_module(self) -> nn.Module:
        return self.head

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(audio))


def test_s19_input_module_and_output_module_say_what_a_wrapper_takes_and_gives(out: Path) -> None:
    model = Wrapper().eval()
    exported(model, out)
    assert onnx_io(out) == ({"audio": ["batch", "time", 8]}, {"probabilities": ["batch", "time", 4]})
    assert_close(run_onnx(out, audio=X), model(X))


class Many(nn.Module, Exportable):
    """Two of three inputs and two of three outputs are deployed."""

    input_types: ClassVar[Any] = {"a": Tensor("batch"), "b": Tensor("batch", optional=True), "c": Tensor("batch")}
    output_types: ClassVar[Any] = {"sum": Tensor("batch"), "debug": Tensor("batch"), "product": Tensor("batch")}
    disabled_deployment_input_names: ClassVar[Any] = {"b"}
    disabled_deployment_output_names: ClassVar[Any] = {"debug"}

    def input_example(self) -> Any:
        return torch.randn(2), torch.randn(2), torch.randn(2)  # still holds the disabled one

    def forward(self, a: torch.Tensor, b: torch.Tensor | None, c: torch.Tensor) -> Any:
        b = torch.zeros_like(a) if b is None else b
        return a + b - c, a / 7, a * c


def test_s20_names_are_the_types_less_the_disabled_ones(out: Path) -> None:
    model = Many()
    assert (model.input_names, model.output_names) == (["a", "c"], ["sum", "product"])
    exported(model, out)
    assert [list(side) for side in onnx_io(out)] == [model.input_names, model.output_names]


class Literal(Scores):
    """Names of the model's own, as a list."""

    input_names: ClassVar[Any] = ["chunk"]
    output_names: ClassVar[Any] = ["spans"]


def test_s20_names_that_a_model_lists_itself(out: Path) -> None:
    exported(Literal(), out, X)
    assert [list(side) for side in onnx_io(out)] == [["chunk"], ["spans"]]


# ---------------------------------------------------------------- S21, S22


def test_s21_disabled_inputs_and_outputs_are_not_in_the_artifact(out: Path) -> None:
    exported(Many(), out)
    assert onnx_io(out) == ({"a": ["batch"], "c": ["batch"]}, {"sum": ["batch"], "product": ["batch"]})
    a, c = torch.randn(4), torch.randn(4)
    assert_close(run_onnx(out, a=a, c=c), [a - c, a * c])
    assert not {"Div"} & operators(out).keys()  # what only the disabled output needs


class Streaming(Scores):
    """Exported is another computation, with another signature."""

    input_types: ClassVar[Any] = {"audio": Tensor("batch", "time", 8), "cache": Tensor("batch", 4)}
    output_types: ClassVar[Any] = {"scores": Tensor("batch", "time", 4), "next_cache": Tensor("batch", 4)}

    def input_example(self) -> Any:
        return torch.randn(2, 6, 8), torch.randn(2, 4)

    def forward_for_export(self, audio: torch.Tensor, cache: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = self.forward(audio) + cache[:, None]
        return scores, scores[:, -1]


@pytest.mark.parametrize("suffix", ["onnx", "pt"])
def test_s22_forward_for_export_is_used_and_the_class_is_not_patched(
    suffix: str, tmp_path: Path, untouched: Untouched
) -> None:
    model, forward = Streaming().eval(), Streaming.forward
    with untouched(model):
        artifact = exported(model, tmp_path / f"m.{suffix}")
    assert Streaming.forward is forward
    assert "forward" not in vars(model)
    cache = torch.randn(3, 4)
    assert_close(artifact(X, cache), model.forward_for_export(X, cache))
    assert model(X).shape == (3, 5, 4)  # a plain call still takes one argument


# ---------------------------------------------------------------- S23


CALLS: list[tuple[str, str, dict[str, Any]]] = []


class Logged(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.scale = name, 1.0

    def _prepare_for_export(self, **kwargs: Any) -> None:
        CALLS.append(("prepare", self.name, kwargs))
        self.scale = 3.0

    def _export_teardown(self) -> None:
        CALLS.append(("teardown", self.name, {}))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


class Outer(Logged):
    def __init__(self) -> None:
        super().__init__("outer")
        self.first, self.second = Logged("first"), Logged("second")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x)) + self.scale


def test_s23_prepare_runs_inside_first_with_the_documented_arguments(out: Path, untouched: Untouched) -> None:
    CALLS.clear()
    model, x = Outer().eval(), torch.ones(2)
    with untouched(model), pytest.warns(UserWarning, match="_prepare_for_export"):
        exported(
            model, out, x, prepare={"normalization_type": "minmax"}, check_trace=[torch.zeros(2)], opset_version=20
        )
    assert [(what, name) for what, name, _ in CALLS] == [
        ("prepare", "first"),
        ("prepare", "second"),
        ("prepare", "outer"),
        ("teardown", "outer"),
        ("teardown", "second"),
        ("teardown", "first"),
    ]
    documented = {
        "verbose",
        "do_constant_folding",
        "onnx_opset_version",
        "check_trace",
        "dynamic_axes",
        "check_tolerance",
        "export_modules_as_functions",
        "keep_initializers_as_inputs",
        "use_dynamo",
    }
    for _, name, kwargs in CALLS[:3]:
        assert documented <= kwargs.keys()
        assert kwargs["normalization_type"] == "minmax"
        assert kwargs["onnx_opset_version"] == 20
        assert kwargs.get("noreplace", False) is (name != "outer")
    own = CALLS[2][2]
    assert own["output"] == str(out)
    assert len(own["input_example"]) == 1
    torch.testing.assert_close(own["input_example"][0], x)
    assert_close(run_onnx(out, x=x), x * 9 + 3)  # the prepared model
    assert_close(model(x), x + 1)  # the user's


def test_s23_extra_arguments_of_export_reach_the_hook(out: Path) -> None:
    CALLS.clear()

    class Mixed(Outer, Exportable):
        pass

    with pytest.warns(UserWarning, match="_prepare_for_export"):
        Mixed().eval().export(out, input_example=torch.ones(2), normalization_type="max")
    assert {kwargs["normalization_type"] for what, _, kwargs in CALLS if what == "prepare"} == {"max"}


def test_s23_an_argument_that_no_hook_takes_is_an_error(out: Path) -> None:
    class Strict(Scores, Exportable):
        def _prepare_for_export(self, *, normalization_type: str = "none") -> None:
            pass

    with pytest.raises(InputError, match="normalisation_type: neither an option of the export nor taken by"):
        Strict().export(out, input_example=X, normalisation_type="max")
    assert not list(out.parent.iterdir())


def test_s23_teardown_runs_when_the_export_fails(out: Path) -> None:
    class Failing(Outer):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.sum() > 0:
                return super().forward(x)
            return x.sum()  # of another rank: no graph returns both

    CALLS.clear()
    with pytest.raises(fxexport.CaptureError, match=r"x\.sum"):
        exported(Failing().eval(), out, torch.ones(2))
    assert [name for what, name, _ in CALLS if what == "teardown"] == ["outer", "second", "first"]


def test_s23_what_the_hook_changes_in_the_numbers_is_said_or_refused(out: Path) -> None:
    with pytest.raises(ValidationError, match="exact_prepare"):
        exported(Outer().eval(), out, torch.ones(2), exact_prepare=True)
    assert not out.exists()


# ---------------------------------------------------------------- S25, S26


def test_s25_subnets_are_files_named_by_subnet_and_path(tmp_path: Path, untouched: Untouched) -> None:
    asked: list[str | None] = []

    class Named(Listener):
        def get_export_subnet(self, subnet: str | None = None) -> Any:
            asked.append(subnet)
            return super().get_export_subnet(subnet)

    model = Named().eval()
    with untouched(model):
        pipeline = fxexport.compile(model, tmp_path / "speech.onnx")
    assert isinstance(pipeline, Pipeline)
    names = ["decoder-speech.onnx", "encoder-speech.onnx", "pipeline.json"]
    assert sorted(file.name for file in tmp_path.iterdir()) == names
    assert {"encoder", "decoder"} <= set(asked)
    audio = torch.randn(1, 8, 4)
    assert_close(run_onnx(tmp_path / "encoder-speech.onnx", audio=audio), model.encoder(audio))


def test_s25_self_keeps_the_name_as_given(tmp_path: Path) -> None:
    class Whole(Recognizer):
        def list_export_subnets(self) -> list[str]:
            return ["self"]

    exported(Whole(), tmp_path / "m.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]

    class Both(Listener):
        def __init__(self) -> None:
            super().__init__()
            self.encoder.input_example = lambda: torch.randn(2, 8, 10)  # type: ignore[assignment]

        def list_export_subnets(self) -> list[str]:
            return ["self", "encoder"]

    fxexport.compile(Both().eval(), tmp_path / "both.onnx")
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "both.onnx",
        "encoder-both.onnx",
        "m.onnx",
        "pipeline.json",
    ]


def test_s26_the_next_subnet_is_exported_on_what_really_flowed(tmp_path: Path) -> None:
    fxexport.compile(Listener().eval(), tmp_path / "m.onnx")
    inputs, _ = onnx_io(tmp_path / "decoder-m.onnx")
    # One frame and a state: the whole output of the encoder, [batch, 6, frames], would not even run.
    assert [axes[1:] for axes in inputs.values()] == [[6], [5]]
    assert list(inputs) == ["frame", "state"]


def test_s26_a_further_example_is_for_the_first_subnet(tmp_path: Path) -> None:
    model = Listener().eval()
    fxexport.compile(model, tmp_path / "m.onnx", torch.randn(4, 8, 6))
    audio = torch.randn(1, 8, 12)
    assert_close(run_onnx(tmp_path / "encoder-m.onnx", audio=audio), model.encoder(audio))


# ---------------------------------------------------------------- S27


class Configured(Scores, Exportable):
    """``cache_support`` adds an output."""

    def __init__(self) -> None:
        super().__init__()
        self.with_cache = False

    def set_export_config(self, args: Any) -> None:
        super().set_export_config(args)
        self.with_cache = self.get_export_config().get("cache_support") == "True"

    @property
    def output_types(self) -> Any:  # type: ignore[override]
        cache = {"cache": Tensor("batch", 4)} if self.with_cache else {}
        return {"scores": Tensor("batch", "time", 4), **cache}

    def forward(self, audio: torch.Tensor) -> Any:
        scores = super().forward(audio)
        return (scores, scores[:, -1]) if self.with_cache else scores


def test_s27_export_config_acts_on_the_private_copy(out: Path, untouched: Untouched) -> None:
    model = Configured().eval()
    with untouched(model):
        exported(model, out, X, export_config={"cache_support": "True", "other": 1})
    assert list(onnx_io(out)[1]) == ["scores", "cache"]
    assert model.get_export_config() == {}
    exported(model, out, X)
    assert list(onnx_io(out)[1]) == ["scores"]


def test_s27_a_config_set_on_the_model_counts(out: Path) -> None:
    model = Configured().eval()
    model.set_export_config({"a": 1})
    model.set_export_config({"cache_support": "True"})
    assert model.get_export_config() == {"a": 1, "cache_support": "True"} == model.export_config
    model.export(out, input_example=X)
    assert list(onnx_io(out)[1]) == ["scores", "cache"]


def test_s27_a_model_without_the_hook_cannot_be_configured(out: Path) -> None:
    with pytest.raises(InputError, match=r"Scores has no set_export_config\(dict\) hook"):
        exported(Scores(), out, X, export_config={"decoder_type": "ctc"})
    assert not list(out.parent.iterdir())


def test_s27_the_preparing_hook_reads_it(out: Path) -> None:
    class Reader(Configured):
        def _prepare_for_export(self, **kwargs: Any) -> None:
            READ.append(self.get_export_config())

    READ.clear()
    exported(Reader().eval(), out, X, export_config={"decoder_type": "ctc"})
    assert READ == [{"decoder_type": "ctc"}]


def test_s27_a_pass_reads_it(out: Path) -> None:
    @dataclass(frozen=True)
    class Reading(Pass):
        """x -> x: keeps what it read of the export config."""

        name: ClassVar[str] = "reading"

        def run(self, program: fxexport.Program) -> PassResult:
            READ.append(dict(program.config))
            return PassResult(0)

    READ.clear()
    fxexport.compile(Configured().eval(), out, X, export_config={"decoder_type": "ctc"}, passes=[Reading()])
    assert READ == [{"decoder_type": "ctc"}]


READ: list[dict[str, Any]] = []


# ---------------------------------------------------------------- S28


def test_s28_a_format_that_the_model_excludes_is_refused_by_name(tmp_path: Path) -> None:
    class OnlyTorchScript(Scores, Exportable):
        supported_export_formats = ("torchscript",)

    for path in (tmp_path / "m.onnx", tmp_path / "m.pt2"):
        with pytest.raises(InputError, match=r"OnlyTorchScript.supported_export_formats lists torchscript"):
            OnlyTorchScript().export(path, input_example=X)
    assert not list(tmp_path.iterdir())
    OnlyTorchScript().export(tmp_path / "m.pt", input_example=X)
    (scores,) = torch.jit.load(tmp_path / "m.pt")(X)
    assert scores.shape == (3, 5, 4)


# ---------------------------------------------------------------- S29


class Recurrent(nn.Module):
    """An LSTM with its two states as a tuple."""

    input_types: ClassVar[Any] = {
        "x": Tensor("batch", "time", 3),
        "states": (Tensor("layers", "batch", 4), Tensor("layers", "batch", 4)),
    }
    output_types: ClassVar[Any] = {
        "y": Tensor("batch", "time", 4),
        "states": (Tensor("layers", "batch", 4), Tensor("layers", "batch", 4)),
    }

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.lstm = nn.LSTM(3, 4, 2, batch_first=True)
        two = Tensor(2, "batch", 4)
        self.input_types = {**self.input_types, "states": (two, two)}
        self.output_types = {**self.output_types, "states": (two, two)}

    def forward(self, x: torch.Tensor, states: tuple[torch.Tensor, torch.Tensor]) -> Any:
        return self.lstm(x, states)


@pytest.mark.parametrize("suffix", ["onnx", "pt", "pt2"])
def test_s29_nested_states_have_stable_flat_names(suffix: str, tmp_path: Path) -> None:
    model, path = Recurrent().eval(), tmp_path / f"m.{suffix}"
    states = (torch.randn(2, 3, 4), torch.randn(2, 3, 4))
    artifact = exported(model, path, (torch.randn(3, 5, 3), states))
    assert [spec.name for spec in artifact.inputs] == ["x", "input_states_1", "input_states_2"]
    assert [spec.name for spec in artifact.outputs] == ["y", "output_states_1", "output_states_2"]
    x, (h, c) = torch.randn(1, 2, 3), (torch.randn(2, 1, 4), torch.randn(2, 1, 4))
    y, (h_next, c_next) = model(x, (h, c))
    if suffix == "onnx":
        assert [list(side) for side in onnx_io(path)] == [
            ["x", "input_states_1", "input_states_2"],
            ["y", "output_states_1", "output_states_2"],
        ]
        assert_close(run_onnx(path, x=x, input_states_1=h, input_states_2=c), [y, h_next, c_next])
    got_y, got_states = artifact(x, (h, c))
    assert_close(got_y, y)
    assert_close(got_states, [h_next, c_next])


def test_s29_a_type_for_one_state_stands_for_any_number(out: Path) -> None:
    class Listed(Recurrent):
        def __init__(self) -> None:
            super().__init__()
            self.input_types = {"x": Tensor("batch", "time", 3), "states": [Tensor(2, "batch", 4)]}  # type: ignore

    exported(Listed().eval(), out, (torch.randn(3, 5, 3), (torch.randn(2, 3, 4), torch.randn(2, 3, 4))))
    assert list(onnx_io(out)[0]) == ["x", "input_states_1", "input_states_2"]
