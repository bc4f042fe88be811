"""Binding the example inputs to the signature of ``forward``, before anything runs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxexport.capture.nesting import Leaf, describe, flatten
from fxexport.errors import InputError
from fxexport.signature import Baked, flat_name, show_path, unique_names


@dataclass(frozen=True)
class ExampleCall:
    """One call of ``forward`` with its arguments flattened to leaves.

    Attributes:
        arguments: parameter name -> argument, in the order of the signature.
        leaves: every leaf (tensor or Python value) with its path, in flattening order; then the state, see ``state``.
        names: one flat name for each *tensor* leaf, in order.
        defaults: parameters that were not given and have a default other than None.
        state: buffers that are inputs and outputs of their own (explicit state), by qualified name.
        parameters: name and kind of every parameter of ``forward``, in order.
        left_out: paths of results that are not outputs of the artifact.
        pairs: None where complex tensors go in and out as they are; else they do so as real pairs, and these are the
            positions of those among ``tensors``. See :meth:`with_pairs`.
    """

    arguments: dict[str, Any]
    leaves: list[Leaf]
    names: list[str]
    parameters: tuple[tuple[str, str], ...]
    spec: pytree.TreeSpec = field(repr=False)
    defaults: tuple[Baked, ...] = ()
    state: tuple[str, ...] = ()
    left_out: frozenset[str] = frozenset()
    pairs: frozenset[int] | None = None

    def with_state(self, buffers: Mapping[str, torch.Tensor]) -> ExampleCall:
        """The same call with ``buffers`` (qualified name -> value) as inputs of their own, after the arguments."""
        leaves = [Leaf(("state", name), value.detach().clone()) for name, value in buffers.items()]
        names = unique_names([*self.names, *(flat_name(("input", name)) for name in buffers)])
        return replace(self, leaves=[*self.leaves, *leaves], names=names, state=tuple(buffers))

    def with_pairs(self) -> ExampleCall:
        """The same call for a runtime without complex numbers: complex tensors are real ones with a last axis of 2,
        real and imaginary part; so are complex results of the model that is called with it.
        """
        found = frozenset(i for i, tensor in enumerate(self.tensors) if tensor.is_complex())
        leaves = [Leaf(leaf.path, as_pairs(leaf.value)) if leaf.is_tensor else leaf for leaf in self.leaves]
        return replace(self, leaves=leaves, pairs=found)

    @property
    def tensors(self) -> list[torch.Tensor]:
        """The tensor leaves, in order: the flat inputs of the artifact."""
        return [leaf.value for leaf in self.leaves if leaf.is_tensor]

    @property
    def paths(self) -> list[str]:
        """Where each tensor leaf sits in the arguments, as a reader writes it."""
        return [show_path(leaf.path) for leaf in self.leaves if leaf.is_tensor]

    @property
    def baked(self) -> tuple[Baked, ...]:
        """Python values given for arguments, and defaults (None apart) that were not given: fixed in the artifact."""
        given = [Baked(show_path(leaf.path), repr(leaf.value)) for leaf in self.leaves if not leaf.is_tensor]
        return (*given, *self.defaults)


def as_pairs(tensor: torch.Tensor) -> torch.Tensor:
    """``[...]`` complex -> ``[..., 2]`` real, real and imaginary part; a real tensor as it is."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def bind_example(
    model: nn.Module,
    example_inputs: Any,
    kwargs: Mapping[str, Any] | None,
    *,
    from_hook: bool = False,
    as_input: tuple[str, ...] = (),
) -> ExampleCall:
    """The example as a call of ``model.forward``.

    ``example_inputs`` is a tensor (one argument), a tuple or list (positional arguments; a last dict holds keyword
    arguments where only that reading fits the signature, or where it comes ``from_hook``), or a dict (keyword
    arguments where its keys are parameters, else the one positional argument). ``as_input`` names Python numbers that
    become 0-d tensor inputs instead of being fixed.

    Raises InputError, showing the signature against what was given, when they do not fit.
    """
    signature = forward_signature(model)
    args, keywords = _split(signature, example_inputs, kwargs, from_hook)
    bound = _bind(signature, args, keywords)
    if bound is None:
        raise InputError(_mismatch(signature, args, keywords))
    named = _order(signature, bound)
    leaves, spec = flatten((bound.args, bound.kwargs))
    leaves = _promote(named_leaves(signature, bound, leaves), as_input)
    names = unique_names(flat_name(leaf.path) for leaf in leaves if leaf.is_tensor)
    parameters = tuple((name, parameter.kind.name) for name, parameter in signature.parameters.items())
    defaults = tuple(
        Baked(name, repr(parameter.default))
        for name, parameter in signature.parameters.items()
        if name not in bound.arguments and parameter.default not in (parameter.empty, None)
    )
    return ExampleCall(named, leaves, names, parameters, spec, defaults)


def forward_signature(model: nn.Module) -> inspect.Signature:
    """The signature of ``forward``. Raises InputError where it has none, as builtins."""
    try:
        return inspect.signature(model.forward)
    except (ValueError, TypeError) as error:
        raise InputError(
            f"forward of {type(model).__name__} has no signature to read ({error}); give it one"
        ) from error


def _split(
    signature: inspect.Signature, example: Any, kwargs: Mapping[str, Any] | None, from_hook: bool
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments as the user meant them."""
    explicit = dict(kwargs or {})
    if isinstance(example, torch.Tensor):
        return (example,), explicit
    if isinstance(example, Mapping):
        if kwargs is None and all(isinstance(k, str) for k in example) and _bind(signature, (), dict(example)):
            return (), dict(example)
        return (example,), explicit
    if not isinstance(example, tuple | list):
        raise InputError(
            f"example_inputs must be a tensor, a tuple of arguments or a dict, got {type(example).__name__}"
        )
    args = tuple(example)
    if kwargs is not None or not args or not _could_be_keywords(args[-1]):
        return args, explicit
    as_positional, as_keywords = _bind(signature, args, {}), _bind(signature, args[:-1], dict(args[-1]))
    if as_positional and as_keywords and args[-1] and not from_hook:
        raise InputError(
            f"the last example input, {describe(args[-1])}, can be a positional argument or keyword arguments of "
            f"forward{signature}; say which: kwargs={{}} makes it positional, kwargs={{...}} gives keywords"
        )
    return (args[:-1], dict(args[-1])) if as_keywords else (args, {})


def _could_be_keywords(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _bind(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> inspect.BoundArguments | None:
    try:
        return signature.bind(*args, **kwargs)
    except TypeError:
        return None


def _mismatch(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    try:
        signature.bind(*args, **kwargs)
        reason = ""
    except TypeError as error:
        reason = str(error)
    given = ", ".join([*(describe(a) for a in args), *(f"{k}={describe(v)}" for k, v in kwargs.items())])
    return f"the example inputs do not fit forward: {reason}\n  signature: forward{signature}\n  given:     ({given})"


def _order(signature: inspect.Signature, bound: inspect.BoundArguments) -> dict[str, Any]:
    return {name: bound.arguments[name] for name in signature.parameters if name in bound.arguments}


def _promote(leaves: list[Leaf], as_input: tuple[str, ...]) -> list[Leaf]:
    """Python numbers named in ``as_input`` (by parameter or full path) as 0-d tensors: int64, float32 or bool."""
    wanted = set(as_input)
    promoted = []
    for leaf in leaves:
        names = {str(leaf.path[0]), show_path(leaf.path)}
        if names & wanted and isinstance(leaf.value, bool | int | float):
            wanted -= names
            leaf = Leaf(leaf.path, torch.tensor(leaf.value))
        promoted.append(leaf)
    if wanted:
        numbers = [show_path(leaf.path) for leaf in leaves if isinstance(leaf.value, bool | int | float)]
        raise InputError(f"as_input names {sorted(wanted)}, but the numbers given to forward are {numbers}")
    return promoted


def named_leaves(signature: inspect.Signature, bound: inspect.BoundArguments, leaves: list[Leaf]) -> list[Leaf]:
    """Leaves of ``(args, kwargs)`` with paths that start with the parameter name instead of ``0`` or ``1``."""
    heads: list[tuple[str | int, ...]] = []
    for name, parameter in signature.parameters.items():
        if name not in bound.arguments:
            continue
        if parameter.kind is parameter.VAR_POSITIONAL:
            heads += [(name, i) for i in range(len(bound.arguments[name]))]
        elif parameter.kind not in (parameter.VAR_KEYWORD, parameter.KEYWORD_ONLY):
            heads.append((name,))
    renamed = []
    for leaf in leaves:
        side, key, *rest = leaf.path
        head = heads[int(key)] if side == 0 else (key,)
        renamed.append(Leaf((*head, *rest), leaf.value))
    return renamed
