"""Models that build a cache in their first call: a mask or a position table that grows with the longest input so far.

``if length > self.longest:`` holds in a first call and for no second one like it. Captured in the state that the model is
in, the graph grows the cache and is bound by whatever the model asks on the way. Captured as one call on the example
leaves the model, it reads the cache. The artifact is the same function, for more sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import sympy
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.utils._sympy.value_ranges import bound_sympy

from fxexport.capture.dynamic import AxisRequests
from fxexport.capture.flat_model import FlatModel
from fxexport.capture.open_axes import Opened
from fxexport.capture.reference import Reference, Tensors, run_flat
from fxexport.errors import CaptureError

_Limits = dict[tuple[int, int], tuple[float, float]]
_PLAIN = (bool, int, float, str, type(None))


def export_widest(
    export: Callable[[Callable[[], FlatModel]], Opened],
    reference: Reference,
    expected: Tensors,
    requests: AxisRequests,
) -> Opened:
    """``export`` of the model as it is, or as a call leaves it where that works for more sizes or at all.

    ``export`` gets what makes the model to capture. A model whose second call on the example returns anything else than
    the first, ``expected``, is captured as it is: it has a state that matters.
    """
    try:
        opened = export(reference.fresh)
    except CaptureError as error:
        built = _built(reference, expected)
        if not built:
            raise
        try:
            opened = export(reference.used)
        except CaptureError:
            raise error from error.__cause__
        return _noted(opened, built)
    own = _limits(opened[0], requests)
    if all(lower <= 2 and upper == sympy.oo for lower, upper in own.values()):
        return opened
    built = _built(reference, expected)
    if not built:
        return opened
    try:
        settled = export(reference.used)
    except CaptureError:
        return opened
    return _noted(settled, built) if _wider(_limits(settled[0], requests), own) else opened


def _noted(opened: Opened, built: Sequence[str]) -> Opened:
    exported, notes, examples, fixing = opened
    note = f"forward builds {', '.join(built[:4])}{', ...' if len(built) > 4 else ''} in its first call"
    return exported, [*notes, f"{note}: captured as a call on the example leaves it"], examples, fixing


def _built(reference: Reference, expected: Tensors) -> list[str]:
    """What one call on the example changes in the model, by path; nothing where a second call would show the change."""
    if reference.call.state:
        return []
    used = reference.used()
    changed = list(_changed(reference.model, used.model))
    if not changed:
        return []
    again = run_flat(used, reference.call.tensors, 0)
    same = [a.shape == b.shape and torch.allclose(a, b, equal_nan=True) for a, b in zip(expected, again, strict=True)]
    return changed if all(same) else []


def _changed(before: nn.Module, after: nn.Module) -> Iterator[str]:
    others = dict(after.named_modules())
    for path, module in before.named_modules():
        other = others.get(path)
        if other is None:
            continue
        for own, new in ((module._buffers, other._buffers), (vars(module), vars(other))):
            for name in sorted(own.keys() | new.keys()):
                if name not in own or name not in new or _differs(own[name], new[name]):
                    yield f"{path}.{name}".lstrip(".")


def _differs(before: object, after: object) -> bool:
    if isinstance(before, torch.Tensor) and isinstance(after, torch.Tensor):
        return before.shape != after.shape or not torch.equal(before, after)
    return isinstance(before, _PLAIN) and isinstance(after, _PLAIN) and before != after


def _limits(exported: ExportedProgram, requests: AxisRequests) -> _Limits:
    """The sizes of every requested axis for which the graph holds."""
    names = exported.graph_signature.user_inputs
    nodes = {node.name: node for node in exported.graph.find_nodes(op="placeholder")}
    limits: _Limits = {}
    for i, (name, axes) in enumerate(zip(names, requests, strict=True)):
        for axis in axes:
            size = nodes[str(name)].meta["val"].shape[axis]
            expression = sympy.sympify(size.node.expr if isinstance(size, torch.SymInt) else size)
            bounds = bound_sympy(expression, dict(exported.range_constraints))
            upper = bounds.upper if bounds.upper < 2**31 else sympy.oo
            limits[i, axis] = bounds.lower, upper
    return limits


def _wider(new: _Limits, old: _Limits) -> bool:
    """Whether ``new`` leaves out nothing that ``old`` has, and has more."""
    lower = [(new[place][0], max(old[place][0], 2)) for place in old]
    upper = [(new[place][1], old[place][1]) for place in old]
    covers = all(a <= b for a, b in lower) and all(a >= b for a, b in upper)
    return covers and (any(a < b for a, b in lower) or any(a > b for a, b in upper))
