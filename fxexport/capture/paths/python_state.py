"""What the modules of a model hold besides tensors, to be put back between the runs of one capture."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from fxexport.capture.private_copy import uncopyable

_TABLES = ("_parameters", "_buffers", "_modules")


class PythonState:
    """The attributes of all modules of ``root`` as they are now; :meth:`restore` puts them back, any number of times.

    Modules and tensors stay the objects that they are, as do values that cannot be copied.
    """

    def __init__(self, root: nn.Module) -> None:
        self._modules = list(root.modules())
        self._shared: dict[int, Any] = {id(module): module for module in self._modules}
        tensors = (*root.parameters(), *root.buffers())
        self._shared |= {id(tensor): tensor for tensor in tensors}
        tables = [dict(vars(module)) for module in self._modules]
        try:
            self._saved = self._copied(tables)
        except Exception:  # noqa: BLE001 - any failure to copy means: share what refuses, as private copies do
            self._shared |= {id(value): value for _, value in uncopyable(root, self._shared)}
            self._saved = self._copied(tables)

    def _copied(self, tables: list[dict[str, Any]]) -> list[dict[str, Any]]:
        with _SameTensors():
            return copy.deepcopy(tables, dict(self._shared))

    def restore(self) -> None:
        """Gives every module the attributes it had; what a run hung onto it or took away is as before."""
        for module, saved in zip(self._modules, self._copied(self._saved), strict=True):
            own = vars(module)
            for name in _TABLES:  # others hold on to these very dicts
                table = own[name]
                table.clear()
                table.update(saved.pop(name))
                saved[name] = table
            own.clear()
            own.update(saved)


class _SameTensors(TorchFunctionMode):
    """``copy.deepcopy`` leaves tensors as they are."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func is torch.Tensor.__deepcopy__ else func(*args, **(kwargs or {}))
