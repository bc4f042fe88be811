"""Python comparisons of a size with a tensor that holds one whole number: ``if x.size(2) > self.max_len:``.

``torch.export`` sees the values of a tensor in that decision and stops. It is one about sizes: as long as nothing wrote
into the tensor, its value is the one the model has now, and the comparison becomes a guard on the size. Where the size is
fixed, so that it is a plain number, the tensor must also be one that a call of the model leaves as it is. Every other
decision on the tensor stays what it was.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx.experimental.symbolic_shapes import uninteresting_files
from torch.overrides import TorchFunctionMode

from fxexport.capture.exporting import is_user_frame
from fxexport.capture.flat_model import FlatModel

_Number = int | torch.SymInt
_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "gt": lambda a, b: a > b,
    "lt": lambda a, b: a < b,
    "ge": lambda a, b: a >= b,
    "le": lambda a, b: a <= b,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
}
_SPELLINGS = {spelling: name for name in _COMPARISONS for spelling in (name, f"__{name}__")}
_HARMLESS = [
    *(torch.Tensor.size, torch.Tensor.dim, torch.Tensor.numel),
    *(getattr(torch.Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim")),
]


_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@dataclass(frozen=True)
class _Known:
    """A tensor whose one element is known. It is held here, so that no other object gets its id.

    ``version`` counts the writes into it and into its views; ``lasting``: a call of the model does not change it.
    """

    tensor: torch.Tensor
    value: _Number
    name: str
    version: int
    lasting: bool


@contextmanager
def decided_by_value(model: FlatModel, used: FlatModel) -> Iterator[list[str]]:
    """While the block runs, ``model.forward`` compares sizes with the whole numbers that it holds by their values.

    Yields the notes, filled when the block ends: the attributes that took part, their value and the line that compared.
    ``model`` is a private copy: it is given an attribute, which is taken away again. ``used`` is another copy of it, after
    one call.
    """
    forward, notes, used_at = model.forward, list[str](), dict[tuple[int, str], dict[str, None]]()
    values, after = ({name: int(tensor) for name, tensor in _numbers(flat.model)} for flat in (model, used))

    def forward_by_value(*tensors: torch.Tensor) -> Any:
        # Here capture has put other tensors in the place of buffers; and torch.export's own modes would ask first.
        held = [(name, tensor) for name, tensor in _numbers(model.model) if name in values]
        known = (_Known(t, values[n], n, t._version, lasting=values[n] == after.get(n)) for n, t in held)
        with _SizeComparisons(known, used_at):
            return forward(*tensors)

    model.__dict__["forward"] = forward_by_value
    between = uninteresting_files()  # frames that torch looks past when it says which line asked
    between.add(__file__)
    try:
        yield notes
        notes += [_note(list(names), *fixed) for fixed, names in used_at.items()]
    finally:
        between.remove(__file__)
        model.__dict__.pop("forward", None)


class _SizeComparisons(TorchFunctionMode):
    def __init__(self, known: Iterable[_Known], used_at: dict[tuple[int, str], dict[str, None]]) -> None:
        super().__init__()
        self._known = {id(entry.tensor): entry for entry in known}
        self._answers: dict[int, tuple[torch.Tensor, Any]] = {}
        self._used_at = used_at

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if name == "__bool__" and id(args[0]) in self._answers:
            return bool(self._answers[id(args[0])][1])
        result = func(*args, **kwargs)
        if name in _SPELLINGS and len(args) == 2 and not kwargs:
            self._compare(name, args[0], args[1], result)
        elif func is torch.tensor and isinstance(args[0], torch.SymInt) and not result.is_floating_point():
            self._known[id(result)] = _Known(result, args[0], "", result._version, False)
        elif func not in _HARMLESS:
            self._forget((args, kwargs))
        return result

    def _compare(self, spelling: str, left: Any, right: Any, result: Any) -> None:
        values = [self._value(left), self._value(right)]
        symbolic = any(isinstance(value, torch.SymInt) for value in values)
        known = [self._known[id(side)] for side in (left, right) if id(side) in self._known]
        if None in values or not (symbolic or all(entry.lasting for entry in known)):
            return
        self._answers[id(result)] = result, _COMPARISONS[_SPELLINGS[spelling]](*values)
        for entry in known:
            if entry.name:
                assert isinstance(entry.value, int)
                self._used_at.setdefault((entry.value, _place()), {})[entry.name] = None

    def _value(self, side: Any) -> _Number | None:
        if isinstance(side, int | torch.SymInt):
            return side
        known = self._known.get(id(side))
        if known is not None:
            return known.value if known.version == known.tensor._version else None
        constant = getattr(side, "constant", None)  # torch's own record of a tensor made of constants
        return int(constant) if constant is not None and _is_number(constant) else None

    def _forget(self, arguments: Any) -> None:
        """Any other use of a tensor may write into it, now or through a view of it later."""
        for leaf in torch.utils._pytree.tree_leaves(arguments):
            if isinstance(leaf, torch.Tensor):
                self._known.pop(id(leaf), None)
                self._answers.pop(id(leaf), None)


def _numbers(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Buffers and plain attributes of the model's modules that hold one whole number, with their paths."""
    for path, module in model.named_modules():
        for name, value in (*module._buffers.items(), *vars(module).items()):
            if isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter) and _is_number(value):
                yield f"{path}.{name}".lstrip("."), value


def _is_number(tensor: torch.Tensor) -> bool:
    return tensor.numel() == 1 and tensor.dtype in _WHOLE


def _note(names: list[str], value: int, place: str) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    verb = "is fixed as it is" if len(names) == 1 else "are fixed as they are"
    return f"{', '.join(names[:3])}{more} = {value} {verb} now: sizes are compared with it{place}"


def _place() -> str:
    """``at models/net.py:12`` for the user's line that is running."""
    own = [frame for frame in traceback.extract_stack() if is_user_frame(frame)]
    return f" at {'/'.join(own[-1].filename.split('/')[-2:])}:{own[-1].lineno}" if own else ""
