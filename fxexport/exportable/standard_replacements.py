"""``replace_for_export``: the common replacements before an export, as one call from a ``_prepare_for_export`` hook."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from fxexport.errors import InputError
from fxexport.exportable.input_normalization import InputNormalization, check_kind
from fxexport.exportable.inserting import normalize_inputs
from fxexport.exportable.mixin import Exportable
from fxexport.exportable.plain_modules import FUSED_SOFTMAX, without_fusion
from fxexport.exportable.reading import has_hook, read_hook
from fxexport.exportable.replacement_registry import registered_replacements
from fxexport.exportable.replacing import Factory, class_names, replace_modules

_ATTRIBUTE = "normalization_type"
# What normalizes the data itself. Other parameterless normalizations (L2Normalization...) are layers inside a network.
_INPUT_LAYER = re.compile(
    r"(Input|Image|Data|Signal|Intensity|Kspace|MinMax|Max|MeanStd|MeanVar|Grayscale)?Normali[sz](ation|er)",
    re.IGNORECASE,
)


def replace_for_export(
    model: nn.Module,
    normalization_type: str | None = None,
    *,
    inputs: Sequence[str] = (),
    disable_masks: bool = False,
    **options: Any,
) -> list[str]:
    """Replaces in ``model``, in place, what has no form outside of PyTorch by plain modules with the same parameters.

    For a ``_prepare_for_export`` hook, where ``self`` is a private copy::

        def _prepare_for_export(self, **kwargs):
            fxexport.replace_for_export(self, kwargs.get("normalization_type"))

    - Fused norms of Apex and Megatron (FusedLayerNorm, MixedFusedLayerNorm, FastLayerNorm, FusedRMSNorm,
      MixedFusedRMSNorm) become ``nn.LayerNorm`` and ``nn.RMSNorm``; ColumnParallelLinear and RowParallelLinear of one
      process a linear layer; FusedScaleMaskSoftmax takes its own unfused way. They are found by class name.
      So are classes added by ``fxexport.register_replacement``.
    - ``normalization_type`` ("minmax", "max", "mean_std", "mean_var", "grayscale", "fft", "none"; None: what the
      ``export_config`` of the model says): the normalization of the input is of this kind. Modules that have an
      attribute ``normalization_type`` (a string or None) get it; other modules without parameters named
      ``Normalization``, ``InputNormalization``, ``MinMaxNormalizer`` and the like become
      :class:`~fxexport.exportable.input_normalization.InputNormalization`. Without any kind they stay as they are.
    - ``inputs``: names of parameters of ``forward`` that are so normalized before it, in a model that has no such layer.
    - ``disable_masks=True`` sets ``use_mask = False`` on convolutions that have it. This changes what padded frames give,
      so it is done only when asked.
    - Batch normalization is left to the pass ``fold-batchnorm``, which folds where that is exact.

    ``options`` may hold any option of ``export`` (what the hook got as ``**kwargs``); with ``noreplace=True`` nothing is
    done. Returns one line for each change.

    Raises InputError for an unknown option or kind, for a module that lacks what its plain form needs, and where there
    is nothing that ``normalization_type`` or ``disable_masks`` could apply to.
    """
    _check_options(options)
    if options.get("noreplace"):
        return []
    changes = _replace(model, registered_replacements())
    for path, module in model.named_modules():
        if type(module).__name__ in FUSED_SOFTMAX:
            _at(path, module, without_fusion)
            changes.append(f"{path or 'the model'}: {type(module).__name__} without fusion")
    if disable_masks:
        changes += _disable_masks(model)
    kind = normalization_type if normalization_type is not None else configured_kind(model)
    if inputs and kind is None:
        raise InputError(f"replace_for_export: inputs={tuple(inputs)!r} needs a normalization_type")
    if inputs:
        changes += normalize_inputs(model, dict.fromkeys(inputs, check_kind(kind)))
    elif kind is not None:
        changes += _normalize_input(model, check_kind(kind))
    return changes


def configured_kind(model: nn.Module) -> str | None:
    """The ``normalization_type`` in the export config of ``model``; None where it has none."""
    config = read_hook(model, "get_export_config") if has_hook(model, "get_export_config") else None
    config = config if config is not None else getattr(model, "export_config", None)
    return config.get(_ATTRIBUTE) if isinstance(config, Mapping) else None


def normalize_as_configured(model: nn.Module) -> list[str]:
    """What the export config of ``model`` says of the normalization of its input, for a model whose hooks do not.

    Raises InputError where there is nothing it could apply to.
    """
    kind = configured_kind(model)
    return [] if kind is None else _normalize_input(model, check_kind(kind))


def _check_options(options: Mapping[str, Any]) -> None:
    known = {*inspect.signature(Exportable.export).parameters, "noreplace", "training"} - {"self", "options"}
    if unknown := sorted(set(options) - known):
        raise InputError(
            f"replace_for_export does not know {', '.join(unknown)}; it takes normalization_type, disable_masks, noreplace "
            "and the options of export"
        )


def _at(path: str, module: nn.Module, change: Any) -> Any:
    """``change(module)``; an InputError says where ``module`` is."""
    try:
        return change(module)
    except InputError as error:
        raise InputError(f"replace_for_export: {path or 'the model'}: {error}") from error


def _replace(model: nn.Module, factories: Mapping[str, Factory]) -> list[str]:
    """Replaces the modules of the named classes; one line for each place."""
    places: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        places.setdefault(id(module), []).append(path)
    present = {name for module in model.modules() for name in class_names(module)} & set(factories)
    if present & {*class_names(model)}:
        raise InputError(f"replace_for_export works in place, and the model itself is a {type(model).__name__}")
    changes: list[str] = []

    def recording(factory: Factory) -> Factory:
        def make(module: nn.Module) -> nn.Module | None:
            paths = places[id(module)]
            new: nn.Module | None = _at(paths[0], module, factory)
            if new is not None:
                new.train(module.training)
                changes.extend(f"{path}: {type(module).__name__} -> {type(new).__name__}" for path in paths)
            return new

        return make

    if present:
        replace_modules(model, {name: recording(factories[name]) for name in sorted(present)}, [], within=model)
    return changes


def _disable_masks(model: nn.Module) -> list[str]:
    changes = []
    for path, module in model.named_modules():
        convolves = isinstance(module, _ConvNd) or any(isinstance(child, _ConvNd) for child in module.children())
        if convolves and isinstance(getattr(module, "use_mask", None), bool):
            setattr(module, "use_mask", False)  # noqa: B010 - what mypy has no type for
            changes.append(f"{path or 'the model'}: {type(module).__name__}.use_mask = False")
    if not changes:
        raise InputError(
            f"disable_masks=True, but {type(model).__name__} has no masked convolution: a module that holds a convolution "
            "and has an attribute use_mask (True or False)"
        )
    return changes


def _normalize_input(model: nn.Module, kind: str) -> list[str]:
    changes = []
    for path, module in model.named_modules():
        if isinstance(vars(module).get(_ATTRIBUTE, 0), str | None):
            setattr(module, _ATTRIBUTE, kind)
            changes.append(f"{path or 'the model'}: {_ATTRIBUTE} = {kind!r}")
    layers = {
        type(module).__name__
        for module in model.modules()
        if _INPUT_LAYER.fullmatch(type(module).__name__) and _ATTRIBUTE not in vars(module)
    }

    def factory(module: nn.Module) -> nn.Module | None:
        own = [*module.parameters(), *module.buffers()]
        return None if own or _ATTRIBUTE in vars(module) else InputNormalization(kind)

    changes += _replace(model, dict.fromkeys(layers, factory))
    if not changes:
        raise InputError(
            f"normalization_type={kind!r}, but {type(model).__name__} has no normalization of its input: looked for an "
            f"attribute {_ATTRIBUTE!r} (a string or None) on any of its modules, and for modules without parameters whose "
            "class is named Normalization or Normalizer, alone or after Input, Image, Data, MinMax...; "
            "put one in front of an input with replace_for_export(..., inputs=('image',)), or for the whole model with "
            "fxexport.compile(..., normalize_inputs={'image': 'minmax'})"
        )
    return changes
