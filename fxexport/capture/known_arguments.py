"""Arguments of operations of which only the number, the positions or the form counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fxexport.capture.known_running import for_real, words
from fxexport.capture.known_tensors import LARGEST

_FACTORIES = words(
    "arange linspace logspace range zeros ones full eye empty rand randn "
    "hann_window hamming_window blackman_window kaiser_window bartlett_window"
)
_SIZED = words(
    "view reshape expand repeat tile narrow roll split chunk unflatten pad new_zeros new_ones new_full new_empty unfold "
    "interpolate select topk broadcast_to adaptive_avg_pool1d adaptive_avg_pool2d one_hot repeat_interleave tensor_split "
    "tril triu"
)
_LISTS = words("tensor as_tensor")
_BY_SHAPE = words(
    "nonzero argwhere unique unique_consecutive masked_select repeat_interleave bincount one_hot combinations"
)
_BY_TYPE = words("new_zeros new_ones new_full new_tensor type_as to")
BY_FORM = {
    **dict.fromkeys(words("new_zeros new_ones new_full new_tensor zeros_like ones_like full_like"), False),
    **dict.fromkeys(words("fill_ zero_ copy_"), False),
    **dict.fromkeys(words("type_as to expand_as view_as reshape_as"), True),
}
"""Operations that use the form of a tensor, not its values: of the first one (False), or of those after it (True)."""


def stand_in(tensor: torch.Tensor, name: str) -> torch.Tensor | None:
    """A real tensor of the form that the operation ``name`` looks at, or None where that depends on sizes or is large."""
    shape = [] if name in _BY_TYPE else [size for size in tensor.shape if isinstance(size, int)]
    if name not in _BY_TYPE and (len(shape) != tensor.dim() or tensor.numel() > LARGEST):
        return None
    with for_real():
        return torch.zeros(shape, dtype=tensor.dtype, device=tensor.device)


def reads_data_shape(name: str, args: Any) -> bool:
    """Whether the shape of the result depends on values."""
    return name in _BY_SHAPE or (name == "where" and len(args) == 1)


def written_unseen(name: str, args: Any, kwargs: Any) -> list[torch.Tensor]:
    """Tensors that an operation writes to although its schema does not say so: the statistics of a normalisation."""
    if name not in ("batch_norm", "instance_norm"):
        return []
    training = args[5] if len(args) > 5 else kwargs.get("training", kwargs.get("use_input_stats"))
    given = pytree.tree_leaves((args[1:], kwargs)) if training or training is None else []
    return [tensor for tensor in given if isinstance(tensor, torch.Tensor)]


def numbers_for_tensors(
    name: str,
    args: Any,
    kwargs: Any,
    number: Callable[[torch.Tensor], Any],
    positions: Callable[[torch.Tensor], tuple[torch.Tensor, ...] | None],
) -> tuple[Any, Any]:
    """The arguments with known numbers where an operation wants numbers: ``x[:, :n]``, ``torch.arange(n)``.

    ``number`` is what a tensor holds, ``positions`` what a mask selects; both None where it is not known.
    """

    def plain(tensor: torch.Tensor) -> Any:
        value = number(tensor)
        return tensor if value is None else value

    if name in ("__getitem__", "__setitem__"):
        return (args[0], _index(args[1], number, positions if name == "__getitem__" else None), *args[2:]), kwargs
    if name in _LISTS and isinstance(args[0], list | tuple):
        return (pytree.tree_map_only(torch.Tensor, plain, args[0]), *args[1:]), kwargs
    if name in _FACTORIES:
        return pytree.tree_map_only(torch.Tensor, plain, (args, kwargs))  # type: ignore[no-any-return]
    if name in _SIZED and args:
        rest, named = pytree.tree_map_only(torch.Tensor, plain, (args[1:], kwargs))
        return (args[0], *rest), named
    return args, kwargs


def _index(
    index: Any,
    number: Callable[[torch.Tensor], Any],
    positions: Callable[[torch.Tensor], tuple[torch.Tensor, ...] | None] | None,
) -> Any:
    def plain(part: Any) -> Any:
        if not isinstance(part, torch.Tensor) or part.is_floating_point():
            return part
        value = number(part) if part.dtype != torch.bool else None
        return part if value is None else value

    if isinstance(index, slice):
        return slice(plain(index.start), plain(index.stop), plain(index.step))
    if isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8) and index.dim() > 0:
        return (positions(index) if positions else None) or index
    if isinstance(index, torch.Tensor):
        return plain(index)
    if not isinstance(index, tuple):
        return index
    parts: list[Any] = []
    for part in index:
        new = _index(part, number, positions)
        parts += new if isinstance(new, tuple) and isinstance(part, torch.Tensor) else [new]
    return tuple(parts)
