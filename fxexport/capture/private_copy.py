"""A private copy of the user's model, and the process state that capture must give back as it was."""

from __future__ import annotations

import copy
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from fxexport.errors import CaptureError

WRAPPERS_TO_OPEN = {"OptimizedModule": "_orig_mod", "DataParallel": "module", "DistributedDataParallel": "module"}
WRAPPERS_REFUSED = {"FullyShardedDataParallel", "FSDPModule", "PipelineParallel", "DeepSpeedEngine"}


_ONE_AT_A_TIME = threading.RLock()


class _DetachedCopies(TorchFunctionMode):
    """Lets ``copy.deepcopy`` copy tensors that are results of operations, such as the weight of ``weight_norm``.

    PyTorch refuses to deep-copy a non-leaf tensor; a detached clone is what inference needs.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            if id(tensor) not in memo:
                memo[id(tensor)] = tensor.detach().clone()
            return memo[id(tensor)]
        return func(*args, **(kwargs or {}))


def unwrap(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """The model inside ``torch.compile`` and data-parallel wrappers, with a note for each wrapper taken off.

    Raises CaptureError for a wrapper that spreads one model over several processes.
    """
    notes = []
    while (kind := type(model).__name__) in WRAPPERS_TO_OPEN:
        model = getattr(model, WRAPPERS_TO_OPEN[kind])
        notes.append(f"wrapper {kind} taken off: the module inside it was captured")
    for name, module in model.named_modules():
        if type(module).__name__ in WRAPPERS_REFUSED:
            place = name or "the model"
            raise CaptureError(f"{place} is wrapped in {type(module).__name__}; give fxexport the plain nn.Module")
        if isinstance(module, torch.jit.ScriptModule):
            place = name or "the model"
            raise CaptureError(f"{place} is a TorchScript module; give fxexport the nn.Module it was made from")
    return model, notes


def private_copy(model: nn.Module, *, share_parameters: bool = False) -> tuple[nn.Module, list[str]]:
    """A deep copy of ``model`` and notes on what could not be copied.

    Attributes that cannot be copied (locks, open files, loggers with handlers) are shared with the original by
    reference and named in the notes. With ``share_parameters`` only buffers and Python state are copied.

    Raises CaptureError when the model itself refuses to be copied.
    """
    memo: dict[int, Any] = {}
    if share_parameters:
        memo = {id(p): p for p in model.parameters()}
    notes: list[str] = []
    try:
        with _DetachedCopies(), torch.no_grad():
            return copy.deepcopy(model, dict(memo)), notes
    except (TypeError, RuntimeError, AttributeError, NotImplementedError):
        shared = uncopyable(model, memo)
    memo |= {id(value): value for _, value in shared}
    notes += [f"{path} ({type(v).__name__}) cannot be copied: shared with your model" for path, v in shared]
    try:
        with _DetachedCopies(), torch.no_grad():
            return copy.deepcopy(model, memo), notes
    except Exception as error:
        raise CaptureError(
            f"{type(model).__name__} cannot be deep-copied ({type(error).__name__}: {error}); fxexport works on a "
            "private copy so that your model stays as it is. Give the model, or the attribute named above, a "
            "__deepcopy__ method"
        ) from error


def uncopyable(model: nn.Module, memo: dict[int, Any]) -> list[tuple[str, Any]]:
    """Plain attributes of the model's modules that cannot be deep-copied, by their path.

    What merely refers to a module of the model (a bound method, a list of layers) is not to blame for what that module
    holds; shared, it would lead from the copy back into the original.
    """
    found = []
    own = {id(module): module for module in model.modules()}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if key in ("_parameters", "_buffers", "_modules"):
                continue
            try:
                with _DetachedCopies(), torch.no_grad():
                    copy.deepcopy(value, {**memo, **own})
            except Exception:  # noqa: BLE001 - any failure to copy means: share it, and say so
                found.append((f"{name}.{key}".lstrip("."), value))
    return found


def devices_of(model: nn.Module) -> set[torch.device]:
    """The devices that parameters and buffers live on."""
    return {t.device for t in (*model.parameters(), *model.buffers())}


@contextmanager
def preserved_process_state() -> Iterator[None]:
    """Random generators (PyTorch, Python, NumPy) and the grad mode are as before when the block ends, however it ends.

    The block has the process to itself: torch.export, loggers and random generators know no threads.
    """
    with _ONE_AT_A_TIME:
        python, array, dtype = random.getstate(), np.random.get_state(), torch.get_default_dtype()
        devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
        grad = torch.is_grad_enabled()
        try:
            with torch.random.fork_rng(devices=list(devices)):
                yield
        finally:
            random.setstate(python)
            np.random.set_state(array)
            torch.set_grad_enabled(grad)
            torch.set_default_dtype(dtype)


def seed_everything(seed: int) -> None:
    """Seeds PyTorch, Python and NumPy; call inside :func:`preserved_process_state`."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
