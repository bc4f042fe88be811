"""ATOMMIC 1.0.1 made importable beside libraries that are newer than it, without touching its files.

What stands in the way, and what is done about it:

- its configuration classes use instances of unhashable dataclasses as defaults, which Python refuses since 3.11:
  while its modules are imported, ``dataclasses.dataclass`` adds the hash that Python used to inherit;
- ``huggingface_hub`` no longer has two names that it imports, and ``wandb`` is imported but never needed to build
  or to call a model: stand-ins are put in their place.

Everything that ATOMMIC itself imports is imported first, so that only its own classes see the patched decorator.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.machinery
import importlib.util
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

DEPENDENCIES = ("h5py", "hydra", "nibabel", "omegaconf", "pytorch_lightning", "skimage", "torchmetrics")
COLLECTIONS = ("reconstruction.nn", "segmentation.nn", "quantitative.nn", "multitask.rs.nn")


def installed() -> bool:
    """Whether ATOMMIC is in this environment (see ``make test-zoo``)."""
    return importlib.util.find_spec("atommic") is not None


def model_class(path: str) -> Any:
    """The class at ``path`` below ``atommic.collections``, such as ``reconstruction.nn.varnet.VarNet``."""
    _prepare()
    module, _, name = path.rpartition(".")
    with _hashable_dataclasses():
        return getattr(importlib.import_module(f"atommic.collections.{module}"), name)


@cache
def _prepare() -> None:
    """Imports the collections, once, and switches off ATOMMIC's run-time type checks, as its own export does."""
    warnings.filterwarnings("ignore", module=r"(atommic|pytorch_lightning|torchmetrics|hydra).*")
    _stand_in_for_wandb()
    hub = importlib.import_module("huggingface_hub")
    for name in ("HfFolder", "ModelFilter"):
        if not hasattr(hub, name):
            setattr(hub, name, type(name, (), {}))
    for name in DEPENDENCIES:
        importlib.import_module(name)
    with _hashable_dataclasses():
        for name in COLLECTIONS:
            importlib.import_module(f"atommic.collections.{name}")
    common = importlib.import_module("atommic.core.classes.common")
    common.typecheck.set_typecheck_enabled(enabled=False)


def _stand_in_for_wandb() -> None:
    if importlib.util.find_spec("wandb") is None:
        wandb = types.ModuleType("wandb")
        wandb.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
        wandb.require = lambda *_: None  # type: ignore[attr-defined]
        sys.modules["wandb"] = wandb


@contextmanager
def _hashable_dataclasses() -> Iterator[None]:
    original = dataclasses.dataclass

    def dataclass(cls: type | None = None, /, **options: Any) -> Any:
        def decorate(decorated: type) -> Any:
            own_hash = "__hash__" in vars(decorated) or options.get("frozen")
            return original(decorated, **(options if own_hash else {**options, "unsafe_hash": True}))

        return decorate if cls is None else decorate(cls)

    patched: Callable[..., Any] = dataclass
    dataclasses.dataclass = patched  # type: ignore[assignment]
    try:
        yield
    finally:
        dataclasses.dataclass = original
