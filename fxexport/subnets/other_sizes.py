"""The recorded run once more on inputs of other sizes, so that the wiring is proved on more than one size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn
from torch.utils import _pytree as pytree

from fxexport.capture.private_copy import unwrap
from fxexport.capture.resize import resize_axis
from fxexport.pipeline.spec import Outside
from fxexport.signature import flat_name
from fxexport.subnets.recording import Driver, Recording, arguments, named_tensors, record
from fxexport.subnets.tape import Tape


def record_other_sizes(
    model: nn.Module,
    driver: Driver | Sequence[Driver] | None,
    example: Any,
    kwargs: Mapping[str, Any] | None,
    inputs: Sequence[Outside],
    *,
    subnets: Sequence[str],
    config: Mapping[str, Any] | None = None,
) -> Iterator[Recording | str]:
    """Recordings with every named axis of the pipeline's ``inputs`` smaller, and larger.

    ``model`` to ``config`` are as :func:`fxexport.subnets.record` takes them. Where the eager model or the driver does not
    take a size, the reason is yielded instead.
    """
    model, _ = unwrap(model)
    first = driver if driver is None or callable(driver) else next(iter(driver))
    args, keywords = arguments(model, first, example, kwargs)
    tensors = named_tensors(model, first, args, keywords)
    axes = {one.name: one.axes for one in inputs}
    places = [
        (path, position, axis)
        for path, tensor in tensors.items()
        for position, axis in enumerate(axes.get(flat_name([path]), ()))
        if isinstance(axis, str) and axis.isidentifier() and position < tensor.dim()
    ]
    sizes = {axis: tensors[path].shape[position] for path, position, axis in reversed(places)}
    for label, plan in _plans(sizes):
        changed = dict(tensors)
        for path, position, axis in places:
            changed[path] = resize_axis(changed[path], position, plan[axis])
        by_id = {id(tensors[path]): tensor for path, tensor in changed.items()}
        resized, renamed = pytree.tree_map(lambda leaf, by_id=by_id: by_id.get(id(leaf), leaf), (args, keywords))
        try:
            recording = record(model, driver, resized, renamed, subnets=subnets, config=config)
        except Exception as error:  # noqa: BLE001 - the user's own code may refuse a size in any way it likes
            reason = (str(error).strip().splitlines() or [""])[0]
            yield f"the pipeline was not checked at {label}: eager refuses it: {type(error).__name__}: {reason}"
            continue
        recording.runs = [_relabelled(tape, label) for tape in recording.runs]
        yield recording


def record_larger_batch(
    model: nn.Module,
    driver: Driver | Sequence[Driver] | None,
    example: Any,
    kwargs: Mapping[str, Any] | None,
    *,
    subnets: Sequence[str],
    config: Mapping[str, Any] | None = None,
) -> Recording | None:
    """The run with one row more: the first axis of every argument that has as many rows as the first one.

    None where there is no such argument, or the model or the driver does not take them.
    """
    model, _ = unwrap(model)
    first = driver if driver is None or callable(driver) else next(iter(driver))
    args, keywords = arguments(model, first, example, kwargs)
    tensors = [tensor for tensor in named_tensors(model, first, args, keywords).values() if tensor.dim()]
    rows = tensors[0].shape[0] if tensors else 0
    larger = {id(each): resize_axis(each, 0, max(rows + 1, 2)) for each in tensors if each.shape[0] == rows}
    if not larger:
        return None
    given, named = pytree.tree_map(lambda leaf: larger.get(id(leaf), leaf), (args, keywords))
    try:
        return record(model, driver, given, named, subnets=subnets, config=config)
    except Exception:  # noqa: BLE001 - rows that the model does not take are no dynamic axis
        return None


def _plans(sizes: Mapping[str, int]) -> Iterator[tuple[str, dict[str, int]]]:
    """About half of every size, and somewhat more; no two axes alike."""
    if not sizes:
        return
    for plan in (
        {axis: max(size // 2, 1) + i for i, (axis, size) in enumerate(sizes.items())},
        {axis: size + 1 + size // 4 + i for i, (axis, size) in enumerate(sizes.items())},
    ):
        yield ", ".join(f"{axis}={size}" for axis, size in plan.items()), plan


def _relabelled(tape: Tape, label: str) -> Tape:
    tape.label = f"{tape.label} at {label}"
    return tape
