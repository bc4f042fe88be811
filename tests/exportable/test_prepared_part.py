"""``prepared_part``: the order of the hooks, what each may look like, and what is said where one is wrong."""

from __future__ import annotations

import copy
import sys
import types
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from fxexport.errors import InputError
from fxexport.exportable import Exportable, ExportRequest, Part, has_hooks, prepared_part

REQUEST = ExportRequest(Path("/tmp/model.onnx"))


def prepared(model: nn.Module, name: str = "self", example: Any = None, **request: Any) -> Part:
    with prepared_part(model, name, ExportRequest(Path("/tmp/model.onnx"), **request), example) as part:
        part.module(*part.args, **part.kwargs)
        return part


class Linear(nn.Module):
    """No hooks but those that a test gives it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


class Traced(Linear, Exportable):
    """Writes down on ``log`` (shared with the copies) what ran."""

    def __init__(self, log: list[str]) -> None:
        super().__init__()
        self.inner = Inner(log)
        self.same = self.inner
        self.log = Log(log)

    def set_export_config(self, args: dict[str, Any]) -> None:
        self.log.add(f"config {args.pop('key')}")

    def input_example(self) -> Any:
        self.log.add("example")
        return torch.ones(2, 3)

    def _prepare_for_export(self, **kwargs: Any) -> None:
        self.log.add(f"prepare {sorted(kwargs)} {list(kwargs['input_example'].shape)} {kwargs['output']}")

    @property
    def disabled_deployment_input_names(self) -> set[str]:
        self.log.add("names")
        return set()

    def _export_teardown(self) -> None:
        self.log.add("teardown")


class Log:
    """Shared by copies."""

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines

    def add(self, line: str) -> None:
        self.lines.append(line)

    def __deepcopy__(self, memo: dict[int, Any]) -> Log:
        return self


class Inner(nn.Module):
    def __init__(self, log: list[str]) -> None:
        super().__init__()
        self.log = Log(log)

    def _prepare_for_export(self, **kwargs: Any) -> None:
        self.log.add(f"inner {sorted(kwargs)}")

    def _export_teardown(self) -> None:
        self.log.add("inner teardown")


def test_s23_hooks_run_in_the_order_of_the_toolboxes_each_once(untouched: Any) -> None:
    log: list[str] = []
    model = Traced(log)
    config = {"key": "False"}
    with untouched(model):
        prepared(model, config=config, prepare={"verbose": True, "check_trace": False})
    assert config == {"key": "False"}, "the hook popped from the caller's dict"
    assert log == [
        "config False",
        "example",
        "inner ['check_trace', 'noreplace', 'verbose']",
        "prepare ['check_trace', 'input_example', 'output', 'verbose'] [2, 3] /tmp/model.onnx",
        "names",
        "teardown",
        "inner teardown",
    ]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_s23_teardown_runs_after_a_failure_in_the_block(error: type[BaseException], untouched: Any) -> None:
    log: list[str] = []
    model = Traced(log)
    with untouched(model), pytest.raises(error), prepared_part(model, "self", REQUEST):
        raise error("stop")
    assert log[-2:] == ["teardown", "inner teardown"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_s23_teardown_runs_after_a_failure_in_prepare(error: type[BaseException]) -> None:
    log: list[str] = []

    class Failing(Traced):
        def _prepare_for_export(self, **kwargs: Any) -> None:
            raise error("no weight norm here")

    expected = InputError if error is ValueError else error
    with pytest.raises(expected) as caught, prepared_part(Failing(log), "self", REQUEST):
        pass
    assert log[-2:] == ["teardown", "inner teardown"]
    if error is ValueError:
        text = str(caught.value)
        assert "Failing._prepare_for_export raised ValueError" in text
        assert "no weight norm here" in text
        assert f"{__file__}:" in text
        assert isinstance(caught.value.__cause__, ValueError)


class BadTeardown(Linear):
    input_example = torch.ones(2, 3)

    def _export_teardown(self) -> None:
        raise RuntimeError("cannot undo")


def test_an_error_of_the_teardown_is_raised() -> None:
    with pytest.raises(InputError, match=r"BadTeardown\._export_teardown raised RuntimeError.*cannot undo"):
        prepared(BadTeardown())


def test_an_error_of_the_teardown_joins_the_error_under_way() -> None:
    with pytest.raises(KeyError) as caught, prepared_part(BadTeardown(), "self", REQUEST):
        raise KeyError("first")
    assert any("BadTeardown._export_teardown" in note for note in caught.value.__notes__)


def test_prepare_without_kwargs_gets_what_it_can_take() -> None:
    class Plain(Linear):
        input_example = torch.ones(2, 3)
        seen: Any = None

        def _prepare_for_export(self) -> None:
            self.seen = ()

    class Some(Plain):
        def _prepare_for_export(self, output: str, verbose: bool = False) -> None:  # type: ignore[override]
            self.seen = (output, verbose)

    plain = prepared(Plain(), prepare={"verbose": True})
    assert plain.module.seen == ()
    assert not any("has no parameter" in note for note in plain.notes), "nobody without parameters expects these"
    some = prepared(Some(), prepare={"verbose": True, "use_dynamo": False})
    assert some.module.seen == ("/tmp/model.onnx", True)
    assert not any("has no parameter" in note for note in some.notes)


def test_an_option_of_the_user_reaches_the_hook_or_is_an_error() -> None:
    class Normalising(Linear, Exportable):
        input_example = torch.ones(2, 3)  # type: ignore[assignment]

        def _prepare_for_export(self, **kwargs: Any) -> None:
            self.kind = kwargs.get("normalization_type", "minmax")
            super()._prepare_for_export(**kwargs)

    class Silent(Linear, Exportable):
        input_example = torch.ones(2, 3)  # type: ignore[assignment]

    assert prepared(Normalising(), prepare={"normalization_type": "max"}).module.kind == "max"
    with pytest.raises(InputError, match=r"normalization_type.*Silent"):
        prepared(Silent(), prepare={"normalization_type": "max"})


class Vocoder(nn.Module):
    """HiFi-GAN-like: removing weight norm works once."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.utils.parametrizations.weight_norm(nn.Conv1d(2, 2, 3))

    def forward(self, spec: torch.Tensor) -> torch.Tensor:
        return self.conv(spec)

    def forward_for_export(self, spec: torch.Tensor) -> torch.Tensor:
        return self.forward(spec)

    def _prepare_for_export(self, **kwargs: Any) -> None:
        nn.utils.parametrize.remove_parametrizations(self.conv, "weight")

    def input_example(self, max_batch: int = 1, max_dim: int = 16) -> Any:
        return ({"spec": torch.rand(max_batch, 2, max_dim)},)


def test_prepare_that_works_only_once_and_the_original_without_it(untouched: Any) -> None:
    model = Vocoder().eval()
    with untouched(model):
        part = prepared(model)
    assert not hasattr(part.module.conv, "parametrizations")
    assert part.original is not None
    assert hasattr(part.original.conv, "parametrizations")
    assert part.args == ()
    assert list(part.kwargs) == ["spec"]
    torch.testing.assert_close(part.module(**part.kwargs), part.original(**part.kwargs))
    assert not (set(map(id, part.original.parameters())) & set(map(id, part.module.parameters())))


class TextToSpeech(nn.Module, Exportable):
    """FastPitch-like: types live between prepare and teardown; the example holds a disabled input."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self._types: Any = None
        self.export_config = {"enable_volume": False}

    @property
    def input_types(self) -> Any:
        return self._types

    def forward(self, *, text: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the training forward is not what is exported")

    def forward_for_export(
        self, text: Any, pitch: Any, pace: Any = None, volume: Any = None, batch_lengths: Any = None
    ) -> Any:
        assert volume is None
        assert batch_lengths is None
        return self.embedding(text).sum(-1) + pitch, None

    def _prepare_for_export(self, **kwargs: Any) -> None:
        super()._prepare_for_export(**kwargs)
        names = ("text", "pitch", "pace", "volume", "batch_lengths")
        self._types = {name: Kinds("batch", "time") for name in names}

    def _export_teardown(self) -> None:
        self._types = None

    @property
    def disabled_deployment_input_names(self) -> set[str]:
        return {"volume", "batch_lengths"}

    def input_example(self, max_batch: int = 1, max_dim: int = 6) -> Any:
        shape = (max_batch, max_dim)
        text = torch.randint(0, 10, shape)
        return ({"text": text, "pitch": torch.rand(shape), "pace": None, "batch_lengths": torch.tensor([max_dim])},)


class Kind(Enum):
    batch = 0
    time = 1
    dimension = 2


def Kinds(*names: str) -> Any:
    """A NeuralType by its looks."""
    axes = tuple(types.SimpleNamespace(kind=Kind[name], size=None, is_list=False) for name in names)
    return types.SimpleNamespace(axes=axes, elements_type=types.SimpleNamespace(), optional=False)


def test_types_that_exist_only_between_prepare_and_teardown(untouched: Any) -> None:
    model = TextToSpeech()
    with untouched(model):
        part = prepared(model)
    assert list(part.input_types or ()) == ["text", "pitch", "pace"]
    assert part.disabled_inputs == {"volume", "batch_lengths"}
    assert list(part.kwargs) == ["text", "pitch", "pace"]
    assert any("batch_lengths of TextToSpeech.input_example() left out" in note for note in part.notes)
    assert part.output_types is None


def test_the_example_of_a_hook_is_the_same_every_time_and_costs_no_random_state(untouched: Any) -> None:
    model = Vocoder().eval()
    with untouched(model):
        first, second = prepared(model), prepared(model)
    assert torch.equal(first.kwargs["spec"], second.kwargs["spec"])


def test_s22_forward_for_export_is_set_on_the_instance_and_copies_have_their_own() -> None:
    model = Vocoder().eval()
    part = prepared(model)
    assert type(part.module).forward is Vocoder.forward
    assert "forward" not in vars(model)
    twin = copy.deepcopy(part.module)
    twin.conv.weight.data.zero_()
    twin.conv.bias.data.zero_()
    assert not twin(**part.kwargs).any()
    assert part.module(**part.kwargs).any()


def test_s22_an_inherited_forward_for_export_counts_and_nested_ones_do_not() -> None:
    class Child(Vocoder):
        pass

    class Nest(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.child = Nested()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.child(x)

        input_example = torch.ones(2, 3)

    class Nested(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

        def forward_for_export(self, x: torch.Tensor) -> torch.Tensor:
            return x + 2

    assert "forward" in vars(prepared(Child()).module)
    part = prepared(Nest())
    assert torch.equal(part.module(*part.args), torch.full((2, 3), 2.0))


class Encoder(nn.Module):
    """Conformer-like: cache tensors in and out by an export config that arrives as strings."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.export_cache_support = False

    @property
    def input_types(self) -> Any:
        names = ("audio_signal", "length", "cache", "bypass_pre_encode")
        return {name: Kinds("batch", "time") for name in names}

    @property
    def output_types(self) -> Any:
        return {name: Kinds("batch", "time") for name in ("outputs", "encoded_lengths", "cache_next")}

    @property
    def disabled_deployment_input_names(self) -> set[str]:
        return set() if self.export_cache_support else {"cache"}

    @property
    def disabled_deployment_output_names(self) -> set[str]:
        return set() if self.export_cache_support else {"cache_next"}

    def input_example(self, max_batch: int = 1, max_dim: int = 8) -> Any:
        length = torch.randint(max_dim // 4, max_dim, (max_batch,))
        example = (torch.rand(max_batch, max_dim, 3), length)
        return (*example, torch.rand(max_batch, 3)) if self.export_cache_support else example

    def forward(self, audio_signal: Any, length: Any, cache: Any = None, bypass_pre_encode: bool = False) -> Any:
        encoded = self.linear(audio_signal)
        return (encoded, length) if cache is None else (encoded, length, cache + 1)


class EncoderDecoder(nn.Module, Exportable):
    """The usual wrapper: example, input types and disabled names are the encoder's, outputs the decoder's."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.decoder = Decoder()

    @property
    def input_module(self) -> nn.Module:
        return self.encoder

    @property
    def output_module(self) -> nn.Module:
        return self.decoder

    @property
    def output_names(self) -> list[str]:
        extra = ["cache_next"] if self.encoder.export_cache_support else []
        return [*self.decoder.output_types, *extra]

    @property
    def disabled_deployment_input_names(self) -> set[str]:
        return self.encoder.disabled_deployment_input_names

    def set_export_config(self, args: dict[str, Any]) -> None:
        self.encoder.export_cache_support = args.pop("cache_support") == "True"
        super().set_export_config(args)

    def forward(self, x: Any) -> Any:
        raise AssertionError("takes raw audio")

    def forward_for_export(self, input: Any, length: Any = None, cache: Any = None) -> Any:
        encoded = self.encoder(input, length, cache)
        return (self.decoder(encoder_output=encoded[0]), *encoded[2:])


class Decoder(nn.Module):
    output_types: ClassVar[Any] = {"logprobs": Kinds("batch", "time", "dimension")}

    def forward(self, encoder_output: Any) -> Any:
        return encoder_output.log_softmax(-1)


def test_s19_types_and_example_of_input_module_and_output_module(untouched: Any) -> None:
    model = EncoderDecoder()
    with untouched(model):
        part = prepared(model)
    assert part.example_source == "Encoder.input_example()"
    assert len(part.args) == 2
    assert list(part.input_types or ()) == ["audio_signal", "length", "bypass_pre_encode"]
    assert list(part.output_types or ()) == ["logprobs"]


def test_s27_export_config_acts_and_changes_inputs_and_outputs(untouched: Any) -> None:
    model = EncoderDecoder()
    with untouched(model):
        part = prepared(model, config={"cache_support": "True", "other": "False"})
    assert len(part.args) == 3
    assert list(part.input_types or ()) == ["audio_signal", "length", "cache", "bypass_pre_encode"]
    assert list(part.output_types or ()) == ["logprobs", "cache_next"]
    assert (part.output_types or {})["cache_next"].axes is not None, "its type is the encoder's"
    assert part.module.export_config == {"other": "False"}, "values arrive as they were given"
    alone = prepared(model.encoder)  # of the outputs all types are kept: places tell which is disabled
    assert [name for name in alone.output_types or () if name not in alone.disabled_outputs] == [
        "outputs",
        "encoded_lengths",
    ]


def test_s27_a_config_dict_of_the_class_is_not_shared() -> None:
    class Sharing(Linear):
        export_config: ClassVar[Any] = {}
        input_example = torch.ones(2, 3)

        def set_export_config(self, args: Mapping[str, Any]) -> None:
            self.export_config.update(args)

    assert prepared(Sharing(), config={"a": 1}).module.export_config == {"a": 1}
    assert Sharing.export_config == {}
    mixed = type("Mixed", (Linear, Exportable), {"export_config": {"a": 1}})()
    mixed.set_export_config({"b": 2})
    assert mixed.get_export_config() == {"a": 1, "b": 2}
    assert type(mixed).export_config == {"a": 1}
    with pytest.raises(InputError, match="has no set_export_config"):
        prepared(Linear(), config={"a": 1})


def test_s28_supported_export_formats(untouched: Any) -> None:
    class Toolbox(Enum):
        ONNX = (1,)
        TORCHSCRIPT = (2,)

    def model(formats: Any) -> nn.Module:
        return type("Model", (Linear,), {"supported_export_formats": formats, "input_example": torch.ones(2, 3)})()

    for formats in (["onnx"], (".ONNX",), {Toolbox.ONNX}, "Onnx", None, property(lambda self: [Toolbox.ONNX])):
        prepared(model(formats))
    prepared(model(list(Toolbox)), format="pt2")
    for formats in ([Toolbox.TORCHSCRIPT], [".pt", "ts"], "torchscript"):
        prepared(model(formats), format="torchscript")
        with pytest.raises(
            InputError, match=r"not exported to onnx: Model\.supported_export_formats lists torchscript"
        ):
            prepared(model(formats))
    with pytest.raises(InputError, match=r"Model\.supported_export_formats lists 'tflite', which is no format"):
        prepared(model(["onnx", "tflite"]))


def test_s3_the_typecheck_of_a_toolbox_is_off_and_restored() -> None:
    home = types.ModuleType("a_toolbox")
    source = """
ENABLED = True
def is_typecheck_enabled(): return ENABLED
class typecheck:
    @staticmethod
    def set_typecheck_enabled(enabled=True):
        global ENABLED
        ENABLED = enabled
class Typed: pass
"""
    exec(compile(source, "a_toolbox.py", "exec"), vars(home))
    sys.modules["a_toolbox"] = home
    try:

        class Model(Linear, home.Typed):  # type: ignore[name-defined, misc]
            input_example = torch.ones(2, 3)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                assert not home.ENABLED, "All arguments must be passed by kwargs only"
                return super().forward(x)

        for value in (True, False):
            home.ENABLED = value
            with prepared_part(nn.Sequential(Model()), "0", REQUEST) as part:
                part.module(*part.args)
            assert home.ENABLED is value
    finally:
        del sys.modules["a_toolbox"]


def test_has_hooks() -> None:
    assert not has_hooks(Linear())
    assert not has_hooks(nn.Linear(2, 2))
    assert has_hooks(Vocoder())
    assert has_hooks(Decoder())
    instance = Linear()
    instance.input_example = lambda: torch.ones(2, 3)
    assert has_hooks(instance)


def test_parameters_on_several_devices_are_refused() -> None:
    class Spread(Linear):
        input_example = torch.ones(2, 3)

        def __init__(self) -> None:
            super().__init__()
            self.other = nn.Linear(3, 3, device="meta")

    model = Spread()
    with pytest.raises(InputError, match=r"'linear.weight' on cpu, 'other.weight' on meta"):
        prepared(model)


def test_hooks_that_hand_out_the_users_own_module_do_not_let_it_be_changed(untouched: Any) -> None:
    inside = Vocoder()

    class Closure(Linear):
        def get_export_subnet(self, name: str | None = None) -> nn.Module:
            return inside

        def list_export_subnets(self) -> list[str]:
            return ["x"]

    model = Closure()
    model.child = inside
    with untouched(model):
        part = prepared(model, "x")
    assert part.module is not inside


def test_literal_names_count_where_the_types_cannot_be_read() -> None:
    class Diarizer(EncoderDecoder):
        def __init__(self) -> None:
            super().__init__()
            del self.decoder

        input_names = ("chunk", "length")
        output_names = ("preds",)

        def forward_for_export(self, chunk: Any, length: Any) -> Any:  # type: ignore[override]
            return self.encoder(chunk, length)[0]

    part = prepared(Diarizer(), example=((torch.rand(1, 8, 3), torch.tensor([8])), {}))
    assert list(part.input_types or ()) == ["chunk", "length"]
    assert (part.input_types or {})["chunk"].axes is None
    assert (part.input_types or {})["length"].axes is not None
    assert list(part.output_types or ()) == ["preds"]
    assert any("Diarizer.output_module raised AttributeError" in note for note in part.notes)


def test_training_mode_is_said_of_the_models_own_modules_only() -> None:
    class Model(Linear):
        @property
        def built(self) -> nn.Module:
            return nn.Sequential(self.linear)

    example = ((torch.ones(2, 3),), {})
    assert not any("training" in note for note in prepared(Model().eval(), "built", example).notes)
    assert any("0 was in training mode" in note for note in prepared(Model(), "built", example).notes)
