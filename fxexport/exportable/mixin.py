"""The ``Exportable`` mix-in: ``model.export("out.onnx")``, and a default for every hook."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fxexport.exportable.entry import registered
from fxexport.exportable.subnet_names import FORMAT_NAMES, subnet_classes

_DEFAULT_TOLERANCE = 0.01  # of the toolboxes; ours goes by dtype


class _Default:
    """A computed default that an attribute or child module of the instance overrides; a property would hide it."""

    def __init__(self, value: Callable[[Any], Any]) -> None:
        self.value = value

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        child = vars(instance).get("_modules", {}).get(self.name)
        return self.value(instance) if child is None else child


class Exportable:
    """Add it to a model's bases: ``class Net(nn.Module, Exportable)``. Every hook is optional.

    The names and their meaning are those of NeMo's and ATOMMIC's ``Exportable``. Hooks run on a private copy of the
    model, so they may change it as they like. Hooks given as attributes may be set on the class or in ``__init__``.
    """

    input_module: Any = _Default(lambda self: self)
    output_module: Any = _Default(lambda self: self)
    input_types: Any = None
    output_types: Any = None
    input_types_for_export: Any = _Default(lambda self: self.input_types)
    output_types_for_export: Any = _Default(lambda self: self.output_types)
    disabled_deployment_input_names: Any = frozenset()
    disabled_deployment_output_names: Any = frozenset()
    input_names: Any = _Default(lambda self: _names(self, "input"))
    output_names: Any = _Default(lambda self: _names(self, "output"))
    supported_export_formats: Any = ("onnx", "torchscript", "pt2")

    def input_example(self, max_batch: int | None = None, max_dim: int | None = None) -> Any:
        """Arguments of ``forward``: a tensor, a tuple (a last dict holds keyword arguments) or a dict. None: no hook."""
        return None

    def list_export_subnets(self) -> list[str]:
        """Names of the parts to export, one file each; first the one that takes the input."""
        return ["self"]

    def get_export_subnet(self, subnet: str | None = None) -> Any:
        """The module of one part; None and ``"self"`` are the model."""
        return self if subnet in (None, "self") else getattr(self, str(subnet))

    def get_export_config(self) -> dict[str, Any]:
        """The user's export options: ``export_config`` of this model."""
        return dict(getattr(self, "export_config", None) or {})

    def set_export_config(self, args: Mapping[str, Any]) -> None:
        """Adds ``args`` to the export options of this model. Override it to act on a change."""
        self.export_config = {**self.get_export_config(), **args}

    def _prepare_for_export(self, **kwargs: Any) -> None:
        """Override it to change the model in place before export; ``kwargs`` are the options of the export."""

    def _export_teardown(self) -> None:
        """Override it to undo what ``_prepare_for_export`` did; runs however the export ended."""

    def export(
        self,
        output: str | Path,
        input_example: Any = None,
        verbose: bool = False,
        do_constant_folding: bool = True,
        onnx_opset_version: int | None = None,
        check_trace: Any = False,
        dynamic_axes: Any = None,
        check_tolerance: float = _DEFAULT_TOLERANCE,
        export_modules_as_functions: Any = False,
        keep_initializers_as_inputs: bool | None = None,
        use_dynamo: bool | None = None,
        **options: Any,
    ) -> tuple[list[str], list[str]]:
        """Exports the model, or each of its subnets, to ``output``; the extension decides the format.

        Args:
            input_example: a tensor, a tuple of arguments (a last dict holds keyword arguments) or a dict of keyword
                arguments; None takes the ``input_example()`` hook.
            check_trace: a list of further examples (as ``input_example``) to compare on. True adds nothing: every
                artifact is compared with eager.
            check_tolerance: rtol and atol of that comparison, where it is not the default.
            options: those of ``fxexport.compile``; any other reaches ``_prepare_for_export``.

        Returns:
            the files, and for each a line such as ``"package.Encoder exported to ONNX"``.

        Raises:
            ExportError: as ``fxexport.compile``.
        """
        compile = registered()
        own = inspect.signature(compile).parameters
        prepare = dict(options.pop("prepare", None) or {})
        prepare |= {name: options.pop(name) for name in list(options) if name not in own}
        artifact = compile(
            self,
            output,
            input_example=input_example,
            prepare=prepare or None,
            check_trace=check_trace,
            check_tolerance=None if check_tolerance == _DEFAULT_TOLERANCE else check_tolerance,
            dynamic_axes=dynamic_axes,
            do_constant_folding=do_constant_folding,
            export_modules_as_functions=export_modules_as_functions,
            keep_initializers_as_inputs=keep_initializers_as_inputs,
            verbose=verbose,
            use_dynamo=use_dynamo,
            opset_version=onnx_opset_version,
            **options,
        )
        return _files(self, artifact, options.get("export_config"))


def _names(model: Any, side: str) -> list[str]:
    types = getattr(getattr(model, f"{side}_module"), f"{side}_types_for_export", None) or {}
    disabled = getattr(model, f"disabled_deployment_{side}_names")
    return [name for name in types if name not in disabled]


def _files(model: Any, artifact: Any, config: Mapping[str, Any] | None) -> tuple[list[str], list[str]]:
    """The files of an artifact or pipeline and what each holds, in the order of ``list_export_subnets``."""
    classes = subnet_classes(model, config)
    spec = getattr(artifact, "spec", None)
    if spec is None:
        files = dict.fromkeys(classes, Path(artifact.path))
    else:
        files = {part.name: Path(artifact.path).parent / part.file for part in spec.parts}
    descriptions = [f"{cls} exported to {FORMAT_NAMES[files[name].suffix.lower()]}" for name, cls in classes.items()]
    return [str(files[name]) for name in classes], descriptions
