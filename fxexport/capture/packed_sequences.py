"""Packed sequences as dense tensors with lengths, so that batch and time stay open.

    pack_padded_sequence(x, lengths)  ->  x as it is, and the lengths beside it
    lstm, gru, rnn on the packed data ->  the same layers on dense tensors, one direction at a time:
                                          a backward one reads every sequence reversed within its length
    pad_packed_sequence               ->  the dense result, padding beyond the lengths, cut to the longest

Everything is plain ATen. The model sees ordinary ``PackedSequence`` objects; layers that act on each row of ``.data``
alone may be applied to it, anything that depends on the order or the number of its rows is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from fxexport.capture.packed_layers import Packing, pad, run

_check: Any = torch._check
_CELLS = ("lstm", "gru", "rnn_tanh", "rnn_relu")
# Each row of the result depends on that row alone, whatever order the rows have.
_BY_ROW = {
    *("linear", "embedding", "dropout", "layer_norm", "relu", "tanh", "sigmoid", "gelu", "silu", "leaky_relu", "elu"),
    *("to", "float", "half", "double", "contiguous", "clone", "detach"),
}
_ABOUT_THE_TYPE = {"device", "dtype", "is_cuda", "requires_grad"}


@contextmanager
def dense_packed_sequences(model: nn.Module) -> Iterator[None]:
    """While the block runs, packed sequences that ``model`` makes and reads in its forward are dense tensors.

    ``model`` is a private copy: it and its recurrent layers are given attributes, which are taken away again.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.RNNBase)]
    forward = model.forward

    def forward_densely(*tensors: Tensor) -> Any:
        with _DensePackedSequences() as dense:  # inside the modes of torch.export, which take indexing apart
            try:
                results = forward(*tensors)
            except GuardOnDataDependentSymNode as error:
                dense.explain(error)
                raise
        dense.refuse_as_result(results)
        return results

    model.__dict__["forward"] = forward_densely
    for layer in layers:
        layer.__dict__["check_forward_args"] = _checked_unless_packed(layer.check_forward_args)
    try:
        yield
    finally:
        del model.__dict__["forward"]
        for layer in layers:
            del layer.__dict__["check_forward_args"]


def _checked_unless_packed(check: Callable[..., None]) -> Callable[..., None]:
    """The layer's own check of sizes reads the batch size of packed data as a Python number, which would fix it."""

    def checked(input: Tensor, hidden: Any, batch_sizes: Tensor | None) -> None:
        if batch_sizes is None:
            check(input, hidden, batch_sizes)

    return checked


class _DensePackedSequences(TorchFunctionMode):
    """Answers the functions of PyTorch that make, run and unpack packed sequences."""

    def __init__(self) -> None:
        super().__init__()
        self._packings: dict[int, Packing] = {}
        self._data: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, _name(func)
        if name == "_pack_padded_sequence":
            return self._pack(*args, **kwargs)
        if not self._packings:
            return func(*args, **kwargs)
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        packing = next((self._packings[id(t)] for t in tensors if id(t) in self._packings), None)
        if packing is not None:
            return self._about(packing, name, *args, **kwargs)
        if not any(id(t) in self._data for t in tensors) or name in _ABOUT_THE_TYPE:
            return func(*args, **kwargs)
        if name not in _BY_ROW:
            raise NotImplementedError(
                f"{name} on the data of a PackedSequence depends on the order or number of its rows, which a graph with "
                "open lengths does not have; apply it to the padded tensor, after pad_packed_sequence"
            )
        return self._track(func(*args, **kwargs))

    def explain(self, error: GuardOnDataDependentSymNode) -> None:
        """Raises NotImplementedError where ``error`` is about the number of steps of an unpadded sequence."""
        asked: Any = getattr(error.cond, "free_symbols", ())
        longest = [p.longest.node.expr for p in self._packings.values() if isinstance(p.longest, torch.SymInt)]
        if any(size in asked for size in longest):
            raise NotImplementedError(
                "a decision on the number of steps that pad_packed_sequence gives: it is the longest of the lengths, known "
                "only when the artifact runs, and at most the size of the padded time axis; give that size as total_length "
                "(x.size(1), or x.size(0) where time comes first)"
            ).with_traceback(error.__traceback__) from error

    def refuse_as_result(self, results: Sequence[Tensor]) -> None:
        """Raises NotImplementedError where the data or the batch sizes of a packed sequence are among the results."""
        if any(id(result) in self._data or id(result) in self._packings for result in results):
            raise NotImplementedError(
                "forward returns (a part of) a PackedSequence, whose size depends on the values of the lengths; return "
                "what pad_packed_sequence gives"
            )

    def _track(self, data: Tensor) -> Tensor:
        self._data[id(data)] = data
        return data

    def _pack(self, input: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
        padded = input.transpose(0, 1) if batch_first else input
        _check(lengths.shape[0] == padded.shape[1])
        steps = torch.arange(padded.shape[0], device=input.device).unsqueeze(1)
        batch_sizes = torch.empty(0, dtype=torch.int64, device="cpu")
        self._packings[id(batch_sizes)] = Packing(batch_sizes, steps, lengths.to(input.device), lengths)
        return self._track(padded.flatten(0, 1)), batch_sizes

    def _about(self, packing: Packing, name: str, *args: Any, **kwargs: Any) -> Any:
        if name in _CELLS:
            output, *states = run(packing, name, *args, **kwargs)
            return (self._track(output), *states)
        if name == "_pad_packed_sequence":
            return pad(packing, *args, **kwargs)
        if name in _ABOUT_THE_TYPE:
            return getattr(packing.batch_sizes, name)
        if name == "size" and args[1:] == (0,):
            return packing.longest_length()
        if name == "__getitem__" and isinstance(args[1], int) and args[1] == 0:
            return packing.lengths.shape[0]
        raise NotImplementedError(
            f"{name} on the batch_sizes of a PackedSequence has no form in a graph with open lengths; compute from the "
            "lengths given to pack_padded_sequence"
        )


def _name(func: Any) -> str:
    name = str(getattr(func, "__name__", func))
    return str(func.__self__.__name__) if name == "__get__" else name
