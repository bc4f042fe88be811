"""Hooks that reach further than the private copy, and declarations that cannot be kept."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

import fxexport
from fxexport import Tensor
from fxexport.errors import InputError


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)

    def input_example(self) -> torch.Tensor:
        return torch.randn(2, 4)


def compiled(model: nn.Module, path: Path, **options: Any) -> tuple[fxexport.Artifact, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        artifact = fxexport.compile(model.eval(), path, **options)
    assert isinstance(artifact, fxexport.Artifact)
    return artifact, [str(warning.message) for warning in caught]


@pytest.mark.parametrize("suffix", ["onnx", "pt2", "pt"])
def test_a_hook_that_patches_the_class_reaches_the_copy_only_and_is_told(tmp_path: Path, suffix: str) -> None:
    class Patched(Linear):
        def _prepare_for_export(self, **kwargs: Any) -> None:
            type(self).forward = lambda self, x: self.linear(x) * 2  # type: ignore[method-assign]

    model, x = Patched(), torch.randn(2, 4)
    before, table = model(x), dict(vars(Patched))
    artifact, told = compiled(model, tmp_path / f"m.{suffix}")
    assert torch.equal(model(x), before)
    assert dict(vars(Patched)) == table
    torch.testing.assert_close(artifact(x), before * 2)
    assert any("_prepare_for_export changes 'output'" in text for text in told)
    assert artifact.report is not None
    assert any("the class Patched (forward)" in note for note in artifact.report.notes)


def test_a_base_class_patched_behind_super_counts_too(tmp_path: Path) -> None:
    class Base(Linear):
        pass

    class Child(Base):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + 1

        def _prepare_for_export(self, **kwargs: Any) -> None:
            Base.forward = lambda self, x: self.linear(x) * 3  # type: ignore[method-assign]
            nn.Linear.left_behind = True  # type: ignore[attr-defined]

    model, x = Child(), torch.randn(2, 4)
    before = model(x)
    compiled(model, tmp_path / "m.onnx")
    assert torch.equal(model(x), before)
    assert "forward" not in vars(Base)
    assert not hasattr(nn.Linear, "left_behind")


def test_class_level_containers_are_as_before(tmp_path: Path) -> None:
    class Counting(Linear):
        prepared: ClassVar[int] = 0
        seen: ClassVar[dict[str, int]] = {"kept": 1}
        names: ClassVar[list[str]] = ["kept"]

        def _prepare_for_export(self, **kwargs: Any) -> None:
            Counting.prepared += 1
            Counting.seen["new"] = 2
            Counting.names.append("new")

        def _export_teardown(self) -> None:
            Counting.prepared -= 1
            Counting.names.append("torn down")

    seen, names = Counting.seen, Counting.names
    compiled(Counting(), tmp_path / "m.onnx")
    assert Counting.prepared == 0
    assert Counting.seen is seen
    assert Counting.names is names
    assert (seen, names) == ({"kept": 1}, ["kept"])


def test_the_class_is_as_before_after_a_hook_that_raises(tmp_path: Path) -> None:
    class Failing(Linear):
        def _prepare_for_export(self, **kwargs: Any) -> None:
            type(self).forward = None  # type: ignore[assignment,method-assign]
            raise ValueError("halfway")

    with pytest.raises(InputError, match="halfway"):
        fxexport.compile(Failing().eval(), tmp_path / "m.onnx")
    assert "forward" not in vars(Failing)
    assert not list(tmp_path.iterdir())


def test_a_replacement_that_patches_a_class_leaves_it(tmp_path: Path) -> None:
    class Own(nn.Linear):
        pass

    def patch(module: nn.Module) -> nn.Module:
        Own.forward = lambda self, x: x + 1  # type: ignore[method-assign]
        return module

    x = torch.randn(2, 4)
    model = nn.Sequential(Own(4, 4)).eval()
    artifact, told = compiled(model, tmp_path / "m.onnx", example_inputs=x, replacements={"Own": patch})
    assert "forward" not in vars(Own)
    torch.testing.assert_close(artifact(x), x + 1)
    assert told


def test_export_config_is_the_hooks_own_and_must_be_a_dict(tmp_path: Path) -> None:
    class Popping(Linear, fxexport.Exportable):
        def set_export_config(self, args: dict[str, Any]) -> None:
            args["sizes"].append(args.pop("more"))

    config: Any = {"sizes": [1], "more": 2}
    compiled(Popping(), tmp_path / "m.onnx", export_config=config)
    assert config == {"sizes": [1], "more": 2}
    with pytest.raises(InputError, match="must be a dict"):
        fxexport.compile(Popping().eval(), tmp_path / "m.onnx", export_config="sizes")  # type: ignore[arg-type]


@pytest.mark.parametrize("word", ["class", "lambda", "None"])
def test_a_word_of_python_names_no_axis(word: str) -> None:
    with pytest.raises(InputError, match=f"the axis '{word}' must be an identifier"):
        Tensor(word, 4)


def test_a_name_with_a_line_break_is_refused(tmp_path: Path) -> None:
    class Broken(Linear):
        input_types: ClassVar[dict[str, Tensor]] = {"x\n": Tensor("batch", 4)}

    with pytest.raises(InputError, match="control characters"):
        fxexport.compile(Broken().eval(), tmp_path / "m.onnx")


def _generator(self: nn.Module) -> Any:
    yield torch.randn(2, 4)


@pytest.mark.parametrize("hook", [_generator, lambda self: iter([1]), lambda self: 3, lambda self: torch.empty])
def test_an_example_of_no_use_is_named(tmp_path: Path, hook: Callable[[Any], Any]) -> None:
    class Odd(Linear):
        input_example = hook

    with pytest.raises(InputError, match=r"Odd\.input_example\(\)"):
        fxexport.compile(Odd().eval(), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())
