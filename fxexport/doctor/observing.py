"""One eager run of a fresh private copy, watched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxexport.capture import Reference
from fxexport.capture.nesting import flatten
from fxexport.capture.private_copy import preserved_process_state, seed_everything
from fxexport.control_flow import eager_control_flow
from fxexport.doctor.observed import Log, Observed
from fxexport.doctor.places import Places
from fxexport.doctor.taint import Taint, Taints, storage_key
from fxexport.doctor.turns import Turns
from fxexport.doctor.watching import Operators, PythonReads


def observe(
    reference: Reference,
    inputs: Sequence[torch.Tensor],
    *,
    seed: int = 0,
    fill: int = 0,
    count_turns: bool = False,
    find_nan: bool = False,
) -> Observed:
    """Runs a fresh copy on copies of ``inputs`` and notes what it does; what it raises is kept in ``error``.

    ``fill`` is what memory without values is filled with. ``count_turns`` counts the turns of loops, ``find_nan`` looks
    for operators that make a NaN; both cost time.
    """
    seen, taints = Observed(), Taints()
    with preserved_process_state(), torch.no_grad():
        seed_everything(seed)
        flat = reference.fresh()
        given = [tensor.detach().clone() for tensor in inputs]
        before = {name: value.detach().clone() for name, value in flat.model.named_buffers()}
        _mark(taints, flat.model, given)
        own = _own_memory(seen, given, reference.call.paths, dict(flat.model.named_buffers()))
        turns, places = Turns() if count_turns else None, Places(flat.model)
        reads = PythonReads(seen, taints, places)
        operators = Operators(seen, taints, places, reads, own, fill, turns, find_nan)
        returned = flat.model.register_forward_hook(lambda _, __, result: setattr(seen, "result", result))
        try:
            with eager_control_flow(), _applied_functions(seen.functions, places), reads, operators:
                flat(*given)
        except Exception as error:  # noqa: BLE001 - whatever the model raises is what was seen
            seen.error = error
        returned.remove()
        seen.outputs = tuple(leaf.value.detach() for leaf in flatten(seen.result)[0] if leaf.is_tensor)
        seen.changed_inputs = [i for i, pair in enumerate(zip(given, inputs, strict=True)) if not _same(*pair)]
        after = dict(flat.model.named_buffers())
        seen.changed_buffers = [name for name, value in before.items() if not _same(after.get(name), value)]
    if turns is not None:
        turns.into(seen)
    return seen


def _mark(taints: Taints, model: nn.Module, given: Sequence[torch.Tensor]) -> None:
    """What is known before the run: inputs, buffers, weights, and tensors in plain attributes."""
    for module in model.modules():
        own = [value for key, value in vars(module).items() if key not in ("_parameters", "_buffers", "_modules")]
        for tensor in pytree.tree_leaves(own):
            if isinstance(tensor, torch.Tensor):
                taints.add(tensor, Taint.NONE)
    for parameter in model.parameters():
        taints.add(parameter, Taint.NONE)
    for buffer in model.buffers():
        taints.add(buffer, Taint.BUFFER)
    for tensor in given:
        taints.add(tensor, Taint.DATA)


def _own_memory(
    seen: Observed, given: Sequence[torch.Tensor], paths: Sequence[str], buffers: Mapping[str, torch.Tensor]
) -> dict[int, tuple[Log, str]]:
    """Storage -> where a write into it is noted, and under which name."""
    own: dict[int, tuple[Log, str]] = {}
    for name, buffer in buffers.items():
        own[storage_key(buffer) or 0] = (seen.buffer_writes, name)
    for path, tensor in zip(paths, given, strict=True):
        own[storage_key(tensor) or 0] = (seen.input_writes, path)
    own.pop(0, None)
    return own


@contextmanager
def _applied_functions(log: Log, places: Places) -> Iterator[None]:
    """While the block runs, every ``torch.autograd.Function`` that is applied is noted: no mode sees them."""
    home: Any = torch.autograd.Function
    own = home.__dict__["apply"]

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        log.add(cls.__name__, places.here())
        return own.__get__(None, cls)(*args, **kwargs)

    home.apply = classmethod(apply)
    try:
        yield
    finally:
        home.apply = own


def _same(after: torch.Tensor | None, before: torch.Tensor) -> bool:
    if after is None or after.shape != before.shape or after.dtype != before.dtype:
        return False
    if before.layout is not torch.strided:
        return True  # not compared: there is no cheap way that all layouts have
    return bool(((before == after) | ((before != before) & (after != after))).all())
